"""The signal lines on disk: whole lines, each durable before the next bar, numbered without end.

One file a UTC day, of the moment of WRITING (a replayed or late bar never changes an older file),
and never a day earlier than the newest file, should the clock be set back. `seq` goes on from the
last whole line, so it never repeats and never skips while the files live. A line torn by a kill or
a power cut is ended with a newline at the next start, never joined with another and never counted.

An instance that serves one of several symbols writes files of its own, and numbers its own lines.
Where a symbol was served by the one process before, or by an instance, its last bar is found there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.errors import RefusedError
from macd.host import durable, logname

_MOST_SEQ = 1 << 53  # readers take none from there on
_BLOCK = 1 << 16
_LONGEST = 1 << 20
_LOCK = ".writer"
_MOST_READ = 64 << 20  # bytes of lines in which the last one of each symbol is looked for


@dataclass(frozen=True)
class Last:
    """A symbol's last line about a bar; `bar_ms` is the bar's open, epoch milliseconds."""

    bar_ms: int
    line: Mapping[str, Any]


class SignalLog:
    """The one writer of a directory of signal lines, or of an instance's in it.

    Attributes: seq, of the last line written. last_bar_ms: of the last line about a bar of the main
    symbol that was here before, None if none; last_signal: that line, {} if none. last: the same by
    symbol, of the `symbols` asked for. torn: bytes of a torn line that was ended at start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        symbols: Sequence[str] = (),
        writer: str = "",
    ) -> None:
        """writer: the symbol of an instance; "" for the one process.

        Raises RefusedError when another process writes here; OSError as the disk has it.
        """
        durable.make_directories(str(directory))
        self._directory, self._clock, self._writer = directory, clock, writer
        self._lock = _only_writer(directory, writer)
        self._file = -1
        self.torn = 0
        self.seq = 0
        self.last_bar_ms: int | None = None
        self.last_signal: Mapping[str, Any] = {}
        self.last: dict[str, Last] = {}
        try:
            ours = _newest_first(directory, writer)
            self._day = logname.day_of(ours[0].name) if ours else ""
            if self._day:
                self._open(self._day)
                self.torn = self._end_torn_line()
            self._go_on_from(ours)
            self.last = _last_of(symbols, directory)
            if len(symbols) == 1:
                self._go_on_behind(self.last.get(symbols[0]))
        except BaseException:
            self.close()
            raise

    def write(self, level: str, fields: Mapping[str, Any]) -> int:
        """Append one line and return its seq once it is on the disk.

        Raises OSError when it is not; then nothing was written and the same line can be tried
        again. Raises ValueError for a value JSON has no form for, NaN among them.
        """
        now = self._clock()
        day = max(self._day, f"{now:%Y%m%d}")
        if day != self._day or self._file < 0:
            self._open(day)
            self._day = day
        stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        document = {"timestamp": stamp, "level": level, "seq": self.seq + 1, **fields}
        line = json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._append(line)
        self.seq += 1
        return self.seq

    def close(self) -> None:
        """Let go of the files; what was written is on the disk already."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _open(self, day: str) -> None:
        path = self._directory / logname.name_of(day, self._writer)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._file >= 0:
            os.close(self._file)
        self._file = descriptor
        durable.sync_directory(str(self._directory))

    def _append(self, line: bytes) -> None:
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "only part of a line could be written")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, before)  # a line that is not durable must not stand there
            raise

    def _end_torn_line(self) -> int:
        size = os.fstat(self._file).st_size
        if not size or os.pread(self._file, 1, size - 1) == b"\n":
            return 0
        torn = next(_lines_backwards(self._file, size))
        self._append(b"\n")
        return max(1, len(torn))

    def _go_on_from(self, newest_first: list[Path]) -> None:
        """Find the last seq, and the last bar, in the newest lines that have one."""
        for path in newest_first:
            with path.open("rb") as file:
                for line in _lines_backwards(file.fileno(), path.stat().st_size):
                    document = _object(line)
                    seq = document.get("seq")
                    if type(seq) is int and 0 < seq < _MOST_SEQ and not self.seq:
                        self.seq = seq
                    opened = document.get("bar_time")
                    is_signal = document.get("level") == "SIGNAL" and self.last_bar_ms is None
                    if is_signal and isinstance(opened, str):
                        ms = _epoch_ms(opened)
                        self.last_bar_ms, self.last_signal = ms, {} if ms is None else document
                    if self.seq and self.last_bar_ms is not None:
                        return

    def _go_on_behind(self, last: Last | None) -> None:
        """Of a symbol whose last line another process wrote, in its own log."""
        if last is not None and _written(last.line) > _written(self.last_signal):
            self.last_bar_ms, self.last_signal = last.bar_ms, last.line


def _written(line: Mapping[str, Any]) -> str:
    """When it was written; the text is in the order of the times."""
    return str(line.get("timestamp", ""))


def _newest_first(directory: Path, writer: str) -> list[Path]:
    names = (path.name for path in directory.iterdir())
    ours = [n for n in names if logname.PATTERN.fullmatch(n) and logname.writer_of(n) == writer]
    return [directory / name for name in sorted(ours, reverse=True)]


def _last_of(symbols: Sequence[str], directory: Path) -> dict[str, Last]:
    """The last line about a bar of each symbol, whether one process or its instance wrote it."""
    last = _last_in(symbols, _newest_first(directory, ""))
    for symbol in symbols:
        by_instance = _last_in((symbol,), _newest_first(directory, symbol)).get(symbol)
        before = last.get(symbol)
        if by_instance and (before is None or _written(by_instance.line) > _written(before.line)):
            last[symbol] = by_instance
    return last


def _last_in(symbols: Sequence[str], newest_first: Sequence[Path]) -> dict[str, Last]:
    """The same in some files, as far as the newest lines have one."""
    last: dict[str, Last] = {}
    wanted, left = set(symbols), _MOST_READ
    for path in newest_first:
        with path.open("rb") as file:
            for line in _lines_backwards(file.fileno(), path.stat().st_size):
                left -= len(line)
                if not wanted or left < 0:
                    return last
                document = _object(line)
                symbol, opened = document.get("symbol"), document.get("bar_time")
                if document.get("level") != "SIGNAL" or not isinstance(opened, str):
                    continue
                open_ms = _epoch_ms(opened)
                if isinstance(symbol, str) and symbol in wanted and open_ms is not None:
                    last[symbol] = Last(open_ms, document)
                    wanted.discard(symbol)
    return last


def bar_time(open_ms: int) -> str:
    """The bar's open as it stands on a line: ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(open_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _epoch_ms(text: str) -> int | None:
    try:
        ms = int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return None
    return ms if ms >= 0 else None


def _only_writer(directory: Path, writer: str) -> int:
    name = f"{_LOCK}{'-' if writer else ''}{writer}.lock"
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RefusedError(
            f"another process writes signals into {directory}",
            why="two writers would give one seq twice",
            hint="stop the other one: systemctl status "
            f"macd-analysis{'@' if writer else ''}{writer}",
        ) from error
    return descriptor


def _lines_backwards(descriptor: int, size: int) -> Iterator[bytes]:
    """Lines from the last to the first, without their newline; the last may be torn."""
    rest = b""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        rest = os.pread(descriptor, end - start, start) + rest
        end = start
        first, *lines = rest.split(b"\n")
        yield from (line for line in reversed(lines) if line)
        rest = first if len(first) < _LONGEST else b""
    if rest:
        yield rest


def _object(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
