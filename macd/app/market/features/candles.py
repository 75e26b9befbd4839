"""Bars as plain arrays, checked once, so that every family of features can trust them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from macd.errors import MacdError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candles:
    """Bars in time order: `time` is the bar's open in milliseconds UTC, the rest float64."""

    time: npt.NDArray[np.int64]
    open: Array
    high: Array
    low: Array
    close: Array
    volume: Array

    def __len__(self) -> int:
        return len(self.time)


def candles(bars: pl.DataFrame, *, whose: str = "the bars") -> Candles:
    """Take the columns out of a canonical frame.

    Raises MacdError when time does not rise from row to row, a price is not a positive number, or
    a volume is negative: one such row would spread through every average after it.
    """
    time = bars["timestamp"].dt.epoch("ms").to_numpy()
    if np.any(np.diff(time) <= 0):
        raise _unfit(whose, "timestamps repeat or run backwards", int(np.diff(time).argmin()) + 1)
    columns = {
        name: bars[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        for name in ("open", "high", "low", "close", "volume")
    }
    for name, values in columns.items():
        good = np.isfinite(values) & (values >= 0 if name == "volume" else values > 0)
        if not good.all():
            raise _unfit(whose, f"{name} is not a usable number", int(good.argmin()))
    return Candles(time, **columns)


def _unfit(whose: str, why: str, row: int) -> MacdError:
    return MacdError(
        f"no features can be computed from {whose}",
        why=f"{why} (row {row})",
        hint="invoke data.verify names every such row",
    )
