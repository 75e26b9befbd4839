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

from macd.application import symbol_name
from macd.errors import MacdError, RefusedError, UsageError
from macd.host.durable import sha256_of
from macd.host.store.manifest import ManifestError, check_path
from macd.run_directory import (
    FILES,
    DamagedFileError,
    TrainingRun,
    read_events,
    read_json,
    read_run,
    state_of,
)


@dataclass(frozen=True)
class Run(TrainingRun):
    """A run that finished. `files`: relative path -> SHA-256, as checked on this disk."""

    files: Mapping[str, str]

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


def newest(runs: Path) -> Path:
    """The directory of the run that finished last. Raises UsageError when none has.

    By the time the run itself recorded; copying or touching files doesn't change the order.
    """
    finished = []
    for path in runs.glob(f"*/{FILES.result}"):
        with contextlib.suppress(DamagedFileError, AttributeError):
            result = read_json(path, {})
            if result.get("state") == "done" and result.get("complete"):
                finished.append((_ended(path.parent), path.parent.name, path.parent))
    if not finished:
        raise UsageError(
            f"there is no finished training in {runs}",
            why="a run has finished when its result.json says done and complete",
            hint="invoke train; invoke train.status shows one that goes on",
        )
    return max(finished)[2]


def read(directory: Path) -> Run:
    """Read a run and check every file it lists.

    Raises:
        UsageError: there is no such run.
        RefusedError: it did not finish, or a file is missing or was changed since.
    """
    if not directory.is_dir():
        raise UsageError(
            f"there is no run at {directory}",
            hint="invoke train makes one; name it by its id below runs/, or by its directory",
        )
    try:
        result = read_json(directory / FILES.result, {})
        state = state_of(result)
        if state != "done" or not result.get("complete"):
            why = f"its state is {state}, {result.get('what', 'not all stages ran')}"
            hint = "invoke train.status, or train again"
            raise _refused(directory, "did not finish", why, hint)
        files = _checked(directory, result)
        for name in (FILES.settings, FILES.metrics, FILES.criteria, FILES.audit):
            if not (directory / name).is_file():
                raise _refused(directory, f"has no {name}", "a release is judged by it")
        return Run(**vars(read_run(directory)), files=files)
    except DamagedFileError as error:
        raise _refused(directory, f"has a {error.name} that can't be read", error.why) from error


def _checked(directory: Path, result: Mapping[str, Any]) -> dict[str, str]:
    files: dict[str, str] = {}
    wrong = []
    try:
        for entry in result["files"]:
            path = directory / check_path(entry["path"])
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


def _ended(directory: Path) -> float:
    """When the run itself says it was done; 0 where its events don't say so."""
    last = 0.0
    with contextlib.suppress(MacdError, OSError, ValueError, KeyError):
        for event in read_events(directory):
            if event["event"] == "run_done":
                last = float(event["t"])
    return last


def _refused(
    directory: Path, what: str, why: str, hint: str = "fetch it again: invoke train.attach"
) -> RefusedError:
    return RefusedError(
        f"run {directory.name} {what}", why=why, live="no release was made", hint=hint
    )
