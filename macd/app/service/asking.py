"""When a symbol of an exchange is asked, and for which bars: pure.

After failures the pauses grow, then a circuit opens for a while (Nygard, Release It!).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from macd.app.service.feed import Bar

FIRST_S = 1.0
OPENS_AFTER, OPEN_S = 5, 300.0


class Breaker:
    """Failures in a row of one peer. `state`: "closed" (asking) or "open".

    An open one lets a question through each time its pause is over, and the answer decides: what is
    called half-open needs no state of its own.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._next = 0.0

    @property
    def state(self) -> str:
        return "open" if self.failures >= OPENS_AFTER else "closed"

    def wait(self, now: float) -> float:
        """Seconds until the peer may be asked; 0: now. One question then decides."""
        return max(0.0, self._next - now)

    def failed(self, now: float, *, jitter: float, asked: float = 0.0) -> float:
        """Note a failure; the pause. jitter: 0 to 1, so that many don't come back at once.

        asked: seconds the peer itself asked to wait.
        """
        self.failures += 1
        pause = OPEN_S if self.failures >= OPENS_AFTER else FIRST_S * 2.0 ** (self.failures - 1)
        pause = max(pause * (0.75 + 0.5 * jitter), asked)
        self._next = now + pause
        return pause

    def succeeded(self) -> None:
        self.failures = 0
        self._next = 0.0


SETTLED_S = 1.0  # after a bar's end, until an exchange has it
AGAIN_S = 3.0  # when it has not yet; each time twice as long
LONGEST_AGAIN_S = 60.0  # for hours a market may have no trade, and so no bar
CROSS_TRIES = 3  # for a cross symbol's bar, before the main one is asked without it


class Plan:
    """When each of several symbols is asked next: first those that are others' cross assets.

    While such a one still lacks its bar, only they are asked, a few times: without it the others'
    bars are worth little.
    """

    def __init__(self, names: Sequence[str], cross: Sequence[str], step: int) -> None:
        self._names, self._cross, self._step = names, cross, step
        self._due = dict.fromkeys(names, 0.0)
        self._tries = dict.fromkeys(names, 0)

    def due(
        self, now: float, breakers: Mapping[str, Breaker], asked: Container[str]
    ) -> tuple[list[str], float, bool]:
        """Who is to be asked now, in how many seconds somebody is, and whether others wait for it.

        asked: who is being asked already.
        """
        pending = any(0 < self._tries[name] < CROSS_TRIES for name in self._cross)
        waits = {
            name: 0.0
            if name in asked
            else max(0.0, breakers[name].wait(now), self._due[name] - now)
            for name in (self._cross if pending else self._names)
        }
        first = [name for name in self._cross if waits[name] == 0]
        due = [name for name in first or waits if waits[name] == 0 and name not in asked]
        left = min((wait for name, wait in waits.items() if name not in asked), default=0.0)
        return due, left, bool(first)

    def answered(self, name: str, newest: int, now: float, *, came: bool) -> None:
        """newest: its last bar's open in ms; came: whether a new one was in the answer."""
        ends = (newest + 2 * self._step) / 1000 + SETTLED_S
        if came or ends > now:
            self._tries[name], self._due[name] = 0, ends
            return
        self._tries[name] += 1
        pause = AGAIN_S * 2.0 ** min(self._tries[name] - 1, 10)
        self._due[name] = now + min(pause, LONGEST_AGAIN_S)

    def failed(self, name: str) -> None:
        """Its breaker says when it is asked again; nobody waits for it."""
        self._tries[name] = 0


class Past:
    """A symbol's history on its way: its last `need` closed bars up to `after_ms`, page by page.

    cursor: the open of the first bar that is still to be asked for. now_ms: by the earlier
    of our clock and the exchange's, or a clock that is ahead would find less than it needs.
    """

    def __init__(self, need: int, after_ms: int | None, now_ms: int, step: int) -> None:
        self._need, self._after, self._step = need, after_ms, step
        self._until = now_ms if after_ms is None else min(after_ms + step, now_ms)
        self.cursor = self._until // step * step - (need + 2) * step
        self._bars: list[Bar] = []

    @property
    def lacks(self) -> bool:
        return self.cursor + self._step <= self._until

    def take(self, page: Sequence[Bar]) -> None:
        """An empty page ends it."""
        if not page:
            self._until = self.cursor
            return
        self._bars += page
        self.cursor = page[-1].open_ms + self._step

    def bars(self) -> tuple[list[Bar], int]:
        """Them, and the open of the newest; of none, the bar before the first that may come."""
        bars = [bar for bar in self._bars if self._after is None or bar.open_ms <= self._after]
        newest = bars[-1].open_ms if bars else self.cursor - self._step
        return bars[-self._need :], newest
