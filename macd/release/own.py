"""Make a release of an application of one's own: its source, what a training left, its lock.

What it holds is laid out as the application has it, below source/. It is built, signed and put in
place as every release is (build.py).
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from macd.application import NOT_KNOWN
from macd.checklist import Item
from macd.criteria import is_number
from macd.errors import MacdError, UsageError
from macd.host.own import SOURCE
from macd.host.store.manifest import MAX_BYTES, ManifestError, check_own_path, folded
from macd.host.untrusted import line
from macd.inventory.own_app import OwnApp
from macd.release import build
from macd.release.build import ReleaseRequest
from macd.release.run import Run
from macd.release.source import Source, vanished
from macd.release.store import Release, Store

_CHUNK = 1 << 20
_NAMED = 100  # changed files that stand in a manifest
_PYTHONS = ("python", "python3")


@dataclass(frozen=True)
class OwnRequest(ReleaseRequest):
    """All that decides what a release of an own application is.

    host: where it was trained. symbol, tf: of the run, or the inventory's.
    """

    application: OwnApp
    source: Source
    host: str | None
    symbol: str
    tf: str

    @property
    def artefacts(self) -> dict[str, str]:
        """Path in the source -> path below the run, but for what serve.writes keeps on the host."""
        writes = tuple(f"{path}/" for path in self.application.serve.writes)
        left = self.run.artefacts if self.run else {}
        return {name: path for name, path in left.items() if not f"{name}/".startswith(writes)}

    @property
    def models(self) -> list[str]:
        """Released models that lie in the source and in no commit; an artefact comes before."""
        return [name for name in self.source.models if name not in self.artefacts]

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(path, why) of what the source or the run holds and the release doesn't."""
        kept_there = sorted((self.run.artefacts if self.run else {}).keys() - self.artefacts.keys())
        why = "an artefact below serve.writes, which the host keeps across releases"
        return [*self.source.skipped, *((line(name), why) for name in kept_there)]


def make(
    request: OwnRequest,
    store: Store,
    *,
    sign: Callable[[bytes], bytes],
    wheels: list[Path],
    check: Callable[[Path], Item],
) -> tuple[Release, list[Item]]:
    """Build, check, sign and put in place; the release and how its checks came out.

    Args:
        wheels: files of the lock's wheels. check: runs the application's own check in the built
            tree; it is given the directory that holds source/.

    Raises:
        RefusedError: a blocking criterion, and nothing accepts it.
        UsageError: a command names a file that is not released.
        MacdError: the check failed, a file vanished, or there are too many.
    """

    def fill(building: Path) -> tuple[dict[str, Any], list[Item]]:
        copied = _copy(request, building / SOURCE)
        item = check(building)
        build.refuse_unhealthy([item])
        return _details(request, building / SOURCE, copied), [item, NOT_KNOWN]

    refuse_wrong_commands(request)
    _refuse_clashes(request)
    try:
        return build.assemble(request, store, fill, sign=sign, wheels=wheels)
    except ManifestError as error:
        raise MacdError(
            "the source can't be described in a manifest",
            why=f"{len(request.source.files)} files; {error} (at most {MAX_BYTES >> 20} MiB)",
            live="no release was made",
            hint="name what the service needs in app.files",
        ) from error


def refuse_wrong_commands(request: OwnRequest) -> None:
    """Raise UsageError for a command whose script is not released, or that systemd can't start."""
    files = request.source.files.keys() | request.artefacts.keys()
    for key, command in _commands(request.application).items():
        words = shlex.split(command)
        if "/" in words[0] and not words[0].startswith("/"):
            raise UsageError(
                f"{key} starts with a file of the source: {line(words[0])}",
                why="files of a release are not executable, and systemd wants a whole path",
                live="no release was made",
                hint=f"{key}: /bin/sh {line(command)}, or python3 for a script of Python",
            )
        script = script_of(words)
        if script and PurePosixPath(script).as_posix() not in files:
            why = dict(request.left_out).get(script, "the source holds no such file")
            raise UsageError(
                f"{key} runs {line(script)}, which is not in the release",
                why=why,
                live="no release was made",
                hint=f"git add {line(script)}, name it in app.files, or change {key}",
            )


def programs(app: OwnApp) -> dict[str, str]:
    """Programs that a package of the runtime has to bring -> the key whose command starts them."""
    firsts = {key: shlex.split(command)[0] for key, command in _commands(app).items()}
    return {word: key for key, word in firsts.items() if word not in _PYTHONS and "/" not in word}


def _commands(app: OwnApp) -> dict[str, str]:
    """Every command that runs in the released source, by the key that sets it."""
    check = {"app.check": app.check} if app.check else {}
    more = {f"serve.more.{name}.command": unit.command for name, unit in app.serve.more.items()}
    return {**check, "serve.command": app.serve.command, **more}


