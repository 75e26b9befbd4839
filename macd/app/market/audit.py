"""Prove that features do not look ahead: cut the future off and see whether anything changes.

Structure, not score: a longer timeframe used before it closed or a mean over all bars may move an
AUC by less than chance does, but it cannot survive the loss of the bars it peeks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from macd.errors import UsageError

Compute = Callable[[pl.DataFrame, Mapping[str, pl.DataFrame]], pl.DataFrame]

NO_ASSETS: Mapping[str, pl.DataFrame] = {}


@dataclass(frozen=True)
class Violation:
    """One value that changes when the bars after its row are taken away."""

    column: str
    row: int
    with_future: float
    without: float

    def __str__(self) -> str:
        return (
            f"{self.column} at row {self.row} is {self.with_future:.6g}, "
            f"but {self.without:.6g} when later bars do not exist yet"
        )


def causality_violations(
    compute: Compute,
    bars: pl.DataFrame,
    rows: Iterable[int],
    *,
    cross: Mapping[str, pl.DataFrame] = NO_ASSETS,
    tolerance: float = 1e-12,
) -> list[Violation]:
    """Compare `compute(bars, cross)` at each row with the same on bars that end at that row.

    Other assets are cut at the same timestamp. Costs one computation per row, so take few rows: see
    `cut_points`.

    Args:
        compute: gives one row per bar, a `timestamp` column and columns of numbers.
        bars: canonical bars, oldest first.
        rows: positions in `bars` to cut after.
        cross: bars of other assets, by symbol.
        tolerance: largest difference, relative above 1, else absolute; NaN equals NaN.

    Raises:
        UsageError: a row has no value to compare, which would prove nothing.
    """
    whole = compute(bars, cross)
    names = [name for name in whole.columns if name != "timestamp"]
    violations = []
    for row in rows:
        now = bars["timestamp"][row]
        past = {symbol: f.filter(pl.col("timestamp") <= now) for symbol, f in cross.items()}
        with_future = _numbers(whole, names, row)
        without = _numbers(compute(bars[: row + 1], past), names, -1)
        if np.isnan(with_future).all():
            raise UsageError(f"row {row} has no features yet", why="warm-up rows prove nothing")
        allowed = tolerance * np.maximum(1.0, np.abs(with_future))
        same = np.isnan(with_future) & np.isnan(without)
        for i in np.flatnonzero(~(same | (np.abs(with_future - without) <= allowed))):
            violations.append(Violation(names[i], row, float(with_future[i]), float(without[i])))
    return violations


def cut_points(n: int, *, first: int, count: int = 6) -> list[int]:
    """Rows spread over [first, n - 48), each at another time of day and place in a 4-bar block.

    A longer bar that looks ahead is only seen in the middle of it, so rows one day apart won't do.
    """
    last = n - 48
    if count < 1 or last - first < 24 * count:
        raise UsageError(f"{n} bars are too few for {count} cuts after row {first}")
    spread = np.linspace(first, last - 24, count).astype(int)
    return [int(row) + (7 * i - int(row)) % 24 for i, row in enumerate(spread)]


def _numbers(table: pl.DataFrame, names: list[str], row: int) -> np.ndarray:
    values = table.select(names).row(row)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
