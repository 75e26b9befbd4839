"""The record of what was done, which nobody can quietly change: append-only, hash-chained JSONL.

One line is one record in canonical JSON: seq (1, 2, ...), time, kind, fields, prev (the hash of the
record before) and hash (SHA-256 over the other five). A record is on disk before `append` returns.

Two kinds of damage are told apart. A torn tail is a last line without its line end: a write that a
power cut or full disk stopped, so its `append` never returned; `repair_torn` moves it aside.
Anything else is tampering or a broken disk: it is reported with the record's number and never
repaired or extended here.

What a chain alone cannot show: records removed from the END, and a journal rewritten whole. Compare
the last hash with a copy kept elsewhere to see those.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.errors import MacdError, RefusedError

FIRST_PREV = "0" * 64
REPAIRED = "journal.torn-tail-moved"
_LOCK_WAIT_S = 30.0
_KEYS = frozenset({"seq", "time", "kind", "fields", "prev", "hash"})


@dataclass(frozen=True)
class Record:
    """One thing that happened. `time` is UTC; `fields` holds what JSON can hold."""

    seq: int
    time: datetime
    kind: str
    fields: dict[str, Any]
    prev: str
    hash: str


class JournalError(MacdError):
    """The journal is torn or was changed. `intact` are the records before the damage."""

    def __init__(
        self, path: Path, *, record: int, reason: str, intact: list[Record], torn: bytes = b""
    ) -> None:
        last = f"records 1 to {record - 1} are intact" if record > 1 else "no record before it"
        super().__init__(
            f"the journal is {'torn' if torn else 'damaged'} at record {record}",
            why=f"{reason}\n{path}",
            live=f"{last}; nothing is added until this is settled",
            hint="invoke history --repair-torn  moves the unfinished line aside, after showing it"
            if torn
            else "compare it with a backup and find out who wrote to it; to go on without it, "
            f"move it away by hand: mv {path} {path}.damaged",
        )
        self.record = record
        self.reason = reason
        self.intact = intact
        self.torn = torn


@dataclass(frozen=True)
class Journal:
    """The journal at `path`; made, with its directories, by the first append."""

    path: Path

    def append(self, kind: str, fields: dict[str, Any], *, now: datetime) -> Record:
        """Add a record and return it once it is durable; safe beside other processes.

        `now` must carry a timezone. Raises JournalError if the journal is torn or damaged (it is
        never extended then), MacdError if the disk refuses, RefusedError if another process holds
        the lock for 30 s, TypeError or ValueError for fields that JSON can't hold.
        """
        descriptor = self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with _locked(descriptor, self.path, fcntl.LOCK_EX):
            data = _read_all(descriptor)
            record, line = _next(self._parse(data), kind, fields, now)
            self._write(descriptor, line, size=len(data))
        return record

    def records(self) -> list[Record]:
        """Every record, oldest first. Raises JournalError if the journal is torn or damaged."""
        return self._parse(self._read())

    def repair_torn(self, *, now: datetime) -> Path | None:
        """Move a torn tail to a file beside the journal and record that; None if nothing is torn.

        Raises JournalError for any other damage, which stays as it is.
        """
        if not self.path.exists():
            return None
        descriptor = self._open(os.O_RDWR | os.O_APPEND)
        with _locked(descriptor, self.path, fcntl.LOCK_EX):
            data = _read_all(descriptor)
            try:
                self._parse(data)
                return None
            except JournalError as error:
                if not error.torn:
                    raise
                torn, intact = error.torn, error.intact
            digest = hashlib.sha256(torn).hexdigest()
            aside = self.path.with_name(f"{self.path.name}.torn-{len(intact) + 1}-{digest[:8]}")
            self._keep(aside, torn)
            size = len(data) - len(torn)
            os.ftruncate(descriptor, size)
            told = {"bytes": len(torn), "sha256": digest, "moved_to": aside.name}
            self._write(descriptor, _next(intact, REPAIRED, told, now)[1], size=size)
        return aside

    def _open(self, flags: int) -> int:
        try:
            if flags & os.O_CREAT:
                _make_directory(self.path.parent)
            return os.open(self.path, flags, 0o644)
        except OSError as error:
            raise MacdError(
                "the journal can't be opened", why=str(error), hint=f"ls -l {self.path}"
            ) from error

    def _read(self) -> bytes:
        if not self.path.exists():
            return b""
        descriptor = self._open(os.O_RDONLY)
        with _locked(descriptor, self.path, fcntl.LOCK_SH):
            return _read_all(descriptor)

    def _parse(self, data: bytes) -> list[Record]:
        *lines, tail = data.split(b"\n")
        records: list[Record] = []
        for line in lines:
            try:
                records.append(_decode(line, records))
            except ValueError as error:
                raise JournalError(
                    self.path, record=len(records) + 1, reason=str(error), intact=records
                ) from None
        if tail:
            raise JournalError(
                self.path,
                record=len(records) + 1,
                reason=f"the last line ends after {len(tail)} bytes without its line end: "
                "writing it was cut short",
                intact=records,
                torn=tail,
            )
        return records

    def _write(self, descriptor: int, line: bytes, *, size: int) -> None:
        try:
            written = os.write(descriptor, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes fitted")
            _sync(descriptor)
            # Each time: the process that made the file may have died before it got here.
            _sync_directory(self.path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)  # ours alone, under the lock
                _sync(descriptor)
            raise MacdError(
                "the journal could not be written",
                why=f"{error}\n{self.path}",
                hint="free space or repair the disk, then run the command again",
            ) from error

    def _keep(self, aside: Path, torn: bytes) -> None:
        # The name carries the content's hash, so a repair that was killed half-way ends the same.
        with aside.open("wb") as file:
            file.write(torn)
            file.flush()
            _sync(file.fileno())
        _sync_directory(aside.parent)


def _next(
    records: list[Record], kind: str, fields: dict[str, Any], now: datetime
) -> tuple[Record, bytes]:
    if now.tzinfo is None:
        raise ValueError("now must carry a timezone")
    body = {
        "seq": len(records) + 1,
        "time": now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "kind": kind,
        "fields": fields,
        "prev": records[-1].hash if records else FIRST_PREV,
    }
    # Through JSON once, so that what is hashed and returned is what a reader will see.
    body = json.loads(_canonical(body))
    line = _canonical({**body, "hash": _hash(body)})
    return _decode(line, records), line + b"\n"


def _decode(line: bytes, before: list[Record]) -> Record:
    """The record of one line; ValueError says what is wrong with it."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("the line is not JSON") from None
    if not isinstance(document, dict) or document.keys() != _KEYS:
        raise ValueError(f"the line does not hold exactly {', '.join(sorted(_KEYS))}")
    body = {key: value for key, value in document.items() if key != "hash"}
    if document["hash"] != _hash(body) or _canonical(document) != line:
        raise ValueError("its content does not match its hash: it was changed after it was written")
    if not isinstance(document["kind"], str) or not isinstance(document["fields"], dict):
        raise ValueError("kind is not a string or fields is not an object")
    if document["seq"] != len(before) + 1:
        raise ValueError(f"it is numbered {document['seq']}: records were removed or reordered")
    if document["prev"] != (before[-1].hash if before else FIRST_PREV):
        raise ValueError("it does not follow from the record before, which was replaced")
    return Record(**{**document, "time": datetime.fromisoformat(str(document["time"]))})


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


@contextlib.contextmanager
def _locked(descriptor: int, path: Path, how: int) -> Iterator[None]:
    """Hold the lock of an open journal and close it at the end, which also unlocks it."""
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RefusedError(
                        "another process holds the journal",
                        why=f"it is locked for over {_LOCK_WAIT_S:g} s: {path}",
                        hint=f"fuser -v {path}  names the process",
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _sync(descriptor: int) -> None:
    # On macOS fsync stops at the drive's cache.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        fcntl.fcntl(descriptor, full)
    else:
        os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
