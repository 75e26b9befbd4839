"""Bars that another process appends to files: <directory>/SYMBOL_TF.csv or .jsonl, one bar a line.

CSV: timestamp,open,high,low,close,volume (a header line may come first); JSONL: objects with these
names. timestamp is the bar's open: epoch milliseconds, epoch seconds, or ISO 8601 with a zone. Only
lines that end with a newline are read; a bar is taken as closed when its line stands there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.market.bars import COLUMNS
from macd.service.feed import Bar, Item, Trouble
from macd.service.settings import Settings

_PAUSE_S = 0.2
_CHUNK = 1 << 20
_LONGEST_LINE = 4096
_SECONDS_BELOW = 100_000_000_000  # as milliseconds this is 1973: such a number is in seconds


class DirectoryFeed:
    """See macd.service.feed.Feed."""

    live = True

    def __init__(
        self,
        settings: Settings,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self.state = "reading its directory"
        names = (*settings.cross, settings.symbol)  # the main one last: see Feed
        self._main = settings.symbol
        self._followed = {
            name: _Followed(name, settings.feed_directory / f"{name}_{settings.tf}")
            for name in names
        }
        self._waiting: list[Item] = []

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        history: dict[str, Sequence[Bar]] = {}
        later: list[Bar] = []
        for name, followed in self._followed.items():
            bars: list[Bar] = []
            while items := followed.read():
                bars += [item for item in items if isinstance(item, Bar)]
                del bars[: -need - 10_000]
            known = [bar for bar in bars if after_ms is None or bar.open_ms <= after_ms]
            later += bars[len(known) :] if known == bars[: len(known)] else []
            history[name] = known[-need:]
        # In the order of time, the main symbol behind the others of the same time.
        later.sort(key=lambda bar: (bar.open_ms, bar.symbol == self._main))
        self._waiting = list(later)
        return history

    def wait(self, seconds: float) -> Sequence[Item]:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            return waiting
        until = time.monotonic() + seconds
        while True:
            found: list[Item] = []
            for followed in self._followed.values():
                found += followed.read()
            missing = [f.symbol for f in self._followed.values() if not f.there]
            self.state = f"no file of {', '.join(missing)}" if missing else "reading its directory"
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            self._sleep(min(_PAUSE_S, left))


@dataclass
class _Followed:
    """One growing file, read from where the last reading ended; a new file is read from its start.

    Bars that stand in a new file again are old news and are left out without a word.
    """

    symbol: str
    stem: Path
    offset: int = 0
    inode: int = 0
    newest_ms: int = -1
    renewed: bool = False
    there: bool = False

    def read(self) -> list[Item]:
        """Whole new lines, at most _CHUNK bytes of them."""
        try:
            path = next(p for p in (_with(self.stem, "csv"), _with(self.stem, "jsonl")) if p)
            with path.open("rb") as file:
                return self._read_on(file, path.suffix == ".jsonl")
        except StopIteration:
            self.there = False
            return []
        except OSError as error:
            self.there = False
            return [Trouble(self.symbol, "feed", f"{self.stem.name}: {error.strerror}")]

    def _read_on(self, file: Any, is_json: bool) -> list[Item]:
        self.there = True
        found = os.fstat(file.fileno())
        if found.st_ino != self.inode or found.st_size < self.offset:
            self.renewed = self.inode != 0
            self.inode, self.offset = found.st_ino, 0
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
        self.newest_ms = max(self.newest_ms, bar.open_ms)
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
    if text.lstrip("-").isdecimal():
        number = int(text)
        return number * 1000 if abs(number) < _SECONDS_BELOW else number
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return int(moment.astimezone(UTC).timestamp() * 1000)
