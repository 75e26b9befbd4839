"""Leaks put into features on purpose, each caught by structure: the guards must be able to fail."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macd.app.market.audit import Violation, causality_violations, cut_points
from macd.app.market.bars import read_bars
from macd.app.market.features import compute, families
from macd.app.market.features.windows import Candles
from macd.errors import UsageError

SAMPLE = Path("data/sample/BTCUSD_1h_2017-2019.parquet")


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return read_bars(SAMPLE)[6_000:7_500]


@pytest.fixture(scope="module")
def rows(bars: pl.DataFrame) -> list[int]:
    return cut_points(len(bars), first=500)


def columns(violations: list[Violation]) -> set[str]:
    return {violation.column for violation in violations}


def test_without_a_leak_nothing_is_found(bars, rows):
    assert causality_violations(compute, bars, rows) == []


def test_mutant_a_longer_timeframe_that_looks_ahead(bars, rows, monkeypatch):
    """The running day is used from its first hour on, as a plain join by date would do."""
    honest = families.gather

    def ahead(candles: Candles, length: int) -> families.LongBars:
        longs = honest(candles, length)
        return families.LongBars(longs.ends - length, longs.high, longs.low, longs.close)

    monkeypatch.setattr(families, "gather", ahead)
    violations = causality_violations(compute, bars, rows)
    assert columns(violations) == {"htf4_ret", "htf4_place", "htf24_ret", "htf24_place"}
    assert "when later bars do not exist yet" in str(violations[0])


def test_mutant_a_longer_timeframe_one_bar_too_early(bars, rows, monkeypatch):
    honest = families.gather

    def early(candles: Candles, length: int) -> families.LongBars:
        longs = honest(candles, length)
        return families.LongBars(longs.ends - 1, longs.high, longs.low, longs.close)

    def much_too_early(candles: Candles, length: int) -> families.LongBars:
        longs = honest(candles, length)
        hour = 3_600_000
        return families.LongBars(longs.ends - hour, longs.high, longs.low, longs.close)

    everywhere = range(600, 625)
    monkeypatch.setattr(families, "gather", early)
    assert causality_violations(compute, bars, everywhere) == []  # a millisecond opens nothing
    monkeypatch.setattr(families, "gather", much_too_early)
    assert columns(causality_violations(compute, bars, everywhere)) >= {"htf4_ret", "htf24_ret"}


def test_mutant_scaled_over_all_bars(bars, rows):
    def scaled(frame, assets):
        table = compute(frame, assets)
        column = pl.col("rsi_14")
        return table.with_columns((column - column.drop_nans().mean()) / column.drop_nans().std())

    assert columns(causality_violations(scaled, bars, rows)) == {"rsi_14"}


def test_mutant_a_centred_window(bars, rows, monkeypatch):
    honest = families.volatility

    def centred(candles: Candles):
        out = honest(candles)
        return out | {"bb_place": np.append(out["bb_place"][1:], 0.0)}

    monkeypatch.setattr(families, "volatility", centred)
    assert columns(causality_violations(compute, bars, rows)) == {"bb_place"}


def test_mutant_the_next_bar_of_another_asset(bars, rows, monkeypatch):
    """A hole filled with the bar that came after it: seen only where the hole is."""

    def next_bar(own: Candles, other: Candles, values):
        place = np.minimum(np.searchsorted(other.time, own.time), len(other.time) - 1)
        return values[place]

    t = rows[2]
    assets = {"OTHER": pl.concat([bars[:t], bars[t + 1 :]])}
    assert causality_violations(compute, bars, rows, cross=assets) == []
    monkeypatch.setattr(families, "_at", next_bar)
    violations = causality_violations(compute, bars, rows, cross=assets)
    assert {violation.row for violation in violations} == {t}
    assert all(name.startswith("x_other") for name in columns(violations))


def test_a_value_known_only_later_is_a_violation(bars, rows):
    def back_filled(frame, assets):
        known = pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(None).otherwise(1.0)
        return frame.select("timestamp", pl.lit(0.5).alias("fine"), known.alias("late"))

    assert columns(causality_violations(back_filled, bars, rows)) == {"late"}


def test_rows_that_prove_nothing_are_refused(bars):
    with pytest.raises(UsageError, match="no features yet"):
        causality_violations(compute, bars, [100])
    with pytest.raises(UsageError, match="too few"):
        cut_points(600, first=500)
