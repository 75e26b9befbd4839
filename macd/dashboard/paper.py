"""What the positions on the signal lines would have earned, net of costs: paper, no claim.

The arithmetic is that of macd/app/train/returns.py (`net_returns`), in the standard library, for
this half of macd imports no table library; a test holds the two equal. A position is taken at the
close of its bar, at that close's price, and earns from there to the next line's close. What is held
at the end is valued at the last close, not sold. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from macd.host.judge.parse import Line


class Held(NamedTuple):
    """A bar's open (epoch ms) and close, and the signed share of capital held from then on."""

    bar: int
    close: float
    share: float


@dataclass(frozen=True)
class Paper:
    """points: (epoch ms of the bar, what one unit of capital has become). trades: how often a side
    was taken. exposure: share of the bars with a position. market: what holding throughout became.
    """

    points: Sequence[tuple[int, float]]
    net: float
    market: float
    trades: int
    exposure: float
    drawdown: float


def held(lines: Iterable[Line]) -> list[Held]:
    """The bars of the newest line's market, oldest first, each once: the last run through them.

    A replay that begins again, and another market before, are left out: their positions are others.
    """
    bars: list[Held] = []
    market = ("", "")
    for line in lines:
        if line.bar is None or line.held is None or not _is_price(line.close):
            continue
        if market != (line.symbol, line.tf) or (bars and line.bar < bars[-1].bar):
            market, bars = (line.symbol, line.tf), []
        if not bars or line.bar > bars[-1].bar:
            bars.append(Held(line.bar, line.close or 0.0, line.held))
    return bars


def result(bars: Sequence[Held], cost: float) -> Paper | None:
    """What the bars would have earned; None without two of them. cost: a fraction of what is
    bought or sold, each time.
    """
    if len(bars) < 2:
        return None
    points: list[tuple[int, float]] = []
    value = peak = 1.0
    before, close, drawdown, trades = 0.0, bars[0].close, 0.0, 0
    for bar in bars:
        earned = before * (bar.close / close - 1.0) - cost * abs(bar.share - before)
        value *= max(0.0, 1.0 + earned)
        peak = max(peak, value)
        drawdown = max(drawdown, 1.0 - value / peak)
        trades += bar.share != 0.0 and (before == 0.0 or before * bar.share < 0)
        points.append((bar.bar, value))
        before, close = bar.share, bar.close
    return Paper(
        points,
        value - 1.0,
        bars[-1].close / bars[0].close - 1.0,
        trades,
        sum(bar.share != 0.0 for bar in bars) / len(bars),
        drawdown,
    )


def _is_price(close: float | None) -> bool:
    return close is not None and math.isfinite(close) and close > 0
