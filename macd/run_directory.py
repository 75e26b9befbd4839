"""The directory of one training: the names of its files, and the one reader of what they hold.

The training writes by these names. The page of a training and the release read by them. Standard
library alone: a training host needs the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.errors import MacdError, UsageError
from macd.heads import BASES, COMPARED, in_order, shown


@dataclass(frozen=True)
class RunFiles:
    """Paths below a run's directory. The directories of models and tables go into a release.

    spec: what a job was started with; a run made by hand has none.
    artefacts: of an own application, at their own paths. own_bars: the bars themselves, where a
    schedule trained on new ones; elsewhere they are those of train.data_dir.
    """

    models: str = "data/ml_models"
    tables: str = "data/gpu_results"
    result: str = "result.json"
    settings: str = "settings.json"
    metrics: str = "metrics.json"
    criteria: str = "criteria.json"
    audit: str = "leak_audit.json"
    bars: str = "verify.json"
    onnx: str = "onnx.json"
    events: str = "events.jsonl"
    spec: str = "spec.json"
    artefacts: str = "artefacts"
    symbols: str = "symbols"
    own_bars: str = "bars"

    def of_symbol(self, directory: Path, symbol: str) -> Path:
        """Where one symbol's part lies in a run or release of several, with all names as above."""
        return directory / self.symbols / symbol

    @property
    def shipped(self) -> tuple[str, ...]:
        """Directories whose files go into a release as they are."""
        return f"{self.models}/", f"{self.tables}/"

    def meta(self, family: str, tf: str) -> str:
        """What describes a base model."""
        return f"{self.models}/{family}_{tf}_meta.json"

    def stacking(self, tf: str) -> str:
        """The meta-model, whole."""
        return f"{self.models}/stacking_meta_{tf}.json"

    def features(self, tf: str) -> str:
        """How the features lay in training (macd/app/train/reference.py)."""
        return f"{self.models}/features_{tf}.json"

    def out_of_fold(self, tf: str) -> str:
        """The out-of-fold table."""
        return f"{self.tables}/oof_{tf}.parquet"

    def refitted(self, tf: str) -> str:
        """What refitted models say of the holdout, which they were trained on: for checks alone."""
        return f"{self.tables}/refitted_{tf}.parquet"

    def policies(self, tf: str) -> str:
        """What policies would have earned, day by day."""
        return f"{self.tables}/policies_{tf}.parquet"


FILES = RunFiles()
_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9.]{0,29}")


def bars_directory(run: Path, data_dir: Path) -> Path:
    """Where the bars lie here that a run was trained on."""
    own = run / FILES.own_bars
    return own if own.is_dir() else data_dir


class DamagedFileError(MacdError):
    """A file of a run is there but can't be read."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"{path.name} of the run can't be read",
            why=f"{path}: {cause}",
            hint="fetch the run again (invoke train.attach), or train again with the same --out",
        )
        self.name = path.name


@dataclass(frozen=True)
class TrainingRun:
    """What a training left, as plain values; {} or () where a file is not there.

    findings: what the checks of the bars found; None where they did not run.
    """

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

    @property
    def id(self) -> str:
        """The job's name, or the directory's for a run made by hand; of a part its symbol too."""
        here = self.directory.resolve()
        name = str(self.job.get("run") or whole(here).name)
        return name if whole(here) == here else f"{name}, {here.name}"

    @property
    def tf(self) -> str:
        """The timeframe, such as 1h."""
        return _timeframe(self.metrics, self.settings)

    @property
    def symbols(self) -> tuple[str, ...]:
        """All that were trained where they are several, each in a directory like this one."""
        return symbols_of(self.settings)

    @property
    def state(self) -> str:
        """`done`, `failed`, `cancelled`, or `unfinished` when nothing says how it ended."""
        return state_of(self.result)

    @property
    def models(self) -> Mapping[str, Mapping[str, Any]]:
        """Figures by model and head, in the order people expect."""
        made = self.metrics.get("models", {})
        return {name: made[name] for name in COMPARED if name in made}

    @property
    def compared(self) -> Mapping[str, Mapping[str, Any]]:
        """As `models`, on the bars of which all of them speak; as they are in an older run."""
        made = on_same_bars(self.metrics)
        return {name: made.get(name, figures) for name, figures in self.models.items()}

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
        return self.directory / FILES.out_of_fold(self.tf)

    @property
    def started(self) -> str | None:
        """When the last call of the training started, UTC. Raises DamagedFileError."""
        starts = (e for e in read_events(self.directory) if e.get("event") == "run_started")
        return _time_of_last(starts)

    @property
    def ended(self) -> str | None:
        """When the last event was written, UTC. Raises DamagedFileError."""
        return _time_of_last(read_events(self.directory))


def symbols_of(settings: Any) -> tuple[str, ...]:
    """The symbols of a run of several, from its settings; () for a run of one.

    They are names of directories, so one that could be anything else counts as damage.
    """
    named = settings.get("symbols") if isinstance(settings, dict) else None
    if not isinstance(named, list) or not all(_SYMBOL.fullmatch(str(name)) for name in named):
        return ()
    return tuple(map(str, named))


def symbols_in(directory: Path) -> tuple[str, ...]:
    """As `symbols_of`, of the run there; () where its settings can't be read."""
    try:
        return symbols_of(read_json(directory / FILES.settings, {}))
    except DamagedFileError:  # whoever needs the settings reports it
        return ()


