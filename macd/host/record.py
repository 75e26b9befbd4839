"""A tamper-evident journal: append-only JSON lines, each with the hash of the one before.

One line is one record in canonical JSON: seq (1, 2, ...), time, kind, fields, prev (the hash of the
record before) and hash (SHA-256 over the other five). A record is on the disk before an append
returns. There are two kinds of damage. A torn tail is a last line without its line end: a
write that a power cut or a full disk stopped, so its append never returned. Anything else is
tampering or a broken disk.

Host and operator (macd/journal.py) share this implementation. They only differ in what they do
about damage. The operator's journal waits for a person. The host's heals itself, because a revert
must not wait: `append` moves a torn line aside and records that. It moves a journal whose last
record was changed aside as a whole, and starts a new one that says so.

The chain alone can't show records removed from the END, or a journal rewritten as a whole. Compare
the last hash with a copy elsewhere to see those.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from macd.host import durable, untrusted
from macd.host.layout import Layout

FIRST_PREV = "0" * 64
TORN_MOVED = "journal.torn-tail-moved"
SET_ASIDE = "journal.damaged-set-aside"
_KEYS = frozenset({"seq", "time", "kind", "fields", "prev", "hash"})
_BLOCK = 64 * 1024
_MOST = 32 * 1024  # bytes of a record's fields: half of what earlier versions read back
_SHORTER = (4000, 1000, 200, 40)  # characters of each text, until all of them together fit


@dataclass(frozen=True)
class Record:
    """One thing that happened. `time` is UTC; `fields` holds what JSON can hold."""

    seq: int
    time: datetime
    kind: str
    fields: dict[str, Any]
    prev: str
    hash: str


@dataclass(frozen=True)
class Damage:
    """Where a journal stops being sound: at record number `record`. `torn`: its unfinished line."""

    record: int
    reason: str
    torn: bytes = b""


Last = tuple[int, str]  # seq and hash of the last record
_NONE: Last = (0, FIRST_PREV)


def canonical(value: Any) -> bytes:
    """The bytes that are hashed and written."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(data: bytes) -> tuple[list[Record], Damage | None]:
    """The records of a whole journal, and what is wrong after the last sound one."""
    *lines, tail = data.split(b"\n")
    records: list[Record] = []
    for line in lines:
        try:
            records.append(decode(line, last_of(records)))
        except ValueError as error:
            return records, Damage(len(records) + 1, str(error))
    if not tail:
        return records, None
    reason = (
        f"the last line ends after {len(tail)} bytes without its line end: writing it was cut short"
    )
    return records, Damage(len(records) + 1, reason, tail)


def last_of(records: list[Record]) -> Last:
    """What the next record continues from."""
    return (records[-1].seq, records[-1].hash) if records else _NONE


def decode(line: bytes, last: Last) -> Record:
    """The record of one line. Raises ValueError that says what is wrong with it."""
    document = _document(line)
    if document["seq"] != last[0] + 1:
        raise ValueError(f"it is numbered {document['seq']}: records were removed or reordered")
    if document["prev"] != last[1]:
        raise ValueError("it does not follow from the record before, which was replaced")
    return Record(**{**document, "time": datetime.fromisoformat(str(document["time"]))})


def _document(line: bytes) -> dict[str, Any]:
    """The object of a line that is unchanged, wherever it is. Raises ValueError."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("the line is not JSON") from None
    if not isinstance(document, dict) or document.keys() != _KEYS:
        raise ValueError(f"the line does not hold exactly {', '.join(sorted(_KEYS))}")
    body = {key: value for key, value in document.items() if key != "hash"}
    if document["hash"] != _hash(body) or canonical(document) != line:
        raise ValueError("its content does not match its hash: it was changed after it was written")
    if not isinstance(document["kind"], str) or not isinstance(document["fields"], dict):
        raise ValueError("kind is not a string or fields is not an object")
    return document


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()


def write(
    descriptor: int, path: str, last: Last, kind: str, fields: dict[str, Any], now: datetime
) -> Record:
    """Add a record after `last`, durably; the caller holds the lock.

    Raises:
        OSError: the disk refuses; the journal is as it was.
        TypeError, ValueError: JSON can't hold the fields, or `now` carries no timezone.
    """
    if now.tzinfo is None:
        raise ValueError("now must carry a timezone")
    body = {
        "seq": last[0] + 1,
        "time": now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "kind": kind,
        "fields": fields,
        "prev": last[1],
    }
    # Through JSON once, so that what is hashed and returned is what a reader will see.
    body = json.loads(canonical(body))
    line = canonical({**body, "hash": _hash(body)})
    record = decode(line, last)
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, line + b"\n")
        if written <= len(line):
            raise OSError(f"only {written} of {len(line) + 1} bytes fitted")
        _sync(descriptor)
        # Each time: the process that made the file may have died before it got here.
        durable.sync_directory(os.path.dirname(path))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)  # ours alone, under the lock
            _sync(descriptor)
        raise
    return record


def move_aside(
    descriptor: int, path: str, part: bytes, keep: int, infix: str
) -> tuple[str, dict[str, Any]]:
    """Move everything after the first `keep` bytes to a file beside the journal.

    The file's name carries the hash of its content, so that a killed move can be repeated. Returns
    the file's path, and the fields of the record about it.
    """
    sha256 = hashlib.sha256(part).hexdigest()
    aside = f"{path}.{infix}-{sha256[:8]}"
    durable.replace_file(aside, part)
    os.ftruncate(descriptor, keep)
    _sync(descriptor)
    return aside, {"bytes": len(part), "sha256": sha256, "moved_to": os.path.basename(aside)}


@contextlib.contextmanager
def locked(descriptor: int, how: int, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lock of an open journal; close it at the end, which also unlocks it.

    Raises TimeoutError when another process holds it for `wait_s`; None waits forever.
    """
    try:
        if wait_s is None:
            fcntl.flock(descriptor, how)
        else:
            _wait_for_lock(descriptor, how, time.monotonic() + wait_s)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, how: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.01)


