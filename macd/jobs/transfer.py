"""Send a request's files to the host and start it there; bring a finished run's files back.

All of it may be repeated after a lost connection. A fetched run is verified, and there whole or not
at all. The host is not trusted with names or sizes: a path must stay inside the run's folder, and
no more bytes are taken than were declared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.errors import MacdError
from macd.host.durable import one_at_a_time, sha256_of, sync
from macd.host.jobs.stages import ARTEFACTS
from macd.host.store.manifest import ManifestError, check_own_path, check_path
from macd.jobs.follow import LocalRuns, contact_lost
from macd.jobs.request import Request, Tree
from macd.ssh import archive
from macd.ssh.contact import Contact
from macd.ssh.session import Session, host_copy, in_flight

_MOST_FILES = 10_000
_PIECE = 1 << 20
_AHEAD = 16
_MOST_BYTES = 8 << 30
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Sent:
    """What was sent; bytes before compression."""

    sent: int
    total: int
    landed: int
    files: int


def missing(contact: Contact, request: Request) -> tuple[int, int]:
    """How many blobs and bytes would travel. Changes nothing."""
    blobs = {blob.sha256: blob.size for blob in request.tree.files.values()}
    listed = [[sha256, size] for sha256, size in blobs.items()]
    work = contact.host.work_dir
    answer = contact.use(lambda session: session.call("blobs_missing", root=work, blobs=listed))
    lacking = answer["missing"]
    return len(lacking), sum(blobs[sha256] - have for sha256, have in lacking)


def send(
    contact: Contact, request: Request, progress: Callable[[int, int], None] | None = None
) -> Sent:
    """Send the files that the host lacks and make the tree there. Raises as blobs.put does."""
    contact.use(lambda session: _leave_copy(contact, session))
    return send_tree(contact, request.tree, progress)


def send_tree(
    contact: Contact, tree: Tree, progress: Callable[[int, int], None] | None = None
) -> Sent:
    """Send the files of a tree that the host lacks, and make it there."""
    work, files, digest = contact.host.work_dir, tree.files, tree.digest
    listed = [[path, blob.sha256] for path, blob in sorted(files.items())]
    report = contact.use(lambda session: session.put_blobs(work, files.values(), progress))
    contact.use(lambda session: session.call("job_tree", work=work, digest=digest, files=listed))
    return Sent(report.sent, tree.size, report.landed, len(files))


def _leave_copy(contact: Contact, session: Session) -> None:
    """Leave the host program there, so that following the run need not send it each time."""
    copy = host_copy(contact.host, contact.inventory)
    if copy is not None and copy.remembered() != archive.digest():
        session.write(copy.path, archive.build())
        copy.remember(archive.digest())


def start(contact: Contact, request: Request) -> dict[str, Any]:
    """Start the run; a second call does not start it again. Returns its status.

    Raises RefusedError while another run is in progress there.
    """
    status: dict[str, Any] = contact.use(
        lambda session: session.call(
            "job_start",
            work=contact.host.work_dir,
            run=request.run,
            argv=request.argv,
            env=variables(request),
            tree=request.tree.digest,
            about=request.about,
            files=request.files,
        )
    )
    return status


def variables(request: Request) -> dict[str, str]:
    """The environment of the job; the braces are filled in on the host."""
    env = {"PYTHONPATH": "{tree}", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTHONIOENCODING"] = "utf-8"  # so is its log read, whatever the login's locale is
    return {**env, **request.env}


@dataclass(frozen=True)
class FileEntry:
    """One file of a run as it was declared."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Collected:
    """The run's folder here, and the bytes that were received for it."""

    folder: Path
    files: int
    received: int
    status: dict[str, Any]


