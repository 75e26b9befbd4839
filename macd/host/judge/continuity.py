"""Whether the lines are all there: gaps of seq, bars that never came, another release in between.

Counts and names; what a hole is worth is evidence.py's. Standard library alone and pure: the guard
runs this on the host.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from macd.host.judge.parse import SIGNAL, Line

REFUSED = ("stale", "bad_bar")  # as the service calls bars it gives no signal on
_MOST_KEPT = 50
_MOST_SERIES = 1000
_STEPS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Continuity:
    """Told of every line in its order.

    Attributes: seq, the last one. breaks: gaps and repeats of seq. intruders: lines of another
    release between ours. holes: between which bars some lack. The first of each are kept, all of
    them counted: broken and incomplete say how many lie in the window.
    """

    def __init__(self) -> None:
        self.seq: int | None = None
        self.gaps = self.repeats = self.incomplete = 0
        self.breaks: list[dict[str, Any]] = []
        self.intruders: list[dict[str, Any]] = []
        self.holes: list[dict[str, Any]] = []
        self._began = False
        self._foreign: dict[str, Any] | None = None
        self._due: dict[tuple[str, str], int] = {}

    @property
    def broken(self) -> int:
        return self.gaps + self.repeats

    def meet(self, line: Line, ours: bool, inside: bool, file: str, number: int) -> None:
        """Another release's lines between ours: a rollback, or damage that would hide bars."""
        if not ours:
            at = {"file": file, "line": number, "release": line.release}
            self._foreign = at if inside and self._began else None
            return
        if self._foreign is not None and len(self.intruders) < _MOST_KEPT:
            self.intruders.append(self._foreign)
        self._began, self._foreign = True, None

    def number(self, line: Line, inside: bool, file: str, number: int) -> None:
        """Its seq, of whichever release: one writer counts them all."""
        if line.seq is None:
            return
        if self.seq is not None and line.seq != self.seq + 1 and inside:
            kind = "gap" if line.seq > self.seq else "repeat"
            self.gaps += kind == "gap"
            self.repeats += kind == "repeat"
            if len(self.breaks) < _MOST_KEPT:
                at = {"file": file, "line": number, "time": line.time}
                self.breaks.append({"kind": kind, "after": self.seq, "seq": line.seq, **at})
        self.seq = line.seq

    def follow(self, line: Line, inside: bool) -> None:
        """Bars that never came are a hole in the evidence; a step back is a replay's next lap.

        A refused bar did come, but its time is believed only where the next bar belongs: it may be
        what was bad about it.
        """
        step = step_ms(line.tf)
        if line.bar is None or not step:
            return
        series = (line.symbol, line.tf)
        if series not in self._due and len(self._due) >= _MOST_SERIES:
            self.incomplete += inside  # nobody can follow so many: what lacks there is not known
            return
        due = self._due.get(series, line.bar)
        if line.kind == SIGNAL and line.bar > due and inside:
            self.incomplete += 1
            if len(self.holes) < _MOST_KEPT:
                bars = {"after": due - step, "before": line.bar}
                self.holes.append({"symbol": line.symbol, "tf": line.tf, **bars})
        if line.kind == SIGNAL or (line.note in REFUSED and line.bar == self._due.get(series)):
            self._due[series] = line.bar + step


@lru_cache(64)
def step_ms(tf: str) -> int:
    """Length of a bar in milliseconds; 0 for what is no timeframe."""
    count = tf[:-1]
    if not (count.isascii() and count.isdigit() and len(count) <= 4) or tf[-1] not in _STEPS:
        return 0
    return int(count) * _STEPS[tf[-1]]
