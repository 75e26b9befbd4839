"""One training, from settings to result.json, top to bottom.

`run` locks the run's directory and records how it ends. `_train` is the run itself: verify the
bars, make features and folds, fit LightGBM, LSTM and TFT, export to ONNX, stack, measure, audit for
leaks, judge by the criteria, write the result. The stages follow below it in that order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.findings import Limits, counted, record
from macd.app.market.labels import HORIZONS
from macd.app.predict.combine import calibrated
from macd.app.predict.stacking import StackingModel
from macd.app.train import backtest, contributions, dataset, leak_audit, oof, results, stacking
from macd.app.train.cache import Cache, Entry, code_digest, key_of, library_versions
from macd.app.train.events import Clock, Events
from macd.app.train.fits import Task, peak_mb
from macd.app.train.metrics import rounded
from macd.app.train.settings import Settings
from macd.app.train.training import Meter, Training, params_of, stage
from macd.errors import MacdError, RefusedError
from macd.heads import head_names, kind_of
from macd.host.durable import one_at_a_time, replace_file
from macd.run_directory import FILES

_KEEP_CACHED = 20 << 30  # bytes of fits on the training host; the least recently used go first
# The models fitted on sign-randomised bars: LightGBM, and in full a small LSTM too.
_AUDITED = {"demo": ("lgbm",), "full": ("lgbm", "lstm")}
_PANEL_FLIPS = 2  # of those series, how many a panel's LightGBM is fitted on: it costs ten times it

Entries = Mapping[str, list[Entry]]


def run(
    settings: Settings, *, clock: Clock, environment: Mapping[str, str], echo: bool = True
) -> dict[str, Any]:
    """Run the stages of `settings.mode` and return the content of result.json.

    Everything is written below settings.out, fits also into the cache. Killed at any time, the same
    call resumes. Raises MacdError; result.json then says which stage failed and why.
    """
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    taken = RefusedError(
        f"another training is at work in {out}",
        why="its lock is held",
        hint="wait for it, or give another --out",
    )
    with one_at_a_time(out / ".lock", taken=taken):
        (out / FILES.result).unlink(missing_ok=True)
        events = Events(out / FILES.events, clock, echo)
        events.emit("run_started", mode=settings.mode, profile=settings.profile, pid=os.getpid())
        results.write_json(out / FILES.settings, settings.as_json())
        try:
            return _train(settings, events, environment)
        except MacdError as error:
            _failed(out, events, error, "failed")
            raise
        except KeyboardInterrupt:
            _failed(out, events, MacdError("the training was stopped"), "cancelled")
            raise


def _train(settings: Settings, events: Events, environment: Mapping[str, str]) -> dict[str, Any]:
    started, mode = events.clock(), settings.mode
    stages = settings.stages if mode == "all" else (mode,)
    stacked = stacking.min_samples(environment) if "stacking" in stages else 0
    training = _prepare(settings, events, stacked)
    if mode == "verify":
        return _finish(training, started, {})

    training.meter.total = _planned_cost(training, stages)
    entries: dict[str, list[Entry]] = {}
    facts: dict[str, dict[str, Any]] = {}  # what the meta files say of the families fitted here
    for family in settings.families:
        kind = kind_of(family)
        if kind in stages:
            entries[family], facts[family] = _fit_family(training, family)
        elif mode in ("onnx", "stacking") and not (mode == "onnx" and kind == "lgbm"):
            entries[family] = training.needed(family, mode)
        elif (earlier := training.finished(family)) is not None:
            entries[family] = earlier

    final = {family: training.final(family, fits) for family, fits in entries.items()}
    differences = _export_onnx(training, final) if "onnx" in stages else {}
    if "stacking" in stages:
        frame = _stack(training, entries, environment)
    else:
        frame, _ = training.with_mean(training.predictions(entries))

    with training.stage("report"):
        metrics = results.measure(training, entries, frame)
        metrics["contributions"] = contributions.measure(
            settings.out / results.MODEL_DIR, training.data, training.plan
        )
        metrics["policies"] = _evaluate_policies(training, frame, metrics["best_head"])
    again = _refit(training, facts) if settings.refit else {}
    if again:
        metrics["refit"] = results.refit_of(training)
        metrics["caveats"] = [*metrics["caveats"], metrics["refit"]["note"]]
    audit = _audit(training, entries, metrics, again) if "stacking" in stages else None
    outcomes = results.judge(training, metrics, differences, audit)

    metrics["stages"] = training.spent
    results.write_json(settings.out / FILES.metrics, metrics)
    results.write_json(settings.out / FILES.criteria, [asdict(outcome) for outcome in outcomes])
    for line in results.closing_lines(metrics, outcomes if mode == "all" else []):
        events.emit("summary", note=line)
    return _finish(training, started, results.short(metrics, outcomes))


def _prepare(settings: Settings, events: Events, stacked: int) -> Training:
    """Stages verify and features: checked bars, features, labels, and the train/test split.

    stacked: out-of-fold samples that stacking needs, 0 where it does not run.
    """
    spent: dict[str, dict[str, float]] = {}
    with stage(events, spent, "verify"):
        now = datetime.fromtimestamp(events.clock(), UTC)
        findings = dataset.verify(settings, now, settings.out / FILES.bars)
        bars = dataset.read(settings)
        more = f"{counted(findings)} (verify.json)" if findings else ""
        beside = f", a panel of {1 + len(bars.panel)} assets" if bars.panel else ""
        note = f"{bars.symbol} {len(bars.main):,} bars{beside}, no errors{more}"
        events.emit("note", stage="verify", note=note)
        (settings.out / "data_digest").write_text(bars.digest() + "\n")
    with stage(events, spent, "features"):
        data = dataset.build(bars, settings.min_move)
        others = {n: dataset.build(b, settings.min_move) for n, b in bars.alone().items()}
        plan = dataset.plan(data, settings)
        dataset.require_moves(data, plan, settings.min_move, stacking=stacked)
    return Training(
        settings=settings,
        bars=bars,
        data=data,
        plan=plan,
        cache=Cache(settings.cache_dir),
        events=events,
        meter=Meter(events.clock),
        spent=spent,
        checked=record(findings, Limits().changed(settings.limits)),
        others=others,
    )


def _planned_cost(training: Training, stages: Sequence[str]) -> float:
    """What the fits of these stages cost, the audit's included, in the meter's unit."""
    # Families that don't run are only asked where their parameters may be wrong: torch is slow.
    asked = [
        name
        for name in training.settings.families
        if kind_of(name) in stages or training.settings.params.get(name)
    ]
    fits = {name: [task.cost for task in training.tasks(name)] for name in asked}
    if training.settings.refit:
        for name, costs in fits.items():
            costs += [task.cost for task in training.refit_tasks(name)]
    total = sum(sum(costs) for name, costs in fits.items() if kind_of(name) in stages)
    if "stacking" in stages:
        total += sum(_flip_cost(training, i) for i in range(training.settings.surrogate_count))
    return total


def _fit_family(training: Training, family: str) -> tuple[list[Entry], dict[str, Any]]:
    """Stages lgbm, lstm, tft: fit every fold, fix the best head on validation, write the model.

    Returns the fits, and what the model's meta file says of them. With a panel each of these stages
    has two families, the asset's own and the panel's.
    """
    s = training.settings
    with training.stage(family, f"{len(training.tasks(family))} fits"):
        entries = training.fit(family)
        frame, slopes = training.calibrated({family: entries}, holdout=False)
        _, facts = _fix_head(training, frame, family)
        facts["calibration"] = slopes[family]
        module, model = training.together(family, training.final(family, entries))
        module.save(model, s.out / results.MODEL_DIR, s.tf, facts=facts)
    return entries, facts


def _fix_head(training: Training, frame: pl.DataFrame, model: str) -> tuple[str, dict[str, Any]]:
    """The head with the best validation AUC of a stage's model, and what its meta file gets."""
    aucs = oof.validation_aucs(frame, model, training.settings.min_move)
    head = oof.best_head(aucs)
    training.events.emit("head_fixed", stage=model, model=model, head=head, auc=aucs)
    return head, {"best_head": head, "val_auc": rounded(aucs), **training.lineage()}


