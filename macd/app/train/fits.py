"""One fit inside its fold, and all fits of a stage: cached, side by side, checked for leaks.

A task names rows. `run_task` gives the model only the bars up to the last training row and only the
labels of its rows, so a leak needs a defect here, and the record taken here shows it.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from macd.app.market.splits import Fold
from macd.app.train import cards, engine
from macd.app.train.cache import Cache, Entry, array_digest, code_digest, key_of, library_versions
from macd.app.train.events import Events
from macd.app.train.fitdata import (
    SEQ,
    FitData,
    Floats,
    Provenance,
    Rows,
    observe,
    verify_provenance,
)
from macd.app.train.metrics import auc_by_head, rounded
from macd.app.train.panel import Panel
from macd.errors import MacdError
from macd.heads import head_names, kind_of

_LIBRARIES = ("torch", "lightgbm", "numpy", "scikit-learn")
# Seconds per thousand samples on one core, roughly: only for progress and ETA.
_WEIGHT = {"lgbm": 0.15, "lstm": 0.27, "tft": 0.5}


class Progress(Protocol):
    """Counts a finished fit of that cost; returns progress (0..1) and eta_s for its event."""

    def __call__(self, cost: float, *, cached: bool) -> dict[str, float]: ...


@dataclass(frozen=True)
class Inputs:
    """What all fits of a stage share; for the model of a panel X and y are the tested asset's."""

    X: Floats
    y: Floats
    features: tuple[str, ...]
    tf: str
    events: Events
    checkpoints: Path | None
    panel: Panel | None = None


@dataclass(frozen=True)
class Task:
    """One fit: a model family on the training rows of a fold, tested on its test rows.

    stop: rows for early stopping, a part of fold.train kept out of `rows`, or None.
    keep: also return the model's files.
    others: how many rows other assets of a panel give, for a guess at the time.
    """

    family: str
    fold: Fold
    rows: Rows
    params: Any
    seed: int
    stop: Rows | None = None
    keep: bool = False
    key: str = ""
    others: int = 0

    @property
    def label(self) -> str | int:
        """The fold as people and events name it."""
        return {-1: "final", -2: "refit"}.get(self.fold.index, self.fold.index)

    @property
    def cost(self) -> float:
        """A guess at the relative time, for progress."""
        loop = getattr(self.params, "loop", None)
        epochs = 1 if loop is None else loop.epochs
        bags = getattr(self.params, "bags", 1) * getattr(self.params, "bagging_fraction", 1.0)
        samples = self.samples_an_epoch(len(self.rows) + self.others)
        return _WEIGHT[kind_of(self.family)] * bags * epochs * samples / 1000

    def samples_an_epoch(self, rows: int) -> int:
        """How many of the training rows one epoch uses; LightGBM has one epoch."""
        loop = getattr(self.params, "loop", None)
        return min(rows, getattr(loop, "rows_per_epoch", 0) or rows)


def training_data(task: Task, X: Floats, y: Floats, features: tuple[str, ...]) -> FitData:
    """What the model may use: bars to the last training row, labels of its rows, nothing else."""
    used = task.rows if task.stop is None else np.union1d(task.rows, task.stop)
    end = int(used.max()) + 1
    visible = np.full((end, y.shape[1]), np.nan, dtype=np.float32)
    visible[used] = y[used]
    labelled = task.rows[~np.isnan(visible[task.rows]).all(axis=1)]
    return FitData(
        X=np.array(X[:end]),  # a copy: workers share X read-only
        rows=labelled,
        y=visible,
        stop_rows=task.stop,
        features=features,
    )


def data_of(task: Task, inputs: Inputs) -> FitData:
    """What the task's model may use, of one asset or of a panel."""
    if inputs.panel is not None:
        return inputs.panel.training_data(task.rows, task.stop)
    data = training_data(task, inputs.X, inputs.y, inputs.features)
    return dataclasses.replace(data, tf=inputs.tf)


def keyed(task: Task, inputs: Inputs, device: str, codes: Mapping[str, str]) -> Task:
    """The task with its cache key: code, libraries, parameters, seed, device kind and numbers."""
    data = data_of(task, inputs)
    test = task.fold.test
    key = key_of(
        {
            "version": 1,
            "code": codes[task.family],
            "libraries": library_versions(_LIBRARIES),
            "params": dataclasses.asdict(task.params),
            "seed": task.seed,
            "device": device.partition(":")[0],
            "arithmetic": dataclasses.asdict(cards.arithmetic(device, inputs.X.shape[1])),
            "data": data.digest(),
            "test": array_digest(test),
            "judged": array_digest(inputs.X[max(0, int(test[0]) - SEQ + 1) : int(test[-1]) + 1]),
            "tf": inputs.tf,
            "keep": task.keep,
        }
    )
    return dataclasses.replace(task, key=f"{task.family}-{key}")


def codes_of(families: Sequence[str]) -> dict[str, str]:
    """The code digest of each family's module, with what it imports of ours."""
    return {family: code_digest([f"macd.app.train.{family}"]) for family in families}


