"""What all stages of one training share: settings, bars, data, plan, cache, events, times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import polars as pl

from macd.app.market import splits
from macd.app.market.features import asset_column, schema_hash, subset
from macd.app.predict.combine import mean_of_logits
from macd.app.train import calibration, engine, oof
from macd.app.train import panel as panels
from macd.app.train.cache import Cache, Entry
from macd.app.train.dataset import Bars, Dataset, Plan
from macd.app.train.events import Clock, Events
from macd.app.train.fits import Batch, Inputs, Task, codes_of, fit_all, keyed, peak_mb
from macd.app.train.modelfiles import model_of
from macd.app.train.panel import Panel
from macd.app.train.settings import Settings
from macd.errors import MacdError, UsageError
from macd.heads import MEAN, PANEL, kind_of


@dataclass
class Meter:
    """How far the fits are: share done, and how long the rest takes at the pace so far."""

    clock: Clock
    total: float = 0.0
    done: float = 0.0
    fitted: float = 0.0
    busy_s: float = 0.0
    since: float | None = None

    def add(self, cost: float, *, cached: bool) -> dict[str, float]:
        """Count a finished fit; returns the fields an event carries."""
        self.done += cost
        fields = {"progress": round(min(1.0, self.done / self.total), 4) if self.total else 1.0}
        if not cached and self.since is not None:
            self.fitted += cost
            spent = self.busy_s + self.clock() - self.since
            fields["eta_s"] = round(max(0.0, self.total - self.done) * spent / self.fitted, 1)
        return fields

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time in here is spent on fits."""
        self.since = self.clock()
        try:
            yield
        finally:
            self.busy_s += self.clock() - self.since
            self.since = None


