"""Bring a finished run's files back: verified, resumable, and there whole or not at all.

The host is not trusted with names or sizes: a path must stay inside the run's folder, and no more
bytes are taken than were declared.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.errors import ContactLostError, MacdError
from macd.host.durable import one_at_a_time, sha256_of
from macd.host.store.manifest import ManifestError, check_path
from macd.jobs.contact import Contact
from macd.jobs.follow import Place, lost
from macd.ssh.pending import Pending
from macd.ssh.session import Session

_MOST_FILES = 10_000
_PIECE = 1 << 20
_AHEAD = 16
_MOST_BYTES = 8 << 30
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Wanted:
    """One file as declared."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Collected:
    """Where the run lies now, and the bytes that came for it."""

    folder: Path
    files: int
    received: int
    status: dict[str, Any]


def collect(
    contact: Contact,
    run: str,
    place: Place,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Fetch what the run left into runs/<id> (a run that did not end well: runs/<id>.failed).

    Raises MacdError when a name or size is unsafe or a file is not what was declared, RemoteError
    when the run still goes on, ContactLostError; calling again goes on where it stopped.
    """
    work = contact.host.work_dir
    try:
        told = contact.use(lambda session: session.call("job_files", work=work, run=run))
        wanted = checked([*told["files"], *told["records"]])
        place.runs.mkdir(parents=True, exist_ok=True)
        lock = place.runs / f".{place.whole(run).name}.lock"
        with one_at_a_time(lock):  # the second collector of a run finds it done
            return _collect(contact, told["status"], wanted, place, progress)
    except ContactLostError as error:
        raise lost(error, run) from error


def _collect(
    contact: Contact,
    status: dict[str, Any],
    wanted: list[Wanted],
    place: Place,
    progress: Callable[[int, int], None] | None,
) -> Collected:
    run, state = str(status["run"]), str(status["state"])
    folder = place.ended(run, state)
    partial = place.partial(run)
    if folder.is_dir() and all(_is_there(folder, one) for one in wanted):
        shutil.rmtree(partial, ignore_errors=True)
        return Collected(folder, len(wanted), 0, status)
    meter = _Meter(sum(one.size for one in wanted), progress)
    lacking = []
    for one in wanted:
        (partial / one.path).parent.mkdir(parents=True, exist_ok=True)
        if not _is_there(partial, one):
            lacking.append(one)
    remote = str(status["directory"])
    contact.use(lambda session: _pull_small(session, remote, lacking, partial, meter))
    for one in lacking:
        _fetch(contact, remote, one, partial, meter)
    _put_in_place(partial, folder, wanted)
    return Collected(folder, len(wanted), meter.taken, status)


def checked(listed: Iterable[Any]) -> list[Wanted]:
    """The files to fetch, each name once. Raises MacdError for a name or size that is unsafe."""
    wanted: dict[str, Wanted] = {}
    for entry in listed:
        try:
            path, size, sha256 = entry
            check_path(path)
        except (ManifestError, TypeError, ValueError) as error:
            raise _unsafe(f"{error}") from error
        if type(size) is not int or size < 0:
            raise _unsafe(f"{path}: its size is {size!r}")
        if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= _HEX:
            raise _unsafe(f"{path}: its hash is {sha256!r:.80}")
        wanted[path] = Wanted(path, size, sha256)
    inside = [one.path for one in wanted.values()]
    clashes = [p for p in inside if any(str(above) in wanted for above in Path(p).parents)]
    if clashes:
        raise _unsafe(f"{clashes[0]}: a file can't also be a directory")
    if len(wanted) > _MOST_FILES or sum(one.size for one in wanted.values()) > _MOST_BYTES:
        raise _unsafe(f"{len(wanted)} files, more than {_MOST_BYTES >> 30} GiB or {_MOST_FILES}")
    return list(wanted.values())


class _Meter:
    """Counts what came, and tells it."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.taken = 0
        self._total = total
        self._progress = progress

    def add(self, count: int) -> None:
        self.taken += count
        if self._progress is not None:
            self._progress(self.taken, self._total)


def _pull_small(
    session: Session, remote: str, lacking: list[Wanted], partial: Path, meter: _Meter
) -> None:
    """Ask for all files of one piece at once, so that many small ones cost few round trips."""
    small = [one for one in lacking if one.size <= _PIECE and not (partial / one.path).exists()]
    coming: deque[tuple[Wanted, Pending]] = deque()
    for one in [*small, None]:
        if one is not None:
            path = f"{remote}/{one.path}"
            coming.append((one, session.submit("read", path=path, limit=one.size + 1)))
        while coming and (one is None or len(coming) > _AHEAD):
            asked, pending = coming.popleft()
            data = pending.result()["data"][: asked.size]
            (partial / asked.path).write_bytes(data)
            meter.add(len(data))


def _fetch(contact: Contact, remote: str, one: Wanted, partial: Path, meter: _Meter) -> None:
    path = partial / one.path
    if _is_there(partial, one):
        return
    for _ in range(2):  # what an earlier attempt left may be rotten; then once more, whole
        if path.is_file() and path.stat().st_size > one.size:
            path.unlink()
        contact.use(lambda session: _pull(session, f"{remote}/{one.path}", path, one, meter))
        if _is_there(partial, one):
            return
        path.unlink(missing_ok=True)
    raise MacdError(
        f"{one.path} came with another content than the run declared",
        why=f"expected {one.size} bytes with SHA-256 {one.sha256}",
        live="nothing was put in place; the run on the host is as it was",
        hint="somebody changed the file on the host: train again",
    )


def _pull(session: Session, remote: str, path: Path, one: Wanted, meter: _Meter) -> None:
    with path.open("ab") as out:
        have = out.tell()
        if have >= one.size:
            return
        for piece in session.pieces(remote, offset=have):
            taken = piece[: one.size - have]
            out.write(taken)
            have += len(taken)
            meter.add(len(taken))
            if len(taken) < len(piece) or have >= one.size:
                return


def _is_there(folder: Path, one: Wanted) -> bool:
    path = folder / one.path
    if not path.is_file() or path.stat().st_size != one.size:
        return False
    return sha256_of(path) == one.sha256


def _put_in_place(partial: Path, folder: Path, wanted: list[Wanted]) -> None:
    """Files that nobody declared don't come along; then one rename makes the run appear."""
    keep = {one.path for one in wanted}
    for path in sorted(partial.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(path.relative_to(partial)) not in keep:
            path.unlink()
    for one in wanted:
        _sync(partial / one.path)
    for directory in {(partial / one.path).parent for one in wanted} | {partial}:
        _sync(directory)
    if folder.exists():  # a copy that somebody damaged; ours is verified
        shutil.rmtree(folder)
    partial.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unsafe(why: str) -> MacdError:
    return MacdError(
        "the host lists a file that can't be taken",
        why=why,
        live="nothing was written outside the run's folder",
        hint="look at result.json of the run on the host: a training writes nothing like that",
    )