def whole(directory: Path) -> Path:
    """The directory of the run that has this one as a part of several; else the same."""
    return directory.parents[1] if directory.parent.name == FILES.symbols else directory


def part_of(directory: Path, symbol: str) -> Path | None:
    """Where a symbol's part of a run lies; None where it trained several, and not this one."""
    several = symbols_in(directory)
    if symbol in several:
        return FILES.of_symbol(directory, symbol)
    return None if several else directory


def on_same_bars(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures by model, head and part, all on the bars of which every model speaks (see
    macd/app/train/comparison.py). {} for a run made before that was measured.
    """
    made: dict[str, dict[str, Any]] = {}
    for head, parts in metrics.get("comparison", {}).items():
        for part, compared in parts.items():
            of_all = {k: v for k, v in compared.items() if k not in ("models", "differences")}
            for model, figures in compared["models"].items():
                made.setdefault(model, {}).setdefault(head, {})[part] = {**of_all, **figures}
    return made


def read_run(directory: Path) -> TrainingRun:
    """Read a run's directory. Every part may be missing: a run of one stage, a run in progress.

    Raises UsageError when it is none, DamagedFileError for a file that can't be read.
    """
    if not (directory / FILES.settings).is_file():
        raise UsageError(
            f"{directory} is not the directory of a training",
            why=f"it holds no {FILES.settings}"
            if directory.is_dir()
            else "there is no such directory",
            hint="give a directory below runs/; `invoke train` makes one",
        )
    settings = read_json(directory / FILES.settings, {})
    metrics = read_json(directory / FILES.metrics, {})
    tf = _timeframe(metrics, settings)
    metas = {name: read_json(directory / FILES.meta(name, tf), {}) for name in BASES}
    findings = read_json(directory / FILES.bars, None)
    return TrainingRun(
        directory=directory,
        result=read_json(directory / FILES.result, {}),
        settings=settings,
        metrics=metrics,
        criteria=tuple(read_json(directory / FILES.criteria, [])),
        audit=read_json(directory / FILES.audit, {}),
        findings=None if findings is None else tuple(findings),
        stacking=read_json(directory / FILES.stacking(tf), {}),
        metas={name: meta for name, meta in metas.items() if meta},
        job=read_json(directory / FILES.spec, {}),
    )


def read_json(path: Path, otherwise: Any) -> Any:
    """What a JSON file holds; `otherwise` where there is none. Raises DamagedFileError."""
    if not path.is_file():
        return otherwise
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedFileError(path, str(error)) from error


def read_events(directory: Path) -> Iterator[Mapping[str, Any]]:
    """The events of a run, oldest first, each with its time `t`; a line being written is left out.

    Raises DamagedFileError at the first line that is no event.
    """
    path = directory / FILES.events
    if not path.is_file():
        path = whole(directory.resolve()) / FILES.events
    if not path.is_file():
        return
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            event = json.loads(text)
            datetime.fromtimestamp(event["t"], UTC)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(path, f"line {number}: {error}") from error
        yield event


def state_of(result: Mapping[str, Any]) -> str:
    """How a run ended, from its result.json; `unfinished` when nothing says it."""
    return str(result.get("state") or "unfinished")


def auc_text(figures: Mapping[str, Any]) -> str:
    """An AUC with its interval; few samples have no interval, one class has no value."""
    if figures["value"] is None:
        return "not known"
    if figures["low"] is None:
        return f"{figures['value']:.3f}"
    return f"{figures['value']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]"


def _timeframe(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return str(metrics.get("tf") or settings.get("tf") or "1h")


def _time_of_last(events: Iterator[Mapping[str, Any]]) -> str | None:
    last = None
    for event in events:
        last = datetime.fromtimestamp(event["t"], UTC).isoformat()
    return last
