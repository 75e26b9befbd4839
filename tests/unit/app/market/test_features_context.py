"""Longer timeframes count when closed; other assets count under the same timestamp."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macd.app.market.bars import read_bars
from macd.app.market.features import WARMUP, compute, feature_names

SAMPLE = Path("data/sample/BTCUSD_1h_2017-2019.parquet")


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return read_bars(SAMPLE)[6_000:7_500]


def closed_longs(bars: pl.DataFrame, hours: int) -> pl.DataFrame:
    """Long bars by polars, under the timestamp of the short bar on whose close they are known."""
    longs = bars.group_by_dynamic("timestamp", every=f"{hours}h").agg(
        pl.col("high").max(), pl.col("low").min(), pl.col("close").last()
    )
    return longs.with_columns(
        known=pl.col("timestamp") + pl.duration(hours=hours - 1),
        ret=(pl.col("close") / pl.col("close").shift(1)).log(),
    )


@pytest.mark.parametrize("hours", [4, 24])
def test_a_long_bar_counts_from_the_close_of_its_last_hour(bars, hours):
    table = compute(bars).join_asof(
        closed_longs(bars, hours), left_on="timestamp", right_on="known", suffix="_long"
    )[WARMUP:]
    np.testing.assert_allclose(table[f"htf{hours}_ret"], table["ret"], rtol=0, atol=1e-12)
    price = table.join(bars, on="timestamp", suffix="_now")["close_now"]
    middle, span = (table["high"] + table["low"]) / 2, table["high"] - table["low"]
    np.testing.assert_allclose(table[f"htf{hours}_place"], (price - middle) / span, atol=1e-9)


def test_a_day_stays_the_same_until_midnight(bars):
    days = (
        compute(bars)[WARMUP:]
        .group_by(
            # the bar that opens at 23:00 closes the day, so it already knows it
            (pl.col("timestamp") + pl.duration(hours=1)).dt.date(),
            maintain_order=True,
        )
        .agg(pl.col("htf24_ret").n_unique())
    )
    assert days["htf24_ret"].max() == 1


def test_with_hours_missing_the_day_is_made_of_those_that_came(bars):
    last_hours = (pl.col("timestamp").dt.hour() >= 20) & (
        pl.col("timestamp").dt.date() == bars["timestamp"][1_000].date()
    )
    gapped = bars.filter(~last_hours)
    table = compute(gapped)
    day = closed_longs(gapped, 24)
    after = gapped.filter(pl.col("timestamp") > bars["timestamp"][1_000].replace(hour=20))
    first = after["timestamp"][0]
    assert first.hour == 0  # until here the unfinished day was not closed
    known = day.filter(pl.col("timestamp").dt.date() == bars["timestamp"][1_000].date())
    value = table.filter(pl.col("timestamp") == first)["htf24_ret"][0]
    assert value == pytest.approx(known["ret"][0], abs=1e-12)


def test_longs_follow_the_timeframe(bars):
    """A series in which only 15-minute timestamps differ: 4 and 24 bars are 1 and 6 hours."""
    times = bars["timestamp"][0] + (bars["timestamp"] - bars["timestamp"][0]) / 4
    start = times.dt.truncate("6h")
    table = compute(bars.with_columns(times.dt.cast_time_unit("ms").alias("timestamp")), tf="15m")
    known = (times + pl.Series([0]).cast(pl.Duration("ms"))).dt.offset_by("15m").dt.truncate("6h")
    changes = pl.DataFrame({"bucket": known, "v": table["htf24_ret"], "start": start})[WARMUP:]
    assert changes.group_by("bucket").agg(pl.col("v").n_unique())["v"].max() == 1
    assert changes["v"].n_unique() > 30


@pytest.fixture(scope="module")
def other(bars: pl.DataFrame) -> pl.DataFrame:
    return read_bars(SAMPLE)[9_000:10_500].with_columns(bars["timestamp"])


def test_cross_columns_follow_the_own_ones_in_order_of_symbols(bars, other):
    table = compute(bars, {"ZED": other, "ABC": other})
    assert (
        tuple(table.columns[1:]) == feature_names(["ZED", "ABC"]) == feature_names(["ABC", "ZED"])
    )
    own = len(feature_names())
    assert table.columns[1 : own + 1] == list(feature_names())
    assert table.columns[own + 1].startswith("x_abc_")
    assert table.columns[-1].startswith("x_zed_")


def test_cross_values(bars, other):
    row = compute(bars, {"ABC": other}).row(-1, named=True)
    ours, theirs = (np.log(f["close"].to_numpy()) for f in (bars, other))
    assert row["x_abc_ret_4"] == pytest.approx(theirs[-1] - theirs[-5])
    lead = (ours[-1] - ours[-25]) - (theirs[-1] - theirs[-25])
    assert row["x_abc_strength_24"] == pytest.approx(lead)
    apart = (ours - theirs)[-72:]
    unit = np.diff((ours - theirs)[-73:]).std() * 72**0.5
    assert row["x_abc_spread_72"] == pytest.approx((apart[-1] - apart.mean()) / unit)


def test_an_asset_beside_itself_has_no_strength(bars):
    table = compute(bars, {"SELF": bars})[WARMUP:]
    for name in (n for n in table.columns if n.startswith("x_self_strength")):
        assert np.abs(table[name].to_numpy()).max() < 1e-12
    np.testing.assert_allclose(table["x_self_ret_1"], table["ret_1"], rtol=0, atol=1e-12)


def test_a_missing_bar_of_the_other_asset_is_nan_and_not_an_older_one(bars, other):
    t = 1_000
    table = compute(bars, {"ABC": pl.concat([other[:t], other[t + 1 :]])})
    cross = [n for n in table.columns if n.startswith("x_abc")]
    values = table.select(cross).to_numpy()
    assert np.isnan(values[t]).all()
    assert np.isfinite(values[WARMUP:t]).all()
    assert np.isfinite(values[t + 169 :]).all()  # it heals
    assert np.isfinite(table.select(feature_names()).to_numpy()[WARMUP:]).all()


def test_an_asset_that_came_later_or_shares_no_bar(bars, other):
    table = compute(bars, {"LATE": other[900:], "NEVER": other[:0]})
    assert np.isnan(table["x_late_ret_1"].to_numpy()[:901]).all()
    assert np.isfinite(table["x_late_ret_1"].to_numpy()[901:]).all()
    assert np.isnan(table["x_never_ret_1"].to_numpy()).all()