def _export_onnx(training: Training, final: Entries, *, stage: str = "onnx") -> dict[str, float]:
    """Stage onnx: LSTM and TFT as ONNX, compared with torch on real windows.

    final: the entries that are shipped, by family, one a seed. Returns the largest difference by
    family.
    """
    from macd.app.train import export  # noqa: PLC0415 - brings torch, which takes seconds

    out, tf = training.settings.out, training.settings.tf
    differences: dict[str, float] = {}
    with training.stage(stage):
        rows = np.arange(training.data.first, len(training.data), dtype=np.int64)
        code = code_digest(["macd.app.train.export"])
        for family in (name for name in training.settings.families if kind_of(name) != "lgbm"):
            X = training.inputs(family).X
            path = out / results.MODEL_DIR / f"{family}_{tf}.onnx"
            key = key_of(
                {
                    "code": code,
                    "libraries": library_versions(("torch", "onnx", "onnxruntime")),
                    "model": [
                        key_of({name: blob.hex() for name, blob in entry.files.items()})
                        for entry in final[family]
                    ],
                    "X": X,
                }
            )
            stored = training.cache.get(key)
            if stored is None:
                _, model = training.together(family, final[family])
                difference = export.to_onnx(model, path, X=X, rows=rows)
                stored = Entry({}, {path.name: path.read_bytes()}, {"difference": difference})
                training.cache.put(key, stored)
            replace_file(path, stored.files[path.name], parents=True)
            differences[family] = stored.facts["difference"]
            training.events.emit(
                "note",
                stage=stage,
                model=family,
                note=f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, differs from torch by at "
                f"most {differences[family]:.1e} at batch 1, 7 and 256",
            )
        results.write_json(out / FILES.onnx, differences)
    return differences