@dataclass(frozen=True)
class Training:
    """Everything a stage needs. `spent` collects seconds and peak memory by stage.

    checked: with which limits the bars were checked, and what was accepted (accepted.record).
    others: the other assets of the panel, by symbol.
    flagged: what the panels of several symbols have in common (panel.of).
    """

    settings: Settings
    bars: Bars
    data: Dataset
    plan: Plan
    cache: Cache
    events: Events
    meter: Meter
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    checked: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Dataset] = field(default_factory=dict)
    flagged: panels.Made = field(default_factory=dict)

    def tasks(self, family: str) -> list[Task]:
        """The family's fits: one per fold and seed, then one a seed before the holdout, kept."""
        s = self.settings
        seeds = range(s.seed, s.seed + s.seeds)
        params = self.params(family)
        made = [
            self._task(family, fold, params, seed, keep=False)
            for seed in seeds
            for fold in self.plan.folds
        ]
        holdout = self.plan.holdout
        return [*made, *(self._task(family, holdout, params, seed, keep=True) for seed in seeds)]

    def refit_tasks(self, family: str) -> list[Task]:
        """The family's fits on everything, one a seed; see `Plan.everything`."""
        s, fold, params = self.settings, self.plan.everything, self.params(family)
        seeds = range(s.seed, s.seed + s.seeds)
        return [self._task(family, fold, params, seed, keep=True) for seed in seeds]

    def finished(self, family: str) -> list[Entry] | None:
        """The family's entries when all of them are in the cache, else None; fits nothing."""
        if not self.cache.holds(family):
            return None  # without its code, which may bring torch
        device, codes = self.use(family).devices[0], codes_of([family])
        inputs = self.inputs(family)
        entries = []
        for task in self.tasks(family):
            entry = self.cache.get(keyed(task, inputs, device, codes).key)
            if entry is None:
                return None
            entries.append(entry)
        return entries

    def needed(self, family: str, mode: str) -> list[Entry]:
        """As `finished`; MacdError naming the mode to run first when something is missing."""
        entries = self.finished(family)
        if entries is None:
            raise MacdError(
                f"--mode {mode} needs the {family} models, and they are not there",
                why=f"no finished {family} fits for these bars and settings in {self.cache.root}",
                hint=f"run --mode {family} with the same options first, or --mode all",
            )
        return entries

    def final(self, family: str, entries: list[Entry]) -> list[Entry]:
        """The fits before the holdout, one a seed: what the holdout tested is what is shipped."""
        return [e for task, e in zip(self.tasks(family), entries, strict=True) if task.keep]

    def together(self, family: str, seeds: Sequence[Entry]) -> tuple[Any, Any]:
        """The family's module, and the model of these entries, one a seed, as one."""
        loaded = [model_of(entry.files, family, self.settings.tf) for entry in seeds]
        module, models = loaded[0][0], [model for _, model in loaded]
        return module, models[0] if len(models) == 1 else module.average(models)

    def predictions(
        self, entries: Mapping[str, list[Entry]], *, holdout: bool = True, seed: int | None = None
    ) -> pl.DataFrame:
        """The out-of-fold table with the given families, calibrated as `calibration.calibrate`
        says; without the holdout until it is opened.

        `seed`: whose fits; by default the mean of all seeds, in log-odds, as what is shipped.
        """
        return self.calibrated(entries, holdout=holdout, seed=seed)[0]

    def calibrated(
        self, entries: Mapping[str, list[Entry]], *, holdout: bool = True, seed: int | None = None
    ) -> tuple[pl.DataFrame, dict[str, dict[str, float]]]:
        """As `predictions`, and the calibration that ships: by family a slope a head, learnt on
        validation bars.
        """
        frame, slopes = self._raw(entries, holdout=holdout, seed=seed), {}
        for family in entries:
            frame, slopes[family] = calibration.calibrate(frame, family, self.plan.embargo)
        return frame, slopes

    def with_mean(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float]]:
        """The table with the mean of its base models, calibrated as they are, and the mean's slopes
        that ship; both unchanged and empty with fewer than two models.
        """
        frame = oof.with_mean(frame)
        if not oof.models_in(frame, (MEAN,)):
            return frame, {}
        return calibration.calibrate(frame, MEAN, self.plan.embargo, calibration.MEAN)

    def _raw(
        self, entries: Mapping[str, list[Entry]], *, holdout: bool, seed: int | None = None
    ) -> pl.DataFrame:
        """The out-of-fold table with what the models themselves say."""
        frame = oof.table(self.data, self.plan)
        for family, fits in entries.items():
            by_seed: dict[int, list[Entry]] = {}
            for entry in fits:
                if holdout or entry.facts["fold"] != oof.HOLDOUT:
                    by_seed.setdefault(entry.facts["seed"], []).append(entry)
            wanted = by_seed.values() if seed is None else [by_seed[seed]]
            p = [oof.from_entries(frame, chosen) for chosen in wanted]
            # The nets average unclipped; float32 holds nothing nearer to 1 than 6e-8.
            mean = p[0] if len(p) == 1 else mean_of_logits(p, clip=1e-7).astype(np.float32)
            frame = oof.with_model(frame, family, mean)
        return frame

    def lineage(self) -> dict[str, Any]:
        """What every model file says about where it came from."""
        assets = sorted([self.bars.symbol, *self.others]) if self.others else []
        window = (*self.data.features, *map(asset_column, assets))
        return {
            "symbol": self.bars.symbol,
            "cross": sorted(self.bars.cross),
            "panel": sorted(self.others),
            "data_digest": self.bars.digest(),
            "window_features": list(window),
            "schema_hash": schema_hash(window),
            "min_move": self.settings.min_move,
            "trained_until_ms": int(self.data.times_ms[self.plan.holdout.train[-1]]),
        }

    def refit_facts(self) -> dict[str, Any]:
        """What the meta file of a refitted model says beside its lineage.

        judged_until_ms: until when the models were trained that its figures are of.
        """
        until = int(self.data.times_ms[self.plan.everything.train[-1]])
        judged = self.lineage()["trained_until_ms"]
        return {"refit": True, "trained_until_ms": until, "judged_until_ms": judged}

    def params(self, family: str) -> Any:
        """The parameters of a family's fits."""
        return params_of(family, self.settings.profile, self.settings.params.get(family, {}))

    @cached_property
    def assets(self) -> Panel | None:
        """The panel's assets, their times and rows; None without a panel."""
        if not self.others:
            return None
        return panels.of(self.bars.symbol, self.data, self.others, made=self.flagged)

    def panel(self, family: str) -> Panel | None:
        """The assets that a family is trained on; None where it is the asset's own model."""
        if family not in PANEL:
            return None
        params = self.params(family)
        return panels.of(self.bars.symbol, self.data, self.others, params, made=self.flagged)

    def inputs(self, family: str) -> Inputs:
        """What the fits of a family share: of X, the columns that its parameters choose."""
        panel = self.panel(family)
        seen = self.data.seen_by(self.params(family)) if panel is None else panel.tested
        return Inputs(
            X=seen.X,
            y=seen.y,
            features=seen.features,
            tf=self.settings.tf,
            events=self.events.within(stage=family),
            checkpoints=self.cache.checkpoint("any").parent,
            panel=panel,
        )

    def use(self, family: str) -> engine.Resources:
        """Workers and devices; LightGBM is always fitted on the CPU."""
        device = "cpu" if kind_of(family) == "lgbm" else self.settings.device
        return engine.resources(device, self.settings.workers, self.settings.engine)

    def stage(self, name: str, note: str = "") -> AbstractContextManager[None]:
        """Announce a stage; see `stage`."""
        return stage(self.events, self.spent, name, note)

    def _task(self, family: str, fold: splits.Fold, params: Any, seed: int, *, keep: bool) -> Task:
        rows, stop = fold.train, None
        if self.settings.inner_stop and kind_of(family) != "lgbm":
            rows, stop = splits.inner_split(
                rows, fraction=self.settings.inner_stop, embargo=self.plan.embargo
            )
        panel = self.assets if family in PANEL else None
        others = 0 if panel is None else panel.rows_of_others(rows)
        return Task(family, fold, rows, params, seed, stop=stop, keep=keep, others=others)


