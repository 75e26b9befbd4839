"""What held positions earned, bar by bar and trade by trade, net of costs: plain arithmetic.

A position is decided at the close of a bar, at that close's price, and earns from there to the
next close. Nothing overlaps: every bar's return is counted once. Nothing here reads a file, a
clock or a random state. Why no library does it: docs/adr/returns.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from macd.app.train.metrics import block_ms, resampled_means, with_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Sides = NDArray[np.int8]

_EULER = 0.5772156649015329
_BP = 10_000


@dataclass(frozen=True)
class Trades:
    """entered: positions of the bars at whose close a trade began. net: fractions of its amount."""

    entered: Ints
    net: Floats


def net_returns(close: Floats, held: Floats, cost: float) -> Floats:
    """Return of each bar as a fraction of the capital, shape (bars,), known at that bar's close.

    What was held over the bar earns its return; what is bought or sold at its close costs `cost` a
    unit. A share of the capital is kept as it is within a trade, and that rebalancing is free.

    Args:
        close: prices, oldest first. held: signed share of the capital held from that close on.
    """
    before = np.concatenate(([0.0], held[:-1]))
    return before * _bar_returns(close) - cost * np.abs(held - before)


def trades_of(close: Floats, side: Sides, cost: float) -> Trades:
    """Each span of one side as a trade that pays `cost` a unit twice; the last side must be 0.

    A trade's return is the sum of its bars' returns, for each unit of its amount.
    """
    changed = np.flatnonzero(np.diff(side, prepend=np.int8(0)))
    ends = np.append(changed[1:], len(side) - 1)
    summed = np.cumsum(_bar_returns(close))
    real = side[changed] != 0
    entered, ended = changed[real], ends[real]
    gross = side[entered] * (summed[ended] - summed[entered])
    return Trades(entered.astype(np.int64), gross - 2 * cost)


def equity(net: Floats) -> Floats:
    """What one unit of capital has become at each bar's close, gains reinvested."""
    return np.asarray(np.cumprod(np.maximum(1.0 + net, 0.0)), dtype=np.float64)


def max_drawdown(net: Floats) -> float:
    """The largest fall of the equity from its highest value so far, as a fraction of that."""
    grown = np.concatenate(([1.0], equity(net)))
    return float(np.max(1.0 - grown / np.maximum.accumulate(grown)))


def sharpe(net: Floats) -> float:
    """Sharpe ratio of one bar, no interest deducted (Sharpe 1994); NaN where nothing varies.

    Times the square root of `periods_a_year` it is the annual one, as if bars were independent.
    """
    spread = float(np.std(net, ddof=1)) if len(net) > 1 else 0.0
    return float(np.mean(net)) / spread if spread > 0 else math.nan


def periods_a_year(times_ms: Ints, step_ms: int) -> float:
    """How many of these bars a year has: markets that close, and gaps, have fewer."""
    years = (int(times_ms[-1]) - int(times_ms[0]) + step_ms) / (365.25 * 24 * 3_600_000)
    return len(times_ms) / years


def deflated_sharpe(net: Floats, trials: Sequence[float], tried: int) -> float:
    """The probability that the true Sharpe ratio is above what the best of `tried` has by chance.

    Bailey & Lopez de Prado, "The Deflated Sharpe Ratio", Journal of Portfolio Management, 2014:
    skew, kurtosis and length of the returns count, and how many configurations were looked at.

    Args:
        trials: Sharpe ratios of one bar, of configurations that were tried; their variance counts.
        tried: how many were tried, at least 1; may be more than `trials` holds.
    """
    value = sharpe(net)
    known = [t for t in trials if math.isfinite(t)]
    if not math.isfinite(value) or len(net) < 3:
        return math.nan
    expected = 0.0
    if tried > 1 and len(known) > 1:
        normal = NormalDist()
        highest = (1 - _EULER) * normal.inv_cdf(1 - 1 / tried)
        highest += _EULER * normal.inv_cdf(1 - 1 / (tried * math.e))
        expected = float(np.std(known, ddof=1)) * highest
    return probabilistic_sharpe(value, expected, len(net), *_moments(net))


def probabilistic_sharpe(value: float, benchmark: float, n: int, skew: float, kurt: float) -> float:
    """The probability that the true Sharpe ratio is above `benchmark`; all of one period.

    kurt: 3 for a normal distribution. The same paper, equation 2.
    """
    variance = 1.0 - skew * value + (kurt - 1.0) / 4.0 * value**2
    if variance <= 0:
        return math.nan
    return NormalDist().cdf((value - benchmark) * math.sqrt(n - 1) / math.sqrt(variance))


def mean_bp(
    trades: Trades, times_ms: Ints, *, reps: int = 1000, seed: int = 0
) -> dict[str, float | None]:
    """Mean of the trades in basis points, with a 95 % interval from weeks drawn anew.

    A trade belongs to the week it was entered in. No interval with fewer than two such weeks.
    """
    count = len(trades.net)
    if not count:
        return {"value": None, "low": None, "high": None}
    value = _BP * float(trades.net.mean())
    means = resampled_means(
        trades.net, times_ms[trades.entered], block_ms(times_ms), reps=reps, seed=seed
    )
    return with_interval(value, _BP * means)


def _bar_returns(close: Floats) -> Floats:
    return np.concatenate(([0.0], close[1:] / close[:-1] - 1.0))


def _moments(values: Floats) -> tuple[float, float]:
    """Skew and kurtosis (3 for a normal distribution)."""
    centred = values - values.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / spread**3, float(np.mean(centred**4)) / spread**4