def _stack(training: Training, entries: Entries, environment: Mapping[str, str]) -> pl.DataFrame:
    """Stage stacking: chain the meta-model forward, fix its head, write its files.

    Returns the out-of-fold table of all models. The meta-model's holdout predictions are computed
    from the JSON, as production does.
    """
    s = training.settings
    with training.stage("stacking"):
        frame = training.predictions({family: entries[family] for family in s.families})
        params = stacking.Params(
            min_samples=stacking.min_samples(environment), embargo=training.plan.embargo
        )
        before = frame.filter(pl.col("fold") != oof.HOLDOUT)
        holdout = frame.filter(pl.col("fold") == oof.HOLDOUT)
        fitted = stacking.fit(_stack_data(training, before), params)
        scored = oof.with_model(before, "stacking", fitted.oof)
        head, facts = _fix_head(training, scored, "stacking")
        p = np.full((len(frame), len(HORIZONS)), np.nan)
        p[: len(before)] = fitted.oof
        p[len(before) :] = _as_served(fitted.model(head), _stack_data(training, holdout))
        frame, slopes = training.with_mean(oof.with_model(frame, "stacking", p))
        facts["mean_slope"] = slopes
        stacking.save(fitted, s.out / results.MODEL_DIR, s.tf, headline=head, facts=facts)
        oof.write(frame, s.out / FILES.out_of_fold(s.tf))
    return frame


def _stack_data(training: Training, frame: pl.DataFrame) -> stacking.StackData:
    rows = frame["row"].to_numpy()
    names = training.data.features
    return stacking.StackData(
        rows=rows,
        fold=frame["fold"].to_numpy(),
        base={
            name: oof.columns(frame, f"p_{name}").astype(np.float32)
            for name in training.settings.families
        },
        y=training.data.y[rows],
        y_all=training.data.y_all[rows],
        context={name: training.data.X[rows, names.index(name)] for name in stacking.CONTEXT},
        heads=head_names(training.settings.tf),
    )


def _as_served(model: StackingModel, data: stacking.StackData) -> NDArray[np.float64]:
    p = np.full((len(data.rows), len(data.heads)), np.nan)
    for i in range(len(data.rows)):
        base = {
            f"{name}_{head}": float(values[i, k])
            for name, values in data.base.items()
            for k, head in enumerate(data.heads)
        }
        context = {name: float(v[i]) for name, v in data.context.items()}
        by_head = model.probability(base, context)
        p[i] = [np.nan if by_head.get(head) is None else by_head[head] for head in data.heads]
    return p


def _evaluate_policies(
    training: Training, frame: pl.DataFrame, best: Mapping[str, str]
) -> dict[str, Any]:
    """What policies would have earned at the head that the service decides by; writes the table."""
    s, data = training.settings, training.data
    head = best.get("stacking") or best.get("lstm") or head_names(s.tf)[0]
    market = backtest.market_of(frame, data.close, data.times_ms, head, s.tf)
    made = backtest.evaluate(market, s.policy, seed=s.seed)
    oof.write(made.curves, s.out / FILES.policies(s.tf))
    return made.document


def _refit(training: Training, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Entry]]:
    """Stage refit: the base models once more, on all bars; their files replace the judged ones.

    What was judged stays as it is: figures, best heads, calibration and the meta-model are those of
    the walk-forward. What the new models say of the holdout, which they were trained on, is stored
    for the health check alone. Returns the fits, one a seed, by family.
    """
    s, again = training.settings, dict[str, list[Entry]]()
    with training.stage("refit", f"{len(facts)} models on all bars"):
        frame = oof.table(training.data, training.plan).filter(pl.col("fold") == oof.HOLDOUT)
        for family, said in facts.items():
            again[family] = training.fit(family, training.refit_tasks(family))
            module, model = training.together(family, again[family])
            more = {**said, **training.refit_facts()}
            module.save(model, s.out / results.MODEL_DIR, s.tf, facts=more)
            X, rows = training.inputs(family).X, frame["row"].to_numpy()
            slopes = [said["calibration"][head] for head in head_names(s.tf)]
            p = calibrated(module.predict(model, X, rows), slopes).astype(np.float32)
            frame = oof.with_model(frame, family, p)
    if "onnx" in s.stages:
        _export_onnx(training, again, stage="refit-onnx")
    if "stacking" in s.stages:
        stacked = StackingModel.from_json((s.out / FILES.stacking(s.tf)).read_bytes())
        served = _as_served(stacked, _stack_data(training, frame)).astype(np.float32)
        frame = oof.with_mean(oof.with_model(frame, "stacking", served), stacked.mean_slopes)
    oof.write(frame, s.out / FILES.refitted(s.tf))
    return again


