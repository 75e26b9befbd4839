"""A log of several symbols: judged whole, and each symbol by its own bars; one verdict over all.

PASS only where all of them PASS, FAIL where one FAILs. As one false FAIL is enough for that, all
share the alpha. Whether lines are missing is asked of the whole log, for one seq numbers them all.
Standard library alone and pure: the guard runs this on the host.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from macd.host.judge import drift, gate, skill
from macd.host.judge.analyse import MOST_BARS, Analysis, Window
from macd.host.judge.drift import Drift
from macd.host.judge.gate import Decision
from macd.host.judge.parse import SIGNAL, Bad, Line
from macd.host.judge.reading import Source, by_day, from_end
from macd.host.store.manifest import details_of

_MOST_AT_END = 1000  # a log may name as many as it likes; no more are followed anyway
_MOST_COMPARED = 40_000  # bars whose skill is judged, of all symbols together: about 11 MB
_MOST_TIMES = 2  # as many distinct bars as the whole has, all symbols together
_MOST_NAMED = 5
_MOST_WHY = 3
_ORDER = (gate.FAIL, gate.INCONCLUSIVE, gate.PASS)


class BySymbol:
    """Takes every line in its order, as an Analysis does.

    Attributes:
        whole: of all lines.
        parts: by symbol, of its lines alone; empty where the service has one symbol.
    """

    def __init__(self, window: Window, symbols: Sequence[str] = (), most: int = MOST_BARS) -> None:
        self.whole = Analysis(window, most)
        several = list(dict.fromkeys(symbols))
        alone = replace(window, is_part=True)
        share = len(several) or 1
        compared = min(skill.MOST, _MOST_COMPARED // share)
        bars = min(most, _MOST_TIMES * most // share)  # memory is bounded, whatever the lines hold
        self.parts = {
            name: Analysis(alone, bars, compared) for name in (several if share > 1 else ())
        }

    def add(self, line: Line | Bad, file: str, number: int) -> None:
        self.whole.add(line, file, number)
        if isinstance(line, Line) and (part := self.parts.get(line.symbol)) is not None:
            part.add(line, file, number)

    def compare(self, line: Line) -> None:
        """See Analysis.compare."""
        self.whole.compare(line)
        if (part := self.parts.get(line.symbol)) is not None:
            part.compare(line)

    @property
    def window(self) -> Window:
        return self.whole.window

    def finish(self) -> None:
        """No more lines come."""
        for analysis in (self.whole, *self.parts.values()):
            analysis.finish()


@dataclass(frozen=True)
class Judged:
    """A symbol's own verdict. drift: of its newest bars, None where its release expects nothing."""

    symbol: str
    analysis: Analysis
    decision: Decision
    drift: Drift | None = None

    def document(self) -> dict[str, Any]:
        """A row of the report: what was counted of this symbol, and what follows."""
        newest, findings = self.analysis.newest_signal, self.analysis.document()
        models = findings["models"]
        return {
            "symbol": self.symbol,
            **gate.document(self.decision),
            "bars": self.analysis.bar_count,
            "newest_bar": newest and newest.bar,
            "not_activated": findings["not_activated"][:_MOST_WHY],
            "errors": findings["errors"][:_MOST_WHY],
            "models": {
                name: {key: value for key, value in row.items() if key != "histogram"}
                for name, row in models.items()
            },
            "drift": self.drift and self.drift.document(),
        }


def judge(
    read: BySymbol, decide: Callable[[Analysis, float], Decision], alpha: float
) -> tuple[Decision, list[Judged]]:
    """The verdict over all, and each symbol's, the worst first.

    decide: the decision about one analysis, whose bounds may be wrong with probability alpha.
    """
    each = alpha / (len(read.parts) + 1) if read.parts else alpha
    whole = decide(read.whole, each)
    parts = [Judged(name, part, decide(part, each)) for name, part in read.parts.items()]
    parts.sort(key=lambda part: (_ORDER.index(part.decision.verdict), _rate(part), part.symbol))
    return _together(whole, parts), parts


def with_drift(parts: Iterable[Judged], details: Mapping[str, Any]) -> list[Judged]:
    """The same, each with its drift. details: of the release's manifest."""
    made = []
    for part in parts:
        expected = drift.expected(details_of(details, part.symbol), part.symbol)
        judged = drift.judge(expected, [*part.analysis.recent]) if expected else None
        made.append(replace(part, drift=judged))
    return made


def worst_drift(parts: Iterable[Judged]) -> Drift | None:
    """See `worst_of`."""
    return worst_of([(part.symbol, part.drift) for part in parts if part.drift])


def worst_of(judged: Sequence[tuple[str, Drift]]) -> Drift | None:
    """That of the first symbol that drifts, else of any; its text names the symbol."""
    drifting = [(name, d) for name, d in judged if d.outcome == drift.DRIFT]
    for name, worst in (drifting or judged)[:1]:
        more = f" (and {len(drifting) - 1} more symbols)" if len(drifting) > 1 else ""
        return replace(worst, text=f"{name}: {worst.text}{more}")
    return None


def served(settings: str | None) -> tuple[str, ...]:
    """The symbols in the text of a service.json that names several; () for one or none.

    Raises ValueError for what is no JSON.
    """
    document = json.loads(settings) if settings else {}
    symbols = document.get("symbols") if isinstance(document, dict) else None
    return tuple(map(str, symbols)) if isinstance(symbols, list) else ()


def symbols_at_end(sources: Sequence[Source]) -> tuple[str, ...]:
    """The symbols of the signal lines at the end of the newest log, by name; of instances' logs."""
    newest = by_day(sources)[-1:]
    lines = (line for day in newest for source in day for line in from_end(source))
    named = {x.symbol for x in lines if isinstance(x, Line) and x.kind == SIGNAL and x.symbol}
    return tuple(sorted(named)[:_MOST_AT_END])


def _rate(part: Judged) -> float:
    """The lowest of its shares; a symbol without bars comes first."""
    rates = [row.rate for row in part.decision.criteria if row.rate is not None]
    return min(rates, default=0.0)


def _together(whole: Decision, parts: Sequence[Judged]) -> Decision:
    if not parts:
        return whole
    verdicts = {whole.verdict, *(part.decision.verdict for part in parts)}
    verdict = next(word for word in _ORDER if word in verdicts)
    decisive = [part for part in parts if part.decision.verdict == verdict != gate.PASS]
    reasons = list(whole.reasons) if whole.verdict == verdict else []
    reasons += [
        f"{part.symbol}: {_first(part.decision.reasons)}" for part in decisive[:_MOST_NAMED]
    ]
    if more := len(decisive) - _MOST_NAMED:
        reasons += [f"and {more} more symbols are {verdict}"] if more > 0 else []
    needed = max(part.decision.more_bars for part in parts)
    return replace(whole, verdict=verdict, reasons=tuple(reasons), more_bars=needed)


def _first(reasons: Sequence[str]) -> str:
    if not reasons:
        return "not proved"
    more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}"
