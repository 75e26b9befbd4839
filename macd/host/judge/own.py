"""The signal lines of an application of the team's own, counted by its shares and rates.

Such a line names no seq and often no release, so only lines written since the live release went
live are evidence, but for those written while another release was tried; the caller's window says
both. Damage never raises a rate: a line that
can't be read counts as a bar without evidence. A bar is as good as the worst line about it. It
counts and decides nothing (gate.py does); it reads no clock. Memory is bounded, whatever the lines
hold. Standard library alone: the guard runs this on the host.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from macd.heads import is_head
from macd.host.judge import reading, skill, tallies
from macd.host.judge.analyse import MOST_BARS, Window
from macd.host.judge.gate import TITLES, Cause, Rule, Share
from macd.host.judge.own_parse import Entry, read
from macd.host.judge.parse import SEVERE, SIGNAL, WARN, Bad, Line, as_float, step_ms
from macd.host.own import Signals

# The guide's shares: by the map's name, the gate's name, and of which other one it is a share.
GUIDE = {
    "coverage": ("ml_coverage", ("all",)),
    "activation": ("stacking_activation", ("coverage", "all")),
    "tft": ("tft_normal", ("activation", "coverage", "all")),
    "lstm": ("lstm_normal", ("activation", "coverage", "all")),
}
_NETS = ("tft", "lstm")
# What it takes to compare stacking with the mean of the models; horizon: 5, 12 or 24 bars.
COMPARED = frozenset(("bar_time", "activation", "mean", "close", "horizon"))
_MODELS = {"coverage": "p", "activation": "stacking", "tft": "tft", "lstm": "lstm"}
ELSEWHERE = "lines written while another release ran"
_FUTURE_MS = 5 * 60_000
_MOST_KEPT = 50
_MOST_SERIES = 1000


@dataclass(frozen=True)
class _Measure:
    """One share that is judged. base: of which one it is a share, "all" for all bars."""

    name: str
    base: str
    bit: int


def shares(signals: Signals, rule: Rule) -> tuple[Share, ...]:
    """What is judged: the guide's shares that are mapped, then the team's own rates."""
    guide = [
        Share(named, TITLES[named], rule.threshold(named))
        for name, (named, _) in GUIDE.items()
        if name in signals.map
    ]
    own = [Share(name, name, rate.min, rate.level) for name, rate in signals.rates.items()]
    return (*guide, *own)


def compares(signals: Signals) -> bool:
    """Whether its lines say enough to compare stacking with the mean of the models."""
    return signals.map.keys() >= COMPARED


def _measures(signals: Signals) -> list[_Measure]:
    """Each share, after the one that it is a share of; one of itself, in a circle, never counts."""
    bases: dict[str, str] = {}
    for name, (_, candidates) in GUIDE.items():
        if name in signals.map:
            bases[name] = next(c for c in candidates if c == "all" or c in signals.map)
    bases.update((name, rate.of) for name, rate in signals.rates.items())
    for rate in signals.rates.values():  # the share of a field that is mapped, but no share itself
        if rate.of not in bases and rate.of != "all":
            bases[rate.of] = "all"
    ordered: list[str] = []
    while len(ordered) < len(bases):
        ready = [n for n, base in bases.items() if n not in ordered and base in ("all", *ordered)]
        ordered += ready or [name for name in bases if name not in ordered]
    return [_Measure(name, bases[name], 1 << at) for at, name in enumerate(ordered)]


class OwnAnalysis:
    """Feed it every line with `add`, call `finish`, then ask for the `document`, once.

    What judges an Analysis (analyse.py) judges this: the attributes are the same.
    """

    lacks_ml_error = 0

    def __init__(self, window: Window, signals: Signals, tf: str, most: int = MOST_BARS) -> None:
        self.window = window
        self.signals = signals
        self.tf = tf
        self.most = most
        self.bars: dict[tuple[str, int], int] = {}  # symbol and bar; below 0: a line of its own
        self.lines = self.malformed = self.junk = 0
        self.newest: Line | None = None
        self.first_signal: Line | None = None
        self.newest_signal: Line | None = None
        self.severe = tallies.Groups()
        self.whole = tallies.Continuity()
        self.compared: deque[skill.Scored] = deque(maxlen=skill.MOST)
        self._measures = _measures(signals)
        self._all = sum(measure.bit for measure in self._measures)
        self._errors, self._warnings = tallies.Groups(), tallies.Groups()
        self._lacking = tallies.Groups()
        self._counts: Counter[str] = Counter()
        self._why: Counter[str] = Counter()
        self._junk_why: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._releases: Counter[str] = Counter()
        self._quarantine: list[dict[str, Any]] = []
        self._models = {m.name: tallies.Model() for m in self._measures}
        self._stuck: dict[tuple[str, str], tallies.Stuck] = {}
        self._timeline = tallies.Timeline()
        self._symbols = tallies.Few()
        self._elsewhere: set[tuple[str, int]] = set()  # bars that another release answered
        self._file, self._inside = "", False

    def add(self, entry: Entry | Bad, file: str, number: int) -> None:
        """The next line: `number` counts from 1 in `file`."""
        self.lines += 1
        if file != self._file:
            self._settle(self._inside)
            self._file, self._inside = file, False
        if isinstance(entry, Bad):
            self.malformed += 1
            self._why[entry.why] += 1
            self._pending[entry.why] += 1
            if len(self._quarantine) < _MOST_KEPT:
                self._quarantine.append({"file": file, "line": number, "why": entry.why})
            return
        started = self.window.start <= entry.time
        other = any(first <= entry.time <= last for first, last in self.window.without)
        inside = started and not other
        self._settle(inside or self._inside)
        self._inside = inside
        if not started:
            self._counts["lines before the window"] += 1
        elif other:
            self._counts[ELSEWHERE] += 1
            if entry.kind == SIGNAL and entry.bar is not None and len(self._elsewhere) < self.most:
                self._elsewhere.add((entry.symbol, entry.bar))
        elif self._is_ours(entry):
            self._take(entry)

    def _is_ours(self, entry: Entry) -> bool:
        """Whether it is about the release; a line that should name one and doesn't may be."""
        if len(self._releases) < _MOST_SERIES:
            self._releases[entry.release] += 1
        if self.window.release is None or entry.release in ("", self.window.release):
            return True
        self._counts["lines of another release"] += 1
        return False

    def _settle(self, among_ours: bool) -> None:
        if among_ours:
            self.junk += self._pending.total()
            self._junk_why += self._pending
        self._pending.clear()

    def _take(self, entry: Entry) -> None:
        line = Line(entry.kind, entry.time, symbol=entry.symbol, tf=self.tf, bar=entry.bar)
        line = line._replace(release=self.window.release)
        self.newest = _later(self.newest, line)
        if entry.kind == SIGNAL:
            self._signal(entry, line)
        elif entry.kind == SEVERE:
            self.severe.add(entry.note or f"({entry.level} without a message)", entry.time)
        elif entry.kind == WARN:
            self._warnings.add(entry.note or f"({entry.level} without a message)", entry.time)

    def _signal(self, entry: Entry, line: Line) -> None:
        self._symbols.add(entry.symbol)
        if entry.error:
            self._errors.add(entry.error, entry.time)
        unusable = self._unusable(entry)
        if unusable:
            self._lacking.add(unusable, entry.time)
        else:
            self.first_signal = _earlier(self.first_signal, line)
            self.newest_signal = _later(self.newest_signal, line)
            self._compare(entry, line)
        bits = 0
        good: set[str] = {"all"}
        for measure in self._measures:
            why = self._why_not(measure.name, entry)
            if why:
                self._missing[why] += 1
            elif measure.base in good and not unusable:
                bits |= measure.bit
                good.add(measure.name)
        is_new, key = self._place(entry, bits)
        if is_new:
            self._watch_stuck(entry, key)
            covered = self._bits("coverage", bits)
            self._timeline.add(entry.time, covered, self._bits("activation", bits))

    def _compare(self, entry: Entry, line: Line) -> None:
        """Take a line for the skill, where the map has all that it takes."""
        if not compares(self.signals) or entry.error:
            return
        named = entry.values.get("horizon")
        head = f"h{named}" if type(named) is int else str(named)
        values: list[Any] = [entry.values.get(name) for name in ("activation", "mean", "close")]
        stacking, mean, close = (as_float(v) if type(v) in (int, float) else None for v in values)
        if mean is not None and 0 < mean < 1 and is_head(head):
            full = line._replace(stacking=stacking, average=mean, close=close, head=head)
            if (bar := skill.scored(full)) is not None:
                self.compared.append(bar)

    def _bits(self, name: str, bits: int) -> bool:
        mine = [measure.bit for measure in self._measures if measure.name == name]
        return bool(bits & (mine[0] if mine else self._all))

    def _unusable(self, entry: Entry) -> str:
        """Why a signal line proves nothing at all; "" where it may."""
        if entry.time > self.window.end + _FUTURE_MS:
            self._counts["in the future"] += 1
            return "written in the future"
        if "bar_time" in self.signals.map and entry.bar is None:
            return f"no time of a bar in {self.signals.map['bar_time']}"
        if self.window.release is not None and not entry.release:
            return f"no release in {self.signals.map['release']}"
        return ""

    def _why_not(self, name: str, entry: Entry) -> str:
        """Why the line is not good by one share's own field; "" where it is."""
        rate = self.signals.rates.get(name)
        path = rate.field if rate else self.signals.map[name]
        value = entry.values.get(name)
        if name == "coverage" and entry.error:
            return f"an error: {self.signals.map['error']}"
        if value is None:
            return f"nothing in {path}"
        needs = rate.needs if rate else "probability" if name in GUIDE else "value"
        if needs == "value" or (name == "activation" and value is True):
            return ""
        if type(value) not in (int, float):
            return f"no number in {path}"
        number = as_float(value)
        inside = self._models[name].add(number)
        if needs == "number":
            return "" if math.isfinite(number) else f"no finite number in {path}"
        # 0 and 1 are no answers of a working model; a decision may be as sure as that.
        sure = number in (0.0, 1.0) and name not in (*_NETS, "activation")
        return "" if inside or sure else f"no probability in {path}"

    def _place(self, entry: Entry, bits: int) -> tuple[bool, tuple[str, int] | None]:
        """Store what the line proves of its bar: whether the bar is new, and its key, if stored."""
        key = (entry.symbol, entry.bar if entry.bar is not None else -1 - self.lines)
        if key in self.bars:
            self._counts["further lines about a bar"] += 1
            self.bars[key] &= bits
            return False, key
        if len(self.bars) >= self.most:
            self._counts["bars beyond the limit"] += 1
            self.junk += bits != self._all
            return True, None
        self.bars[key] = bits
        return True, key

    def _watch_stuck(self, entry: Entry, key: tuple[str, int] | None) -> None:
        for measure in self._measures:
            value: Any = entry.values.get(measure.name)
            if measure.name not in _NETS or type(value) not in (int, float):
                continue
            series = (measure.name, entry.symbol)
            if series not in self._stuck and len(self._stuck) >= _MOST_SERIES:
                continue
            stuck = self._stuck.setdefault(series, tallies.Stuck(measure.bit))
            number = as_float(value)
            if math.isfinite(number):
                stuck.add(number, key, self.bars)

    def finish(self) -> None:
        """No more lines come."""
        self._settle(self._inside)
        for (name, _), stuck in self._stuck.items():
            stuck.end(self.bars)
            self._models[name].stuck += stuck.total
        self._find_holes()

    def _find_holes(self) -> None:
        step = step_ms(self.tf)
        if not step or "bar_time" not in self.signals.map:
            return
        by_symbol: dict[str, list[int]] = {}
        for symbol, bar in {*self.bars, *self._elsewhere}:  # of a trial, a bar is not missing
            if bar >= 0:
                by_symbol.setdefault(symbol, []).append(bar)
        for symbol, bars in sorted(by_symbol.items()):
            for before, after in pairwise(sorted(bars)):
                if after - before > step:
                    self.whole.incomplete += 1
                    if len(self.whole.holes) < _MOST_KEPT:
                        at = {"after": before, "before": after}
                        self.whole.holes.append({"symbol": symbol, "tf": self.tf, **at})

    def tally(self) -> dict[str, tuple[int, int]]:
        """Successes and trials of each share; junk, which may hide bad bars, is a trial of each."""
        by_bits = Counter(self.bars.values())

        def having(wanted: int) -> int:
            return sum(n for bits, n in by_bits.items() if bits & wanted == wanted)

        bits = {measure.name: measure.bit for measure in self._measures}
        counted = {}
        for measure in self._measures:
            named = GUIDE[measure.name][0] if measure.name in GUIDE else measure.name
            base = bits.get(measure.base, 0)
            lost = sum(s.lost for (name, _), s in self._stuck.items() if name == measure.name)
            counted[named] = (having(base | measure.bit), having(base) + self.junk + lost)
        return counted

    @property
    def bar_count(self) -> int:
        return len(self.bars) + self.junk

    def causes(self) -> tuple[Cause, ...]:
        """What took evidence from bars; most frequent first."""
        causes = [
            Cause(n, f"{_lines(n)} can't be read: {why}") for why, n in self._junk_why.items()
        ]
        causes += [Cause(n, f"{why} of {_lines(n)}") for why, n in self._missing.items()]
        return tuple(sorted(causes, key=lambda cause: -cause.count))

    def document(self) -> dict[str, Any]:
        """Everything but the verdict, as JSON can hold it; as of an Analysis, where it has it."""
        counts = {**self._counts, "holes between bars": self.whole.incomplete}
        models = {
            _MODELS.get(name, name): model.document()
            for name, model in self._models.items()
            if model.n or model.not_finite or name in GUIDE
        }
        return {
            "own": True,
            "lines": self.lines,
            "malformed": {
                "count": self.malformed,
                "counted_as_bars": self._junk_why.total(),
                "why": dict(self._why),
                "quarantine": self._quarantine,
            },
            "counts": {name: count for name, count in sorted(counts.items()) if count},
            "releases": dict(self._releases.most_common(20)),
            "modes": {},
            "seq": {"last": None, "breaks": []},
            "holes": self.whole.holes,
            "not_activated": self._lacking.document(),
            "lacking": dict(self._missing.most_common(20)),
            "models": models,
            "agreement": {},
            "errors": self._errors.document(),
            "severe": self.severe.document(),
            "warnings": self._warnings.document(),
            "latency_ms": tallies.Latency().document(),
            "timeline": self._timeline.document(),
            "realised": [],
        }

    @property
    def symbols(self) -> frozenset[str]:
        return self._symbols.known

    @property
    def unnamed(self) -> int:
        return 0

    @property
    def elsewhere(self) -> int:
        """How many lines another release wrote, while it was tried."""
        return self._counts[ELSEWHERE]

    @property
    def future(self) -> int:
        return self._counts["in the future"]


def analyse(
    sources: Sequence[reading.Source], signals: Signals, into: Iterable[OwnAnalysis]
) -> None:
    """Feed every whole line of the files to each of `into`, read once, and finish them."""
    parts = list(into)
    for source in sources:
        number = 0
        for start, end in reading.pieces(source):
            for raw in reading.raw_lines(source.path, start, end):
                number += 1
                if raw.strip():
                    entry = read(raw, signals)
                    for part in parts:
                        part.add(entry, source.name, number)
    for part in parts:
        part.finish()


def _earlier(a: Line | None, b: Line) -> Line:
    return b if a is None or b.time < a.time else a


def _later(a: Line | None, b: Line) -> Line:
    return b if a is None or b.time >= a.time else a


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"