def _audit(
    training: Training, entries: Entries, metrics: Mapping[str, Any], again: Entries
) -> leak_audit.Audit:
    """Stage audit: the leak audit of this training, written to leak_audit.json.

    again: the fits on everything, where there are any.
    """
    s = training.settings
    with training.stage("audit", f"{s.surrogate_count} sign-randomised series"):
        flips = [
            leak_audit.Flip(
                seed=s.seed + i,
                families=_audited(s, i),
                params={name: _audit_params(s, name) for name in _audited(s, i)},
                fit_seed=s.seed,
                folds=s.fold_count,
                initial=s.initial,
                holdout=s.holdout,
                embargo=s.embargo,
                min_move=s.min_move,
            )
            for i in range(s.surrogate_count)
        ]
        nets = any(kind_of(name) != "lgbm" for name in _audited(s, 0))
        with training.meter.running():
            null = leak_audit.run_flips(
                flips,
                training.bars,
                cache=training.cache,
                events=training.events,
                engine_name=s.engine,
                use=training.use("lstm" if nets else "lgbm"),
                count=lambda i, *, cached: training.meter.add(
                    _flip_cost(training, i), cached=cached
                ),
            )
        checks, by_family = leak_audit.judge_flips(null)
        fits: list[tuple[Task, Entry]] = []
        for family, fitted in entries.items():
            fits += zip(training.tasks(family), fitted, strict=True)
        for family, fitted in again.items():
            fits += zip(training.refit_tasks(family), fitted, strict=True)
        checks.append(leak_audit.check_provenance(fits, training.plan, training.assets))
        checks.append(leak_audit.check_look_ahead(training.bars, training.data, training.others))
        allowed = leak_audit.allowed_aucs(by_family, s.edge_cap)
        checks.append(leak_audit.check_too_good(metrics["models"], allowed))
        audit = leak_audit.Audit(tuple(checks), by_family, allowed)
        for check in audit.checks:
            mark = "✓" if check.ok else "✗"
            training.events.emit(
                "note", stage="audit", ok=check.ok, note=f"{mark} {check.name}: {check.detail}"
            )
        results.write_json(s.out / FILES.audit, audit.as_json())
    return audit


def _audited(settings: Settings, i: int) -> tuple[str, ...]:
    """The models fitted on the i-th sign-randomised series."""
    panel = ("lgbm_panel",) if settings.panel and i < _PANEL_FLIPS else ()
    return (*_AUDITED[settings.profile], *panel)


def _audit_params(settings: Settings, family: str) -> Any:
    """LightGBM as it is trained but for its bags, nets in the demo's size: they leak just the same.

    A panel's LightGBM takes a fifth of its time with half the rounds of the smaller trees alone.
    """
    profile = settings.profile if kind_of(family) == "lgbm" else "demo"
    params = params_of(family, profile, settings.params.get(family, {}))
    if family == "lgbm_panel":
        return replace(params, rounds=math.ceil(params.rounds / 2), more_leaves=0)
    if family == "lgbm":
        return replace(params, bags=1)
    return params


def _flip_cost(training: Training, i: int) -> float:
    s = training.settings
    return sum(
        replace(task, params=_audit_params(s, name)).cost
        for name in _audited(s, i)
        for task in training.tasks(name)
        if task.seed == s.seed and not task.keep
    )


def _finish(training: Training, started: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    s = training.settings
    seconds = round(training.events.clock() - started, 3)
    whole = results.expected_files("all", s.stages, s.tf, s.families, refit=s.refit)
    result = results.write_result(
        s.out,
        results.expected_files(s.mode, s.stages, s.tf, s.families, refit=s.refit),
        {
            "mode": s.mode,
            "complete": s.mode == "all" or results.missing(s.out, whole) == [],
            "data_digest": training.bars.digest(),
            "bars_checked": training.checked,
            "seconds": seconds,
            "peak_mb": peak_mb(),
            **facts,
        },
    )
    training.cache.prune(_KEEP_CACHED)
    training.events.emit("run_done", stage=s.mode, seconds=seconds, files=len(result["files"]))
    return result


def _failed(out: Path, events: Events, error: MacdError, state: str) -> None:
    name = getattr(error, "__notes__", ["run"])[0]
    events.emit("run_failed", stage=name, state=state, what=error.what, why=error.why)
    results.write_failure(out, error, name, state)
