"""How wild the market is and whether that is changing: ranges, deviations, regimes, bands."""

from __future__ import annotations

import numpy as np
import talib

from macd.market.features.candles import Array, Candles
from macd.market.features.windows import deviation, lag, log_return, mean, ratio, total, zscore

WINDOWS = (6, 24, 72, 168)


def features(bars: Candles) -> dict[str, Array]:
    """Deviations of one-bar returns, their ratios, ATR, Parkinson range, Bollinger 20/2, skew."""
    one = log_return(bars.close)
    squared = one * one
    sigma = {n: np.sqrt(mean(squared, n)) for n in WINDOWS}
    span = np.log(bars.high / bars.low)
    out = {f"vol_{n}": sigma[n] for n in WINDOWS}
    out["vol_6_24"] = _log(ratio(sigma[6], sigma[24], otherwise=1.0))
    out["vol_24_168"] = _log(ratio(sigma[24], sigma[168], otherwise=1.0))
    out["vol_z_168"] = zscore(np.abs(one), 168)
    out["vol_of_vol_72"] = ratio(deviation(np.abs(one), 72), mean(np.abs(one), 72))
    out["atr_14"] = talib.NATR(bars.high, bars.low, bars.close, 14) / 100
    # Parkinson, The extreme value method for estimating the variance of the rate of return, 1980
    out["parkinson_24"] = np.sqrt(mean(span * span, 24) / (4 * np.log(2)))
    out["range_to_close_vol_24"] = ratio(out["parkinson_24"], sigma[24], otherwise=1.0)
    out["down_share_24"] = ratio(
        total(np.where(one > 0, 0.0, squared), 24), total(squared, 24), 0.5
    )
    out["down_share_72"] = ratio(
        total(np.where(one > 0, 0.0, squared), 72), total(squared, 72), 0.5
    )
    out["skew_72"] = ratio(mean(one * squared, 72), sigma[72] ** 3)
    return out | _bollinger(bars.close)


def _bollinger(close: Array, n: int = 20) -> dict[str, Array]:
    """Bollinger 20/2: place between the bands (-0.5 to 0.5 inside) and width over the middle.

    Deviations are taken from the oldest close of each window: on raw prices the difference of two
    large squares would lose the digits that make stream and batch equal.
    """
    anchored = np.full((len(close), n), np.nan)
    if len(close) >= n:
        windows = np.lib.stride_tricks.sliding_window_view(close, n)
        anchored[n - 1 :] = windows / windows[:, :1] - 1.0
    middle = anchored.mean(axis=1)
    spread = anchored.std(axis=1)
    spread = np.where(spread < 1e-12, 0.0, spread)
    return {
        "bb_place": ratio(anchored[:, -1] - middle, 4 * spread),
        "bb_width": 4 * spread / (1.0 + middle),
        "bb_squeeze": _log(ratio(spread, mean(spread, 120), otherwise=1.0)),
        "bb_place_change": ratio(anchored[:, -1] - middle, 4 * spread)
        - lag(ratio(anchored[:, -1] - middle, 4 * spread), 3),
    }


def _log(x: Array) -> Array:
    return np.log(np.maximum(x, 0.01))
