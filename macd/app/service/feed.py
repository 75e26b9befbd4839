"""What a source of closed bars looks like to the loop; and the one that replays a file.

The replay gives bars one after the other at any speed, with the times they had: the demo's market.
After a restart it goes on behind the last bar that was logged; at the end it stops, or begins a new
lap with the same history as the first.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from macd.app.market.bars import COLUMNS, bars_path, read_bars
from macd.app.service.settings import Settings
from macd.errors import MacdError

_AT_ONCE = 50  # bars given in one answer when a replay runs as fast as it can


@dataclass(frozen=True)
class Bar:
    """One closed bar as it arrived, not yet judged. `open_ms`: epoch milliseconds of its open.

    filled: nobody traded, and the exchange had no candle; it is flat at the last close.
    """

    symbol: str
    open_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    filled: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Trouble:
    """Something that kept bars from arriving or could not be read as one; worth a line."""

    symbol: str
    event: str
    detail: str


@dataclass(frozen=True)
class Fresh:
    """Forget what came before: the bars start anew behind this history (a replay's next lap)."""

    history: Mapping[str, Sequence[Bar]]


@dataclass(frozen=True)
class Corrected:
    """The source now gives other values for a bar that was handed over before as `was`."""

    bar: Bar
    was: Bar

    @property
    def detail(self) -> str:
        """Each value that changed, from what to what."""
        pairs = [(n, getattr(self.was, n), getattr(self.bar, n)) for n in COLUMNS[1:]]
        return ", ".join(f"{name} {old:g} -> {new:g}" for name, old, new in pairs if old != new)


Item = Bar | Trouble | Fresh | Corrected


class Feed(Protocol):
    """Bars of the cross symbols come before the bar of the main symbol with the same time.

    Where several symbols are served, what has come of a time is given in one answer, and a symbol
    that is another's cross asset is waited for like one that is not served.

    live: bars are of now, so that one which comes late is stale. state: a word for /healthz.
    """

    live: bool
    state: str

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        """The last `need` closed bars of each symbol, oldest first, up to `after_ms` if given.

        after_ms: open of the last bar that was dealt with before; what closed since comes by
        `wait`. Raises MacdError when there is no way to bars at all (it may be tried again).
        """

    def wait(self, seconds: float) -> Sequence[Item]:
        """What arrived, after at most about this long; nothing is a good answer. Never raises."""


class ReplayFeed:
    """Bars of files: see Feed. A time is one at which a served symbol has a bar."""

    live = False

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._clock, self._sleep = settings, clock, sleep
        self.state = "replaying"
        self._need = 0
        self._position = 0
        self._due = 0.0
        self._frames: dict[str, pl.DataFrame] = {}
        self._opens: dict[str, list[int]] = {}
        self._times: list[int] = []

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        feed = self._settings.feed
        for symbol in self._settings.names:
            path = bars_path(self._settings.feed_directory, symbol, self._settings.tf)
            self._frames[symbol] = frame = read_bars(path)
            self._opens[symbol] = frame["timestamp"].dt.epoch("ms").to_list()
        times = {ms for symbol in self._settings.served for ms in self._opens[symbol]}
        self._times = sorted(times)
        count = len(self._times)
        if count <= need:
            raise MacdError(
                f"{count} bars of {self._settings.symbol} are too few to replay",
                why=f"{need} are history before the first one",
                hint="bring more bars into train.data_dir, or lower service.feed.start; then: "
                "invoke provision",
            )
        self._need = need
        self._first = min(max(int(count * feed.start), need), count - 1)
        self._position = self._first
        if after_ms is not None:
            later = bisect_right(self._times, after_ms)
            inside = need <= later and (later < count or not feed.loop)
            self._position = later if inside else self._first
        self._due = self._clock()
        return self._history()

    def wait(self, seconds: float) -> Sequence[Item]:
        if self._position >= len(self._times):
            if not self._settings.feed.loop:
                self.state = "at the end of its file"
                self._sleep(seconds)
                return []
            self._position = self._first
            return [Fresh(self._history())]
        count = self._count_due(seconds)
        times = self._times[self._position : self._position + count]
        self._position += len(times)
        return [bar for ms in times for bar in self._bars_at(ms)]

    def _count_due(self, seconds: float) -> int:
        """Sleep until the next bar is due; how many are, when it lags behind."""
        speed = self._settings.feed.speed
        if speed <= 0:
            return max(1, _AT_ONCE // len(self._settings.served))
        left = self._due - self._clock()
        if left > seconds:
            self._sleep(seconds)
            return 0
        self._sleep(max(0.0, left))
        behind = max(0.0, self._clock() - self._due)
        if behind > 1.0:  # a machine that slept doesn't catch up with a burst
            self._due, behind = self._clock(), 0.0
        count = min(_AT_ONCE, 1 + int(behind * speed))
        self._due += count / speed
        return count

    def _history(self) -> dict[str, list[Bar]]:
        until = self._times[self._position - 1]
        history = {}
        for symbol in (*self._settings.served, *self._settings.cross):
            known = bisect_right(self._opens[symbol], until)
            before = self._frames[symbol][max(0, known - self._need) : known]
            history[symbol] = bars_of(symbol, before)
        return history

    def _bars_at(self, open_ms: int) -> Iterator[Bar]:
        for symbol in self._settings.names:
            opens = self._opens[symbol]
            at = bisect_left(opens, open_ms)
            if at < len(opens) and opens[at] == open_ms:
                yield from bars_of(symbol, self._frames[symbol][at : at + 1])


def bars_of(symbol: str, frame: pl.DataFrame) -> list[Bar]:
    """The rows of a canonical frame as bars."""
    stamps = frame["timestamp"].dt.epoch("ms").to_list()
    rows = frame.drop("timestamp").iter_rows()
    return [Bar(symbol, ms, *row) for ms, row in zip(stamps, rows, strict=True)]


def open_feed(settings: Settings, alive: Callable[[], None] = lambda: None) -> Feed:
    """The feed that service.json names. alive: the watchdog's sign of life, for long beginnings."""
    if settings.feed.kind == "replay":
        return ReplayFeed(settings)
    if settings.feed.kind == "directory":
        from macd.app.service.feed_directory import DirectoryFeed  # noqa: PLC0415 - only what is used

        return DirectoryFeed(settings)
    from macd.app.service.feed_ccxt import CcxtFeed  # noqa: PLC0415 - ccxt is large

    return CcxtFeed(settings, alive=alive)
