"""A request to train an application of the team's own, and the checks of what would be sent.

Its source, its data and macd's half on the host make one tree; the commands and what they must
leave are the request. Decided before any contact.
"""

from __future__ import annotations

import os
import posixpath
import shlex
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from macd.errors import MacdError, UsageError
from macd.host import untrusted
from macd.host.jobs import environments
from macd.host.jobs.stages import SOURCE
from macd.host.store.manifest import travels
from macd.inventory import Inventory
from macd.inventory.names import Symbol
from macd.inventory.own_app import OwnApp, TrainApp
from macd.jobs.preflight import Check
from macd.jobs.request import Request, Tree, run_id, sources
from macd.release import source as sources_of
from macd.release.source import Source
from macd.sizes import size
from macd.ssh.blobs import Blob

_HOST_HALF = ("__init__.py", "heads.py", "host")
_INTERPRETERS = ("python", "python3", "bash", "sh")
_SHOWN, _LISTED = 3, 8


@dataclass(frozen=True, kw_only=True)
class OwnRequest(Request):
    """A training of an own application. missing: paths of train.data where nothing is."""

    app: OwnApp
    source: Source
    data: dict[str, Path]
    missing: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        return [self.python, "-m", "macd.host.jobs.stages", "{run}"]

    @property
    def commands(self) -> list[str]:
        raw = self.raw
        setup = [f"pip install -r {raw['setup']}, once per content"] if raw["setup"] else []
        stages = [f"{name}: {command}" for name, command in raw["stages"]]
        return [*setup, *stages, f"and look for new files: {', '.join(raw['artefacts'])}"]

    @property
    def room(self) -> int:
        return 2 * self.tree.size  # what was sent, and the copy that the stages work in

    @property
    def title(self) -> str:
        stages = ", ".join(name for name, _ in self.raw["stages"])
        return f"{self.app.name}: {stages}, {self.raw['symbol']} {self.raw['tf']}"

    @property
    def about(self) -> dict[str, Any]:
        names = [name for name, _ in self.raw["stages"]]
        return {
            "own": self.app.name,
            "symbol": self.raw["symbol"],
            "tf": self.raw["tf"],
            "stages": names,
        }

    @property
    def recorded(self) -> dict[str, Any]:
        code = {name: self.raw["code"][name] for name in ("commit", "dirty")}
        return {**self.about, "complete": self.raw["complete"], **code}


def make(
    inventory: Inventory, app: OwnApp, *, python: str, symbol: str, stage: str, now: datetime
) -> OwnRequest:
    """The request. stage: only this one; "" all of them.

    Raises:
        UsageError: the inventory has no training of it, or no such stage; the source can't be read.
    """
    train = _training(inventory, app)
    if stage and stage not in train.stages:
        raise UsageError(
            f"{app.name} has no stage {stage}",
            why=f"--mode names one of train.stages: {', '.join(train.stages)}",
        )
    if symbol:
        _check_symbol(symbol)
    source = sources_of.read(app)
    data, missing = _data(app, train)
    files = {**source.files, **data}
    symbol, tf = symbol or inventory.train.symbol, inventory.train.tf
    commands = {
        name: text.replace("{symbol}", symbol).replace("{tf}", tf)
        for name, text in train.stages.items()
        if stage in ("", name)
    }
    raw: dict[str, Any] = {
        "name": app.name,
        "symbol": symbol,
        "tf": tf,
        "stages": [list(pair) for pair in commands.items()],
        "complete": not stage,
        "setup": train.setup,
        "data": list(train.data),
        "artefacts": list(train.artefacts),
        "metrics": train.metrics,
        "criteria": {name: bound.model_dump() for name, bound in train.criteria.items()},
        "env": train.env,
        "executable": [name for name, path in files.items() if os.access(path, os.X_OK)],
        "code": {
            "commit": source.commit,
            "dirty": source.dirty,
            "changed": list(source.changed),
        },
    }
    blobs = {f"{SOURCE}/{name}": _blob(path) for name, path in files.items() if travels(name)}
    tree = Tree(sources(_HOST_HALF) | blobs)
    return OwnRequest(
        run=run_id(now, tree.digest, raw),
        raw=raw,
        tree=tree,
        python=python,
        env={},
        app=app,
        source=source,
        data=data,
        missing=missing,
    )


def checks(request: OwnRequest) -> list[Check]:
    """What would be sent, and what of it can't work: all at once."""
    train = request.app.train
    assert train is not None  # noqa: S101 - make saw to it
    made = [_source(request), *_left_out(request, train)]
    made += [*_data_checks(request, train), *_stages(request)]
    if train.setup:
        made.append(_setup(request, train.setup))
    return made


def _training(inventory: Inventory, app: OwnApp) -> TrainApp:
    if app.train is None:
        raise UsageError(
            f"the inventory doesn't say how {app.name} is trained",
            why=f"{inventory.path.name} has no app.train",
            hint="inventory/own-app.example.yml explains it; without it, invoke release takes"
            " the models of app.models",
        )
    return app.train


def _check_symbol(symbol: str) -> None:
    try:
        TypeAdapter(Symbol).validate_python(symbol)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--symbol {untrusted.line(symbol, 40)} is no symbol", why=why) from error


