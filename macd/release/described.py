"""What is wrong in `app:` that can be known here, without any host: files that are not there.

An inventory with such a mistake loads: most commands need only its hosts. `invoke host.list` shows
each mistake with its line; release and train refuse what concerns them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from macd.errors import MacdError
from macd.host.untrusted import line
from macd.inventory import Inventory
from macd.inventory.document import Document, KeyPath, Problem, read_document
from macd.inventory.own_app import OwnApp
from macd.release import own, requirements
from macd.release import source as sources

_Mistake = tuple[KeyPath, str, str]  # key below app, what is expected, what is there


def problems(inventory: Inventory) -> list[Problem]:
    """In the order of the file; [] for the built-in application. Nothing is run but git."""
    if inventory.app is None:
        return []
    document = _document(inventory)
    mistakes = [
        Problem(("app", *key), expected, said, document.line(("app", *key)))
        for key, expected, said in _wrong(inventory.app)
    ]
    return sorted(mistakes, key=lambda problem: problem.line or 0)


def _document(inventory: Inventory) -> Document:
    try:
        return read_document(inventory.path.read_text(encoding="utf-8"), os.environ)
    except (OSError, UnicodeDecodeError):  # it was there a moment ago
        return Document()


def _wrong(app: OwnApp) -> Iterator[_Mistake]:
    if not app.source.is_dir():
        yield ("source",), "the application's directory", f"no directory {line(app.source)}"
        return
    globs = [*_globs(app)]
    yield from globs
    yield from _packages(app)
    if not any(key[0] in ("files", "models") for key, _, _ in globs):
        yield from _source(app)


def _globs(app: OwnApp) -> Iterator[_Mistake]:
    """Patterns that name nothing. Where a training brings the models, they may be missing."""
    train = app.train
    asked = (
        (("files",), app.files, True),
        (("models",), app.models, train is None),
        (("train", "data"), train.data if train else (), True),
    )
    for key, patterns, counts in asked:
        for number, pattern in enumerate(patterns):
            if counts and not sources.matching(app.source, pattern):
                expected = f"a path or glob of files in {line(app.source)}"
                yield (*key, number), expected, f"{line(pattern)}, and no file matches"
    if train and train.setup and not (app.source / train.setup).is_file():
        expected = f"a file of packages in {line(app.source)}"
        yield ("train", "setup"), expected, f"no file {line(train.setup)}"


def _packages(app: OwnApp) -> Iterator[_Mistake]:
    if app.serve.requirements:
        try:
            requirements.read(app.source, app.serve.requirements)
        except MacdError as error:
            yield ("serve", "requirements"), "a file of packages that can be locked", _words(error)


def _source(app: OwnApp) -> Iterator[_Mistake]:
    """What can't be released, and commands whose script isn't."""
    try:
        source = sources.read(app)
    except MacdError as error:
        yield ("source",), "a source that can be released", _words(error)
        return
    why = dict(source.skipped)
    for key, command in _commands(app):
        script = own.script_of(shlex.split(command))
        name = PurePosixPath(script or "").as_posix()
        if script and "{" not in name and name not in source.files and not _made(app, name):
            said = why.get(name, "no such file is released")
            yield key, "a command whose script is in the source", f"{line(name)}: {said}"


def _made(app: OwnApp, name: str) -> bool:
    """Whether a training brings it."""
    train = app.train
    return train is not None and any(sources.matches(name, path) for path in train.artefacts)


def _commands(app: OwnApp) -> Iterator[tuple[KeyPath, str]]:
    yield ("serve", "command"), app.serve.command
    for name, unit in app.serve.more.items():
        yield ("serve", "more", name, "command"), unit.command
    if app.check:
        yield ("check",), app.check
    for name, command in (app.train.stages if app.train else {}).items():
        yield ("train", "stages", name), command


def _words(error: MacdError) -> str:
    return "; ".join(line(part) for part in (error.what, error.why) if part)
