"""Read and replace files on the host, in pieces that fit a message."""

from __future__ import annotations

import os
import stat
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.rpc import frames

_PIECE = 4 << 20


def read(path: str, offset: int = 0, limit: int = _PIECE) -> dict[str, Any]:
    """Up to `limit` bytes from `offset` (negative: that many from the end).

    `size` in the answer is the file's; `eof`: nothing followed. Only regular files are read: a FIFO
    or a device would hang the agent. Raises FileNotFoundError and the like.
    """
    descriptor = _open_regular(durable.expand(path))
    try:
        return _piece(descriptor, offset, limit)
    finally:
        os.close(descriptor)


def write(path: str, data: bytes, mode: int = 0o644) -> dict[str, Any]:
    """Replace `path` atomically and durably (see durable.replace_file)."""
    target = durable.expand(path)
    if os.path.isdir(target) and not os.path.islink(target):
        raise IsADirectoryError(21, "Is a directory", target)
    durable.replace_file(target, data, mode=mode, parents=True)
    return {"path": target, "size": len(data)}


def _open_regular(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise HostError(f"{path} is not a regular file", kind="not a file")


def _piece(descriptor: int, offset: int, limit: int) -> dict[str, Any]:
    status = os.fstat(descriptor)
    if offset < 0:
        offset = max(0, status.st_size + offset)
    wanted = max(0, min(limit, frames.MAX_PAYLOAD - frames.CHUNK))
    chunks = []
    got = 0
    while got < wanted:  # files in /proc have no size and give less than asked
        chunk = os.pread(descriptor, wanted - got, offset + got)
        if not chunk:
            break
        chunks.append(chunk)
        got += len(chunk)
    return {
        "data": b"".join(chunks),
        "offset": offset,
        "size": max(status.st_size, offset + got if got else 0),
        "eof": got < wanted,
        "inode": status.st_ino,
        "device": status.st_dev,
        "mode": stat.S_IMODE(status.st_mode),
        "mtime": status.st_mtime,
    }
