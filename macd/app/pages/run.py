"""What a training left in its directory, read for its page; nothing is judged here.

Every part may be missing: a run of one stage, a run that failed, a run in progress. A file that is
there but can't be read is an error with its name, not a gap in the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.errors import MacdError, UsageError
from macd.heads import BASELINE, FAMILIES, MODELS, in_order, shown


@dataclass(frozen=True)
class TrainingRun:
    """The files of a run as plain values; {} or () where a file is not there."""

    directory: Path
    result: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    criteria: tuple[Mapping[str, Any], ...]
    audit: Mapping[str, Any]
    findings: tuple[Mapping[str, Any], ...] | None
    stacking: Mapping[str, Any]
    metas: Mapping[str, Mapping[str, Any]]
    job: Mapping[str, Any]
    started: str | None
    ended: str | None

    @property
    def run_id(self) -> str:
        """The job's name, or the directory's for a run made by hand."""
        return str(self.job.get("run") or self.directory.name)

    @property
    def tf(self) -> str:
        """The timeframe, such as 1h."""
        return str(self.metrics.get("tf") or self.settings.get("tf") or "1h")

    @property
    def state(self) -> str:
        """`done`, `failed`, `cancelled`, or `unfinished` when nothing says how it ended."""
        return str(self.result.get("state") or "unfinished")

    @property
    def models(self) -> Mapping[str, Mapping[str, Any]]:
        """Figures by model and head, in the order people expect."""
        made = self.metrics.get("models", {})
        return {name: made[name] for name in (*MODELS, BASELINE) if name in made}

    @property
    def heads(self) -> list[str]:
        """The heads that figures were made of, the nearest first."""
        return in_order(next(iter(self.models.values()), self.stacking.get("heads", {})))

    def shown(self, head: str) -> str:
        """A head for people: 5h, or 5 bars (1h15m)."""
        return shown(head, self.tf)

    @property
    def oof(self) -> Path:
        """Where the out-of-fold table lies, if it was made."""
        return self.directory / "data/gpu_results" / f"oof_{self.tf}.parquet"


def read_run(directory: Path) -> TrainingRun:
    """Read a run's directory. UsageError when it is none, MacdError for a damaged file."""
    if not (directory / "settings.json").is_file():
        raise UsageError(
            f"{directory} is not the directory of a training",
            why="it holds no settings.json" if directory.is_dir() else "there is no such directory",
            hint="give a directory below runs/; `invoke train` makes one",
        )
    models = directory / "data/ml_models"
    settings = _json(directory / "settings.json", {})
    metrics = _json(directory / "metrics.json", {})
    tf = metrics.get("tf") or settings.get("tf") or "1h"
    findings = _json(directory / "verify.json", None)
    started, ended = _times(directory / "events.jsonl")
    return TrainingRun(
        directory=directory,
        result=_json(directory / "result.json", {}),
        settings=settings,
        metrics=metrics,
        criteria=tuple(_json(directory / "criteria.json", [])),
        audit=_json(directory / "leak_audit.json", {}),
        findings=None if findings is None else tuple(findings),
        stacking=_json(models / f"stacking_meta_{tf}.json", {}),
        metas={
            name: meta
            for name in FAMILIES
            if (meta := _json(models / f"{name}_{tf}_meta.json", {}))
        },
        job=_json(directory / "spec.json", {}),
        started=started,
        ended=ended,
    )


def _json(path: Path, otherwise: Any) -> Any:
    if not path.is_file():
        return otherwise
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _times(path: Path) -> tuple[str | None, str | None]:
    """When the last call of the training started and wrote its last event, UTC."""
    if not path.is_file():
        return None, None
    started = ended = None
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            event = json.loads(text)
            at = datetime.fromtimestamp(event["t"], UTC).isoformat()
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"line {number}: {error}") from error
        started = at if event.get("event") == "run_started" else started
        ended = at
    return started, ended


def _damaged(path: Path, why: str) -> MacdError:
    return MacdError(
        f"{path.name} of the run can't be read",
        why=f"{path}: {why}",
        hint="fetch the run again (invoke train.attach), or train again with the same --out",
    )
