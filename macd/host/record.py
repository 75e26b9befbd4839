"""The host's own journal: what happened here, each record carrying the hash of the one before.

The very form of the operator's journal (macd/journal.py reads a copy of it): canonical JSON lines
{seq, time, kind, fields, prev, hash}. Unlike there, a line torn by a power cut is moved aside at
once and that is recorded, because nobody may be there to do it and a revert must not wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from datetime import datetime, timezone
from typing import Any, Callable, Dict

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout

FIRST_PREV = "0" * 64
TORN_MOVED = "journal.torn-tail-moved"
_TAIL = 64 * 1024


def canonical(value: Any) -> bytes:
    """The bytes that are hashed and written."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def recorder(layout: Layout) -> Callable[[str, Dict[str, object]], None]:
    """A function that appends (kind, fields) to this host's journal, durably."""
    path = layout.state("journal.jsonl")

    def record(kind: str, fields: Dict[str, object]) -> None:
        append(path, kind, fields, now=datetime.now(timezone.utc))

    return record


def append(path: str, kind: str, fields: Dict[str, Any], *, now: datetime) -> None:
    """Add one record; it is on the disk when this returns.

    Raises:
        HostError: the last whole record was edited; nothing is appended to it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        torn = _cut_torn_tail(descriptor, path)
        last = _last(descriptor, path)
        if torn:
            last = _write(descriptor, last, TORN_MOVED, torn, now)
        _write(descriptor, last, kind, fields, now)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    durable.sync_directory(os.path.dirname(path))


def _write(
    descriptor: int, last: Dict[str, Any], kind: str, fields: Dict[str, Any], now: datetime
) -> Dict[str, Any]:
    body = {
        "seq": last["seq"] + 1,
        "time": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "kind": kind,
        "fields": fields,
        "prev": last["hash"],
    }
    record = {**body, "hash": hashlib.sha256(canonical(body)).hexdigest()}
    durable.write_all(descriptor, canonical(record) + b"\n")
    return record


def _cut_torn_tail(descriptor: int, path: str) -> Dict[str, Any]:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _TAIL, max(0, size - _TAIL))
    torn = tail.rpartition(b"\n")[2]
    if not torn:
        return {}
    sha256 = hashlib.sha256(torn).hexdigest()
    aside = f"{path}.torn-{sha256[:8]}"
    durable.replace_file(aside, torn)
    os.ftruncate(descriptor, size - len(torn))
    os.fsync(descriptor)
    return {"bytes": len(torn), "sha256": sha256, "moved_to": os.path.basename(aside)}


def _last(descriptor: int, path: str) -> Dict[str, Any]:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return {"seq": 0, "hash": FIRST_PREV}
    line = os.pread(descriptor, _TAIL, max(0, size - _TAIL)).rstrip(b"\n").rpartition(b"\n")[2]
    try:
        record = json.loads(line)
        body = {key: value for key, value in record.items() if key != "hash"}
        if record["hash"] == hashlib.sha256(canonical(body)).hexdigest():
            return dict(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise HostError(
        f"the last record of {path} was changed",
        why="its content does not match its hash",
        hint="find out who wrote to it; move it aside to begin a new journal",
    )
