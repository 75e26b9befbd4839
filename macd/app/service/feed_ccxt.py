"""Bars of an exchange by REST: asked for when one should have closed, patiently when it fails.

Every question is one request of `wait`, so that the watchdog and SIGTERM never wait for a row of
them. A bar counts as closed by the earlier of our clock and the exchange's. After failures the
pauses grow, then a circuit opens for a while (Nygard, Release It!).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import polars as pl

from macd.app.market.bars import symbol_name
from macd.app.market.exchange import Asking, open_exchange
from macd.app.service.feed import Bar, Item, Trouble, bars_of
from macd.app.service.settings import Settings
from macd.errors import MacdError

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


_SETTLED_S = 1.0  # after a bar's end, until an exchange has it
_AGAIN_S = 3.0  # when it has not yet
_CROSS_TRIES = 3  # for a cross symbol's bar, before the main one is asked without it


class _FailedError(Exception):
    """One try failed; the breaker says when the next may be."""


class CcxtFeed:
    """See macd.app.service.feed.Feed."""

    live = True

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._now, self._sleep, self._jitter = settings, now, sleep, jitter
        self._alive = alive
        feed = settings.feed
        self._exchange = open_exchange(feed.exchange, api_url=feed.api_url)
        self._ask = Asking(self._exchange, sleep=self._give_up, report=self._note)
        self.state = "connecting"
        self._names = (*settings.cross, settings.symbol)  # the main one last: see Feed
        # One dead market must neither hold the others nor be asked without pause because they live.
        self._breakers = {name: Breaker() for name in self._names}
        self._markets: dict[str, str] = {}
        self._newest: dict[str, int] = {}
        self._due = 0.0
        self._turn = self._tries = 0
        self._why = ""

    @property
    def breaker(self) -> Breaker:
        """The main symbol's."""
        return self._breakers[self._settings.symbol]

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        wait = self.breaker.wait(self._now())
        if wait > 0:
            raise MacdError(
                f"{self._exchange.id}: asked again in {wait:.0f} s", why=self._why, hint="wait"
            )
        try:
            if not self._markets:
                self._find_markets()
            history = {name: self._recent(name, need, after_ms) for name in self._names}
        except (_FailedError, MacdError) as error:
            why = error.why if isinstance(error, MacdError) else self._why
            pause = self.breaker.failed(self._now(), jitter=self._jitter())
            what = f"{self._exchange.id} gives no history; asked again in {pause:.0f} s"
            raise MacdError(what, why=why or str(error), hint="it goes on by itself") from error
        self.breaker.succeeded()
        self.state = "polling"
        return history

    def wait(self, seconds: float) -> Sequence[Item]:
        now = self._now()
        name = self._whose_turn(now)
        left = max(self._breakers[name].wait(now), self._due - now)
        if left > 0:
            self._sleep(min(seconds, left))
            return []
        try:
            bars = self._closed(name, self._newest[name] + self._settings.step)
        except (_FailedError, MacdError) as error:
            return [self._failed(name, error)]
        self._breakers[name].succeeded()
        if not any(breaker.failures for breaker in self._breakers.values()):
            self.state = "polling"
        for bar in bars:
            self._newest[name] = bar.open_ms
        self._schedule(name, bool(bars))
        return bars

    def _failed(self, name: str, error: Exception) -> Trouble:
        why = error.why if isinstance(error, MacdError) else self._why
        breaker = self._breakers[name]
        pause = breaker.failed(self._now(), jitter=self._jitter())
        self.state = f"failing: {name} ({breaker.failures} in a row, circuit {breaker.state})"
        self._next()
        return Trouble(name, "feed", f"{why or error}; asked again in {pause:.0f} s")

    def _whose_turn(self, now: float) -> str:
        """The next symbol that may be asked now; the main one's pause is waited for."""
        while (name := self._names[self._turn]) != self._settings.symbol:
            if not self._breakers[name].wait(now):
                break
            self._next()
        return name

    def _next(self) -> None:
        self._tries = 0
        self._turn = (self._turn + 1) % len(self._names)

    def _schedule(self, name: str, came: bool) -> None:
        """The next symbol at once; after the main one, when the next bar should be there."""
        now = self._now()
        if not came and name == self._settings.symbol:
            self._due = now + _AGAIN_S
        elif not came and self._is_due(name, now) and self._tries < _CROSS_TRIES:
            self._tries += 1  # the main symbol's bar is worth little without it
            self._due = now + _AGAIN_S
            return
        self._next()
        if self._turn == 0:
            step = self._settings.step
            ends = (self._newest[self._settings.symbol] + 2 * step) / 1000 + _SETTLED_S
            self._due = max(ends, self._due) if came or ends > now else now + _AGAIN_S

    def _is_due(self, name: str, now: float) -> bool:
        """Whether a bar of it has closed that has not come."""
        return now >= (self._newest[name] + 2 * self._settings.step) / 1000

    def _recent(self, name: str, need: int, after_ms: int | None) -> list[Bar]:
        """The last `need` closed bars up to `after_ms`, in as many pages as it takes."""
        step = self._settings.step
        now_ms = int(self._now() * 1000)
        until = now_ms if after_ms is None else min(after_ms + step, now_ms)
        cursor = until // step * step - (need + 2) * step
        bars: list[Bar] = []
        while cursor + step <= until:
            page = self._closed(name, cursor)
            if not page:
                break
            bars += page
            cursor = page[-1].open_ms + step
        past = [bar for bar in bars if after_ms is None or bar.open_ms <= after_ms]
        self._newest[name] = past[-1].open_ms if past else cursor - step
        return past[-need:]

    def _closed(self, name: str, since: int) -> list[Bar]:
        self._alive()  # the history takes a row of questions, and each may be slow
        step = self._settings.step
        clock = self._ask.clock(datetime.fromtimestamp(self._now(), UTC))
        page = self._ask.page(self._markets[name], self._settings.tf, since)
        opened = pl.col("timestamp").dt.epoch("ms")
        ended = (opened >= since) & (opened + step <= int(clock.timestamp() * 1000))
        frame = page.filter(ended).unique("timestamp").sort("timestamp")
        return bars_of(name, frame)

    def _find_markets(self) -> None:
        """ETHUSDT is ETH/USDT there: the spot market whose name without marks is ours."""
        self._ask.require(self._first_symbol(), self._settings.tf)
        by_name: dict[str, str] = {}
        for market in self._exchange.symbols:
            if ":" not in market:
                by_name.setdefault(symbol_name(market), market)
        lacking = [name for name in self._names if name not in by_name]
        if lacking:
            raise MacdError(
                f"{self._exchange.id} has no market for {', '.join(lacking)}",
                why="none of its spot markets has that name",
                hint="in the inventory: service.feed.exchange, service.symbol, or train.symbol and "
                "train.cross",
            )
        self._markets = {name: by_name[name] for name in self._names}

    def _first_symbol(self) -> str:
        try:
            self._exchange.load_markets()
        except Exception as error:
            self._why = f"{type(error).__name__}: {str(error)[:200]}"
            raise _FailedError(self._why) from error
        return next((s for s in self._exchange.symbols if ":" not in s), "")

    def _note(self, line: str) -> None:
        self._why = line.partition("; trying again")[0]

    def _give_up(self, _: float) -> None:
        raise _FailedError(self._why)