def script_of(words: list[str]) -> str | None:
    """The file of the source that a command has Python or a shell run; None where it names none."""
    shell = words[0].startswith("/") and words[0].rpartition("/")[2] in ("sh", "bash")
    if not shell and words[0] not in _PYTHONS:
        return None
    for word in words[1:]:
        if not word.startswith("-"):
            return None if word.startswith("/") else word
        if word in ("-m", "-c"):  # a module, or the code itself
            return None
    return None


def _copy(request: OwnRequest, into: Path) -> dict[str, str]:
    """The SHA-256 of each file, by its path."""
    copied = {}
    for name, path in request.source.files.items():
        if name not in request.artefacts:
            copied[name] = _copy_file(name, path, into / name)
    run = request.run
    if run is None:
        return copied
    for name, below in request.artefacts.items():
        copied[name] = _copy_file(name, run.directory / below, into / name)
        if copied[name] != run.files[below]:
            raise MacdError(
                f"{line(below)} of run {run.id} changed while it was read",
                live="no release was made",
                hint="let nothing write there, then again",
            )
    return copied


def _copy_file(name: str, path: Path, target: Path) -> str:
    """Copy its content; the SHA-256 of what was copied. Models may be larger than memory."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("rb") as file, target.open("xb") as out:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
    except OSError as error:
        raise vanished(name, error) from error
    return digest.hexdigest()


def _refuse_clashes(request: OwnRequest) -> None:
    """Raise UsageError where an artefact, or what the service writes, has another file's place."""
    for path in request.application.serve.writes:
        try:
            check_own_path(path)
        except ManifestError as error:
            raise UsageError(
                "a path of serve.writes can't travel",
                why=str(error),
                live="no release was made",
                hint="give that directory another name",
            ) from error
    files = {folded(name): name for name in request.source.files}
    wanted = {name: "an artefact of the run" for name in request.artefacts}
    wanted |= dict.fromkeys(request.application.serve.writes, "a path of serve.writes")
    for name, what in wanted.items():
        above = (str(parent) for parent in PurePosixPath(name).parents[:-1])
        places = [files.get(folded(path)) for path in above]
        here = files.get(folded(name))
        other = next((place for place in places if place), here if here != name else None)
        if other:
            raise UsageError(
                f"{what} has the place of another file: {line(name)}",
                why=f"{line(other)} is a file of the source",
                live="no release was made",
                hint="rename one of them",
            )


def _details(request: OwnRequest, tree: Path, copied: Mapping[str, str]) -> dict[str, Any]:
    app, run, source = request.application, request.run, request.source
    more = len(source.changed) - _NAMED
    changed = [*source.changed[:_NAMED], *([f"and {more} more"] if more > 0 else [])]
    return {
        "own": {
            "name": app.name,
            "writes": list(app.serve.writes),
            "check": app.check,
            "units": list(app.serve.more),
        },
        "run": run.id if run else None,
        "host": request.host,
        "symbol": request.symbol,
        "tf": request.tf,
        "code": {
            "version": "",
            "commit": source.commit or None,
            "dirty": source.dirty,
            "changed": changed,
        },
        "trained_with": trained_with(run),
        "train_seconds": run.seconds if run else None,
        "metrics": metrics_of(run),
        "criteria": [finding.as_json() for finding in request.findings],
        "accepted": request.accepted or None,
        "models": [
            {
                "path": name,
                "size": (tree / name).stat().st_size,
                "sha256": copied[name],
                "from": "run" if name in request.artefacts else "source",
            }
            for name in sorted({*request.models, *request.artefacts})
        ],
    }


def metrics_of(run: Run | None) -> dict[str, float | None]:
    """The run's metrics by name; None for one that was not measured."""
    metrics = run.metrics.get("own") if run else None
    if not isinstance(metrics, Mapping):
        return {}
    return {line(name, 64): value if is_number(value) else None for name, value in metrics.items()}


def trained_with(run: Run | None) -> dict[str, Any] | None:
    """commit and dirty of the source that the run was trained from; None where it doesn't say."""
    code = run.result.get("code") if run else None
    if not isinstance(code, Mapping) or not isinstance(code.get("commit"), str | None):
        return None
    return {"commit": line(code.get("commit") or "") or None, "dirty": code.get("dirty") is True}


def differs(request: OwnRequest) -> str:
    """What to say where the code is not that of the training; "" where it is."""
    trained = trained_with(request.run)
    if trained is None or request.run is None:
        return ""
    now = _code(request.source.commit, dirty=request.source.dirty)
    then = _code(trained["commit"] or "", dirty=trained["dirty"])
    if now == then and not request.source.dirty:
        return ""
    return f"the code is {now}; run {request.run.id} was trained with {then}"


def _code(commit: str, *, dirty: bool) -> str:
    return (commit[:12] or "of no commit") + (" with changes" if dirty else "")
