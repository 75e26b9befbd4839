"""Bars that another process appends to files: <directory>/SYMBOL_TF.csv or .jsonl, one bar a line.

CSV: timestamp,open,high,low,close,volume (a header line may come first); JSONL: objects with these
names. timestamp is the bar's open: seconds to nanoseconds since 1970, or ISO 8601 with a zone. Only
lines that end with a newline are read; a bar is taken as closed when its line stands there.
A bar that can't be closed yet, or has no place in any history, is handed on for the loop to refuse,
and no other bar is measured by it.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.app.market.bars import COLUMNS, step_ms
from macd.app.market.times import epoch_ms
from macd.app.service.feed import Bar, Item, Trouble
from macd.app.service.history import closes_later, unusable
from macd.app.service.settings import Settings

_PAUSE_S = 0.2
_CHUNK = 1 << 20
_LONGEST_LINE = 4096
_SPARE_BARS = 10_000  # of history in memory, before the rest is dropped
_MOST_TROUBLES = 200
_CROSS_S = 10.0  # how long a bar of the main symbol waits for those of the same time


class DirectoryFeed:
    """See macd.app.service.feed.Feed."""

    live = True

    def __init__(
        self,
        settings: Settings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._sleep, self._clock, self._now = sleep, clock, now
        self._step = step_ms(settings.tf)
        self.state = "reading its directory"
        names = (*settings.cross, settings.symbol)  # the main one last: see Feed
        self._main = settings.symbol
        self._followed = {
            name: _Followed(name, settings.feed_directory / f"{name}_{settings.tf}", self._believes)
            for name in names
        }
        self._waiting: list[Item] = []
        self._held: deque[tuple[float, Item]] = deque()

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        history: dict[str, Sequence[Bar]] = {}
        later: list[Bar] = []
        troubles: list[Item] = []
        for name, followed in self._followed.items():
            history[name], new, wrong = _since(followed.all(), need, after_ms, self._is_closed)
            later += new
            troubles += wrong
        # In the order of time, the main symbol behind the others of the same time.
        later.sort(key=lambda bar: (bar.open_ms, bar.symbol == self._main))
        self._waiting = [*troubles, *later]
        return history

    def wait(self, seconds: float) -> Sequence[Item]:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            return waiting
        until = self._clock() + seconds
        while True:
            arrived: list[Item] = []
            for name, followed in self._followed.items():
                items = followed.read()
                if name == self._main:
                    self._held.extend((self._clock() + _CROSS_S, item) for item in items)
                else:
                    arrived += items
            arrived += self._ripe()
            missing = [f.symbol for f in self._followed.values() if not f.there]
            self.state = f"no file of {', '.join(missing)}" if missing else "reading its directory"
            left = until - self._clock()
            if arrived or left <= 0:
                return arrived
            self._sleep(min(_PAUSE_S, left))

    def _is_closed(self, bar: Bar) -> bool:
        return not closes_later(bar, self._step, self._now() * 1000)

    def _believes(self, bar: Bar) -> bool:
        """Whether its time shows how far a file has come: the loop refuses other bars."""
        return self._is_closed(bar) and not unusable(bar, self._step)

    def _ripe(self) -> list[Item]:
        """What the main symbol's file held, once every other file has come as far, or is late.

        Writers append to one file after the other: a bar is not to be judged without the rest.
        """
        others = [f.newest_ms for name, f in self._followed.items() if name != self._main]
        ripe: list[Item] = []
        while self._held:
            late, item = self._held[0]
            if (
                isinstance(item, Bar)
                and self._believes(item)
                and self._clock() < late
                and item.open_ms > min(others, default=item.open_ms)
            ):
                break
            ripe.append(item)
            self._held.popleft()
        return ripe


def _since(
    items: Iterable[Item], need: int, after_ms: int | None, is_closed: Callable[[Bar], bool]
) -> tuple[list[Bar], list[Bar], list[Item]]:
    """The last `need` bars up to `after_ms`, the bars behind it, and what was wrong since then.

    Bars that can't be closed yet are behind it, whenever it was.
    """
    bars: dict[int, Bar] = {}
    newest = -1
    later: list[Bar] = []
    troubles: deque[Item] = deque(maxlen=_MOST_TROUBLES)
    for item in items:
        if not isinstance(item, Bar):
            troubles.append(item)
        elif (after_ms is not None and item.open_ms > after_ms) or not is_closed(item):
            later.append(item)
        else:
            if item.open_ms > newest:  # an earlier process reported what was wrong before it
                troubles.clear()
                newest = item.open_ms
            bars.setdefault(item.open_ms, item)
            if len(bars) > need + _SPARE_BARS:
                bars = dict(sorted(bars.items())[-need:])
    return [bar for _, bar in sorted(bars.items())][-need:], later, [*troubles]


@dataclass
class _Followed:
    """One growing file, read from where the last reading ended; a new file is read from its start.

    Bars that stand in a new file again are old news and are left out without a word: those up to
    newest_ms, the newest bar that `believes` holds for.
    """

    symbol: str
    stem: Path
    believes: Callable[[Bar], bool]
    offset: int = 0
    inode: int = 0
    newest_ms: int = -1
    renewed: bool = False
    there: bool = False
    why: str = ""  # why it can't be read; reported once

    def all(self) -> Iterator[Item]:
        before = -1
        while self.offset != before:
            before = self.offset
            yield from self.read()

    def read(self) -> list[Item]:
        """Whole new lines, at most _CHUNK bytes of them."""
        try:
            path = next(p for p in (_with(self.stem, "csv"), _with(self.stem, "jsonl")) if p)
            with path.open("rb") as file:
                items = self._read_on(file, path.suffix == ".jsonl")
                self.why = ""
                return items
        except StopIteration:
            self.there = False
            return []
        except OSError as error:
            self.there = False
            before, self.why = self.why, f"{self.stem.name}: {error.strerror}"
            return [] if self.why == before else [Trouble(self.symbol, "feed", self.why)]

    def _read_on(self, file: Any, is_json: bool) -> list[Item]:
        self.there = True
        stat = os.fstat(file.fileno())
        if stat.st_ino != self.inode or stat.st_size < self.offset:
            self.renewed = self.inode != 0
            self.inode, self.offset = stat.st_ino, 0
        file.seek(self.offset)
        chunk = file.read(_CHUNK)
        end = chunk.rfind(b"\n") + 1
        if not end and len(chunk) > _LONGEST_LINE:
            self.offset += len(chunk)
            return [Trouble(self.symbol, "unreadable", "a line without an end was skipped")]
        at_start = self.offset == 0
        self.offset += end
        items: list[Item] = []
        for number, line in enumerate(chunk[:end].splitlines()):
            item = self._item(line, is_json, header=at_start and number == 0)
            if item is not None:
                items.append(item)
        return items

    def _item(self, line: bytes, is_json: bool, *, header: bool) -> Item | None:
        if not line.strip() or (header and line.lower().startswith(b"timestamp")):
            return None
        try:
            bar = _bar(self.symbol, line, is_json)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            return Trouble(self.symbol, "unreadable", f"{line[:120]!r}: {error}")
        if self.renewed and bar.open_ms <= self.newest_ms:
            return None
        if bar.open_ms > self.newest_ms and self.believes(bar):
            self.newest_ms = bar.open_ms
        return bar


def _with(stem: Path, suffix: str) -> Path | None:
    path = stem.with_name(f"{stem.name}.{suffix}")
    return path if path.exists() else None


def _bar(symbol: str, line: bytes, is_json: bool) -> Bar:
    if is_json:
        document = json.loads(line)
        cells = [document[name] for name in COLUMNS]
    else:
        cells = line.decode().split(",")
        if len(cells) != len(COLUMNS):
            raise ValueError(f"{len(cells)} cells, not {len(COLUMNS)}")
    return Bar(symbol, _epoch_ms(cells[0]), *(float(cell) for cell in cells[1:]))


def _epoch_ms(cell: Any) -> int:
    text = str(cell).strip().strip('"')
    number = epoch_ms(text)
    if number is not None:
        return number
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return int(moment.astimezone(UTC).timestamp() * 1000)
