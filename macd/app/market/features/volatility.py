"""How wild the market is against its own past: regimes, ATR, place between Bollinger's bands.

Only ratios: a level of volatility names the month it was seen in, and trees learn the month
(docs/LOG.md has what that cost).
"""

from __future__ import annotations

import numpy as np
import talib

from macd.app.market.features.candles import Array, Candles
from macd.app.market.features.windows import log_ratio, log_return, mean, ratio, zscore


def features(bars: Candles) -> dict[str, Array]:
    """Deviation of one-bar returns against a week's, ATR against two days', Bollinger 20/2."""
    one = log_return(bars.close)
    atr = talib.NATR(bars.high, bars.low, bars.close, 14)
    return {
        "vol_24_168": log_ratio(mean(one * one, 24), mean(one * one, 168)) / 2,
        "vol_z_168": zscore(np.abs(one), 168),
        "atr_14_48": log_ratio(atr, mean(atr, 48)),
        "bb_place": _bollinger_place(bars.close),
    }


def _bollinger_place(close: Array, n: int = 20) -> Array:
    """Distance from the mean of n closes over the width of Bollinger's bands; inside, -0.5 to 0.5.

    Closes are taken relative to the oldest of each window: with raw prices the variance is a small
    difference of large squares, and the digits that make stream and batch equal are lost.
    """
    relative = np.full((len(close), n), np.nan)
    if len(close) >= n:
        windows = np.lib.stride_tricks.sliding_window_view(close, n)
        relative[n - 1 :] = windows / windows[:, :1] - 1.0
    spread = relative.std(axis=1)
    lost = np.where(spread < 1e-12, 0.0, spread)
    return ratio(relative[:, -1] - relative.mean(axis=1), 4 * lost)
