"""The same market in bars 4 and 24 times as long, of which only closed ones are looked at.

Long bars start at multiples of their length since 1970 (UTC): with 1h bars, at 00:00, 04:00 ...
and at midnight. A long bar counts from the short bar on whose close is at or after its end; until
then the one before it is the newest. Where short bars are missing, the long bar is made of those
that came.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from macd.app.market.features.candles import Array, Candles
from macd.app.market.features.windows import log_return, ratio

FACTORS = (4, 24)


@dataclass(frozen=True)
class LongBars:
    """Long bars with the time their last moment passes."""

    ends: npt.NDArray[np.int64]
    high: Array
    low: Array
    close: Array


def features(bars: Candles, step: int) -> dict[str, Array]:
    """The newest closed long bar's return, and where the price stands against its range.

    `step`: milliseconds of a short bar.
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
