"""Read the signal logs in pieces, with names and hashes, and nothing else.

A name is a file directly in data/live, never a path. Links and other irregular files are listed as
refused. The client finds the whole lines, and knows what it fetched before.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Sequence
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.rpc import frames

NAME = re.compile(r"trades_[0-9]{8}\.jsonl")
HEAD = 4096
_MOST_FILES = 10_000
_MOST_REFUSED = 20
_BLOCK = 1 << 20
_POLL_SECONDS = 0.2


def log_files(app: str, heads: dict[str, int] | None = None) -> dict[str, Any]:
    """The signal logs by name, each with what distinguishes it from another of the same name.

    heads: the number of first bytes for a file's fingerprint (HEAD at most, or all there are).
    `refused` in the answer names what looks like a log and is none.
    """
    directory = _directory(app)
    files: list[dict[str, Any]] = []
    refused: list[list[str]] = []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        if not name.startswith("trade"):
            continue
        why = "not called trades_YYYYMMDD.jsonl"
        if NAME.fullmatch(name):
            try:
                files.append(_described(directory, name, (heads or {}).get(name, HEAD)))
                continue
            except FileNotFoundError:
                continue
            except HostError as error:
                why = error.why
            except OSError as error:
                why = error.strerror or str(error)
        refused.append([ascii(name)[:100], why])
    if len(files) > _MOST_FILES:
        raise HostError("there are %d signal logs in %s" % (len(files), directory), kind="refused")
    return {"files": files, "refused": refused[:_MOST_REFUSED], "now": time.time()}


def log_read(
    app: str, name: str, offset: int, limit: int, inode: int = 0, wait: float = 0.0
) -> dict[str, Any]:
    """Up to `limit` bytes of a log from `offset`; with `wait`, not before there are any.

    Raises HostError of kind "rotated" when `inode` is given and the name now means another file.
    """
    deadline = time.monotonic() + wait
    while True:
        descriptor = _open(_directory(app), name)
        try:
            status = os.fstat(descriptor)
            if inode and status.st_ino != inode:
                raise HostError("%s is another file now" % name, kind="rotated")
            wanted = max(0, min(limit, frames.MAX_PAYLOAD - frames.CHUNK))
            data = os.pread(descriptor, wanted, offset) if wanted else b""
        finally:
            os.close(descriptor)
        if data or status.st_size < offset or time.monotonic() >= deadline:
            return {"data": data, "size": status.st_size, "inode": status.st_ino}
        time.sleep(_POLL_SECONDS)


def log_hashes(app: str, ranges: Sequence[Sequence[Any]]) -> list[str | None]:
    """SHA-256 of each [name, from, to); None where the file hasn't that many bytes, or is gone."""
    directory = _directory(app)
    hashes: list[str | None] = []
    for name, start, end in ranges:
        try:
            descriptor = _open(directory, name)
        except HostError:
            hashes.append(None)
            continue
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            hashes.append(None)
            continue
        try:
            hashes.append(_hash(descriptor, int(start), int(end)))
        finally:
            os.close(descriptor)
    return hashes


def _directory(app: str) -> str:
    return Layout(durable.expand(app)).live


def _described(directory: str, name: str, head: int) -> dict[str, Any]:
    descriptor = _open(directory, name)
    try:
        status = os.fstat(descriptor)
        length = max(0, min(head, HEAD, status.st_size))
        return {
            "name": name,
            "inode": status.st_ino,
            "size": status.st_size,
            "mtime": status.st_mtime,
            "head": length,
            "head_sha256": _hash(descriptor, 0, length),
        }
    finally:
        os.close(descriptor)


def _open(directory: str, name: str) -> int:
    if not NAME.fullmatch(name):
        raise HostError("no signal log is called %s" % ascii(name)[:100], kind="refused")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(os.path.join(directory, name), flags)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise HostError("%s is no log" % name, why="not a regular file", kind="refused")


def _hash(descriptor: int, start: int, end: int) -> str | None:
    digest = hashlib.sha256()
    while start < end:
        block = os.pread(descriptor, min(_BLOCK, end - start), start)
        if not block:
            return None
        digest.update(block)
        start += len(block)
    return digest.hexdigest()