def _data(app: OwnApp, train: TrainApp) -> tuple[dict[str, Path], tuple[str, ...]]:
    files: dict[str, Path] = {}
    missing = []
    for path in train.data:
        matches = {match.relative_to(app.source).as_posix(): match for match in _below(app, path)}
        files |= matches
        if not matches:
            missing.append(path)
    return dict(sorted(files.items())), tuple(missing)


def _below(app: OwnApp, path: str) -> Iterator[Path]:
    """The files that a path of train.data names. A link is followed where it is the path itself."""
    for match in sorted(app.source.glob(path)):
        if not match.is_dir():
            yield match
        for directory, _, names in os.walk(match):
            inside = (Path(directory, name) for name in sorted(names))
            yield from (path for path in inside if path.is_file())


def _blob(path: Path) -> Blob:
    try:
        return Blob.of_file(path)
    except OSError as error:
        raise MacdError(
            f"{untrusted.line(path.name)} could not be read",
            why=f"{untrusted.line(path)}: {error.strerror or error}",
            live="nothing was sent or started",
            hint="let nothing write into the source meanwhile, then again",
        ) from error


def _source(request: OwnRequest) -> Check:
    source = request.source
    total = sum(request.tree.files[f"{SOURCE}/{name}"].size for name in source.files)
    at = f"commit {source.commit[:12]}" if source.commit else "no commit"
    detail = f"{_counted(source.files)}, {size(total)}, {at}"
    if source.dirty:
        hint = "commit it; or go on: run and release say that it was changed"
        return Check("source", "warn", f"{detail}; changed since: {_few(source.changed)}", hint)
    return Check("source", "ok", detail)


def _left_out(request: OwnRequest, train: TrainApp) -> Iterator[Check]:
    """Files of the source that aren't sent: a stage may read them, and only there would fail."""
    expected = {*request.app.models, *request.data}
    left = {
        name: why
        for name, why in request.source.skipped
        if name not in expected
        and not any(path.startswith(name) for path in (*request.data, *train.artefacts))
        and not any(fnmatchcase(name, pattern) for pattern in train.artefacts)
    }
    if not left:
        return
    lines = [f"{name} ({why})" for name, why in [*left.items()][:_LISTED]]
    more = [f"and {len(left) - _LISTED} more"] if len(left) > _LISTED else []
    hint = "nothing, where no stage reads them; else git add them, or name them in train.data"
    yield Check("left out", "warn", "\n".join([*lines, *more]), hint)


def _data_checks(request: OwnRequest, train: TrainApp) -> Iterator[Check]:
    unfit = [name for name in request.data if not travels(name)]
    if request.missing:
        why = f"nothing is at {_few(request.missing)} of {request.app.source}"
        yield Check("data", "error", why, "put it there, or change train.data of the inventory")
    elif unfit:
        yield Check("data", "error", f"such a name can't travel: {_few(unfit)}", "rename it")
    elif train.data:
        sizes = [request.tree.files[f"{SOURCE}/{name}"].size for name in request.data]
        yield Check("data", "ok", f"{_counted(sizes)}, {size(sum(sizes))}: {_few(train.data)}")


def _stages(request: OwnRequest) -> list[Check]:
    """The scripts that the commands name are in the tree; what git doesn't track is not."""
    made, skipped = [], dict(request.source.skipped)
    for name, command in request.raw["stages"]:
        words = shlex.split(command)
        named = (word for word in words[1:] if not word.startswith("-"))
        script = next(named, "") if words[0] in _INTERPRETERS else words[0]
        plain = posixpath.normpath(script)
        if script.startswith("/") or not (script.endswith((".py", ".sh")) or "/" in script):
            continue  # python3 -m MODULE, or a program of the host
        if f"{SOURCE}/{plain}" not in request.tree.files:
            why = skipped.get(plain, "no such file is sent")
            detail = f"{name} runs {untrusted.line(plain)}: {why}"
            hint = f"git add {plain} in {request.app.source}, or mend train.stages"
            made.append(Check("stages", "error", detail, hint))
    return made or [Check("stages", "ok", ", ".join(name for name, _ in request.raw["stages"]))]


def _setup(request: OwnRequest, setup: str) -> Check:
    def read(path: str) -> bytes | None:
        blob = request.tree.files.get(f"{SOURCE}/{path}")
        if blob is None:
            return None
        with blob.open() as stream:
            return stream.read()

    files = environments.requirements(read, setup)
    if setup not in files:
        hint = f"git add {setup} in {request.app.source}, or mend train.setup"
        return Check("setup", "error", f"{setup} is not among the files that are sent", hint)
    if local := environments.local_lines(files):
        why = f"installs a path, which an environment that is kept can't hold: {_few(local)}"
        hint = "take it out: stages run in the source; with a src directory set train.env"
        return Check("setup", "error", why, f"{hint}: {{PYTHONPATH: src}}")
    return Check("setup", "ok", ", ".join(files))


def _counted(files: Sized) -> str:
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def _few(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(untrusted.line, names[:_SHOWN])) + more
