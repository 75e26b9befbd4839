"""The steps of a training, each leaving files in the run's directory: fit, export, stack, audit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.features import schema_hash
from macd.app.market.labels import HORIZONS
from macd.app.predict.stacking import StackingModel
from macd.app.train import artefacts, export, leak_audit, oof, stacking
from macd.app.train.cache import Entry, code_digest, key_of, library_versions
from macd.app.train.engine import run as run_engine
from macd.app.train.evaluate import validation_aucs
from macd.app.train.fits import FAMILIES, Task
from macd.app.train.settings import Settings
from macd.app.train.training import Training, params_of
from macd.heads import head_names
from macd.host.durable import replace_file

Entries = Mapping[str, list[Entry]]


def fit_family(training: Training, family: str) -> list[Entry]:
    """Fit a family fold by fold, fix its best head on validation, write its model files."""
    with training.stage(family, f"{len(training.tasks(family))} fits"):
        entries = training.fit(family)
        frame = predictions(training, {family: entries}, holdout=False)
        aucs = validation_aucs(frame, family, training.settings.min_move)
        head = oof.best_head(aucs)
        training.events.emit("head_fixed", stage=family, model=family, head=head, auc=aucs)
        artefacts.ship(
            final(training, family, entries),
            family,
            training.settings.out,
            training.settings.tf,
            {"best_head": head, "val_auc": _rounded(aucs), **lineage(training)},
        )
    return entries


def predictions(
    training: Training, entries: Entries, *, holdout: bool = True, seed: int | None = None
) -> pl.DataFrame:
    """The out-of-fold table with the given families; without the holdout until it is opened.

    `seed`: whose fits, by default those of the training's own seed.
    """
    frame = oof.table(training.data, training.plan)
    wanted = training.settings.seed if seed is None else seed
    for family, fits in entries.items():
        chosen = [
            entry
            for entry in fits
            if entry.facts["seed"] == wanted and (holdout or entry.facts["fold"] != oof.HOLDOUT)
        ]
        frame = oof.with_model(frame, family, oof.from_entries(frame, chosen))
    return frame


def seed_spread(training: Training, entries: Entries) -> dict[str, list[dict[str, Any]]]:
    """Validation AUCs by family for each seed: how much of a figure is the luck of the draw."""
    s = training.settings
    told: dict[str, list[dict[str, Any]]] = {}
    for seed in range(s.seed, s.seed + s.seeds):
        frame = predictions(training, entries, holdout=False, seed=seed)
        for family in entries:
            aucs = _rounded(validation_aucs(frame, family, s.min_move))
            told.setdefault(family, []).append({"seed": seed, **aucs})
    return told


def final(training: Training, family: str, entries: list[Entry]) -> Entry:
    """The entry of the fit before the holdout: what is shipped is what the holdout judged."""
    (found,) = [
        entry for task, entry in zip(training.tasks(family), entries, strict=True) if task.keep
    ]
    return found


def export_onnx(training: Training, entries: Entries) -> dict[str, float]:
    """LSTM and TFT as ONNX, compared with torch on real windows; the largest differences."""
    out, tf = training.settings.out, training.settings.tf
    differences: dict[str, float] = {}
    with training.stage("onnx"):
        rows = np.arange(training.data.first, len(training.data), dtype=np.int64)
        code = code_digest(["macd.app.train.export"])
        for family in ("lstm", "tft"):
            entry = final(training, family, entries[family])
            path = out / artefacts.MODELS / f"{family}_{tf}.onnx"
            key = key_of(
                {
                    "code": code,
                    "libraries": library_versions(("torch", "onnx", "onnxruntime")),
                    "model": key_of({name: blob.hex() for name, blob in entry.files.items()}),
                    "X": training.data.X,
                }
            )
            stored = training.cache.get(key)
            if stored is None:
                model = artefacts.model_of(entry, family, tf)
                difference = export.to_onnx(model, path, X=training.data.X, rows=rows)
                stored = Entry({}, {path.name: path.read_bytes()}, {"difference": difference})
                training.cache.put(key, stored)
            replace_file(path, stored.files[path.name], parents=True)
            differences[family] = stored.facts["difference"]
            training.events.emit(
                "note",
                stage="onnx",
                model=family,
                note=f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, differs from torch by at "
                f"most {differences[family]:.1e} at batch 1, 7 and 256",
            )
        artefacts.write_json(out / "onnx.json", differences)
    return differences


def audit(training: Training, entries: Entries, lows: Mapping[str, Mapping[str, float]]) -> Any:
    """The leak audit of this training, written to leak_audit.json."""
    s = training.settings
    with training.stage("audit", f"{s.surrogate_count} sign-flipped series"):
        with training.meter.running():
            flips = _run_flips(training, audit_families(s))
        checks, told = leak_audit.judge_flips(flips)
        fits: list[tuple[Task, Entry]] = [
            pair
            for family in entries
            for pair in zip(training.tasks(family), entries[family], strict=True)
        ]
        checks.append(leak_audit.check_provenance(fits, training.plan))
        checks.append(leak_audit.check_look_ahead(training.bars, training.data))
        allowed = leak_audit.allowed_aucs(told, s.edge_cap)
        checks.append(leak_audit.check_too_good(lows, allowed))
        made = leak_audit.Audit(tuple(checks), told, allowed)
        for check in made.checks:
            mark = "✓" if check.ok else "✗"
            training.events.emit(
                "note", stage="audit", ok=check.ok, note=f"{mark} {check.name}: {check.detail}"
            )
        artefacts.write_json(s.out / "leak_audit.json", made.as_json())
    return made


def stack(training: Training, entries: Entries, environment: Mapping[str, str]) -> pl.DataFrame:
    """Chain the meta-model forward, fix its head, write its files; the table with all models.

    Its holdout predictions are computed from the JSON, as production does.
    """
    out, tf = training.settings.out, training.settings.tf
    with training.stage("stacking"):
        frame = predictions(training, {family: entries[family] for family in FAMILIES})
        params = stacking.Params(
            min_samples=stacking.min_samples(environment), embargo=training.plan.embargo
        )
        before = frame.filter(pl.col("fold") != oof.HOLDOUT)
        made = stacking.fit(_stack_data(training, before), params)
        scored = oof.with_model(before, "stacking", made.oof)
        aucs = validation_aucs(scored, "stacking", training.settings.min_move)
        head = oof.best_head(aucs)
        training.events.emit("head_fixed", stage="stacking", model="stacking", head=head, auc=aucs)
        p = np.full((len(frame), len(HORIZONS)), np.nan)
        p[: len(before)] = made.oof
        behind = frame.filter(pl.col("fold") == oof.HOLDOUT)
        p[len(before) :] = _served(made.model(head), _stack_data(training, behind))
        frame = oof.with_model(frame, "stacking", p)
        stacking.save(
            made,
            out / artefacts.MODELS,
            tf,
            headline=head,
            facts={"best_head": head, "val_auc": _rounded(aucs), **lineage(training)},
        )
        oof.write(frame, out / artefacts.oof_path(tf))
    return frame


def audit_families(settings: Settings) -> tuple[str, ...]:
    """The models fitted on sign-flipped bars: LightGBM, and in full a small LSTM too."""
    return ("lgbm",) if settings.profile == "demo" else ("lgbm", "lstm")


def planned_cost(training: Training, wanted: Sequence[str]) -> float:
    """What the fits of these stages cost, the audit's included, in the meter's unit."""
    fits = {name: [task.cost for task in training.tasks(name)] for name in FAMILIES}
    total = sum(sum(costs) for name, costs in fits.items() if name in wanted)
    if "stacking" in wanted:
        total += training.settings.surrogate_count * _flip_cost(training)
    return total


def _audit_params(settings: Settings, family: str) -> Any:
    """LightGBM as it is trained; nets in the demo's size, which leaks just as a large one would."""
    profile = settings.profile if family == "lgbm" else "demo"
    return params_of(family, profile, settings.params.get(family, {}))


