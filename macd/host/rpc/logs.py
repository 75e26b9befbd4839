"""Read the signal logs in pieces, with names and hashes, and nothing else.

Of the built-in application a name is a file directly in data/live, never a path. Of an application
of the team's own it is a path below the application's directory that its glob matches. No link is
followed on the way. Links and other irregular files are listed as refused. The client finds the
whole lines, and knows what it fetched before.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from macd.host import durable, logname, own
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.rpc import frames
from macd.host.systemd.supervisor import Supervisor

HEAD = 4096
_MOST_FILES = 10_000
_MOST_REFUSED = 20
_BLOCK = 1 << 20
_POLL_SECONDS = 0.2
_DEEPEST = 8
_MOST_MESSAGES = 2000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOG = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


@dataclass(frozen=True)
class LogFiles:
    """Where an application's signal logs are: those below `root` that `pattern` matches.

    pattern: a glob, as its signals.files; "" for the built-in application's names.
    """

    root: str
    pattern: str = ""

    @property
    def sure(self) -> str:
        """The directory in which all of them lie, as far as it is there and no link."""
        path = self.root
        for part in self.pattern.split("/")[:-1]:
            if _is_glob(part) or not stat.S_ISDIR(_mode(os.path.join(path, part))):
                break
            path = os.path.join(path, part)
        return path


def logs_of(layout: Layout) -> LogFiles:
    """Of what is live here.

    Raises:
        HostError ("refused"): an application of the team's own that has none.
    """
    application = own.read(layout)
    if not application.name:
        return LogFiles(layout.live)
    if application.signals is None:
        raise HostError(
            "this application has no signal logs",
            why="app.signals is not set in the inventory it was deployed with",
            hint="set app.signals in the inventory, then: invoke deploy",
            kind="refused",
        )
    return LogFiles(layout.app, application.signals.files)


def is_log(name: str, pattern: str = "") -> bool:
    """Whether a signal log can be called so; pattern: as of LogFiles."""
    if not pattern:
        return logname.PATTERN.fullmatch(name) is not None
    parts = name.split("/")
    sound = len(name) <= 1024 and name.isprintable() and all(part.strip(".") for part in parts)
    return sound and _matches(parts, pattern.split("/"))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[at:], pattern[1:]) for at in range(min(len(parts), _DEEPEST) + 1))
    return bool(parts) and _fits(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _fits(part: str, pattern: str) -> bool:
    """As a shell has it: no asterisk takes a name that begins with a dot."""
    hidden = part.startswith(".") and not pattern.startswith(".")
    return not hidden and fnmatch.fnmatchcase(part, pattern)


def _is_glob(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def names_in(place: LogFiles) -> list[str]:
    """The names that look like a signal log, in order; what they are is not looked at."""
    if not place.pattern:
        there = os.listdir(place.root) if os.path.isdir(place.root) else []
        return sorted(name for name in there if name.startswith("trade"))
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        root = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = list(_below(root, place.pattern.split("/"), "", 0))
        finally:
            os.close(root)
    return sorted(set(names))


def _below(descriptor: int, pattern: Sequence[str], prefix: str, depth: int) -> Iterator[str]:
    if pattern[0] == "**" and len(pattern) > 1:
        yield from _below(descriptor, pattern[1:], prefix, depth)
    for name in sorted(os.listdir(descriptor)):
        if len(pattern) == 1 and (pattern[0] == "**" or _fits(name, pattern[0])):
            yield prefix + name
        elif pattern[0] == "**" and depth < _DEEPEST and not name.startswith("."):
            yield from _inside(descriptor, name, pattern, prefix, depth)
        elif len(pattern) > 1 and _fits(name, pattern[0]):
            yield from _inside(descriptor, name, pattern[1:], prefix, depth)


def _inside(
    descriptor: int, name: str, pattern: Sequence[str], prefix: str, depth: int
) -> Iterator[str]:
    try:
        inner = os.open(name, _DIRECTORY, dir_fd=descriptor)
    except OSError as error:
        if error.errno not in (*_NO_LOG, errno.EACCES):
            raise
        return
    try:
        yield from _below(inner, pattern, f"{prefix}{name}/", depth + 1)
    finally:
        os.close(inner)


def log_files(app: str, heads: dict[str, int] | None = None) -> dict[str, Any]:
    """The signal logs by name, each with what distinguishes it from another of the same name.

    heads: the number of first bytes for a file's fingerprint (HEAD at most, or all there are).
    `refused` in the answer names what looks like a log and is none.
    """
    place = logs_of(Layout(durable.expand(app)))
    files: list[dict[str, Any]] = []
    refused: list[list[str]] = []
    for name in names_in(place):
        why = "not called trades_YYYYMMDD.jsonl" if not place.pattern else "a name that is no text"
        if is_log(name, place.pattern):
            try:
                files.append(_described(place, name, (heads or {}).get(name, HEAD)))
                continue
            except FileNotFoundError:
                continue
            except HostError as error:
                why = error.why
            except OSError as error:
                why = error.strerror or str(error)
        refused.append([ascii(name)[:100], why])
    if len(files) > _MOST_FILES:
        raise HostError("there are %d signal logs in %s" % (len(files), place.root), kind="refused")
    refused = refused[:_MOST_REFUSED]
    return {"files": files, "refused": refused, "pattern": place.pattern, "now": time.time()}


def log_read(
    app: str, name: str, offset: int, limit: int, inode: int = 0, wait: float = 0.0
) -> dict[str, Any]:
    """Up to `limit` bytes of a log from `offset`; with `wait`, not before there are any.

    Raises HostError of kind "rotated" when `inode` is given and the name now means another file.
    """
    deadline = time.monotonic() + wait
    place = logs_of(Layout(durable.expand(app)))
    while True:
        descriptor = _open(place, name)
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
    place = logs_of(Layout(durable.expand(app)))
    hashes: list[str | None] = []
    for name, start, end in ranges:
        try:
            descriptor = _open(place, name)
        except HostError:
            hashes.append(None)
            continue
        except OSError as error:
            if error.errno not in _NO_LOG:
                raise
            hashes.append(None)
            continue
        try:
            hashes.append(_hash(descriptor, int(start), int(end)))
        finally:
            os.close(descriptor)
    return hashes


def unit_log(
    units: Sequence[str], scope: str, lines: int, after: dict[str, str] | None = None
) -> dict[str, Any]:
    """The newest journal lines of each unit: [time or None, text, cursor]; after: a cursor each."""
    supervisor = Supervisor(scope)
    most = max(1, min(lines, _MOST_MESSAGES))
    return {unit: supervisor.messages(unit, most, (after or {}).get(unit, "")) for unit in units}


def _described(place: LogFiles, name: str, head: int) -> dict[str, Any]:
    descriptor = _open(place, name)
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


def _open(place: LogFiles, name: str) -> int:
    if not is_log(name, place.pattern):
        raise HostError("no signal log is called %s" % ascii(name)[:100], kind="refused")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    *parents, last = name.split("/")
    inner = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent in parents:
            outer, inner = inner, os.open(parent, _DIRECTORY, dir_fd=inner)
            os.close(outer)
        descriptor = os.open(last, flags, dir_fd=inner)
    finally:
        os.close(inner)
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
