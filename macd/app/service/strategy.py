"""The base signal, which needs no model: MACD 12/26/9 with a score for buying and one for selling.

MACD is EMA 12 minus EMA 26 of the close, its signal line EMA 9 of that (Appel, 1979). The scores
are sums of four conditions, 100 at most; models move them by up to ML_WEIGHT points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

FAST, SLOW, SIGNAL = 12, 26, 9
CROSSED, SIDE, RISING, TREND = 50.0, 20.0, 15.0, 15.0
ACT = 60.0  # a score from here on acts, when the other one is smaller
ML_WEIGHT = 30.0


@dataclass(frozen=True)
class Base:
    """macd, signal, hist in units of price; scores from 0 to 100."""

    macd: float
    signal: float
    hist: float
    buy: float
    sell: float


@dataclass(frozen=True)
class Decision:
    """action: BUY, SELL or HOLD."""

    action: str
    buy: float
    sell: float


def base(closes: pl.Series) -> Base:
    """The base signal of the last close; closes oldest first, at least two."""
    macd = _ema(closes, FAST) - _ema(closes, SLOW)
    signal = _ema(macd, SIGNAL)
    hist = macd - signal
    now, before = float(hist[-1]), float(hist[-2])
    level = float(macd[-1])
    buy = (
        CROSSED * (before <= 0 < now)
        + SIDE * (now > 0)
        + RISING * (now > before)
        + TREND * (level > 0)
    )
    sell = (
        CROSSED * (now < 0 <= before)
        + SIDE * (now < 0)
        + RISING * (now < before)
        + TREND * (level < 0)
    )
    return Base(level, float(signal[-1]), now, buy, sell)


def decide(signal: Base, p_up: float | None) -> Decision:
    """The action, with the models' probability of "up" where there is one.

    Half a probability changes nothing; 1 moves ML_WEIGHT points from selling to buying.
    """
    tilt = ML_WEIGHT * (2.0 * p_up - 1.0) if p_up is not None and math.isfinite(p_up) else 0.0
    buy = min(100.0, max(0.0, signal.buy + tilt))
    sell = min(100.0, max(0.0, signal.sell - tilt))
    if buy >= ACT and buy > sell:
        return Decision("BUY", buy, sell)
    if sell >= ACT and sell > buy:
        return Decision("SELL", buy, sell)
    return Decision("HOLD", buy, sell)


def _ema(values: pl.Series, span: int) -> pl.Series:
    return values.ewm_mean(span=span, adjust=False)
