"""A finished training run, read once and compared with what it recorded, before it is released.

Every file's SHA-256 is compared with result.json: a run that changed on the way home can't become a
release. Whether its figures suffice is decided in judge.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.application import BUILTIN, symbol_name
from macd.errors import RefusedError, UsageError
from macd.host.durable import sha256_of
from macd.host.store.manifest import ManifestError, check_path

_FILES = BUILTIN.files


@dataclass(frozen=True)
class Run:
    """What a training left. `files`: relative path -> SHA-256, as checked on this disk."""

    id: str
    directory: Path
    files: Mapping[str, str]
    result: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    criteria: tuple[Mapping[str, Any], ...]
    audit: Mapping[str, Any]

    @property
    def symbol(self) -> str:
        return symbol_name(self.settings["symbol"])

    @property
    def cross(self) -> tuple[str, ...]:
        return tuple(symbol_name(name) for name in self.settings["cross"])

    @property
    def tf(self) -> str:
        return str(self.settings["tf"])

    @property
    def digest(self) -> str:
        """Of all the bars it was trained on."""
        return str(self.result["data_digest"])

    @property
    def shipped(self) -> list[str]:
        """Paths that go into a release: models, and the out-of-fold table as archive."""
        return sorted(path for path in self.files if path.startswith(_FILES.shipped))


def newest(runs: Path) -> Path:
    """The directory of the run that finished last. Raises UsageError when none has.

    By the time the run itself recorded; copying or touching files doesn't change the order.
    """
    finished = []
    for result in runs.glob(f"*/{_FILES.result}"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            outcome = json.loads(result.read_bytes())
            if outcome.get("state") == "done" and outcome.get("complete"):
                finished.append((_ended(result.parent), result.parent.name, result.parent))
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
            hint="invoke train makes one; --run takes an id below runs/ or a directory",
        )
    result = _json(directory, _FILES.result, {"state": "unfinished"})
    if result.get("state") != "done" or not result.get("complete"):
        why = f"its state is {result.get('state')}, {result.get('what', 'not all stages ran')}"
        raise _refused(directory, "did not finish", why, "invoke train.status, or train again")
    files = _checked(directory, result)
    return Run(
        id=str(_json(directory, "spec.json", {}).get("run") or directory.resolve().name),
        directory=directory,
        files=files,
        result=result,
        settings=_json(directory, _FILES.settings),
        metrics=_json(directory, _FILES.metrics),
        criteria=tuple(_json(directory, _FILES.criteria)),
        audit=_json(directory, _FILES.audit),
    )


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
    last = 0.0
    with contextlib.suppress(OSError, ValueError, KeyError):
        for line in (directory / _FILES.events).read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["event"] == "run_done":
                last = float(event["t"])
    return last


def _json(directory: Path, name: str, otherwise: Any = None) -> Any:
    path = directory / name
    if otherwise is not None and not path.is_file():
        return otherwise
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _refused(directory, f"has a {name} that can't be read", str(error)) from error


def _refused(
    directory: Path, what: str, why: str, hint: str = "fetch it again: invoke train.attach"
) -> RefusedError:
    return RefusedError(
        f"run {directory.name} {what}", why=why, live="no release was made", hint=hint
    )
