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

from macd.market.features.candles import Array, Candles
from macd.market.features.windows import (
    deviation,
    highest,
    log_return,
    lowest,
    mean,
    ratio,
    total,
    weighted,
)

FACTORS = (4, 24)


@dataclass(frozen=True)
class LongBars:
    """Long bars with the time their last moment passes."""

    ends: npt.NDArray[np.int64]
    high: Array
    low: Array
    close: Array
    volume: Array


def features(bars: Candles, step: int) -> dict[str, Array]:
    """Returns, trend, strength, place and volume of closed long bars. `step`: ms of a short bar."""
    out: dict[str, Array] = {}
    for factor in FACTORS:
        longs = gather(bars, step * factor)
        newest = np.searchsorted(longs.ends, bars.time + step, side="right") - 1
        for name, values in _of_long_bars(longs).items():
            out[f"htf{factor}_{name}"] = pick(values, newest)
        out |= _against_newest(bars, longs, newest, f"htf{factor}")
    return out


def gather(bars: Candles, length: int) -> LongBars:
    """Join short bars into long ones of `length` ms, the last and unfinished one included."""
    bucket = bars.time // length
    starts = np.flatnonzero(np.diff(bucket, prepend=bucket[:1] - 1))
    if not len(starts):
        empty = np.empty(0)
        return LongBars(np.empty(0, np.int64), empty, empty, empty, empty)
    last = np.append(starts[1:], len(bars)) - 1
    return LongBars(
        ends=(bucket[starts] + 1) * length,
        high=np.maximum.reduceat(bars.high, starts),
        low=np.minimum.reduceat(bars.low, starts),
        close=bars.close[last],
        volume=np.add.reduceat(bars.volume, starts),
    )


def pick(values: Array, newest: npt.NDArray[np.int64]) -> Array:
    """The value of the newest closed long bar at each short bar, NaN before the first."""
    padded = np.append(values, np.nan)
    return padded[newest]  # -1, "none yet", finds the NaN at the end


def _of_long_bars(longs: LongBars) -> dict[str, Array]:
    one = log_return(longs.close)
    usual = deviation(one, 14)
    n = 14
    gain = total(np.where(one > 0, one, np.where(np.isnan(one), np.nan, 0.0)), n)
    return {
        "ret_1": one,
        "ret_3": log_return(longs.close, 3),
        "ret_7": log_return(longs.close, 7),
        "trend_14": ratio(weighted(one, np.arange(1, n) / n), usual * np.sqrt(n)),
        # RSI with plain sums (Cutler): Wilder's would need hundreds of long bars to settle
        "rsi_14": ratio(gain, total(np.abs(one), n), otherwise=0.5) - 0.5,
        "range_pos_14": ratio(
            longs.close - lowest(longs.low, n),
            highest(longs.high, n) - lowest(longs.low, n),
            otherwise=0.5,
        )
        - 0.5,
        "volume_14": np.log(
            np.maximum(ratio(longs.volume, mean(longs.volume, n), otherwise=1.0), 0.01)
        ),
    }


def _against_newest(
    bars: Candles, longs: LongBars, newest: npt.NDArray[np.int64], prefix: str
) -> dict[str, Array]:
    """Where the running price stands against the newest closed long bar's range."""
    high, low = pick(longs.high, newest), pick(longs.low, newest)
    return {f"{prefix}_place": ratio(bars.close - (high + low) / 2, high - low)}