def _flip_cost(training: Training) -> float:
    s = training.settings
    return sum(
        Task(name, fold, fold.train, _audit_params(s, name), s.seed).cost
        for name in audit_families(s)
        for fold in training.plan.folds
    )


def lineage(training: Training) -> dict[str, Any]:
    """What every model file says about where it came from."""
    data, holdout = training.data, training.plan.holdout
    return {
        "symbol": training.bars.symbol,
        "cross": sorted(training.bars.cross),
        "data_digest": training.bars.digest(),
        "schema_hash": schema_hash(data.features),
        "min_move": training.settings.min_move,
        "trained_until_ms": int(data.times_ms[holdout.train[-1]]),
    }


def _stack_data(training: Training, frame: pl.DataFrame) -> stacking.StackData:
    rows = frame["row"].to_numpy()
    names = training.data.features
    return stacking.StackData(
        rows=rows,
        fold=frame["fold"].to_numpy(),
        base={name: oof.columns(frame, f"p_{name}").astype(np.float32) for name in FAMILIES},
        y=training.data.y[rows],
        context={name: training.data.X[rows, names.index(name)] for name in stacking.CONTEXT},
        heads=head_names(training.settings.tf),
    )


def _served(model: StackingModel, data: stacking.StackData) -> NDArray[np.float64]:
    p = np.full((len(data.rows), len(data.heads)), np.nan)
    for i in range(len(data.rows)):
        base = {
            f"{name}_{head}": float(values[i, k])
            for name, values in data.base.items()
            for k, head in enumerate(data.heads)
        }
        found = model.probability(base, {name: float(v[i]) for name, v in data.context.items()})
        p[i] = [np.nan if found.get(head) is None else found[head] for head in data.heads]
    return p


