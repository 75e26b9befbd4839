"""Counters over the lines of a log; their memory is bounded, however long or hostile it is.

Standard library alone and pure: the guard runs this on the host.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from macd.host import logname
from macd.host.judge.parse import REFUSED, SIGNAL, Line, step_ms

BINS = 20
STUCK_RUN = 5  # equal answers in a row
STUCK_WITHIN = 1e-6
_MOST_BUCKETS = 96
_MOST_BREAKS = 50
_MOST_SERIES = 1000
_MOST_GROUPS = 60
_NUMBERS = re.compile(r"[0-9][0-9a-fA-F:.,TZ+-]*")
_LATENCY_STEPS = 20  # a decade; a quantile is exact to 12 %


@dataclass(slots=True)
class Groups:
    """Texts that differ only in their numbers, together: how often, first and last time."""

    groups: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, text: str, time: int) -> None:
        key = _NUMBERS.sub("#", text)
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= _MOST_GROUPS:
                key = text = "(others)"
            group = self.groups.setdefault(key, [0, text, time, time])
        group[0] += 1
        group[3] = time

    def document(self) -> list[dict[str, Any]]:
        """The most frequent first."""
        ordered = sorted(self.groups.values(), key=lambda group: (-group[0], group[1]))
        return [{"count": n, "example": text, "first": a, "last": b} for n, text, a, b in ordered]


class Few:
    """A bounded set of texts: once it is full, it seems to contain every text."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._texts: set[str] = set()

    def add(self, text: str) -> None:
        if len(self._texts) < self._most:
            self._texts.add(text)

    def __contains__(self, text: str) -> bool:
        return text in self._texts or len(self._texts) >= self._most

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def known(self) -> frozenset[str]:
        """The texts that were added while there was room."""
        return frozenset(self._texts)


@dataclass(slots=True)
class Model:
    """The answers of one model: their range and distribution, and what was no answer."""

    bins: list[int] = field(default_factory=lambda: [0] * BINS)
    n: int = 0
    missing: int = 0
    not_finite: int = 0
    outside: int = 0
    stuck: int = 0
    low: float = math.inf
    high: float = -math.inf
    offsets: float = 0.0  # of a half, where probabilities lie: their squares lose no digits
    squares: float = 0.0

    def add(self, p: float | None) -> bool:
        """Take an answer; True when it is a probability a working model gives: in (0, 1)."""
        if p is None:
            self.missing += 1
            return False
        good = 0 < p < 1
        if not good and not math.isfinite(p):
            self.not_finite += 1
            return False
        self.n += 1
        offset = p - 0.5
        self.offsets += offset
        self.squares += offset * offset
        if p < self.low:  # noqa: PLR1730 - a call costs more, five times a line
            self.low = p
        if p > self.high:  # noqa: PLR1730
            self.high = p
        if good:
            self.bins[int(p * BINS)] += 1
        else:
            self.outside += 1
        return good

    def document(self) -> dict[str, Any]:
        any_answer = self.n > 0
        offset = self.offsets / self.n if any_answer else 0.0
        spread = (
            math.sqrt(max(0.0, self.squares / self.n - offset * offset)) if any_answer else None
        )
        return {
            "answers": self.n,
            "missing": self.missing,
            "not_finite": self.not_finite,
            "outside": self.outside,
            "stuck": self.stuck,
            "min": _finite(self.low) if any_answer else None,
            "max": _finite(self.high) if any_answer else None,
            "mean": _finite(0.5 + offset) if any_answer else None,
            "spread": _finite(spread),
            "histogram": list(self.bins),
        }


