"""The formulas by family: price, momentum, volatility, volume, clock, longer bars, other assets.

Each function takes N bars and returns columns by name, each float64 of shape (N,), without unit,
and NaN until its windows are full. The value at row t uses bars up to and including t.
docs/features.md has every formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import talib

from macd.app.market.features.windows import (
    Array,
    Candles,
    deviation,
    highest,
    lag,
    log_ratio,
    log_return,
    lowest,
    mean,
    ratio,
    total,
    weighted,
    zscore,
)

TO_NOW = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168)
SINGLE = (1, 2, 3, 4, 5, 6)
BLOCK, BLOCKS = 4, 12
NEXT = (1, 2, 3, 5, 8, 12)
SPANS = 6
FACTORS = (4, 24)  # of bars in a long bar
WINDOW = 72  # bars of the spread between two assets
USUAL = 168  # bars whose standard deviation of one-bar returns is the unit of "scaled"


def price(bars: Candles) -> dict[str, Array]:
    """Where the price came from: log returns, plain and scaled; the path of two days; candles.

    "Scaled" is in standard deviations of the last USUAL one-bar returns. The path was worth most on
    real bars (docs/LOG.md): single returns and blocks of four bars side by side over 48 bars say
    when something happened, which returns to now can't.
    """
    returns = log_return(bars.close)
    usual = deviation(returns, USUAL)

    def scaled(n: int, ago: int = 0) -> Array:
        """The log return of the n bars that ended `ago` bars ago, in standard deviations."""
        return ratio(lag(log_return(bars.close, n), ago), usual * np.sqrt(n))

    out = {f"ret_{n}": log_return(bars.close, n) for n in TO_NOW}
    out |= {f"ret_scaled_{n}": scaled(n) for n in (1, 6, 24)}
    out |= {f"lag_{ago}": scaled(1, ago) for ago in SINGLE}
    out |= {f"path_{ago}": scaled(BLOCK, ago) for ago in range(0, BLOCK * BLOCKS, BLOCK)}
    # What the n bars after this hour did 24 bars earlier. Periodicity of this kind: Heston,
    # Korajczyk, Sadka, Intraday patterns in the cross-section of stock returns, 2010.
    out |= {f"yesterday_{n}": scaled(n, 24 - n) for n in NEXT}
    return out | _candle(bars)


def _candle(bars: Candles) -> dict[str, Array]:
    span = bars.high - bars.low
    top, bottom = np.maximum(bars.open, bars.close), np.minimum(bars.open, bars.close)
    place = ratio(bars.close - bars.low, span, otherwise=0.5) - 0.5
    log_span = np.log(bars.high / bars.low)
    usual_span = mean(log_span, USUAL)
    return {
        "body": ratio(bars.close - bars.open, span),
        "wick_up": ratio(bars.high - top, span),
        "wick_down": ratio(bottom - bars.low, span),
        "close_in_bar": place,
        "close_in_bar_6": mean(place, 6),
    } | {
        f"span_{ago}": ratio(lag(log_span, ago), usual_span, otherwise=1.0) for ago in range(SPANS)
    }


def momentum(bars: Candles) -> dict[str, Array]:
    """MACD 12/26/9, RSI, KDJ, CCI, ADX and its directions, as TA-Lib computes them (ta-lib.org).

    Oscillators run from about -1 to 1. What TA-Lib gives in price units is divided by ATR 14. All
    are 0 on a market that stands still. TA-Lib's exponential averages remember their first bar for
    ever, which WARMUP outlasts.
    """
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


def volatility(bars: Candles) -> dict[str, Array]:
    """How wild the market is against its own past: one-bar returns, ATR 14, Bollinger 20/2.

    Only ratios: a level of volatility names the month it was seen in, and trees learn the month
    (docs/LOG.md has what that cost).
    """
    returns = log_return(bars.close)
    atr = talib.NATR(bars.high, bars.low, bars.close, 14)
    return {
        "vol_24_168": log_ratio(mean(returns * returns, 24), mean(returns * returns, 168)) / 2,
        "vol_z_168": zscore(np.abs(returns), 168),
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


def volume(bars: Candles) -> dict[str, Array]:
    """Volume against its own past; on-balance and Chaikin money flow. 0 where nothing traded.

    On-balance volume and its kin run up for ever. Here each is the flow of n bars over the volume
    of the same n bars, which has no unit and forgets.
    """
    volume = bars.volume
    side = np.sign(log_return(bars.close))
    span = bars.high - bars.low
    place = ratio((bars.close - bars.low) - (bars.high - bars.close), span)
    out = {f"volume_z_{n}": zscore(volume, n) for n in (24, 168)}
    out["volume_6_72"] = log_ratio(mean(volume, 6), mean(volume, 72))
    out |= {f"obv_{n}": ratio(total(side * volume, n), total(volume, n)) for n in (6, 24)}
    out |= {f"cmf_{n}": ratio(total(place * volume, n), total(volume, n)) for n in (12, 48)}
    return out


DAY_MS = 86_400_000


def calendar(bars: Candles) -> dict[str, Array]:
    """The bar's open in UTC on circles: time of day, of half a day, of the week from Monday on."""
    day = 2 * np.pi * (bars.time % DAY_MS) / DAY_MS
    since_monday = (bars.time - 4 * DAY_MS) % (7 * DAY_MS)  # 1970-01-05 was a Monday
    week = 2 * np.pi * since_monday / (7 * DAY_MS)
    return {
        "hour_sin": np.sin(day),
        "hour_cos": np.cos(day),
        "half_day_sin": np.sin(2 * day),
        "half_day_cos": np.cos(2 * day),
        "week_sin": np.sin(week),
        "week_cos": np.cos(week),
    }


# From outside the own bars of one timeframe: longer bars, and other assets. Only closed long bars
# and bars of the very same timestamp count, so nothing looks ahead.


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
