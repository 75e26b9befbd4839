"""Where the price went and how its candles look: returns, trend distance, candle shape."""

from __future__ import annotations

import numpy as np

from macd.market.features.candles import Array, Candles
from macd.market.features.windows import (
    deviation,
    highest,
    lag,
    log_return,
    lowest,
    mean,
    ratio,
    total,
    weighted,
)

LAGS = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168)
TREND = (12, 24, 72, 168, 336)
RANGE = (24, 72, 168)
SEASON_DAYS = 14


def features(bars: Candles) -> dict[str, Array]:
    """Log returns, distances from averages and ranges in deviations, candle proportions."""
    one = log_return(bars.close)
    usual = deviation(one, 168)
    out = {f"ret_{n}": log_return(bars.close, n) for n in LAGS}
    out |= {f"ret_scaled_{n}": ratio(out[f"ret_{n}"], usual * np.sqrt(n)) for n in (1, 6, 24)}
    out |= {f"trend_{n}": _trend(one, usual, n) for n in TREND}
    out |= {f"range_pos_{n}": _position(bars, n) for n in RANGE}
    out |= {f"up_share_{n}": mean(_flag(one, one > 0), n) - 0.5 for n in (12, 24)}
    out |= {f"autocorr_{n}": _autocorrelation(one, n) for n in (24, 72)}
    return out | _season(one, usual) | _candle(bars)


def _trend(one: Array, usual: Array, n: int) -> Array:
    """Log close minus the mean log close of n bars, in deviations: the returns, weighted."""
    weights = np.arange(n) / n  # return k bars ago moved the newest k+1..n closes' mean
    return ratio(weighted(one, weights[1:]), usual * np.sqrt(n))


def _position(bars: Candles, n: int) -> Array:
    """Close between the lowest low and the highest high of n bars, -0.5 to 0.5."""
    low, high = lowest(bars.low, n), highest(bars.high, n)
    return ratio(bars.close - low, high - low, otherwise=0.5) - 0.5


def _flag(known: Array, condition: np.ndarray) -> Array:
    return np.where(np.isnan(known), np.nan, condition.astype(np.float64))


def _autocorrelation(one: Array, n: int) -> Array:
    return ratio(total(one * lag(one, 1), n), total(one * one, n))


def _season(one: Array, usual: Array) -> dict[str, Array]:
    """Mean return of the 5 and 12 bars that followed this hour on each of the last 14 days.

    (Heston, Korajczyk, Sadka: Intraday patterns in the cross-section of stock returns, 2010.)
    """
    out = {}
    for ahead in (5, 12):
        kernel = np.zeros(24 * SEASON_DAYS)
        for day in range(SEASON_DAYS):
            kernel[24 * day : 24 * day + ahead] = 1.0 / SEASON_DAYS
        # kernel[0] weighs the bar 335 bars ago, which is the first after "this hour, 14 days ago"
        out[f"season_{ahead}"] = ratio(weighted(one, kernel), usual * np.sqrt(ahead))
    return out


def _candle(bars: Candles) -> dict[str, Array]:
    span = bars.high - bars.low
    top, bottom = np.maximum(bars.open, bars.close), np.minimum(bars.open, bars.close)
    return {
        "body": ratio(bars.close - bars.open, span),
        "wick_up": ratio(bars.high - top, span),
        "wick_down": ratio(bottom - bars.low, span),
        "close_in_bar": ratio(bars.close - bars.low, span, otherwise=0.5) - 0.5,
        "close_in_bar_6": mean(ratio(bars.close - bars.low, span, otherwise=0.5) - 0.5, 6),
        "span_usual": ratio(span, mean(span, 48), otherwise=1.0),
    }