def collect(
    contact: Contact,
    run: str,
    local: LocalRuns,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Fetch what the run left into runs/<id> (a run that failed: runs/<id>.failed).

    Raises MacdError when a name or size is unsafe or a file is not what was declared, RemoteError
    while the run is in progress, ContactLostError; calling again resumes where it stopped.
    """
    work = contact.host.work_dir
    try:
        answer = contact.use(lambda session: session.call("job_files", work=work, run=run))
        files = checked([*answer["files"], *answer["records"]])
        local.runs.mkdir(parents=True, exist_ok=True)
        lock = local.runs / f".{local.collected(run).name}.lock"
        with one_at_a_time(lock):  # the second collector of a run finds it done
            return _collect(contact, answer["status"], files, local, progress)
    except MacdError as error:
        raise contact_lost(error, run) from error


def _collect(
    contact: Contact,
    status: dict[str, Any],
    files: list[FileEntry],
    local: LocalRuns,
    progress: Callable[[int, int], None] | None,
) -> Collected:
    run, state = str(status["run"]), str(status["state"])
    folder = local.ended(run, state)
    partial = local.partial(run)
    if folder.is_dir() and all(_is_there(folder, file) for file in files):
        shutil.rmtree(partial, ignore_errors=True)
        return Collected(folder, len(files), 0, status)
    meter = _Meter(sum(file.size for file in files), progress)
    missing_here = []
    for file in files:
        (partial / file.path).parent.mkdir(parents=True, exist_ok=True)
        if not _is_there(partial, file):
            missing_here.append(file)
    remote = str(status["directory"])
    contact.use(lambda session: _pull_small(session, remote, missing_here, partial, meter))
    for file in missing_here:
        _fetch(contact, remote, file, partial, meter)
    _put_in_place(partial, folder, files)
    return Collected(folder, len(files), meter.received, status)


def checked(listed: Iterable[Any]) -> list[FileEntry]:
    """The files to fetch, each name once. Raises MacdError for a name or size that is unsafe."""
    files: dict[str, FileEntry] = {}
    for entry in listed:
        try:
            path, size, sha256 = entry
            _check_path(path)
        except (ManifestError, TypeError, ValueError) as error:
            raise _unsafe(f"{error}") from error
        if type(size) is not int or size < 0:
            raise _unsafe(f"{path}: its size is {size!r}")
        if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= _HEX:
            raise _unsafe(f"{path}: its hash is {sha256!r:.80}")
        files[path] = FileEntry(path, size, sha256)
    clashes = [p for p in files if any(str(above) in files for above in Path(p).parents)]
    if clashes:
        raise _unsafe(f"{clashes[0]}: a file can't also be a directory")
    if len(files) > _MOST_FILES or sum(file.size for file in files.values()) > _MOST_BYTES:
        raise _unsafe(f"{len(files)} files, more than {_MOST_BYTES >> 30} GiB or {_MOST_FILES}")
    return list(files.values())


def _check_path(path: Any) -> None:
    """An own application's artefacts are called as it likes; all else as macd likes."""
    if isinstance(path, str) and path.startswith(f"{ARTEFACTS}/"):
        check_own_path(path.removeprefix(f"{ARTEFACTS}/"))
    else:
        check_path(path)


class _Meter:
    """Counts received bytes and reports them."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.received = 0
        self._total = total
        self._progress = progress

    def add(self, count: int) -> None:
        self.received += count
        if self._progress is not None:
            self._progress(self.received, self._total)


def _pull_small(
    session: Session, remote: str, files: list[FileEntry], partial: Path, meter: _Meter
) -> None:
    """Request all files of one piece at once, so that many small files cost few round trips."""
    small = [f for f in files if f.size <= _PIECE and not (partial / f.path).exists()]
    requests = (
        (f, session.submit("read", path=f"{remote}/{f.path}", limit=f.size + 1)) for f in small
    )
    for file, pending in in_flight(requests, _AHEAD):
        data = pending.result()["data"][: file.size]
        (partial / file.path).write_bytes(data)
        meter.add(len(data))


def _fetch(contact: Contact, remote: str, file: FileEntry, partial: Path, meter: _Meter) -> None:
    path = partial / file.path
    if _is_there(partial, file):
        return
    for _ in range(2):  # an earlier attempt may have left damaged bytes; then again, whole
        if path.is_file() and path.stat().st_size > file.size:
            path.unlink()
        contact.use(lambda session: _pull(session, f"{remote}/{file.path}", path, file, meter))
        if _is_there(partial, file):
            return
        path.unlink(missing_ok=True)
    raise MacdError(
        f"{file.path} arrived with other content than the run declared",
        why=f"expected {file.size} bytes with SHA-256 {file.sha256}",
        live="nothing was put in place; the run on the host is as it was",
        hint="somebody changed the file on the host: train again",
    )


def _pull(session: Session, remote: str, path: Path, file: FileEntry, meter: _Meter) -> None:
    with path.open("ab") as out:
        have = out.tell()
        if have >= file.size:
            return
        for piece in session.pieces(remote, offset=have):
            part = piece[: file.size - have]
            out.write(part)
            have += len(part)
            meter.add(len(part))
            if len(part) < len(piece) or have >= file.size:
                return


def _is_there(folder: Path, file: FileEntry) -> bool:
    path = folder / file.path
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return sha256_of(path) == file.sha256


def _put_in_place(partial: Path, folder: Path, files: list[FileEntry]) -> None:
    """Remove files that were not declared; then one rename makes the run appear."""
    declared = {file.path for file in files}
    for path in sorted(partial.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(path.relative_to(partial)) not in declared:
            path.unlink()
    for file in files:
        sync(partial / file.path)
    for directory in {(partial / file.path).parent for file in files} | {partial}:
        sync(directory)
    if folder.exists():  # a copy that somebody damaged; ours is verified
        shutil.rmtree(folder)
    partial.rename(folder)
    sync(folder.parent)


def _unsafe(why: str) -> MacdError:
    return MacdError(
        "the host lists a file that can't be taken",
        why=why,
        live="nothing was written outside the run's folder",
        hint="look at result.json of the run on the host: a training writes nothing like that",
    )
