"""Log files into an analysis: in the order they were written, in pieces, on all cores.

Instances write side by side, each its own log of a day; these are merged by the times in them.
Never holds more than a few pieces, so a log may be larger than the memory. A last line without its
newline is still being written and is left for the next time. Standard library alone.
"""

from __future__ import annotations

import gc
import heapq
import marshal
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from macd.host import logname
from macd.host.judge.parse import LONGEST, SIGNAL, Bad, Line, parse

NAME = re.compile(r"trades?_[A-Za-z0-9_-]{1,40}\.jsonl")
_PIECE = 8 << 20
_BLOCK = 1 << 20
EARLIER = 64 << 20  # years of 1h bars, two weeks of 1m bars
_NEWEST = 3  # files in whose ends a signal is looked for
_SMALL = 32 << 20  # bytes; below, processes cost more than they gain


@dataclass(frozen=True)
class Source:
    """The first `size` bytes of a log file; the rest is not read. called: where it has more than
    its file's name, as one of several directories has.
    """

    path: Path
    size: int
    called: str = ""

    @property
    def name(self) -> str:
        return self.called or self.path.name


class Reader(Protocol):
    """Takes every line in its order, then `finish`: an Analysis, or several."""

    def add(self, line: Line | Bad, file: str, number: int) -> None: ...

    def finish(self) -> None: ...


def analyse(sources: Sequence[Source], into: Reader, *, workers: int = 0) -> None:
    """Feed every line of the files to `into`, and finish it. workers: 0 is as many as cores."""
    count = workers or os.cpu_count() or 1
    small = sum(source.size for source in sources) < _SMALL
    days = by_day(sources)
    if small or count == 1 or len(days) < len(sources):
        parsed = _one_by_one(days)
    else:
        parsed = _in_parallel(sources, count)
    numbers: dict[str, int] = {}
    with _no_collection():
        for name, lines in parsed:
            number = numbers.get(name, 0)
            for line in lines:
                number += 1
                if line is not None:
                    into.add(line, name, number)
            numbers[name] = number
    into.finish()


def by_day(sources: Sequence[Source]) -> list[list[Source]]:
    """The logs of each day together; a log that is called otherwise is by itself."""
    return [list(day) for _, day in groupby(sources, lambda source: logname.day_of(source.name))]


def ordered(directory: Path) -> list[Source]:
    """The logs in a directory, oldest first: by the days in their names."""
    paths = [p for p in directory.iterdir() if NAME.fullmatch(p.name) and p.is_file()]
    paths.sort(key=lambda path: (re.sub(r"\D", "", path.name), path.name))
    return [Source(path, path.stat().st_size) for path in paths]


def before(logs: Sequence[Source], chosen: Sequence[Source], release: str) -> list[Source]:
    """The logs before the newest of the chosen ones that are none of them, back to the day the
    release was made (its name begins with it), and EARLIER bytes at most: whole files, the newest.
    """
    first = f"trades_{release[:8]}"
    names = {source.name for source in chosen}
    latest = max(names, default="~")
    earlier: list[Source] = []
    room = EARLIER
    for source in reversed(logs):
        if first <= source.name < latest and source.name not in names:
            room -= source.size
            if room < 0:
                break
            earlier.insert(0, source)
    return earlier


def newest_signal(directory: Path) -> Line | None:
    """The last whole signal line with a bar, in the newest files' ends; None: there is none."""
    for day in by_day(ordered(directory))[: -_NEWEST - 1 : -1]:
        lines = [line for line in map(_newest_in, day) if line is not None]
        if lines:
            return max(lines, key=lambda line: line.time)
    return None


def _newest_in(source: Source) -> Line | None:
    for line in from_end(source):
        if isinstance(line, Line) and line.kind == SIGNAL and line.bar is not None:
            return line
    return None


def from_end(source: Source, most: int = _BLOCK) -> Iterator[Line | Bad]:
    """The lines of a log's last MiB, or `most` bytes, the newest first."""
    with source.path.open("rb") as file:
        start = max(0, source.size - most)
        *lines, _ = os.pread(file.fileno(), source.size - start, start).split(b"\n")
    for raw in reversed(lines):  # the first may be cut: no JSON, or the whole of an object
        if raw.strip():
            yield parse(raw)


