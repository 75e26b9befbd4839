"""A finished training run, read and compared with what it recorded, before it is released.

Every file's SHA-256 is compared with result.json: a run that changed on the way home can't become a
release. Whether its figures suffice is decided in judge.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.errors import MacdError, RefusedError, UsageError
from macd.host.durable import sha256_of
from macd.host.store.manifest import ManifestError, check_own_path
from macd.run_directory import (
    FILES,
    DamagedFileError,
    TrainingRun,
    read_events,
    read_json,
    read_run,
    state_of,
)
from macd.symbols import symbol_name

ARTEFACTS = "artefacts/"
_JUDGED = (FILES.settings, FILES.metrics, FILES.criteria, FILES.audit)


@dataclass(frozen=True)
class Run(TrainingRun):
    """A run that finished. `files`: relative path -> SHA-256, as checked on this disk."""

    files: Mapping[str, str]

    @property
    def parts(self) -> dict[str, Run]:
        """By symbol its part of a run of several, as a run of its own; {} for a run of one.

        The run checked their files already. Raises RefusedError where a part is not whole.
        """
        return {name: self._part(name) for name in self.symbols}

    def _part(self, symbol: str) -> Run:
        place = FILES.of_symbol(self.directory, symbol)
        below = f"{place.relative_to(self.directory).as_posix()}/"
        files = {
            path.removeprefix(below): digest
            for path, digest in self.files.items()
            if path.startswith(below)
        }
        for name in (FILES.result, *_JUDGED):
            if name not in files:
                raise _refused(self.directory, f"has no {below}{name}", "a release is judged by it")
        try:
            return Run(**vars(read_run(place)), files=files)
        except DamagedFileError as error:
            problem = f"has a {below}{error.name} that can't be read"
            raise _refused(self.directory, problem, error.why) from error

    @property
    def symbol(self) -> str:
        return symbol_name(self.settings["symbol"])

    @property
    def cross(self) -> tuple[str, ...]:
        return tuple(symbol_name(name) for name in self.settings["cross"])

    @property
    def panel(self) -> tuple[str, ...]:
        """The other assets that its global models were trained on; () without a panel."""
        return tuple(self.metrics.get("panel") or ())

    @property
    def digest(self) -> str:
        """Of all the bars it was trained on."""
        return str(self.result["data_digest"])

    @property
    def shipped(self) -> list[str]:
        """Paths that go into a release: models, and the out-of-fold table as archive."""
        return sorted(path for path in self.files if path.startswith(FILES.shipped))

    @property
    def artefacts(self) -> dict[str, str]:
        """What a training of an own application left: path in its source -> path below the run."""
        below = (path for path in self.files if path.startswith(ARTEFACTS))
        return {path.removeprefix(ARTEFACTS): path for path in sorted(below)}

    @property
    def seconds(self) -> float | None:
        """From its start to its end, by its own events; None where they don't say."""
        started, ended = (_moment(self.directory, name) for name in ("run_started", "run_done"))
        return ended - started if started and ended else None


def newest(runs: Path, *, app: str = "") -> Path:
    """The directory of the run that finished last. Raises UsageError when none has.

    By the time the run itself recorded; copying or touching files doesn't change the order. app:
    the name of the application that it trained; "" is the built-in one.
    """
    finished = []
    for path in runs.glob(f"*/{FILES.result}"):
        with contextlib.suppress(DamagedFileError, AttributeError):
            result = read_json(path, {})
            done = result.get("state") == "done" and result.get("complete")
            if done and _is_of(path.parent, app):
                ended = _moment(path.parent, "run_done")
                finished.append((ended, path.parent.name, path.parent))
    if not finished:
        raise UsageError(
            f"there is no finished training in {runs}",
            why="a run has finished when its result.json says done and complete",
            hint="invoke train; invoke train.status shows one that goes on",
        )
    return max(finished)[2]


def read(directory: Path, *, app: str = "") -> Run:
    """Read a run and check every file it lists.

    app: the name of the application that it has to be of; runs of a team's own have no leak audit.

    Raises:
        UsageError: there is no such run, or it is one of another application.
        RefusedError: it did not finish, or a file is missing or was changed since.
    """
    if not directory.is_dir():
        raise UsageError(
            f"there is no run at {directory}",
            hint="invoke train makes one; name it by its id below runs/, or by its directory",
        )
    try:
        if not _is_of(directory, app):
            raise UsageError(
                f"run {directory.name} trained another application",
                why=f"this inventory's is {app or 'the built-in one'}",
                live="no release was made",
                hint="name another run (--run), or the inventory it belongs to (--inventory)",
            )
        result = read_json(directory / FILES.result, {})
        state = state_of(result)
        if state != "done" or not result.get("complete"):
            why = f"its state is {state}, {result.get('what', 'not all stages ran')}"
            hint = "invoke train.status, or train again"
            raise _refused(directory, "did not finish", why, hint)
        files = _checked(directory, result)
        run = Run(**vars(read_run(directory)), files=files)
        needed = (FILES.settings, FILES.criteria) if run.symbols else _JUDGED
        for name in _JUDGED[:3] if app else needed:
            if not (directory / name).is_file():
                raise _refused(directory, f"has no {name}", "a release is judged by it")
        return run
    except DamagedFileError as error:
        raise _refused(directory, f"has a {error.name} that can't be read", error.why) from error


def _is_of(directory: Path, app: str) -> bool:
    """Whether the run trained that application; "" is the built-in one."""
    settings = read_json(directory / FILES.settings, {})
    named = isinstance(settings, dict) and settings.get("own")
    if not app or not named:
        return not app and not named
    return bool(settings.get("name", app) == app)


def _checked(directory: Path, result: Mapping[str, Any]) -> dict[str, str]:
    files: dict[str, str] = {}
    wrong = []
    try:
        for entry in result["files"]:
            path = directory / check_own_path(entry["path"])
            files[entry["path"]] = entry["sha256"]
            if not path.is_file():
                wrong.append(f"{entry['path']} is missing")
            elif sha256_of(path) != entry["sha256"]:
                wrong.append(f"{entry['path']} was changed")
    except (KeyError, TypeError, ManifestError) as error:
        raise _refused(directory, "has a result.json that can't be read", str(error)) from error
    if wrong:
        why = "\n".join(wrong[:10])
        raise _refused(directory, f"has {len(wrong)} files that are not as it left them", why)
    return files


def _moment(directory: Path, name: str) -> float:
    """When the run itself recorded that event last; 0 where its events don't say so."""
    last = 0.0
    with contextlib.suppress(MacdError, OSError, ValueError, KeyError):
        for event in read_events(directory):
            if event["event"] == name:
                last = float(event["t"])
    return last


def _refused(
    directory: Path, what: str, why: str, hint: str = "fetch it again: invoke train.attach"
) -> RefusedError:
    return RefusedError(
        f"run {directory.name} {what}", why=why, live="no release was made", hint=hint
    )
