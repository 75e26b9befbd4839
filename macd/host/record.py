"""The host's own journal: what happened here, each record carrying the hash of the one before.

The very form of the operator's journal (macd/journal.py reads a copy of it): canonical JSON lines
{seq, time, kind, fields, prev, hash}. Unlike there, a line torn by a power cut is moved aside at
once and that is recorded, because nobody may be there to do it and a revert must not wait. For the
same reason a journal whose last record was changed is set aside whole, and a new one begun that
says so: what was there stays for whoever looks into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from macd.host import durable, untrusted
from macd.host.layout import Layout

FIRST_PREV = "0" * 64
TORN_MOVED = "journal.torn-tail-moved"
SET_ASIDE = "journal.damaged-set-aside"
_BLOCK = 64 * 1024
_MOST = 32 * 1024  # bytes of a record's fields: half of what earlier versions read back
_SHORTER = (4000, 1000, 200, 40)  # characters of each text, until all of them together fit


class _DamagedError(Exception):
    """The last whole record is not what was written."""


def canonical(value: Any) -> bytes:
    """The bytes that are hashed and written."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def recorder(layout: Layout) -> Callable[[str, dict[str, object]], None]:
    """A function that appends (kind, fields) to this host's journal, durably."""
    path = layout.state("journal.jsonl")

    def record(kind: str, fields: dict[str, object]) -> None:
        append(path, kind, fields, now=datetime.now(UTC))

    return record


def newest(layout: Layout, kind: str, *, since: float) -> dict[str, Any] | None:
    """The fields of the newest record of a kind, unless it is older than `since` (epoch)."""
    begun = datetime.fromtimestamp(since, UTC).isoformat(timespec="microseconds")
    try:
        with open(layout.state("journal.jsonl"), "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            found = json.loads(line)
            if found["time"] < begun:
                return None
            if found["kind"] == kind:
                return dict(found["fields"])
        except (ValueError, KeyError, TypeError):
            continue  # torn or edited: it proves nothing
    return None


def append(path: str, kind: str, fields: dict[str, Any], *, now: datetime) -> None:
    """Add one record; it is on the disk when this returns. Nothing follows an edited record.

    Whatever the fields hold, they are recorded: what is too long is cut, and says so.
    """
    fields = _fitting(fields)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        torn = _cut_torn_tail(descriptor, path)
        last, damaged = _last_sound(descriptor, path)
        if damaged:
            last = _write(descriptor, last, SET_ASIDE, damaged, now)
        if torn:
            last = _write(descriptor, last, TORN_MOVED, torn, now)
        _write(descriptor, last, kind, fields, now)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    durable.sync_directory(os.path.dirname(path))


def _fitting(fields: dict[str, Any]) -> dict[str, Any]:
    try:
        if len(canonical(fields)) <= _MOST:
            return fields
    except (TypeError, ValueError, RecursionError):
        pass  # not what JSON can hold
    for most in _SHORTER:
        shorter: dict[str, Any] = untrusted.document(fields, most)
        if len(canonical(shorter)) <= _MOST:
            return shorter
    return {"cut": "%d fields that are too long together" % len(fields)}


def _write(
    descriptor: int, last: dict[str, Any], kind: str, fields: dict[str, Any], now: datetime
) -> dict[str, Any]:
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


def _cut_torn_tail(descriptor: int, path: str) -> dict[str, Any]:
    size = os.fstat(descriptor).st_size
    torn = _line_before(descriptor, size)
    if not torn:
        return {}
    sha256 = hashlib.sha256(torn).hexdigest()
    aside = f"{path}.torn-{sha256[:8]}"
    durable.replace_file(aside, torn)
    os.ftruncate(descriptor, size - len(torn))
    os.fsync(descriptor)
    return {"bytes": len(torn), "sha256": sha256, "moved_to": os.path.basename(aside)}


def _last_sound(descriptor: int, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record to go on from, and where a journal was put that can't be gone on with."""
    try:
        return _last(descriptor), {}
    except _DamagedError:
        pass
    size = os.fstat(descriptor).st_size
    whole = b"".join(os.pread(descriptor, _BLOCK, at) for at in range(0, size, _BLOCK))
    sha256 = hashlib.sha256(whole).hexdigest()
    aside = f"{path}.damaged-{sha256[:8]}"
    durable.replace_file(aside, whole)
    os.ftruncate(descriptor, 0)
    os.fsync(descriptor)
    told = {"bytes": size, "sha256": sha256, "moved_to": os.path.basename(aside)}
    return _last(descriptor), told


def _last(descriptor: int) -> dict[str, Any]:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return {"seq": 0, "hash": FIRST_PREV}
    try:
        record = json.loads(_line_before(descriptor, size - 1))
        body = {key: value for key, value in record.items() if key != "hash"}
        if record["hash"] == hashlib.sha256(canonical(body)).hexdigest():
            return dict(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise _DamagedError


def _line_before(descriptor: int, end: int) -> bytes:
    """What stands between the last newline before `end` and `end`, however long it is."""
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
