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
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_TEMPORARY = ".macd-tmp"
_LABEL = "security.selinux"
# No such file, a dangling or circular link, a path through a file, a socket.
NO_FILE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)


class Disk(NamedTuple):
    """The file system at `at`; `inodes` are the free ones, -1 where it doesn't count them."""

    at: str
    total: int
    free: int
    inodes: int
    all_inodes: int = 0


def disk_of(path: str) -> Disk:
    """The file system on which `path` lies, or will lie; `free` is for this user."""
    while not os.path.exists(path):
        path = _parent(path)
    status = os.statvfs(path)
    size = status.f_frsize
    inodes = status.f_favail if status.f_files else -1
    return Disk(path, status.f_blocks * size, status.f_bavail * size, inodes, status.f_files)


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


def xattrs_of(path: PathLike) -> dict[str, bytes]:
    """The extended attributes that people and policies give a file: ACLs, labels, user.*."""
    if not hasattr(os, "listxattr"):  # Linux has them
        return {}
    with contextlib.suppress(OSError):  # a file system without them
        names = [name for name in os.listxattr(path, follow_symlinks=False) if _is_theirs(name)]
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return {}


def set_xattrs(path: PathLike | int, wanted: dict[str, bytes]) -> None:
    """Give a file these and no others of their kind; what the system forbids stays as it is.

    An ACL holds the mode too: set the mode afterwards.
    """
    if not hasattr(os, "listxattr"):
        return
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            if _is_theirs(name) and name not in (*wanted, _LABEL):
                os.removexattr(path, name)
    for name, value in wanted.items():
        with contextlib.suppress(OSError):
            os.setxattr(path, name, value)


def _is_theirs(name: str) -> bool:
    return name.startswith(("user.", "system.posix_acl_")) or name == _LABEL


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


def replace_file(
    path: PathLike,
    data: Data,
    *,
    mode: int = 0o644,
    parents: bool = False,
    keep_owner: bool = False,
) -> None:
    """Put `data` at `path` atomically and durably: temp beside it, fsync, rename, fsync directory.

    Readers see the old content or the new, whole. A symbolic link at `path` is replaced, not
    followed. `parents` makes its directory where there is none. `keep_owner`: it stays whose the
    replaced file was, where root writes it, with its ACL and labels.
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
            if keep_owner:
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    if os.geteuid() == 0:
                        os.fchown(descriptor, status.st_uid, status.st_gid)
                    set_xattrs(descriptor, xattrs_of(path))
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


def link_or_copy(source: str, target: str) -> None:
    """Make `target` the same file as `source`; a copy, on the disk, where no link can be.

    That is on another file system, one without hard links, or after too many of them.

    Raises:
        OSError: as os.link and shutil.copyfile; a half copy is removed.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        try:
            with open(source, "rb") as original, open(target, "xb") as copy:
                shutil.copyfileobj(original, copy, 1 << 20)
                os.fchmod(copy.fileno(), stat.S_IMODE(os.fstat(original.fileno()).st_mode))
                copy.flush()
                os.fsync(copy.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(target)
            raise


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
