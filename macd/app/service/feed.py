"""What a source of closed bars looks like to the loop; and the one that replays a file.

The replay gives bars one after the other at any speed, with the times they had: the demo's market.
After a restart it goes on behind the last bar that was logged; at the end it stops, or begins a new
lap with the same history as the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import polars as pl

from macd.app.market.bars import bars_path, read_bars
from macd.app.service.settings import Settings
from macd.errors import MacdError

_AT_ONCE = 50  # bars given in one answer when a replay runs as fast as it can


@dataclass(frozen=True)
class Bar:
    """One closed bar as it arrived, not yet judged. `open_ms`: epoch milliseconds of its open."""

    symbol: str
    open_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float


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


Item = Bar | Trouble | Fresh


class Feed(Protocol):
    """Bars of the cross symbols come before the bar of the main symbol with the same time.

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
    """Bars of files: see Feed."""

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

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        feed = self._settings.feed
        for symbol in (self._settings.symbol, *self._settings.cross):
            path = bars_path(self._settings.feed_directory, symbol, self._settings.tf)
            self._frames[symbol] = read_bars(path)
        main = self._main
        if len(main) <= need:
            raise MacdError(
                f"{len(main)} bars of {self._settings.symbol} are too few to replay",
                why=f"{need} are history before the first one",
                hint="bring more bars into train.data_dir, or lower service.feed.start; then: "
                "invoke provision",
            )
        self._need = need
        self._first = min(max(int(len(main) * feed.start), need), len(main) - 1)
        self._position = self._first
        if after_ms is not None:
            later = int((main["timestamp"].dt.epoch("ms") <= after_ms).sum())
            inside = need <= later and (later < len(main) or not feed.loop)
            self._position = later if inside else self._first
        self._due = self._clock()
        return self._history()

    def wait(self, seconds: float) -> Sequence[Item]:
        if self._position >= len(self._main):
            if not self._settings.feed.loop:
                self.state = "at the end of its file"
                self._sleep(seconds)
                return []
            self._position = self._first
            return [Fresh(self._history())]
        count = self._count_due(seconds)
        rows = self._main[self._position : self._position + count]
        self._position += len(rows)
        return self._with_cross(rows)

    @property
    def _main(self) -> pl.DataFrame:
        return self._frames[self._settings.symbol]

    def _count_due(self, seconds: float) -> int:
        """Sleep until the next bar is due; how many are, when it lags behind."""
        speed = self._settings.feed.speed
        if speed <= 0:
            return _AT_ONCE
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
        past = self._main[: self._position]
        until = past["timestamp"][-1]
        history = {self._settings.symbol: bars_of(self._settings.symbol, past.tail(self._need))}
        for symbol in self._settings.cross:
            before = self._frames[symbol].filter(pl.col("timestamp") <= until)
            history[symbol] = bars_of(symbol, before.tail(self._need))
        return history

    def _with_cross(self, rows: pl.DataFrame) -> list[Item]:
        items: list[Item] = []
        for bar in bars_of(self._settings.symbol, rows):
            for symbol in self._settings.cross:
                stamp = pl.col("timestamp").dt.epoch("ms")
                items += bars_of(symbol, self._frames[symbol].filter(stamp == bar.open_ms))
            items.append(bar)
        return items


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
