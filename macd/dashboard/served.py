"""What the live release did since its first line, from the local copy of its host's logs.

The lines are counted by the gate's own analysis (macd/host/judge/analyse.py), over a longer window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.dashboard import paper
from macd.dashboard.paper import Paper
from macd.host.judge import reading, skill
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.by_symbol import BySymbol, symbols_at_end
from macd.host.judge.gate import ALPHA
from macd.host.judge.parse import SIGNAL, Bad, Line
from macd.host.judge.reading import Source
from macd.host.judge.skill import Scored

MOST_POINTS = 96  # of a curve
_PROOFS, _FEW, _MANY = 8, 3, 1000  # a point takes a millisecond for every three bars


@dataclass(frozen=True)
class Stretch:
    """Some lines that follow each other: when the first was written (epoch ms), and of a number
    that they have the median, the mean and the largest.
    """

    start: int
    median: float
    mean: float
    most: float


@dataclass(frozen=True)
class Proof:
    """What the bars up to one (its open in epoch ms) said: the mean difference of the log scores,
    in nats, and its bounds, which hold at every look.
    """

    bar: int
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Served:
    """findings: as in a gate document, over [start, end]. newest: open of the last bar. In ms.

    latency: milliseconds of the models; outside: how many features lie outside their range. skill:
    stacking against the mean of the models, at some moments.
    """

    start: int
    end: int
    findings: Mapping[str, Any]
    bars: int
    latency: Sequence[Stretch]
    outside: Sequence[Stretch]
    skill: Sequence[Proof]
    paper: Paper | None
    newest: int | None
    symbols: Sequence[OfSymbol] = ()


@dataclass(frozen=True)
class OfSymbol:
    """What a service of several symbols did for one. bars, covered: counted by the gate's rule.

    newest: open of its last bar, in ms.
    """

    symbol: str
    bars: int
    covered: int
    newest: int | None
    paper: Paper | None


class _Both:
    """A reader of lines that has them analysed, and keeps the release's signal lines."""

    def __init__(self, window: Window, symbols: Sequence[str]) -> None:
        self.read = BySymbol(window, symbols)
        self.analysis = self.read.whole
        self.signals: list[Line] = []
        self._window = window

    def add(self, line: Line | Bad, file: str, number: int) -> None:
        self.read.add(line, file, number)
        if (
            isinstance(line, Line)
            and line.kind == SIGNAL
            and line.time >= self._window.start
            and self._window.takes(line)
        ):
            self.signals.append(line)

    def finish(self) -> None:
        self.read.finish()


def served(
    logs: Sequence[Source], release: str, start: datetime, end: datetime, *, cost: float
) -> Served | None:
    """What `release` did in [start, end], from logs, oldest first; None without a line of it.

    cost: what buying or selling costs, as a fraction.
    """
    window = Window(_ms(start), _ms(end), release)
    both = _Both(window, symbols_at_end(logs))
    reading.analyse(logs, both)
    if not both.signals:
        return None
    bars = [line.bar for line in both.signals if line.bar is not None]
    return Served(
        window.start,
        window.end,
        both.analysis.document(),
        len(both.analysis.bars) + both.analysis.junk,
        stretches((line.time, line.latency) for line in both.signals),
        stretches((line.time, line.outside) for line in both.signals),
        proofs(list(both.analysis.compared)),
        None if both.read.parts else paper.result(paper.held(both.signals), cost),
        bars[-1] if bars else None,
        [_of_symbol(name, part, both.signals, cost) for name, part in both.read.parts.items()],
    )


def _of_symbol(name: str, part: Analysis, signals: Sequence[Line], cost: float) -> OfSymbol:
    held = paper.held(line for line in signals if line.symbol == name)
    covered, bars = part.tally()["ml_coverage"]
    newest = part.newest_signal
    return OfSymbol(name, bars, covered, newest and newest.bar, paper.result(held, cost))


def written_since(directory: Path, start: datetime) -> list[Source]:
    """The logs there that may hold lines since `start`, oldest first.

    A log is named after the day its lines were written, or the one before.
    """
    if not directory.is_dir():
        return []
    day = f"{datetime.fromtimestamp(start.timestamp() - 86_400, UTC):%Y%m%d}"
    return [s for s in reading.ordered(directory) if s.name >= f"trades_{day}"]


def stretches(values: Iterable[tuple[int, float | None]]) -> list[Stretch]:
    """Numbers by when they were written, in at most MOST_POINTS parts of equally many; what is no
    number from 0 on is left out.
    """
    known = [(at, v) for at, v in values if v is not None and 0 <= v < math.inf]
    size = max(1, math.ceil(len(known) / MOST_POINTS))
    made = []
    for at in range(0, len(known), size):
        part = sorted(value for _, value in known[at : at + size])
        mean = math.fsum(part) / len(part)
        made.append(Stretch(known[at][0], part[(len(part) - 1) // 2], mean, part[-1]))
    return made


def proofs(bars: Sequence[Scored]) -> list[Proof]:
    """The confidence sequence (macd/host/judge/skill.py) at a few bars, the newest the last."""
    others = skill.comparisons(bars)
    alpha = ALPHA / len(others)
    points = _PROOFS if len(bars) <= _MANY else _FEW
    made = []
    for until in sorted({math.ceil(len(bars) * k / points) for k in range(1, points + 1)}):
        bets = skill.history(bars[:until], others[skill.MEAN], skill.log_scores)
        if bets.labels:
            mean = math.fsum(bet.difference for bet in bets.bets) / bets.labels
            made.append(Proof(bars[until - 1].bar, bets.labels, mean, *skill.interval(bets, alpha)))
    return made


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
