"""Features from outside the own bars of one timeframe: longer bars, and other assets.

Only closed long bars and bars of the very same timestamp count, so nothing looks ahead. Timestamps
are epoch milliseconds UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from macd.app.market.features.windows import Array, Candles, deviation, log_return, ratio, weighted

FACTORS = (4, 24)


@dataclass(frozen=True)
class LongBars:
    """Long bars with the time their last moment passes."""

    ends: npt.NDArray[np.int64]
    high: Array
    low: Array
    close: Array


def higher_timeframes(bars: Candles, step: int) -> dict[str, Array]:
    """The newest closed long bar's log return, and where the price is within its range.

    Long bars are FACTORS times as long. They start at multiples of their length since 1970 (UTC):
    with 1h bars, at 00:00, 04:00 ... and at midnight. A long bar counts from the short bar on whose
    close is at or after its end; until then the one before it is the newest. Where short bars are
    missing, the long bar is made of those that came.

    Args:
        bars: N short bars.
        step: length of a short bar in milliseconds.

    Returns:
        Columns htf<factor>_ret (log return) and htf<factor>_place (distance from the middle of the
        range, in ranges), each of shape (N,), without unit; NaN before the first long bar closed.
    """
    out: dict[str, Array] = {}
    for factor in FACTORS:
        longs = gather(bars, step * factor)
        newest = np.searchsorted(longs.ends, bars.time + step, side="right") - 1
        high, low = pick(longs.high, newest), pick(longs.low, newest)
        out[f"htf{factor}_ret"] = pick(log_return(longs.close), newest)
        out[f"htf{factor}_place"] = ratio(bars.close - (high + low) / 2, high - low)
    return out


def gather(bars: Candles, length: int) -> LongBars:
    """Join short bars into long ones of `length` ms, the last and unfinished one included."""
    bucket = bars.time // length
    starts = np.flatnonzero(np.diff(bucket, prepend=bucket[:1] - 1))
    if not len(starts):
        empty = np.empty(0)
        return LongBars(np.empty(0, np.int64), empty, empty, empty)
    last = np.append(starts[1:], len(bars)) - 1
    return LongBars(
        ends=(bucket[starts] + 1) * length,
        high=np.maximum.reduceat(bars.high, starts),
        low=np.minimum.reduceat(bars.low, starts),
        close=bars.close[last],
    )


def pick(values: Array, newest: npt.NDArray[np.int64]) -> Array:
    """The value of the newest closed long bar at each short bar, NaN before the first."""
    padded = np.append(values, np.nan)
    return padded[newest]  # -1, "none yet", finds the NaN at the end


WINDOW = 72


def cross_asset(bars: Candles, other: Candles, symbol: str) -> dict[str, Array]:
    """What another asset does, and how far ours has run ahead of it.

    A bar of the other asset counts only under the very same timestamp; no older bar is put in its
    place. Correlation and beta were tried and cost more than they gave (docs/LOG.md).

    Returns:
        Columns x_<symbol>_...: its log returns over 1, 4 and 24 bars; ours minus its over 24 bars;
        the distance of the log price ratio from its mean of WINDOW bars, in standard deviations.
        Each has shape (N,) for N own bars and no unit; NaN where the other asset lacks a bar, in
        the windows that would contain it too.
    """
    close = _at(bars, other, other.close)
    lead = log_return(bars.close) - log_return(close)
    values = {f"ret_{n}": log_return(close, n) for n in (1, 4, 24)}
    values["strength_24"] = log_return(bars.close, 24) - values["ret_24"]
    values[f"spread_{WINDOW}"] = _spread(lead)
    return {f"x_{symbol.lower()}_{name}": column for name, column in values.items()}


def _at(bars: Candles, other: Candles, values: Array) -> Array:
    """The other asset's values at our timestamps, NaN where it has no such bar."""
    place = np.searchsorted(other.time, bars.time)
    matches = np.append(other.time, -1)[place] == bars.time
    return np.where(matches, np.append(values, np.nan)[place], np.nan)


def _spread(lead: Array) -> Array:
    """Log price ratio minus its mean of 72 bars, in standard deviations of its one-bar changes.

    From the changes, weighted by how many of the averaged closes came before each: no level enters.
    """
    weights = np.arange(1, WINDOW) / WINDOW
    return ratio(weighted(lead, weights), deviation(lead, WINDOW) * np.sqrt(WINDOW))
