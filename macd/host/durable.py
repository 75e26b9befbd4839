"""Changes to files that are whole or absent after a kill or a power cut, never between."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time

Data = bytes | bytearray | memoryview
_STALE_SECONDS = 3600.0
_TEMPORARY = ".macd-tmp"


def expand(path: str) -> str:
    """`path` with a leading ~ resolved to a home directory of THIS host, made absolute."""
    return os.path.abspath(os.path.expanduser(path))


def sync_directory(path: str) -> None:
    """Make renames, links and unlinks inside `path` survive a power cut."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_directories(path: str, mode: int = 0o755) -> None:
    """Like os.makedirs(exist_ok=True), but what was made is durable."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(made, mode)
        sync_directory(os.path.dirname(made))


def write_all(descriptor: int, data: Data) -> None:
    """os.write until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: str, data: Data, *, mode: int = 0o644, owner: str = "") -> None:
    """Put `data` at `path` atomically and durably: temp beside it, fsync, rename, fsync directory.

    Readers see the old content or the new, whole. A symbolic link at `path` is replaced, not
    followed. `owner` is "user" or "user:group". An error (disk full, EIO on fsync) leaves the old
    content and no temp behind; fsync is never retried, since the kernel forgets what it dropped.
    """
    directory, name = os.path.split(path)
    _sweep(directory, name)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(6)}{_TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            write_all(descriptor, data)
            os.fchmod(descriptor, mode)
            if owner:
                user, _, group = owner.partition(":")
                shutil.chown(temporary, user or None, group or None)  # type: ignore[arg-type]
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


def _sweep(directory: str, name: str) -> None:
    """Remove what a killed write of the same file left behind long enough ago to be surely dead."""
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):
            if entry.startswith(f".{name}.") and entry.endswith(_TEMPORARY):
                leftover = os.path.join(directory, entry)
                status = os.lstat(leftover)
                if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _STALE_SECONDS:
                    os.unlink(leftover)