def _one_by_one(
    days: Sequence[Sequence[Source]],
) -> Iterator[tuple[str, Iterator[Line | Bad | None]]]:
    for day in days:
        if len(day) > 1:
            yield from _merged(day)
            continue
        for start, end in pieces(day[0]):
            yield day[0].name, _read(raw_lines(day[0].path, start, end))


def _merged(day: Sequence[Source]) -> Iterator[tuple[str, Iterator[Line | Bad | None]]]:
    """The lines of logs that were written side by side, by their times; a log's stay in order."""
    block = max(_BLOCK // len(day), 1 << 14)  # together they take no more room than one
    for _, name, line in heapq.merge(*(_timed(one, block) for one in day), key=itemgetter(0)):
        yield name, iter((line,))


def _timed(source: Source, block: int) -> Iterator[tuple[int, str, Line | Bad | None]]:
    """A line without a time goes after the line before it."""
    latest = 0
    for start, end in pieces(source):
        for line in _read(raw_lines(source.path, start, end, block)):
            if isinstance(line, Line):
                latest = max(latest, line.time)
            yield latest, source.name, line


def _in_parallel(
    sources: Sequence[Source], workers: int
) -> Iterator[tuple[str, Iterator[Line | Bad | None]]]:
    """Pieces are parsed ahead by processes; the results come in order and are freed at once."""
    # Not "fork": the caller may have threads (SSH). What is started imports the parser alone.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("forkserver"), initializer=gc.disable
    ) as pool:
        coming: deque[tuple[str, Future[bytes]]] = deque()
        for source in sources:
            for start, end in pieces(source):
                coming.append((source.name, pool.submit(_piece, str(source.path), start, end)))
                if len(coming) > workers + 1:
                    name, future = coming.popleft()
                    yield name, map(_revive, marshal.loads(future.result()))  # noqa: S302
        for name, future in coming:
            yield name, map(_revive, marshal.loads(future.result()))  # noqa: S302 - our own bytes


@contextmanager
def _no_collection() -> Iterator[None]:
    """Lines hold no cycles; a search in millions of them takes a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _piece(path: str, start: int, end: int) -> bytes:
    # Version 2 repeats equal texts: a search for earlier ones costs more than it saves.
    return marshal.dumps([_flat(line) for line in _read(raw_lines(Path(path), start, end))], 2)


def _flat(line: Line | Bad | None) -> tuple[Any, ...] | str | None:
    return line.why if isinstance(line, Bad) else line and tuple(line)


def _revive(flat: tuple[Any, ...] | str | None) -> Line | Bad | None:
    return Line._make(flat) if isinstance(flat, tuple) else None if flat is None else Bad(flat)


def _read(raws: Iterator[bytes]) -> Iterator[Line | Bad | None]:
    """None for a blank line, which is no bar but has a number."""
    for raw in raws:
        yield parse(raw) if raw.strip() else None


def pieces(source: Source) -> Iterator[tuple[int, int]]:
    """Ranges of whole lines; what comes after the last newline is left out."""
    with source.path.open("rb") as file:
        start = 0
        while start < source.size:
            end = _after_newline(file.fileno(), min(start + _PIECE, source.size), source.size)
            if end is None:
                end = _last_newline(file.fileno(), start, source.size)
            if end <= start:
                return
            yield start, end
            start = end


def raw_lines(path: Path, start: int, end: int, size: int = _BLOCK) -> Iterator[bytes]:
    """The lines of a range without newlines; a too long one is cut, but stays too long."""
    rest = b""
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            block = file.read(min(size, end - start))
            if not block:
                return
            start += len(block)
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            rest = rest[: LONGEST + 1]
    if rest:
        yield rest


def _after_newline(descriptor: int, at: int, size: int) -> int | None:
    """The offset after the first newline at or after at - 1; None if none is before `size`."""
    at -= 1
    while at < size:
        block = os.pread(descriptor, min(_BLOCK, size - at), at)
        newline = block.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        if not block:
            return None
        at += len(block)
    return None


def _last_newline(descriptor: int, start: int, size: int) -> int:
    """The offset after the last newline in [start, size); `start` when there is none."""
    end = size
    while end > start:
        begin = max(start, end - _BLOCK)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return start