@dataclass(slots=True)
class Timeline:
    """Bars, covered and activated ones over time, in buckets that widen as the time grows."""

    width: int = 60_000
    buckets: dict[int, list[int]] = field(default_factory=dict)

    def add(self, time: int, covered: bool, activated: bool) -> None:
        bucket = self.buckets.get(time // self.width)
        if bucket is None:
            while self._span(time) > _MOST_BUCKETS:
                self._widen()
            bucket = self.buckets.setdefault(time // self.width, [0, 0, 0])
        bucket[0] += 1
        bucket[1] += covered
        bucket[2] += activated

    def _span(self, time: int) -> int:
        keys = [*self.buckets, time // self.width]
        return max(keys) - min(keys) + 1

    def _widen(self) -> None:
        self.width *= 2
        wider: dict[int, list[int]] = {}
        for key, counts in self.buckets.items():
            into = wider.setdefault(key // 2, [0, 0, 0])
            for at, count in enumerate(counts):
                into[at] += count
        self.buckets = wider

    def document(self) -> list[list[int]]:
        """[epoch ms of the bucket's begin, bars, covered, activated], oldest first."""
        return [[key * self.width, *self.buckets[key]] for key in sorted(self.buckets)]


@dataclass(slots=True)
class Latency:
    """Milliseconds, in steps of a twentieth of a decade."""

    steps: dict[int, int] = field(default_factory=dict)
    n: int = 0
    most: float = 0.0

    def add(self, ms: float | None) -> None:
        if ms is None or not math.isfinite(ms) or ms < 0:
            return
        step = math.ceil(_LATENCY_STEPS * math.log10(max(ms, 1e-3)))
        self.steps[step] = self.steps.get(step, 0) + 1
        self.n += 1
        self.most = max(self.most, ms)

    def document(self) -> dict[str, Any]:
        steps = [[10 ** (step / _LATENCY_STEPS), self.steps[step]] for step in sorted(self.steps)]
        quantiles = {f"p{share}": self._quantile(share / 100) for share in (50, 90, 99)}
        return {"n": self.n, **quantiles, "max": self.most if self.n else None, "steps": steps}

    def _quantile(self, share: float) -> float | None:
        seen = 0
        for step in sorted(self.steps):
            seen += self.steps[step]
            if seen >= share * self.n:
                return min(self.most, 10 ** (step / _LATENCY_STEPS))
        return None


@dataclass(slots=True)
class Pair:
    """Two models side by side: how often on the same side of a half, and their correlation."""

    n: int = 0
    same: int = 0
    x: float = 0.0  # sums of offsets from a half
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def add(self, a: float, b: float) -> None:
        """Both in (0, 1)."""
        a -= 0.5
        b -= 0.5
        self.n += 1
        self.same += (a > 0) == (b > 0)
        self.x += a
        self.y += b
        self.xx += a * a
        self.yy += b * b
        self.xy += a * b

    def document(self) -> dict[str, Any]:
        n = self.n
        shared = n * self.xy - self.x * self.y
        scale = math.sqrt(
            max(0.0, n * self.xx - self.x * self.x) * max(0.0, n * self.yy - self.y * self.y)
        )
        return {
            "n": n,
            "same_side": self.same / n if n else None,
            "correlation": shared / scale if scale > 1e-9 * n else None,
        }


class Stuck:
    """Finds repeated answers; the first ones of a run counted as normal, which it corrects.

    lost: those of bars that are not stored (their key is None), which nobody else counts.
    """

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.lost = 0
        self.value = math.nan
        self.run: list[Any] = []
        self.length = 0
        self.changed = False
        self.total = 0

    def add(self, p: float, key: Any, bars: dict[Any, int]) -> None:
        if not abs(p - self.value) <= STUCK_WITHIN:  # NaN at the start too
            self.changed = self.changed or self.length > 0
            self.value, self.run, self.length = p, [], 0
        self.length += 1
        if self.length < STUCK_RUN:
            self.run.append(key)
            return
        self._take_back((*self.run, key), bars)
        self.run = []

    def end(self, bars: dict[Any, int]) -> None:
        """A model that never said anything else is stuck, however few its answers."""
        if not self.changed and 1 < self.length < STUCK_RUN:
            self._take_back(self.run, bars)

    def _take_back(self, run: Sequence[Any], bars: dict[Any, int]) -> None:
        self.total += len(run)
        for key in run:
            if key is None:
                self.lost += 1
            else:
                bars[key] &= ~self.bit


class Continuity:
    """Whether lines or bars are missing; it takes every line in its order.

    Attributes:
        seq: the last one. seqs: the last one of each writer, an instance's symbol or "". firsts:
            of each the first line's seq (1 where it has none) and time.
        breaks: the first gaps and repeats of seq; `broken` counts them in the window.
        intruders: the first lines of another release between ours.
        holes: the first places of missing bars; `incomplete` counts them in the window.
    """

    def __init__(self) -> None:
        self.seq: int | None = None
        self.seqs: dict[str, int] = {}
        self.firsts: dict[str, tuple[int, int]] = {}
        self.gaps = self.repeats = self.incomplete = 0
        self.breaks: list[dict[str, Any]] = []
        self.intruders: list[dict[str, Any]] = []
        self.holes: list[dict[str, Any]] = []
        self._writers: dict[str, str] = {}  # by file
        self._foreign: dict[str, dict[str, Any] | None] = {}  # by writer, of those that began
        self._due: dict[tuple[str, str], int] = {}

    @property
    def broken(self) -> int:
        return self.gaps + self.repeats

    def check_release(self, line: Line, ours: bool, inside: bool, file: str, number: int) -> None:
        """Lines of another release between ours: a rollback, or damage that would hide bars.

        Instances are switched one after another, so each is asked by itself; what the one process
        of all symbols wrote concerns them all.
        """
        writer = self._writer(file)
        if not ours:
            at = {"file": file, "line": number, "release": line.release, "time": line.time}
            for other in self._foreign:
                if other == writer or "" in (other, writer):
                    self._foreign[other] = at if inside else None
            return
        intruder = self._foreign.get(writer)
        if intruder is not None and len(self.intruders) < _MOST_BREAKS:
            self.intruders.append(intruder)
        self._foreign[writer] = None

    def _writer(self, file: str) -> str:
        if file not in self._writers:
            self._writers[file] = logname.writer_of(file)
        return self._writers[file]

    def check_seq(self, line: Line, inside: bool, file: str, number: int) -> None:
        """The seq of any release: a writer numbers all its lines."""
        writer = self._writer(file)
        self.firsts.setdefault(writer, (line.seq or 1, line.time))
        if line.seq is None:
            return
        before = self.seqs.get(writer)
        if before is not None and line.seq != before + 1 and inside:
            kind = "gap" if line.seq > before else "repeat"
            self.gaps += kind == "gap"
            self.repeats += kind == "repeat"
            if len(self.breaks) < _MOST_BREAKS:
                at = {"file": file, "line": number, "time": line.time}
                self.breaks.append({"kind": kind, "after": before, "seq": line.seq, **at})
        self.seq = self.seqs[writer] = line.seq

    def check_bar(self, line: Line, inside: bool) -> None:
        """Missing bars are a hole in the evidence; a step back is a replay's next lap.

        A refused bar did come. Its time counts only where the next bar belongs, since it may be
        what was bad about it.
        """
        step = step_ms(line.tf)
        if line.bar is None or not step:
            return
        series = (line.symbol, line.tf)
        if series not in self._due and len(self._due) >= _MOST_SERIES:
            self.incomplete += inside  # too many to follow, so what is missing there is unknown
            return
        due = self._due.get(series, line.bar)
        if line.kind == SIGNAL and line.bar > due and inside:
            self.incomplete += 1
            if len(self.holes) < _MOST_BREAKS:
                bars = {"after": due - step, "before": line.bar}
                self.holes.append({"symbol": line.symbol, "tf": line.tf, **bars})
        if line.kind == SIGNAL or (line.note in REFUSED and line.bar == self._due.get(series)):
            self._due[series] = line.bar + step


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
