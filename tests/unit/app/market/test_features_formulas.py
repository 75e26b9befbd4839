"""Features against formulas written the slow way, so that a wrong window or sign is seen."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macd.app.market.bars import read_bars
from macd.app.market.features import compute

SAMPLE = Path("data/sample/BTCUSD_1h_2017-2019.parquet")


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return read_bars(SAMPLE)[9_000:10_500]


@pytest.fixture(scope="module")
def row(bars: pl.DataFrame) -> dict[str, float]:
    return compute(bars).row(-1, named=True)


@pytest.fixture(scope="module")
def past(bars: pl.DataFrame) -> dict[str, np.ndarray]:
    """Columns as arrays; past["close"][-1] is the bar the features belong to."""
    return {name: bars[name].to_numpy() for name in ("open", "high", "low", "close", "volume")}


def ema(x: np.ndarray, span: int) -> np.ndarray:
    out = np.empty(len(x))
    out[0] = x[0]
    for i in range(1, len(x)):
        out[i] = out[i - 1] + 2 / (span + 1) * (x[i] - out[i - 1])
    return out


def wilder(x: np.ndarray, n: int) -> np.ndarray:
    out = np.empty(len(x))
    out[0] = x[0]
    for i in range(1, len(x)):
        out[i] = out[i - 1] + (x[i] - out[i - 1]) / n
    return out


def true_range(past: dict[str, np.ndarray]) -> np.ndarray:
    before = past["close"][:-1]
    high, low = past["high"][1:], past["low"][1:]
    return np.maximum(high, before) - np.minimum(low, before)


def test_returns_and_path(row, past):
    logs = np.log(past["close"])
    usual = np.diff(logs)[-168:].std()
    for n in (1, 5 - 1, 12, 168):
        assert row[f"ret_{n}"] == pytest.approx(logs[-1] - logs[-1 - n], abs=1e-12)
    assert row["ret_scaled_6"] == pytest.approx((logs[-1] - logs[-7]) / usual / 6**0.5)
    assert row["lag_3"] == pytest.approx((logs[-4] - logs[-5]) / np.diff(logs)[-168:].std())
    assert row["path_8"] == pytest.approx((logs[-9] - logs[-13]) / usual / 2)
    assert row["path_44"] == pytest.approx((logs[-45] - logs[-49]) / usual / 2)


def test_yesterday_is_what_followed_this_hour_a_day_ago(row, past):
    logs = np.log(past["close"])
    usual = np.diff(logs)[-168:].std()
    then = len(logs) - 1 - 24  # the same hour yesterday; its next 5 bars:
    assert row["yesterday_5"] == pytest.approx((logs[then + 5] - logs[then]) / usual / 5**0.5)
    assert row["yesterday_1"] == pytest.approx((logs[then + 1] - logs[then]) / usual)


def test_candle(row, past):
    o, h, low, c = (past[k][-1] for k in ("open", "high", "low", "close"))
    assert row["body"] == pytest.approx((c - o) / (h - low))
    assert row["wick_up"] + abs(row["body"]) + row["wick_down"] == pytest.approx(1)
    assert row["close_in_bar"] == pytest.approx((c - low) / (h - low) - 0.5)
    spans = np.log(past["high"] / past["low"])
    assert row["span_2"] == pytest.approx(spans[-3] / spans[-168:].mean())


def test_macd_in_units_of_atr(row, past):
    line = ema(past["close"], 12) - ema(past["close"], 26)
    signal = ema(line, 9)
    atr = wilder(true_range(past), 14)[-1]
    assert row["macd"] == pytest.approx(line[-1] / atr, abs=1e-9)
    assert row["macd_signal"] == pytest.approx(signal[-1] / atr, abs=1e-9)
    assert row["macd_hist"] == pytest.approx((line[-1] - signal[-1]) / atr, abs=1e-9)
    change = (line - signal)[-1] - (line - signal)[-4]
    assert row["macd_hist_change"] == pytest.approx(change / atr, abs=1e-9)


def test_rsi_is_wilders(row, past):
    steps = np.diff(past["close"])
    up, down = wilder(np.maximum(steps, 0), 14)[-1], wilder(np.maximum(-steps, 0), 14)[-1]
    assert row["rsi_14"] == pytest.approx(up / (up + down) - 0.5, abs=1e-9)


def test_kdj_is_two_thirds_old_one_third_new(row, past):
    k = d = 0.0
    for i in range(8, len(past["close"])):
        low, high = past["low"][i - 8 : i + 1].min(), past["high"][i - 8 : i + 1].max()
        raw = (past["close"][i] - low) / (high - low) - 0.5 if high > low else 0.0
        k = 2 / 3 * k + raw / 3
        d = 2 / 3 * d + k / 3
    assert row["kdj_k"] == pytest.approx(k, abs=1e-9)
    assert row["kdj_d"] == pytest.approx(d, abs=1e-9)
    assert row["kdj_j"] == pytest.approx(3 * k - 2 * d, abs=1e-9)


def test_cci_and_adx(row, past):
    typical = ((past["high"] + past["low"] + past["close"]) / 3)[-20:]
    spread = np.abs(typical - typical.mean()).mean()
    assert row["cci_20"] == pytest.approx((typical[-1] - typical.mean()) / (1.5 * spread))
    up, down = np.diff(past["high"]), -np.diff(past["low"])
    plus = wilder(np.where((up > down) & (up > 0), up, 0.0), 14)
    minus = wilder(np.where((down > up) & (down > 0), down, 0.0), 14)
    tr = wilder(true_range(past), 14)
    assert row["di_14"] == pytest.approx((plus[-1] - minus[-1]) / tr[-1], abs=1e-9)
    moved = plus + minus
    index = np.divide(np.abs(plus - minus), moved, out=np.zeros(len(moved)), where=moved > 0)
    assert row["adx_14"] == pytest.approx(wilder(index, 14)[-1], abs=1e-9)


def test_bollinger_place(row, past):
    window = past["close"][-20:]
    assert row["bb_place"] == pytest.approx((window[-1] - window.mean()) / (4 * window.std()))


def test_volume(row, past):
    v = past["volume"]
    side = np.sign(np.diff(past["close"]))
    assert row["volume_z_24"] == pytest.approx((v[-1] - v[-24:].mean()) / v[-24:].std())
    assert row["volume_6_72"] == pytest.approx(np.log(v[-6:].mean() / v[-72:].mean()))
    assert row["obv_24"] == pytest.approx((side[-24:] * v[-24:]).sum() / v[-24:].sum())
    h, low, c = (past[k][-12:] for k in ("high", "low", "close"))
    flow = (2 * c - h - low) / np.where(h > low, h - low, 1.0) * v[-12:]
    assert row["cmf_12"] == pytest.approx(flow.sum() / v[-12:].sum())


def test_volatility(row, past):
    one = np.diff(np.log(past["close"]))
    day, week = (one[-24:] ** 2).mean() ** 0.5, (one[-168:] ** 2).mean() ** 0.5
    assert row["vol_24_168"] == pytest.approx(np.log(day / week))
    size = np.abs(one)[-168:]
    assert row["vol_z_168"] == pytest.approx((size[-1] - size.mean()) / size.std())
    atr = wilder(true_range(past), 14) / past["close"][1:]
    assert row["atr_14_48"] == pytest.approx(np.log(atr[-1] / atr[-48:].mean()), abs=1e-9)


def test_the_clock_is_utc_and_weeks_start_on_monday(bars):
    table = compute(bars).with_columns(
        hour=pl.col("timestamp").dt.hour(), weekday=pl.col("timestamp").dt.weekday()
    )[-168:]
    midnight = table.filter((pl.col("hour") == 0) & (pl.col("weekday") == 1)).row(0, named=True)
    assert (midnight["week_sin"], midnight["week_cos"]) == (0.0, 1.0)
    six = table.filter(pl.col("hour") == 6).row(0, named=True)
    assert six["hour_sin"] == pytest.approx(1.0)
    assert six["half_day_cos"] == pytest.approx(-1.0)
    thursday_noon = table.filter((pl.col("hour") == 12) & (pl.col("weekday") == 4))
    assert thursday_noon["week_cos"][0] == pytest.approx(-1.0)
