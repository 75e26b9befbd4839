"""Bars that another process appends to files: <directory>/SYMBOL_TF.csv or .jsonl, one bar a line.

CSV: timestamp,open,high,low,close,volume (a header line may come first); JSONL: objects with these
names. timestamp is the bar's open: seconds to nanoseconds since 1970, or ISO 8601 with a zone. Only
lines that end with a newline are read; a bar is taken as closed when its line stands there.
A bar that closes within minutes from now, by our clock, waits for it: one of the two clocks is off.
Any other bar that can't be closed yet, or has no place in any history, is handed on for the loop to
refuse, and no other bar is measured by it.
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
from typing import Any, BinaryIO, TypeVar

from macd.app.market.bars import COLUMNS, step_ms
from macd.app.market.times import epoch_ms
from macd.app.service.feed import Bar, Item, Trouble
from macd.app.service.history import closes_later, unusable
from macd.app.service.settings import Settings
from macd.app.service.signal_log import bar_time

T = TypeVar("T")
_PAUSE_S = 0.2
_CHUNK = 1 << 20
_LONGEST_LINE = 4096
_SPARE_BARS = 10_000  # of history in memory, before the rest is dropped
_MOST_TROUBLES = 200
_AHEAD_MS = 300_000  # a bar that closes later than this from now is no matter of clocks
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
        self._served = settings.served
        self._cross = {name: settings.of(name).cross for name in settings.served}
        self._followed = {
            name: _Followed(name, settings.feed_directory / f"{name}_{settings.tf}", self._believes)
            for name in settings.names
        }
        self._waiting: list[Item] = []
        self._held: dict[str, deque[tuple[float, Item]]] = {n: deque() for n in settings.served}
        self._early: dict[tuple[str, int], Bar] = {}  # until they have closed by our clock
        self._clocks_differ = False  # said once

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        history: dict[str, Sequence[Bar]] = {}
        later: list[Bar] = []
        troubles: list[Item] = []
        for name, followed in self._followed.items():
            history[name], new, wrong = _since(followed.all(), need, after_ms, self._is_closed)
            later += self._hold_early(new, troubles)
            troubles += wrong
        # In the order of time, what gets lines behind the others of the same time.
        later.sort(key=lambda bar: (bar.open_ms, bar.symbol in self._served))
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
                items = self._new(followed)
                if name in self._held:
                    self._held[name].extend((self._clock() + _CROSS_S, item) for item in items)
                else:
                    arrived += items
            for name in self._held:
                arrived += self._ripe(name)
            if len(self._held) > 1:  # what came of one time is taken together
                arrived.sort(key=_time_of)
            missing = [f.symbol for f in self._followed.values() if not f.there]
            self.state = f"no file of {', '.join(missing)}" if missing else "reading its directory"
            left = until - self._clock()
            if arrived or left <= 0:
                return arrived
            self._sleep(min(_PAUSE_S, left))

    def _new(self, followed: _Followed) -> list[Item]:
        """What has come of a file: bars that were held and have closed, then its new lines."""
        troubles: list[Item] = []
        items = self._hold_early(followed.read(), troubles)
        closed = [bar for bar in self._early.values() if self._is_closed(bar)]
        ripe = sorted((b for b in closed if b.symbol == followed.symbol), key=lambda b: b.open_ms)
        for bar in ripe:
            del self._early[bar.symbol, bar.open_ms]
            followed.newest_ms = max(followed.newest_ms, bar.open_ms)
        return [*troubles, *ripe, *items]

    def _hold_early(self, items: Iterable[T], troubles: list[Item]) -> list[T]:
        """The items but for bars that will close soon; of a bar that is held the last line counts.

        That the clocks differ is added to `troubles`, once in a life.
        """
        others: list[T] = []
        for item in items:
            if not isinstance(item, Bar):
                others.append(item)
                continue
            self._early.pop((item.symbol, item.open_ms), None)
            ahead = item.open_ms + self._step - self._now() * 1000
            if self._is_closed(item) or ahead > _AHEAD_MS or unusable(item, self._step):
                others.append(item)
                continue
            self._early[item.symbol, item.open_ms] = item
            if not self._clocks_differ:
                self._clocks_differ = True
                said = (
                    f"the bar of {bar_time(item.open_ms)} closes in {ahead / 1000:.0f} s by this "
                    "machine's clock, which is slow, or its writer's is fast (timedatectl); such "
                    "bars wait until they have closed here, no bar is lost; said once"
                )
                troubles.append(Trouble(item.symbol, "clock", said))
        return others

    def _is_closed(self, bar: Bar) -> bool:
        return not closes_later(bar, self._step, self._now() * 1000)

    def _believes(self, bar: Bar) -> bool:
        """Whether its time shows how far a file has come: the loop refuses other bars."""
        return self._is_closed(bar) and not unusable(bar, self._step)

    def _ripe(self, name: str) -> list[Item]:
        """What a served symbol's file held, once its cross assets' have come as far, or are late.

        Writers append to one file after the other: a bar is not to be judged without the rest.
        """
        others = [self._followed[other].newest_ms for other in self._cross[name]]
        held = self._held[name]
        ripe: list[Item] = []
        while held:
            late, item = held[0]
            if (
                isinstance(item, Bar)
                and self._believes(item)
                and self._clock() < late
                and item.open_ms > min(others, default=item.open_ms)
            ):
                break
            ripe.append(item)
            held.popleft()
        return ripe


def _time_of(item: Item) -> int:
    """What is about no bar comes first."""
    return item.open_ms if isinstance(item, Bar) else -1


def every_bar(directory: Path, symbol: str, tf: str) -> Iterator[Bar]:
    """Each bar that a file holds and a feature may be computed from, in the order of its lines."""
    step = step_ms(tf)
    followed = _Followed(symbol, directory / f"{symbol}_{tf}", lambda _: True)
    try:
        for item in followed.all():
            if isinstance(item, Bar) and not unusable(item, step):
                yield item
    finally:
        followed.close()


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

    The file stays open, so that what was appended just before another one took its name is read
    first, and that one can't have the same inode. Bars that stand in a new file again are old
    news and left out without a word: those up to newest_ms, the newest that `believes` holds for.
    """

    symbol: str
    stem: Path
    believes: Callable[[Bar], bool]
    file: BinaryIO | None = None
    offset: int = 0
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
            is_json = path.suffix == ".jsonl"
            if self.file is not None and not _is_at(self.file, path):
                if rest := self._read_on(self.file, is_json):
                    return rest
                self.close()
                self.renewed = True
            if self.file is None:
                self.file, self.offset = path.open("rb"), 0
            elif os.fstat(self.file.fileno()).st_size < self.offset:
                self.renewed, self.offset = True, 0
            self.there, self.why = True, ""
            return self._read_on(self.file, is_json)
        except StopIteration:
            self.there = False
            return []
        except OSError as error:
            self.there = False
            before, self.why = self.why, f"{self.stem.name}: {error.strerror}"
            return [] if self.why == before else [Trouble(self.symbol, "feed", self.why)]

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
        self.file = None

    def _read_on(self, file: BinaryIO, is_json: bool) -> list[Item]:
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


def _is_at(file: BinaryIO, path: Path) -> bool:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


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
