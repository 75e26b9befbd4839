"""No feature knows the future, and the live service's short memory gives training's values."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macd.app.market.audit import causality_violations, cut_points
from macd.app.market.bars import read_bars
from macd.app.market.features import WARMUP, bars_needed, compute, feature_names, latest
from macd.errors import MacdError

SAMPLE = Path("data/sample/BTCUSD_1h_2017-2019.parquet")


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return read_bars(SAMPLE)[6_000:9_000]


@pytest.fixture(scope="module")
def cross(bars: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Another asset made of later bars of the sample, with a hole and a late start."""
    other = read_bars(SAMPLE)[9_000:12_000].with_columns(bars["timestamp"])
    return {"OTHER": pl.concat([other[100:1_700], other[1_703:]])}


def matrix(table: pl.DataFrame) -> np.ndarray:
    return table.drop("timestamp").to_numpy()


def test_cut_off_bars_give_every_feature_to_the_last_bit(bars, cross):
    rows = cut_points(len(bars), first=WARMUP, count=12)
    assert {row % 24 for row in rows} == {7 * i % 24 for i in range(12)}
    assert causality_violations(compute, bars, rows, cross=cross, tolerance=1e-12) == []


def test_each_hour_of_a_day_is_causal(bars):
    """Longer timeframes change their mind at bucket ends: look at every place in the day."""
    rows = range(WARMUP + 100, WARMUP + 100 + 25)
    assert causality_violations(compute, bars[:800], rows, tolerance=1e-12) == []


def test_a_future_of_any_kind_changes_nothing(bars, cross):
    """The bars after t replaced by a crash, in both assets, instead of cut off."""
    t = 1_530
    after = pl.int_range(pl.len()) > t
    crash = [
        pl.when(after).then(pl.col(n) * 0.01).otherwise(pl.col(n)).alias(n)
        for n in ("open", "high", "low", "close", "volume")
    ]
    late = pl.col("timestamp") > bars["timestamp"][t]
    crossed = {
        name: f.with_columns(pl.when(late).then(pl.col("close") * 9).otherwise(pl.col("close")))
        for name, f in cross.items()
    }
    expected, got = compute(bars, cross), compute(bars.with_columns(crash), crossed)
    np.testing.assert_array_equal(matrix(expected)[: t + 1], matrix(got)[: t + 1])
    assert not np.array_equal(matrix(expected)[t + 1], matrix(got)[t + 1])


def test_a_stream_of_single_bars_gives_the_batch(bars, cross):
    batch = compute(bars, cross)
    for t in np.random.default_rng(7).integers(WARMUP - 1, len(bars), 60).tolist():
        live = latest(
            bars[: t + 1],
            {n: f.filter(pl.col("timestamp") <= bars["timestamp"][t]) for n, f in cross.items()},
        )
        assert live["timestamp"][0] == bars["timestamp"][t]
        np.testing.assert_allclose(matrix(live)[0], matrix(batch)[t], rtol=1e-9, atol=1e-9)


def test_warmup_has_digits_to_spare_even_after_a_crash(bars):
    """The first bars, which training saw and the stream did not, fifty times as high."""
    high = pl.when(pl.int_range(pl.len()) < 300).then(50.0).otherwise(1.0)
    crashed = bars.with_columns(pl.col("open", "high", "low", "close") * high)
    batch = compute(crashed)
    t = 300 + WARMUP - 1
    live = latest(crashed[: t + 1])
    np.testing.assert_allclose(matrix(live)[0], matrix(batch)[t], rtol=1e-9, atol=1e-9)


def test_windows_for_the_nets_come_in_one_call(bars):
    got = latest(bars[:1_000], rows=48)
    assert got["timestamp"].equals(bars["timestamp"][952:1_000])
    np.testing.assert_allclose(matrix(got), matrix(compute(bars))[952:1_000], rtol=1e-9, atol=1e-9)


def test_too_short_a_memory_is_refused_not_guessed(bars):
    assert bars_needed() == WARMUP
    latest(bars[:WARMUP])
    with pytest.raises(MacdError, match="too few"):
        latest(bars[: WARMUP - 1])
    with pytest.raises(MacdError, match="too few"):
        latest(bars[: WARMUP + 10], rows=48)


def test_a_gap_in_memory_streams_like_the_batch(bars):
    gapped = pl.concat([bars[:1_200], bars[1_231:]])
    batch = compute(gapped)
    for t in (1_199, 1_200, 1_201, 1_223, 1_230, 1_500):
        live = latest(gapped[: t + 1])
        np.testing.assert_allclose(matrix(live)[0], matrix(batch)[t], rtol=1e-9, atol=1e-9)
    assert causality_violations(compute, gapped, [1_199, 1_200, 1_205, 1_223]) == []
    assert len(feature_names()) == batch.width - 1
