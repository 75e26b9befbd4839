"""The team's indicators from TA-Lib: MACD 12/26/9, RSI, KDJ, CCI, ADX and its directions.

TA-Lib's names, formulas and smoothing (ta-lib.org); what comes out in price units is divided by
ATR 14. Its exponential averages remember their first bar for ever, which WARMUP outlasts.
"""

from __future__ import annotations

import numpy as np
import talib

from macd.app.market.features.candles import Array, Candles
from macd.app.market.features.windows import highest, lag, lowest, ratio


def features(bars: Candles) -> dict[str, Array]:
    """Oscillators of about -1 to 1, MACD in ATR; all 0 on a market that stands still."""
    high, low, close = bars.high, bars.low, bars.close
    atr = talib.ATR(high, low, close, 14)
    line, signal, histogram = talib.MACD(close, 12, 26, 9)
    k, d = _kd(bars)
    up, down = talib.PLUS_DI(high, low, close, 14), talib.MINUS_DI(high, low, close, 14)
    return {
        "macd": _moving(bars, 26, ratio(line, atr)),
        "macd_signal": _moving(bars, 26, ratio(signal, atr)),
        "macd_hist": _moving(bars, 26, ratio(histogram, atr)),
        "macd_hist_change": _moving(bars, 26, ratio(histogram - lag(histogram, 3), atr)),
        "rsi_6": _moving(bars, 6, talib.RSI(close, 6) / 100 - 0.5),
        "rsi_14": _moving(bars, 14, talib.RSI(close, 14) / 100 - 0.5),
        "kdj_k": k,
        "kdj_d": d,
        "kdj_j": 3 * k - 2 * d,
        "cci_20": _moving(bars, 20, talib.CCI(high, low, close, 20) / 100),
        "adx_14": _moving(bars, 14, talib.ADX(high, low, close, 14) / 100),
        "di_14": _moving(bars, 14, (up - down) / 100),
    }


def _kd(bars: Candles) -> tuple[Array, Array]:
    """KDJ 9/3/3: raw stochastic smoothed twice by 1/3, as EMA 5 does (2 / (5 + 1)); -0.5..0.5."""
    low, high = lowest(bars.low, 9), highest(bars.high, 9)
    raw = ratio(bars.close - low, high - low, otherwise=0.5) - 0.5
    k = talib.EMA(raw, 5)
    return k, talib.EMA(k, 5)


def _moving(bars: Candles, n: int, values: Array) -> Array:
    """0 where no price moved for n bars: there TA-Lib divides rounding errors by one another,
    or answers 0, which for RSI would mean "all down".
    """
    still = highest(bars.high, n) == lowest(bars.low, n)
    return np.where(still, 0.0, values)
