"""Durable files: changed whole or not at all, by one process at a time, and hashed.

A kill or a power cut leaves the old content or the new one. No read blocks forever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple, Union

Data = bytes | bytearray | memoryview
PathLike = Union[str, "os.PathLike[str]"]
_PIECE = 1 << 20
_STALE_SECONDS = 3600.0
_TEMPORARY = ".macd-tmp"
# No such file, a dangling or circular link, a path through a file, a socket.
NO_FILE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)


class Disk(NamedTuple):
    """The file system at `at`; `inodes` are the free ones, -1 where it doesn't count them."""

    at: str
    total: int
    free: int
    inodes: int


def disk_of(path: str) -> Disk:
    """The file system on which `path` lies, or will lie; `free` is for this user."""
    while not os.path.exists(path):
        path = _parent(path)
    status = os.statvfs(path)
    size = status.f_frsize
    inodes = status.f_favail if status.f_files else -1
    return Disk(path, status.f_blocks * size, status.f_bavail * size, inodes)


def expand(path: str) -> str:
    """`path` with a leading ~ resolved to a home directory of THIS host, made absolute."""
    return os.path.abspath(os.path.expanduser(path))


def regular(path: str, most: int = -1) -> bytes | None:
    """The content of a regular file, at most `most` bytes; None for anything else, or nothing.

    Opening a pipe would wait forever for its writer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NO_FILE:
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with open(descriptor, "rb") as file:
        return file.read(most)


def text(path: str) -> str | None:
    """As `regular`, decoded; bytes that are no UTF-8 become surrogates."""
    data = regular(path)
    return None if data is None else data.decode("utf-8", "surrogateescape")


def mode_of(path: str, default: int) -> int:
    """The permissions of a file; `default` where there is none."""
    try:
        return os.stat(path).st_mode & 0o777
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return default


def sha256_of(path: PathLike) -> str:
    """The SHA-256 (hex) of a file, read in pieces: it may be larger than memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(_PIECE), b""):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def one_at_a_time(
    path: PathLike, *, mode: int = 0o666, taken: Exception | None = None
) -> Iterator[None]:
    """Wait for the lock on a directory, or on a file that is made for it, and hold it.

    With `taken` it is raised at once where another holds the lock. The system frees the lock when
    its process ends, however that ends.
    """
    flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError as error:
            raise taken or error from error
        yield
    finally:
        os.close(descriptor)


def sync(path: PathLike, flags: int = 0) -> None:
    """Make what a file holds, or the names in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Make renames, links and unlinks inside `path` survive a power cut."""
    sync(path, os.O_DIRECTORY)


def make_directories(path: str) -> None:
    """Like os.makedirs(exist_ok=True), but what was made is durable."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = _parent(path)
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(made, 0o755)
        sync_directory(_parent(made))


def write_all(descriptor: int, data: Data) -> None:
    """os.write until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: PathLike, data: Data, *, mode: int = 0o644, parents: bool = False) -> None:
    """Put `data` at `path` atomically and durably: temp beside it, fsync, rename, fsync directory.

    Readers see the old content or the new, whole. A symbolic link at `path` is replaced, not
    followed. `parents` makes its directory where there is none.
    An error (disk full, EIO on fsync) leaves the old content and no temporary file. fsync is never
    retried, since the kernel forgets what it dropped.
    """
    directory, name = _parent(os.fspath(path)), os.path.basename(path)
    if parents:
        make_directories(directory)
    _sweep(directory, name)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(6)}{_TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            write_all(descriptor, data)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


def set_aside(path: str, prefix: str) -> None:
    """Remove a directory tree in two steps, so that no half of it is ever seen at `path`."""
    directory, name = os.path.split(path)
    aside = os.path.join(directory, prefix + name)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    sync_directory(directory)
    shutil.rmtree(aside)


def _parent(path: str) -> str:
    return os.path.dirname(path) or os.curdir


def _sweep(directory: str, name: str) -> None:
    """Remove what killed writes of the same file left, once it is surely too old to be in use."""
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):
            if entry.startswith(f".{name}.") and entry.endswith(_TEMPORARY):
                leftover = os.path.join(directory, entry)
                status = os.lstat(leftover)
                if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _STALE_SECONDS:
                    os.unlink(leftover)