def fit_side_by_side(
    trainings: Sequence[Training],
    family: str,
    tasks: Callable[[Training, str], Sequence[Task]] = Training.tasks,
) -> list[list[Entry]]:
    """By training the entries of the family's `tasks`, in their order; all in one pool."""
    first = trainings[0]
    batches = [Batch(tasks(each, family), each.inputs(family)) for each in trainings]
    with first.meter.running():
        return fit_all(
            batches,
            first.cache,
            engine_name=first.settings.engine,
            use=first.use(family),
            embargo=first.plan.embargo,
            progress=first.meter.add,
        )


@contextmanager
def stage_of_all(
    trainings: Sequence[Training], events: Events, name: str, note: str = ""
) -> Iterator[None]:
    """As `stage`, of one that all trainings go through together: each records its whole time."""
    with stage(events, trainings[0].spent, name, note):
        yield
    for other in trainings[1:]:
        other.spent[name] = trainings[0].spent[name]


@contextmanager
def stage(
    events: Events, spent: dict[str, dict[str, float]], name: str, note: str = ""
) -> Iterator[None]:
    """Announce a stage, record its seconds and this process's peak memory, name it in an error."""
    started = events.clock()
    events.emit("stage_started", stage=name, note=note)
    try:
        yield
    except MacdError as error:
        error.add_note(name)
        raise
    seconds = round(events.clock() - started, 3)
    spent[name] = {"seconds": seconds, "peak_mb": peak_mb()}
    events.emit("stage_done", stage=name, seconds=seconds)


def params_of(family: str, profile: str, changes: Mapping[str, Any]) -> Any:
    """The profile's parameters with single values changed, also those of the nets' loop.

    Raises UsageError for a name neither has, and for a set of features that does not exist.
    """
    params = getattr(import_module(f"macd.app.train.{family}").Params, profile)()
    loop = getattr(params, "loop", None)
    inner = {f.name for f in dataclasses.fields(loop)} if loop is not None else set()
    outer = {f.name for f in dataclasses.fields(params)} - {"loop"}
    unknown = sorted(set(changes) - inner - outer)
    if unknown:
        raise UsageError(
            f"params: {family} has no {', '.join(unknown)}",
            why=f"known: {', '.join(sorted(outer | inner))}",
        )
    if loop is not None:
        loop = dataclasses.replace(loop, **{k: v for k, v in changes.items() if k in inner})
        params = dataclasses.replace(params, loop=loop)
    params = dataclasses.replace(params, **{k: v for k, v in changes.items() if k in outer})
    subset((), getattr(params, "features", "all"))  # an unknown set is said before any fit
    return params
