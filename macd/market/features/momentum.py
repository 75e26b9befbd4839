"""The team's indicators from TA-Lib: MACD 12/26/9, RSI, KDJ, CCI, ADX, Aroon, Williams, TRIX.

TA-Lib's names, formulas and smoothing (ta-lib.org); what comes out in price units is divided by
ATR 14. Its exponential averages remember their first bar for ever, which WARMUP outlasts.
"""

from __future__ import annotations

import numpy as np
import talib

from macd.market.features.candles import Array, Candles
from macd.market.features.windows import highest, lag, lowest, ratio


def features(bars: Candles) -> dict[str, Array]:
    """Oscillators between -1 and 1 about, distances in ATR; all 0 on a market that stands still."""
    high, low, close = bars.high, bars.low, bars.close
    atr = talib.ATR(high, low, close, 14)
    line, signal, histogram = talib.MACD(close, 12, 26, 9)
    k, d = _kd(bars)
    out = {
        "macd": ratio(line, atr),
        "macd_signal": ratio(signal, atr),
        "macd_hist": ratio(histogram, atr),
        "macd_hist_change": ratio(histogram - lag(histogram, 3), atr),
        **{f"rsi_{n}": _moving(bars, n, talib.RSI(close, n) / 100 - 0.5) for n in (6, 14, 28)},
        "kdj_k": k,
        "kdj_d": d,
        "kdj_j": 3 * k - 2 * d,
        "cci_20": talib.CCI(high, low, close, 20) / 100,
        "adx_14": _moving(bars, 14, talib.ADX(high, low, close, 14) / 100),
        "di_14": _moving(
            bars,
            14,
            (talib.PLUS_DI(high, low, close, 14) - talib.MINUS_DI(high, low, close, 14)) / 100,
        ),
        "aroon_24": talib.AROONOSC(high, low, 24) / 100,
        "aroon_72": talib.AROONOSC(high, low, 72) / 100,
        "trix_15": ratio(talib.TRIX(close, 15) / 100, talib.NATR(high, low, close, 14) / 100),
    }
    out |= {f"ema_{n}": ratio(close - talib.EMA(close, n), atr) for n in (8, 21, 50)}
    return out


def _kd(bars: Candles) -> tuple[Array, Array]:
    """KDJ 9/3/3: raw stochastic smoothed twice by 1/3, as EMA 5 does (2 / (5 + 1)); -0.5..0.5."""
    low, high = lowest(bars.low, 9), highest(bars.high, 9)
    raw = ratio(bars.close - low, high - low, otherwise=0.5) - 0.5
    k = talib.EMA(raw, 5)
    return k, talib.EMA(k, 5)


def _moving(bars: Candles, n: int, values: Array) -> Array:
    """0 where no close moved for n bars: TA-Lib would answer 0, which for RSI means "all down"."""
    still = highest(bars.high, n) == lowest(bars.low, n)
    return np.where(still, 0.0, values)
