"""Which files of an own application's training are its own: written by this run, inside its tree.

The tree that a run works in is a copy, so a file that came with the source can match a glob of
artefacts. It counts only if the run wrote it: then its inode, its time or its content is another.
"""

from __future__ import annotations

import filecmp
import glob
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from macd.host import durable, untrusted
from macd.host.failure import HostError
from macd.host.store.manifest import ManifestError, check_own_path

MOST = 9_000  # files of a run; a few less than are fetched (macd/jobs/transfer.py)
_AGE_S = 2  # the copies are that much older than the run: no clock's coarseness hides a write
_PIECE = 64 << 20


@dataclass(frozen=True)
class Copied:
    """One file as it was copied; `original` is where from."""

    mtime_ns: int
    size: int
    original: str


@dataclass(frozen=True)
class Matches:
    """What one glob matches. written: relative path -> the file itself, of this run.

    old: came with the source. empty: hold nothing, so they don't count.
    """

    written: Mapping[str, str]
    old: tuple[str, ...]
    empty: tuple[str, ...]


def copy(
    original: str, tree: str, executable: Iterable[str], *, now: float
) -> Mapping[int, Copied]:
    """Copy the files below `original` to `tree`, a new directory; what was copied, by inode.

    A copy, no hard links: a training may write into its data, and what was sent must not change.
    """
    may_run = set(executable)
    time_ns = (int(now) - _AGE_S) * 10**9
    copied = {}
    os.mkdir(tree)
    for directory, below, names in os.walk(original):
        place = os.path.relpath(directory, original)
        for name in below:
            os.mkdir(os.path.join(tree, place, name))
        for name in names:
            source, target = os.path.join(directory, name), os.path.join(tree, place, name)
            shutil.copyfile(source, target)
            runs = os.path.normpath(os.path.join(place, name)) in may_run
            os.chmod(target, 0o755 if runs else 0o644)
            os.utime(target, ns=(time_ns, time_ns))
            status = os.stat(target)
            copied[status.st_ino] = Copied(status.st_mtime_ns, status.st_size, source)
    return copied


def make_directories(tree: str, globs: Iterable[str]) -> None:
    """Make the directories that artefacts go to: git keeps none that are empty."""
    for pattern in globs:
        place = os.path.dirname(pattern)
        while glob.has_magic(place):
            place = os.path.dirname(place)
        os.makedirs(os.path.join(tree, place), exist_ok=True)


def matches(tree: str, pattern: str, copied: Mapping[int, Copied]) -> Matches:
    """What a glob matches in the tree; a directory stands for all files below it.

    Raises HostError for a path that leads out of the tree.
    """
    written, old, empty = {}, [], []
    for path in sorted(_paths(tree, pattern)):
        real = _inside(tree, path)
        if not os.path.isfile(real):
            continue
        if not is_new(real, copied):
            old.append(path)
        elif os.path.getsize(real) == 0:
            empty.append(path)
        else:
            written[path] = real
    return Matches(written, tuple(old), tuple(empty))


def is_new(path: str, copied: Mapping[int, Copied]) -> bool:
    """Whether a file was written since the tree was copied; one that was only moved was not."""
    status = os.stat(path)
    was = copied.get(status.st_ino)
    if was is None or (status.st_mtime_ns, status.st_size) != (was.mtime_ns, was.size):
        return True
    return not filecmp.cmp(path, was.original, shallow=False)


def keep(real: str, target: str) -> tuple[int, str]:
    """Put a file of the run at `target` for good; its size and SHA-256."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    durable.link_or_copy(real, target)
    durable.sync(target)
    return os.path.getsize(target), durable.sha256_of(target)


def checked(path: str) -> str:
    """The path of an artefact, unchanged. Raises HostError for one that can't be released."""
    try:
        return check_own_path(path)
    except ManifestError as error:
        raise HostError(
            f"the artefact {untrusted.line(path)} has a name that can't be released",
            why=str(error),
            hint="let the training give it another name",
        ) from error


def _paths(tree: str, pattern: str) -> Iterator[str]:
    for match in glob.iglob(pattern, root_dir=tree, recursive=True, include_hidden=True):
        whole = os.path.join(tree, match)
        if not os.path.isdir(whole) or os.path.islink(whole):
            yield match
            continue
        for directory, _, names in os.walk(whole):
            yield from (os.path.relpath(os.path.join(directory, name), tree) for name in names)


def _inside(tree: str, path: str) -> str:
    """Where a path really leads."""
    top = os.path.realpath(tree)
    real = os.path.realpath(os.path.join(top, path))
    if os.path.commonpath([top, real]) != top:
        raise HostError(
            f"the artefact {untrusted.line(path)} lies outside of the source",
            why=f"a link leads to {untrusted.line(real)}",
            hint="let the training write the file itself, below its working directory",
        )
    return real


def text_of(path: str) -> str:
    """The text of a file; of one above 64 MiB its end."""
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        file.seek(max(0, os.fstat(file.fileno()).st_size - _PIECE))
        return file.read(_PIECE).decode("utf-8", "replace")