def _rounded(aucs: Mapping[str, float]) -> dict[str, float | None]:
    return {head: round(v, 4) if np.isfinite(v) else None for head, v in aucs.items()}


def _run_flips(training: Training, families: tuple[str, ...]) -> list[Entry]:
    s = training.settings
    flips = [
        leak_audit.Flip(
            seed=s.seed + i,
            families=families,
            params={name: _audit_params(s, name) for name in families},
            fit_seed=s.seed,
            folds=s.fold_count,
            initial=s.initial,
            holdout=s.holdout,
            embargo=s.embargo,
            min_move=s.min_move,
        )
        for i in range(s.surrogate_count)
    ]
    use = training.use("lgbm" if families == ("lgbm",) else "lstm")
    code = code_digest(
        ["macd.app.train.leak_audit", *(f"macd.app.train.{name}" for name in families)]
    )
    keys = [
        key_of(
            {
                "code": code,
                "libraries": library_versions(("torch", "lightgbm", "numpy", "polars", "TA-Lib")),
                "device": use.devices[0].partition(":")[0],
                "bars": training.bars.digest(),
                "flip": json.loads(json.dumps(dataclasses.asdict(flip))),
            }
        )
        for flip in flips
    ]
    found = {i: entry for i, key in enumerate(keys) if (entry := training.cache.get(key))}
    for _ in found:
        training.meter.add(_flip_cost(training), cached=True)
    todo = [i for i in range(len(flips)) if i not in found]
    shared = (training.bars, training.events)
    for position, entry in run_engine(
        leak_audit.run_flip, [flips[i] for i in todo], shared, engine=s.engine, use=use
    ):
        found[todo[position]] = entry
        told = training.meter.add(_flip_cost(training), cached=False)
        training.events.emit("flip_done", stage="audit", **entry.facts, **told)
        training.cache.put(keys[todo[position]], entry)
    return [found[i] for i in range(len(flips))]