def run_task(task: Task, inputs: Inputs, device: str) -> Entry:
    """Fit, predict the fold's test rows, and return predictions, files and the fit's record."""
    started, worked = time.monotonic(), time.process_time()
    family = import_module(f"macd.app.train.{task.family}")
    events = inputs.events.within(model=task.family, fold=task.label)
    events.emit("fit_started", rows=len(task.rows))
    data = data_of(task, inputs)
    history: list[dict[str, Any]] = []
    checkpoint = None
    # Not on another host; Path.is_dir raises where it may not look.
    if inputs.checkpoints is not None and os.path.isdir(inputs.checkpoints):  # noqa: PTH112
        checkpoint = inputs.checkpoints / f"{task.key}.ckpt"
    model = family.fit(
        data,
        task.params,
        seed=task.seed,
        device=device,
        checkpoint=checkpoint,
        report=_reporter(events, history),
    )
    test = task.fold.test
    end = int(test.max()) + 1
    p = np.asarray(family.predict(model, np.array(inputs.X[:end]), test))
    files, extra = _files_of(family, model, inputs.tf) if task.keep else ({}, {})
    return Entry(
        arrays={"p": p.astype(np.float32), "rows": test},
        files=files,
        facts={
            "family": task.family,
            "fold": task.fold.index,
            "seed": task.seed,
            "params": dataclasses.asdict(task.params),
            "seconds": round(time.monotonic() - started, 3),
            "cpu_s": round(time.process_time() - worked, 3),
            "samples": max(1, len(history)) * task.samples_an_epoch(len(data.rows)),
            "peak_mb": peak_mb(),
            "device": device,
            "arithmetic": dataclasses.asdict(cards.arithmetic(device, inputs.X.shape[1])),
            "history": history,
            "provenance": dataclasses.asdict(observe(data, test)),
            **extra,
        },
    )


@dataclass(frozen=True)
class Batch:
    """The fits of one symbol in a stage, and what they share."""

    tasks: Sequence[Task]
    inputs: Inputs


def fit_all(
    batches: Sequence[Batch],
    cache: Cache,
    *,
    engine_name: str,
    use: engine.Resources,
    embargo: int,
    progress: Progress,
) -> list[list[Entry]]:
    """By batch its tasks' entries in order: from the cache where the key is known, else fitted now.

    The fits of all batches run side by side in one pool. Every entry, cached or new, passes
    `verify_provenance`. Raises LeakError or the fit's own error.
    """
    device = use.devices[0]
    codes = codes_of(sorted({task.family for batch in batches for task in batch.tasks}))
    whose = [place for place, batch in enumerate(batches) for _ in batch.tasks]
    shared = [batch.inputs for batch in batches]
    tasks = [keyed(task, batch.inputs, device, codes) for batch in batches for task in batch.tasks]
    entries: dict[int, Entry] = {}
    todo: list[int] = []
    for at, task in enumerate(tasks):
        entry = cache.get(task.key)
        if entry is None:
            todo.append(at)
        else:
            entries[at] = entry
            _accept(task, entry, shared[whose[at]], embargo, progress, cached=True)
    # The longest first: the last to finish is then a short one.
    todo.sort(key=lambda at: -tasks[at].cost)
    own = [whose[at] for at in todo]
    for position, entry in _results([tasks[at] for at in todo], shared, own, engine_name, use):
        at = todo[position]
        entries[at] = entry
        _accept(tasks[at], entry, shared[whose[at]], embargo, progress, cached=False)
        cache.put(tasks[at].key, entry)
    made: list[list[Entry]] = [[] for _ in batches]
    for at, place in enumerate(whose):
        made[place].append(entries[at])
    return made


def check_provenance(task: Task, entry: Entry, embargo: int, panel: Panel | None) -> None:
    """Raise LeakError unless the record of this fit says that it stayed in its training part."""
    check_record(Provenance.from_json(entry.facts["provenance"]), task, embargo, panel)


def check_record(seen: Provenance, task: Task, embargo: int, panel: Panel | None) -> None:
    """The same of a record at hand; the border of a panel's fit is taken from the plan."""
    border = None
    if panel is not None:
        first = task.fold.test[0] if task.stop is None else task.stop[0]
        border = int(panel.tested.times_ms[int(first) - embargo])
    verify_provenance(seen, task.fold, embargo, border)


def peak_mb() -> int:
    """The largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))


def _results(
    jobs: Sequence[Task],
    shared: Sequence[Inputs],
    whose: Sequence[int],
    engine_name: str,
    use: engine.Resources,
) -> Iterator[tuple[int, Entry]]:
    try:
        yield from engine.run(run_task, jobs, shared, whose=whose, engine=engine_name, use=use)
    except MacdError:
        raise
    except Exception as error:
        if type(error).__name__ not in ("TerminatedWorkerError", "BrokenProcessPool"):
            raise
        raise MacdError(
            "a worker process of the training was killed",
            why=f"most often the machine ran out of memory ({use.workers} fits ran side by side)",
            hint="run it again with --workers 1; finished fits are kept",
        ) from error


def _accept(
    task: Task, entry: Entry, inputs: Inputs, embargo: int, progress: Progress, *, cached: bool
) -> None:
    check_provenance(task, entry, embargo, inputs.panel)
    scores = None
    if task.fold.index >= 0:  # the holdout's labels are not used here
        y, p = inputs.y[task.fold.test], entry.arrays["p"]
        scores = rounded(auc_by_head(y, p, head_names(inputs.tf)))
    inputs.events.emit(
        "fit_done",
        model=task.family,
        fold=task.label,
        seed=task.seed,
        cached=cached,
        seconds=entry.facts["seconds"],
        auc=scores,
        **progress(task.cost, cached=cached),
    )


def _reporter(events: Events, history: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    parent = os.getppid()

    def report(fields: dict[str, Any]) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the training itself is gone: nobody needs this fit
        fields = {k: v for k, v in fields.items() if k != "model"}
        if fields.get("event") == "epoch":
            history.append({k: v for k, v in fields.items() if k != "event"})
        events.emit(str(fields.pop("event", "note")), **fields)

    return report


def _files_of(family: Any, model: Any, tf: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="macd-fit-") as name:
        paths = family.save(model, Path(name), tf)
        files = {path.name: path.read_bytes() for path in paths}
    extra = {"importance": family.importance(model)} if hasattr(family, "importance") else {}
    return files, extra
