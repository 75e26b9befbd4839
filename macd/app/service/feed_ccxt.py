"""Bars of an exchange by REST: asked for when one should have closed, patiently when it fails.

Every question is one request of `wait`, so that the watchdog and SIGTERM never wait for a row of
them; several symbols are asked side by side, for their history too. A bar counts as closed by the
earlier of our clock and the exchange's.

Exchanges correct bars after they closed. So each page begins with the last two bars again, and one
that is not what was handed over before is handed on as `Corrected`, once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import replace
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import NamedTuple

import polars as pl

from macd.app.market.exchange import (
    Asking,
    Exchange,
    beside,
    no_market,
    open_exchange,
    spot_markets,
)
from macd.app.service.asking import (
    AGAIN_S,
    CROSS_TRIES,
    LONGEST_AGAIN_S,
    OPENS_AFTER,
    SETTLED_S,
    Breaker,
    Past,
    Plan,
)
from macd.app.service.feed import Bar, Corrected, Item, Trouble, bars_of
from macd.app.service.settings import Settings
from macd.errors import MacdError

_RECHECKED = 2  # bars that are asked for again: one request gives them with the new ones
_AT_ONCE = 8  # of many symbols so many are asked side by side
_CLOCK_S = 10.0  # so long one answer about the exchange's time holds, where many symbols ask


class _FailedError(Exception):
    """One try failed; the breaker says when the next may be."""


def _once(exchange: Exchange) -> Asking:
    """Questions that are not asked again: each raises _FailedError with the reason."""
    why = [""]

    def note(line: str) -> None:
        why[0] = line.partition("; trying again")[0]

    def give_up(_: float) -> None:
        raise _FailedError(why[0])

    return Asking(exchange, sleep=give_up, report=note)


class _Beside:
    """Pages of several symbols, asked for side by side: a thread and an exchange object each."""

    def __init__(self, exchanges: Sequence[Exchange]) -> None:
        self._pool = futures.ThreadPoolExecutor(len(exchanges), thread_name_prefix="feed")
        self._free: SimpleQueue[Asking] = SimpleQueue()
        for exchange in exchanges:
            self._free.put(_once(exchange))

    def ask(self, market: str, tf: str, first: int) -> futures.Future[pl.DataFrame]:
        return self._pool.submit(self._page, market, tf, first)

    def _page(self, market: str, tf: str, first: int) -> pl.DataFrame:
        asking = self._free.get()
        try:
            return asking.page(market, tf, first)
        finally:
            self._free.put(asking)


class _Asked(NamedTuple):
    """A page that is on its way. since: of its first bar that counts. first: as it was asked for.

    clock: what it was then by the exchange's clock; bars that close later don't count.
    """

    since: int
    first: int
    clock: float
    page: futures.Future[pl.DataFrame]


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
        self._names = settings.names  # the main one last: see Feed
        # One dead market must neither hold the others nor be asked without pause because they live.
        self._breakers = {name: Breaker() for name in self._names}
        self._markets: dict[str, str] = {}
        self._newest: dict[str, int] = {}
        self._traded: dict[str, int] = {}  # the last candle that the exchange itself gave
        self._recheck: dict[str, dict[int, Bar]] = {}  # the last two, as they were handed over
        self._due = 0.0
        self._turn = self._tries = self._silent = 0
        self._why = ""
        self._said: list[Item] = []  # by what was asked outside of `wait`
        self._plan: Plan | None = None  # where several symbols are served
        self._beside: _Beside | None = None  # the same
        self._asked: dict[str, _Asked] = {}
        self._held: list[Bar] = []  # of cross assets that get lines too, until all have been asked
        self._clock: tuple[float, float] | None = None  # when it was asked, and how far it is off

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
            history = self._histories(need, after_ms)
            for name, known in history.items():
                self._recheck[name] = {bar.open_ms: bar for bar in known[-_RECHECKED:]}
        except (_FailedError, MacdError) as error:
            why = error.why if isinstance(error, MacdError) else self._why
            pause = self.breaker.failed(self._now(), jitter=self._jitter())
            what = f"{self._exchange.id} gives no history; asked again in {pause:.0f} s"
            raise MacdError(what, why=why or str(error), hint="it goes on by itself") from error
        if history.get(self._settings.symbol) or not self._settings.symbols:
            self.breaker.succeeded()  # of several the first may be the one that is away
        self.state = "polling"
        return history

    def _histories(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        """Of each symbol; raises where not one that gets lines has a history.

        The main one is asked first: where it answers, one that does not is a matter of its market.
        """
        step, now_ms = self._settings.step, int(self._exchange_time() * 1000)
        pasts = {name: Past(need, after_ms, now_ms, step) for name in reversed(self._names)}
        for name, past in pasts.items():
            self._newest[name] = past.cursor - step  # one that gives nothing is asked on from there
        if self._settings.symbols:
            history = self._several_histories(pasts, self._open_beside())
            if not any(history.get(name) for name in self._settings.served):
                raise _FailedError(self._why)
            cross = [name for name in self._names if name in self._settings.cross]
            self._plan = Plan(self._names, cross, self._settings.step)
            return history
        return {
            name: self._recent(name, past)
            if name == self._settings.symbol
            else self._recent_or_none(name, past)
            for name, past in pasts.items()
        }

    def wait(self, seconds: float) -> Sequence[Item]:
        if self._said:
            said, self._said = self._said, []
            return said
        now = self._now()
        if self._plan is not None and self._beside is not None:
            return self._wait_for_several(seconds, self._plan, self._beside)
        name = self._whose_turn(now)
        left = max(self._breakers[name].wait(now), self._due - now)
        if left > 0:
            self._sleep(min(seconds, left))
            return []
        try:
            page = self._closed(name, self._since(name))
        except (_FailedError, MacdError) as error:
            return self._failed(name, error)
        return self._came(name, page)

    def _since(self, name: str) -> int:
        """The open of the first bar that is asked for: the last ones are asked for again."""
        return self._newest[name] - (_RECHECKED - 1) * self._settings.step

    def _wait_for_several(self, seconds: float, plan: Plan, beside: _Beside) -> Sequence[Item]:
        """Whoever is due is asked, as many at a time as there are threads; what has come by then.

        One that does not answer keeps its thread until the request's time is over, nobody else.
        """
        due, left, wait_for_cross = plan.due(self._now(), self._breakers, self._asked)
        if self._held and not wait_for_cross:
            held, self._held = self._held, []
            return sorted(held, key=lambda bar: (bar.open_ms, self._names.index(bar.symbol)))
        for name in due[: max(0, _AT_ONCE - len(self._asked))]:
            try:
                self._send(name, self._since(name), beside)
            except (_FailedError, MacdError) as error:
                return self._failed(name, error)
        if not self._asked:
            self._sleep(min(seconds, left))
            return []
        pages = [asked.page for asked in self._asked.values()]
        most = min(seconds, left) if left > 0 else seconds
        futures.wait(pages, most, futures.FIRST_COMPLETED)
        items: list[Item] = []
        for name in [each for each in self._names if each in self._asked]:
            if self._asked[name].page.done():
                items += self._answered(name)
        return items

    def _answered(self, name: str) -> Sequence[Item]:
        try:
            page = self._answer(name)
        except (_FailedError, MacdError) as error:
            return self._failed(name, error)
        return self._came(name, page)

    def _send(self, name: str, since: int, beside: _Beside) -> None:
        """Ask for a page of it from `since` on, beside others; `_answer` has what comes."""
        self._alive()
        clock, first = self._exchange_time(), self._first(name, since)
        page = beside.ask(self._markets[name], self._settings.tf, first)
        self._asked[name] = _Asked(since, first, clock, page)

    def _answer(self, name: str) -> list[Bar]:
        asked = self._asked.pop(name)
        return self._bars(name, asked.page.result(), asked.since, asked.first, asked.clock)

    def _came(self, name: str, page: Sequence[Bar]) -> Sequence[Item]:
        """What an answer holds that was not handed over yet."""
        was_open = self._breakers[name].state == "open"
        again = [Trouble(name, "feed", "it answers again")] if was_open else []
        self._breakers[name].succeeded()
        if not any(breaker.failures for breaker in self._breakers.values()):
            self.state = "polling"
        corrected = self._corrected(name, page)
        bars = [bar for bar in page if bar.open_ms > self._newest[name]]
        for bar in bars:
            self._newest[name] = bar.open_ms
            self._recheck[name][bar.open_ms] = bar
        if self._plan is None:
            self._schedule(name, bool(bars))
            return [*again, *corrected, *bars]
        self._plan.answered(name, self._newest[name], self._now(), came=bool(bars))
        if name in self._settings.cross:
            self._held += bars
            bars = []
        return [*again, *corrected, *bars]

    def _open_beside(self) -> _Beside:
        if self._beside is None:
            many = min(_AT_ONCE, len(self._names))
            url = self._settings.feed.api_url
            self._beside = _Beside(beside(self._exchange, many, api_url=url))
        return self._beside

    def _corrected(self, name: str, page: Sequence[Bar]) -> list[Corrected]:
        """Which of the bars handed over last are others now; of each it is said once."""
        since = self._since(name)
        before = {ms: bar for ms, bar in self._recheck[name].items() if ms >= since}
        changed = [
            Corrected(bar, before[bar.open_ms])
            for bar in page
            if bar.open_ms in before and bar != before[bar.open_ms]
        ]
        for correction in changed:
            del before[correction.bar.open_ms]
        self._recheck[name] = before
        return changed

    def _failed(self, name: str, error: Exception) -> list[Trouble]:
        """Note a failure. Once the circuit is open, only that is said, and when it closes."""
        why = error.why if isinstance(error, MacdError) else str(error)
        breaker = self._breakers[name]
        pause = breaker.failed(self._now(), jitter=self._jitter())
        self.state = f"failing: {name} ({breaker.failures} in a row, circuit {breaker.state})"
        if self._plan is not None:
            self._plan.failed(name)
        self._next()
        if breaker.failures > OPENS_AFTER:
            return []
        rest = " and so on; said no more until it answers" if breaker.state == "open" else ""
        return [Trouble(name, "feed", f"{why or error}; asked again in {pause:.0f} s{rest}")]

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
        if name == self._settings.symbol:
            self._silent = 0 if came else min(self._silent + 1, 10)
        if not came and name == self._settings.symbol:
            self._due = now + min(AGAIN_S * 2.0 ** (self._silent - 1), LONGEST_AGAIN_S)
        elif not came and self._is_due(name, now) and self._tries < CROSS_TRIES:
            self._tries += 1  # the main symbol's bar is worth little without it
            self._due = now + AGAIN_S
            return
        self._next()
        if self._turn == 0:
            step = self._settings.step
            ends = (self._newest[self._settings.symbol] + 2 * step) / 1000 + SETTLED_S
            if came or ends > now:
                self._due = max(ends, self._due)

    def _is_due(self, name: str, now: float) -> bool:
        """Whether a bar of it has closed that has not come."""
        return now >= (self._newest[name] + 2 * self._settings.step) / 1000

    def _recent(self, name: str, past: Past) -> list[Bar]:
        """Its history, in as many pages as it takes."""
        while past.lacks:
            past.take(self._closed(name, past.cursor))
        bars, self._newest[name] = past.bars()
        return bars

    def _recent_or_none(self, name: str, past: Past) -> list[Bar]:
        """The history of a cross symbol; nothing where its market gives none: it is asked on."""
        try:
            return self._recent(name, past)
        except (_FailedError, MacdError) as error:
            self._said += self._failed(name, error)
            return []

    def _several_histories(
        self, pasts: Mapping[str, Past], beside: _Beside
    ) -> dict[str, list[Bar]]:
        """As `_recent_or_none` of each, as many at a time as there are threads."""
        due = list(pasts)
        lost: set[str] = set()

        def lose(name: str, error: Exception) -> None:
            self._said += self._failed(name, error)
            lost.add(name)

        while due or self._asked:
            for name in due[: _AT_ONCE - len(self._asked)]:
                due.remove(name)
                try:
                    self._send(name, pasts[name].cursor, beside)
                except (_FailedError, MacdError) as error:
                    lose(name, error)
            pages = [asked.page for asked in self._asked.values()]
            futures.wait(pages, return_when=futures.FIRST_COMPLETED)
            for name in [name for name, asked in self._asked.items() if asked.page.done()]:
                try:
                    pasts[name].take(self._answer(name))
                except (_FailedError, MacdError) as error:
                    lose(name, error)
                else:
                    due += [name] if pasts[name].lacks else []
        history: dict[str, list[Bar]] = {name: [] for name in pasts}
        for name in pasts.keys() - lost:
            history[name], self._newest[name] = pasts[name].bars()
        return history

    def _closed(self, name: str, since: int) -> list[Bar]:
        self._alive()  # the history takes a row of questions, and each may be slow
        clock, first = self._exchange_time(), self._first(name, since)
        page = self._ask.page(self._markets[name], self._settings.tf, first)
        return self._bars(name, page, since, first, clock)

    def _first(self, name: str, since: int) -> int:
        """From where on it is asked: from a real bar on, what is left out behind it shows."""
        if not self._ask.leaves_out:
            return since
        return min(since, self._traded.get(name, since - self._settings.step))

    def _bars(
        self, name: str, page: pl.DataFrame, since: int, first: int, clock: float
    ) -> list[Bar]:
        """Of an answer those since then that had closed by that clock."""
        now_ms = int(datetime.fromtimestamp(clock, UTC).timestamp() * 1000)
        opened = pl.col("timestamp").dt.epoch("ms")
        ended = (opened >= since) & (opened + self._settings.step <= now_ms)
        frame = page.filter(ended).unique("timestamp").sort("timestamp")
        bars = bars_of(name, frame)
        if not self._ask.leaves_out:
            return bars
        bars = [replace(bar, filled=bar.volume == 0) for bar in bars]
        self._traded[name] = max((b.open_ms for b in bars if not b.filled), default=first)
        return bars

    def _exchange_time(self) -> float:
        """Now, or the exchange's own time where that is earlier; of many symbols, asked once."""
        now = self._now()
        if self._clock and self._settings.symbols and now - self._clock[0] < _CLOCK_S:
            return now + self._clock[1]
        exchange_time = self._ask.clock(datetime.fromtimestamp(now, UTC)).timestamp()
        self._clock = now, exchange_time - now
        return exchange_time

    def _find_markets(self) -> None:
        """ETHUSDT is ETH/USDT there: the spot market whose name without marks is ours."""
        self._ask.require(self._first_symbol(), self._settings.tf)
        self._markets = spot_markets(self._exchange, self._names)
        lacking = [name for name in self._names if name not in self._markets]
        if set(lacking) >= set(self._settings.served):
            raise no_market(self._exchange, lacking)
        self._names = tuple(self._markets)
        for name in lacking:
            why = f"{self._exchange.id} has no such spot market; looked for at the next start"
            self._said.append(Trouble(name, "feed", why))

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