def read_all(descriptor: int) -> bytes:
    """The whole file, whatever the descriptor's position."""
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _sync(descriptor: int) -> None:
    # On macOS fsync stops at the drive's cache.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        fcntl.fcntl(descriptor, full)
    else:
        os.fsync(descriptor)


def recorder(layout: Layout) -> Callable[[str, dict[str, object]], None]:
    """A function that appends (kind, fields) to this host's journal, durably."""
    path = layout.state("journal.jsonl")

    def record(kind: str, fields: dict[str, object]) -> None:
        append(path, kind, fields, now=datetime.now(UTC))

    return record


def newest(layout: Layout, kind: str, *, since: float) -> dict[str, Any] | None:
    """The fields of the newest record of a kind, unless it is older than `since` (epoch)."""
    start = datetime.fromtimestamp(since, UTC).isoformat(timespec="microseconds")
    try:
        with open(layout.state("journal.jsonl"), "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            document = json.loads(line)
            if document["time"] < start:
                return None
            if document["kind"] == kind:
                return dict(document["fields"])
        except (ValueError, KeyError, TypeError):
            continue  # torn or edited: it proves nothing
    return None


def append(path: str, kind: str, fields: dict[str, Any], *, now: datetime) -> None:
    """Add a record to a host's journal, also to a damaged one; it is on the disk on return.

    Fields that are too long are cut, and say so. Only the last line is read, so that a long journal
    costs no time.
    """
    fields = _fitting(fields)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    with locked(descriptor, fcntl.LOCK_EX):
        notes: list[tuple[str, dict[str, Any]]] = []
        size = os.fstat(descriptor).st_size
        if torn := _line_before(descriptor, size):
            size -= len(torn)
            notes = [(TORN_MOVED, move_aside(descriptor, path, torn, size, "torn")[1])]
        last = _last(descriptor, size)
        if last is None:
            whole = read_all(descriptor)
            notes.insert(0, (SET_ASIDE, move_aside(descriptor, path, whole, 0, "damaged")[1]))
            last = _NONE
        for what, about in (*notes, (kind, fields)):
            last = last_of([write(descriptor, path, last, what, about, now)])


def _fitting(fields: dict[str, Any]) -> dict[str, Any]:
    try:
        if len(canonical(fields)) <= _MOST:
            return fields
    except (TypeError, ValueError, RecursionError):
        pass  # JSON can't hold it
    for most in _SHORTER:
        shorter: dict[str, Any] = untrusted.document(fields, most)
        if len(canonical(shorter)) <= _MOST:
            return shorter
    return {"cut": f"{len(fields)} fields that are too long together"}


def _last(descriptor: int, size: int) -> Last | None:
    """The last record of a journal of `size` bytes; None: it was changed."""
    if size == 0:
        return _NONE
    with contextlib.suppress(ValueError):
        document = _document(_line_before(descriptor, size - 1))
        if isinstance(document["seq"], int):
            return document["seq"], document["hash"]
    return None


def _line_before(descriptor: int, end: int) -> bytes:
    """The bytes between the last newline before `end` and `end`, however many."""
    blocks = []
    while end > 0:
        begin = max(0, end - _BLOCK)
        block = os.pread(descriptor, end - begin, begin)
        _, newline, rest = block.rpartition(b"\n")
        blocks.append(rest)
        if newline:
            break
        end = begin
    return b"".join(reversed(blocks))
