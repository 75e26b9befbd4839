"""From the lines of a log, in their order, to what they prove about a release: counts and gaps.

It counts and decides nothing (gate.py does); it reads no file and no clock. Damage never raises a
rate: junk and refused bars count as bars without evidence. A repeated bar (same symbol and time, as
in a replay's next lap) counts once while it is good, else again. A line without ml_error has no
error, unless a model gave no number: many writers have the field only where there is an error.
Memory is bounded, whatever the lines hold: beyond the limit of distinct bars a good one counts as
repeated, and any other as junk, also one of a stuck model.
Standard library alone: the guard runs this on the host.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Protocol

from macd.host.judge import drift, parse, skill, tallies
from macd.host.judge.gate import Cause
from macd.host.judge.parse import REFUSED, SEVERE, SIGNAL, WARN, Bad, Line, step_ms
from macd.host.judge.realised import MOST, Prediction, realised

COVERED, ACTIVATED, TFT, LSTM = 1, 2, 4, 8
ALL = COVERED | ACTIVATED | TFT | LSTM
MOST_BARS = 1_000_000  # about 100 MB
_FUTURE_MS = 5 * 60_000  # a clock may differ by that much
_MOST_KEPT = 50
_MOST_RELEASES = 1000
_MOST_STYLES, _LONGEST_NAME = 3, 40
_POSITIVE = (1 << 63) - 1
_ANOTHER_STYLE = Bad("release is no release's id")
_LATE = REFUSED[0]
_SEVERE_ERRORS = ("golden:", "models:")  # the release's own proof fails, or nothing loaded
_PAIRS = (("lgb", "lstm"), ("lgb", "tft"), ("lstm", "tft"), ("stacking", "lgb"))


@dataclass(frozen=True)
class Window:
    """Which lines are evidence: written in [start, end] (epoch ms), of this release.

    release: None takes all releases, and lines without one. strict: lines must carry a seq and the
    release, as evidence for a flip must. Otherwise lines of earlier versions, which have neither,
    count with a warning. compared_from: from when on bars count for the skill; None: from start.
    without: (first, last) ms in which another release ran whose lines name none. is_part: the lines
    are those of one symbol of several, whose seq leaves out those of the others.
    """

    start: int
    end: int
    release: str | None
    strict: bool = True
    compared_from: int | None = None
    without: tuple[tuple[int, int], ...] = ()
    is_part: bool = False

    def takes(self, line: Line) -> bool:
        """Whether the line is of the release, whenever it was written."""
        return self.release in (None, line.release) or (line.release is None and not self.strict)


class Analysis:
    """Feed it every line with `add`, call `finish`, then ask for the `document`, once.

    Attributes:
        bars: by key, the bits of what each proved (COVERED and so on).
        malformed: lines that can't be read, of which `junk` count as bars.
        newest: the last line; first_signal, newest_signal: the first and the last one that is a
            bar of the release.
        whole: whether lines or bars are missing.
        lacks_ml_error: lines of the window that are healthy and don't have the field.
        most: the limit of distinct bars.
        compared: the newest bars that the skill is judged by.
        recent: the newest bars that drift is judged by, of a part.
    """

    def __init__(self, window: Window, most: int = MOST_BARS, compared: int = skill.MOST) -> None:
        self._window = window
        self.most = most
        self.bars: dict[int, int] = {}
        self.lines = self.malformed = self.junk = 0
        self.newest: Line | None = None
        self.first_signal: Line | None = None
        self.newest_signal: Line | None = None
        self.severe = tallies.Groups()
        self._errors, self._warnings = tallies.Groups(), tallies.Groups()
        self._skipped, self._quarantine = tallies.Groups(), list[dict[str, Any]]()
        self._why: Counter[str] = Counter()
        self._releases: Counter[str] = Counter()
        self._modes: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._models = {name: tallies.Model() for name in ("p", "lgb", "lstm", "tft", "stacking")}
        self._pairs = {pair: tallies.Pair() for pair in _PAIRS}
        self._timeline, self._latency = tallies.Timeline(), tallies.Latency()
        self._stuck = {"tft": tallies.Stuck(TFT), "lstm": tallies.Stuck(LSTM)}
        self._predictions: deque[Prediction] = deque(maxlen=MOST)
        self._pending: Counter[str] = Counter()
        self._junk_why: Counter[str] = Counter()
        self._inside = True
        self.whole = tallies.Continuity()
        self._entered = False
        self._anonymous = 0
        # Where our own lines are judged, none of them names a release in another style.
        self._only_ours = window.strict or parse.is_release(window.release)
        self._styles: dict[str, None] = {}
        self.lacks_ml_error = 0
        self._symbols = tallies.Few()
        self._refused: dict[int, tuple[str, str, int]] = {}  # event, symbol, time
        self._readable_junk = 0  # the part of `junk` that could be read
        self.compared: deque[skill.Scored] = deque(maxlen=compared)
        self.recent: deque[drift.Bar] = deque(maxlen=drift.BLOCK)

    @property
    def window(self) -> Window:
        return self._window

    def add(self, line: Line | Bad, file: str, number: int) -> None:
        """The next line: `number` counts from 1 in `file`."""
        self.lines += 1
        if isinstance(line, Bad):
            self._add_bad(line, file, number)
            return
        if line.foreign and self._only_ours:
            if self._entered or self._window.start <= line.time:
                if len(self._styles) <= _MOST_STYLES:  # a hostile log has as many as it likes
                    self._styles.setdefault((line.release or "")[:_LONGEST_NAME])
                self._add_bad(_ANOTHER_STYLE, file, number)
            return
        # Lines come in the order they were written: a clock set back takes none out of the window.
        inside = self._entered = self._entered or self._window.start <= line.time
        of_release = self._window.takes(line)
        ours = inside and of_release
        self._settle(ours)
        self.whole.check_release(line, ours, inside, file, number)
        if not self._window.is_part:
            self.whole.check_seq(line, inside, file, number)
        self._releases[self._release(line.release or "")] += inside
        self.newest = line
        if of_release:
            self.compare(line)
            self.whole.check_bar(line, inside)
        if not ours:
            self._counts["without seq or release"] += inside and line.seq is None
            return
        self._counts["without seq or release"] += line.seq is None or line.release is None
        if line.seq is None and self._window.strict:
            self._unnumbered(line)
        else:
            self._take(line)

    def compare(self, line: Line) -> None:
        """Take a line of the release for the skill; also one from before the window."""
        first = self._window.compared_from
        first = self._window.start if first is None else first
        timely = first <= line.time <= self._window.end + _FUTURE_MS
        if timely and (bar := skill.scored(line)) is not None:
            self.compared.append(bar)
        if self._window.is_part and line.kind == SIGNAL and line.outside is not None:
            self.recent.append(drift.Bar(line.outside, line.worst, line.symbol, line.average))

    def _take(self, line: Line) -> None:
        if line.kind == SIGNAL:
            self._signal(line)
        elif line.kind == SEVERE:
            self.severe.add(line.note, line.time)
        elif line.kind == WARN:
            self._warnings.add(line.note, line.time)
            if line.note in REFUSED:
                self._refuse(line)

    def _refuse(self, line: Line) -> None:
        at = line.time if line.bar is None else line.bar
        key = hash(("refused", line.symbol, line.tf, at)) & _POSITIVE
        if key in self._refused:
            return
        if self._is_full:
            self._beyond_limit(good=False)
        else:
            self._refused[key] = (line.note, line.symbol, line.time)

    @property
    def _is_full(self) -> bool:
        return len(self.bars) + len(self._refused) >= self.most

    def _beyond_limit(self, *, good: bool) -> None:
        """A bar beyond the limit of distinct bars; it may be a repeated one."""
        self._counts["bars beyond the limit"] += 1
        if not good:
            self.junk += 1
            self._readable_junk += 1

    def _release(self, name: str) -> str:
        counted = name in self._releases or len(self._releases) < _MOST_RELEASES
        return name if counted else "(others)"

    def _add_bad(self, line: Bad, file: str, number: int) -> None:
        self.malformed += 1
        self._pending[line.why] += 1
        self._why[line.why] += 1
        if len(self._quarantine) < _MOST_KEPT:
            self._quarantine.append({"file": file, "line": number, "why": line.why})

    def _settle(self, ours: bool) -> None:
        """Junk counts as bars unless it lies between lines that are no evidence."""
        self._count_junk(ours or self._inside)
        self._inside = ours

    def _count_junk(self, among_ours: bool) -> None:
        if not self._pending:
            return
        if among_ours:
            self.junk += self._pending.total()
            self._junk_why += self._pending
        self._pending.clear()

    def _unnumbered(self, line: Line) -> None:
        """Every line of ours has a seq, so one without it may have been anything."""
        self.junk += 1
        self._readable_junk += 1
        self._counts["bars without seq"] += 1
        self._skipped.add("not covered: a line without seq", line.time)
        self._timeline.add(line.time, False, False)
        if line.kind == SEVERE:
            self.severe.add(line.note, line.time)

    def _signal(self, line: Line) -> None:
        future = line.time > self._window.end + _FUTURE_MS
        self._counts["in the future"] += future
        usable = not future and not (line.bar is None and self._window.strict)
        self._symbols.add(line.symbol)
        if usable:
            self.first_signal = self.first_signal or line
            self.newest_signal = line
        error, p = self._error(line), line.p
        bits = 0
        if self._models["p"].add(p) or p in (0.0, 1.0):
            bits = COVERED if usable and not error else 0
        stacked = self._models["stacking"].add(line.stacking)
        if bits and stacked and line.mode in ("shadow", "live"):
            bits |= ACTIVATED
        self._modes[line.mode if line.mode in parse.MODES else "?"] += 1
        if not bits & ACTIVATED:
            self._skipped.add(_why_not(line, error, bits, stacked), line.time)
        bits |= self._judge_nets(line, bits)
        self.lacks_ml_error += line.lacks_ml_error and not error and _is_complete(line)
        key = self._place(self._key(line), bits)
        if key is not None or bits == ALL:  # else it counts as junk already
            self._check_stuck(line, key)
        self._count(line, bits)

    def _check_stuck(self, line: Line, key: int | None) -> None:
        for name, stuck in self._stuck.items():
            value = getattr(line, name)
            if value is not None and math.isfinite(value):
                stuck.add(value, key, self.bars)

    def _error(self, line: Line) -> str:
        """Its error, also one that a missing field hides; "" for none."""
        error = line.error
        if line.lacks_ml_error and _is_complete(line):
            error = _missing_numbers(line)
        if error:
            self._errors.add(error, line.time)
            if error.startswith(_SEVERE_ERRORS):
                self.severe.add(error, line.time)
        return error

    def _key(self, line: Line) -> int:
        """Python's text hashes differ from run to run, so nobody can make two bars collide."""
        if line.bar is None:
            self._anonymous += 1
            return -self._anonymous
        return hash((line.symbol, line.tf, line.bar)) & _POSITIVE

    def _place(self, key: int, bits: int) -> int | None:
        """The key under which the bar's bits are stored; None: they are not stored."""
        if key in self.bars:
            self._counts["repeated bars"] += 1
            if bits == ALL:
                return key
            self._anonymous += 1
            key = -self._anonymous
        if self._is_full:
            self._beyond_limit(good=bits == ALL)
            return None
        self.bars[key] = bits
        return key

    def _judge_nets(self, line: Line, bits: int) -> int:
        good = TFT if self._models["tft"].add(line.tft) else 0
        good |= LSTM if self._models["lstm"].add(line.lstm) else 0
        return good if bits & ACTIVATED else 0

    def _count(self, line: Line, bits: int) -> None:
        self._models["lgb"].add(line.lgb)
        self._latency.add(line.latency)
        self._timeline.add(line.time, bool(bits & COVERED), bool(bits & ACTIVATED))
        answers = {"lgb": line.lgb, "lstm": line.lstm, "tft": line.tft, "stacking": line.stacking}
        good = {name: p for name, p in answers.items() if p is not None and 0 < p < 1}
        for (a, b), pair in self._pairs.items():
            if a in good and b in good:
                pair.add(good[a], good[b])
        close = line.close
        if line.heads and close is not None and line.bar is not None and math.isfinite(close):
            step = step_ms(line.tf)
            if step:
                self._predictions.append(
                    Prediction(line.symbol, line.tf, line.bar, step, close, line.heads)
                )

    def finish(self) -> None:
        """No more lines come."""
        self._count_junk(self._inside)
        for stuck in self._stuck.values():
            stuck.end(self.bars)
        for key, (note, symbol, time) in self._refused.items():
            # A bad bar of a cross symbol is no bar of ours; ours then names what it lacked.
            if note == _LATE or not self._symbols or symbol in self._symbols:
                self.bars[key] = 0
                self._counts["refused bars"] += 1
                self._skipped.add(f"not covered: the bar was refused as {note}", time)
                self._timeline.add(time, False, False)

    def document(self) -> dict[str, Any]:
        """Everything but the verdict, as JSON can hold it."""
        for name, stuck in self._stuck.items():
            self._models[name].stuck = stuck.total
        models = {name: model.document() for name, model in self._models.items()}
        pairs = {f"{a} and {b}": pair.document() for (a, b), pair in self._pairs.items()}
        whole = self.whole
        missing = {
            "gap": whole.gaps,
            "repeat": whole.repeats,
            "holes between bars": whole.incomplete,
        }
        counts = {**self._counts, **missing}
        return {
            "lines": self.lines,
            "malformed": {
                "count": self.malformed,
                "counted_as_bars": self.junk - self._readable_junk,
                "why": dict(self._why),
                "quarantine": self._quarantine,
            },
            "counts": {name: count for name, count in sorted(counts.items()) if count},
            "releases": dict(self._releases.most_common(20)),
            "modes": dict(self._modes),
            "seq": {"last": whole.seq, "breaks": whole.breaks},
            "holes": whole.holes,
            "not_activated": self._skipped.document(),
            "models": models,
            "agreement": pairs,
            "errors": self._errors.document(),
            "severe": self.severe.document(),
            "warnings": self._warnings.document(),
            "latency_ms": self._latency.document(),
            "timeline": self._timeline.document(),
            "realised": realised(self._predictions),
        }

    def tally(self) -> dict[str, tuple[int, int]]:
        """Successes and trials of each criterion; junk, which may hide bad bars, is a trial."""
        by_bits = Counter(self.bars.values())

        def having(wanted: int) -> int:
            return sum(n for bits, n in by_bits.items() if bits & wanted == wanted)

        covered, activated = having(COVERED), having(ACTIVATED)
        return {
            "ml_coverage": (covered, self.bar_count),
            "stacking_activation": (activated, covered + self.junk),
            **{
                f"{name}_normal": (
                    having(ACTIVATED | stuck.bit),
                    activated + self.junk + stuck.lost,
                )
                for name, stuck in self._stuck.items()
            },
        }

    @property
    def bar_count(self) -> int:
        """The bars, those that only junk stands for too."""
        return len(self.bars) + self.junk

    def causes(self) -> tuple[Cause, ...]:
        """What took evidence from bars, apart from the models; most frequent first."""
        causes = [
            Cause(
                n,
                self._style(n)
                if why == _ANOTHER_STYLE.why
                else f"{_lines(n)} can't be read: {why}",
            )
            for why, n in self._junk_why.items()
        ]
        if n := self._counts["bars without seq"]:
            causes.append(Cause(n, f"without seq: {_lines(n)} of the release"))
        return tuple(sorted(causes, key=lambda cause: -cause.count))

    def _style(self, count: int) -> str:
        names = [*self._styles][:_MOST_STYLES]
        more = ["..."] if len(self._styles) > _MOST_STYLES else []
        verb = "names" if count == 1 else "name"
        return f"{_lines(count)} {verb} a release in another style ({', '.join([*names, *more])})"

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols of the signal lines in the window."""
        return self._symbols.known

    @property
    def unnamed(self) -> int:
        """The number of lines in the window without seq or release."""
        return self._counts["without seq or release"]

    @property
    def future(self) -> int:
        return self._counts["in the future"]


class Comparing(Protocol):
    """An Analysis, or one of several symbols."""

    @property
    def window(self) -> Window: ...

    def compare(self, line: Line) -> None: ...


class Earlier:
    """Lines from before those of an analysis, read for its skill alone."""

    def __init__(self, analysis: Comparing) -> None:
        self._analysis = analysis

    def add(self, line: Line | Bad, file: str, number: int) -> None:
        if isinstance(line, Line) and self._analysis.window.takes(line):
            self._analysis.compare(line)

    def finish(self) -> None:
        """No more lines come."""


def _is_complete(line: Line) -> bool:
    """Whether the line names its release and has a number."""
    return line.seq is not None and line.release is not None


def _missing_numbers(line: Line) -> str:
    """The error of a line without ml_error; "" when it has all numbers."""
    answers = {"bull": line.p, "lgb": line.lgb, "lstm": line.lstm, "tft": line.tft}
    lacking = [f"ml_{k}_prob" for k, p in answers.items() if p is None or not math.isfinite(p)]
    return f"no number in {', '.join(lacking)}, and no field ml_error" if lacking else ""


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def _why_not(line: Line, error: str, bits: int, stacked: bool) -> str:
    if line.skipped:
        return line.skipped
    if not bits:
        return f"not covered: {error}" if error else "not covered: no prediction"
    if line.stacking is None:
        return "no reason given"
    return f"mode {line.mode or 'not given'}" if stacked else "not a probability in (0, 1)"
