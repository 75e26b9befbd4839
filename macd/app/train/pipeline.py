"""One training, from settings to result.json, top to bottom.

`run` locks the run's directory and records how it ends. `_train` is the run itself: verify the
bars, make features and folds, fit LightGBM, LSTM and TFT, export to ONNX, stack, measure, audit for
leaks, judge by the criteria, write the result. The stages follow below it in that order. Several
symbols go through each stage together; all that is fitted in one runs side by side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.findings import Limits, counted, record
from macd.app.market.labels import HORIZONS
from macd.app.predict.combine import calibrated
from macd.app.predict.stacking import StackingModel
from macd.app.train import (
    backtest,
    contributions,
    dataset,
    leak_audit,
    oof,
    reference,
    results,
    stacking,
)
from macd.app.train import panel as panels
from macd.app.train.cache import Cache, Entry, code_digest, key_of, library_versions
from macd.app.train.dataset import Bars, Dataset, Plan
from macd.app.train.events import Clock, Events
from macd.app.train.fits import Task, peak_mb
from macd.app.train.metrics import rounded
from macd.app.train.settings import Settings
from macd.app.train.training import (
    Meter,
    Training,
    fit_side_by_side,
    params_of,
    stage,
    stage_of_all,
)
from macd.criteria import Outcome
from macd.errors import MacdError, RefusedError, UsageError
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
        for one in settings.each if settings.symbols else ():
            (one.out / FILES.result).unlink(missing_ok=True)
            results.write_json(one.out / FILES.settings, one.as_json())
        try:
            return _train(settings, events, environment)
        except MacdError as error:
            _failed(out, events, error, "failed")
            raise
        except KeyboardInterrupt:
            _failed(out, events, MacdError("the training was stopped"), "cancelled")
            raise


@dataclass
class Course:
    """One symbol's training on its way through the stages, and what came of each so far.

    facts: what the meta files say of the families fitted here. again: the fits on everything.
    """

    training: Training
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    again: dict[str, list[Entry]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    audit: leak_audit.Audit | None = None
    outcomes: list[Outcome] = field(default_factory=list)


def _train(settings: Settings, events: Events, environment: Mapping[str, str]) -> dict[str, Any]:
    started, mode = events.clock(), settings.mode
    stages = settings.stages if mode == "all" else (mode,)
    stacked = stacking.min_samples(environment) if "stacking" in stages else 0
    courses = [Course(training) for training in _prepare(settings, events, stacked)]
    if mode == "verify":
        return _finish(settings, courses, events, started)

    courses[0].training.meter.total = sum(_planned_cost(each.training, stages) for each in courses)
    for family in settings.families:
        if kind_of(family) in stages:
            _fit_family(courses, family, events)
        else:
            _recall(courses, family, mode)
    for each in courses:
        with _named(each, courses):
            _measure(each, stages, environment)
    if settings.refit:
        _refit(courses, events)
    if "stacking" in stages:
        _audit(courses, events)
    for each in courses:
        with _named(each, courses):
            _judge(each)
    return _finish(settings, courses, events, started)


def _recall(courses: Sequence[Course], family: str, mode: str) -> None:
    """The family's fits of an earlier call, where there are any; some modes need them."""
    needed = mode in ("onnx", "stacking") and not (mode == "onnx" and kind_of(family) == "lgbm")
    for course in courses:
        if needed:
            course.entries[family] = course.training.needed(family, mode)
        elif (earlier := course.training.finished(family)) is not None:
            course.entries[family] = earlier


def _measure(course: Course, stages: Sequence[str], environment: Mapping[str, str]) -> None:
    """Stages onnx, stacking, report: everything about one symbol that its figures are made of."""
    training, entries, settings = course.training, course.entries, course.training.settings
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
        usual = reference.measure(training, frame, _deciding(metrics["best_head"], settings.tf))
        results.write_json(settings.out / FILES.features(settings.tf), usual)
        metrics["drift"] = reference.short(usual)
    course.metrics, course.differences = metrics, differences


def _judge(course: Course) -> None:
    """The criteria, and the files that tell of them."""
    training, metrics = course.training, course.metrics
    settings = training.settings
    course.outcomes = results.judge(training, metrics, course.differences, course.audit)
    metrics["stages"] = training.spent
    results.write_json(settings.out / FILES.metrics, metrics)
    results.write_json(settings.out / FILES.criteria, [asdict(each) for each in course.outcomes])


@contextmanager
def _named(course: Course, courses: Sequence[Course]) -> Iterator[None]:
    """An error says whose it is, where several symbols are trained."""
    try:
        yield
    except MacdError as error:
        if len(courses) > 1:
            error.what = f"{course.training.bars.symbol}: {error.what}"
        raise


def _prepare(settings: Settings, events: Events, stacked: int) -> list[Training]:
    """Stages verify and features: checked bars, features, labels, and the train/test split.

    stacked: out-of-fold samples that stacking needs, 0 where it does not run. Of several symbols
    all are prepared before the first fit, and the problems of all are reported at once.
    """
    spent: dict[str, dict[str, float]] = {}
    reader, each = dataset.Reader(settings), settings.each
    with stage(events, spent, "verify"):
        now = datetime.fromtimestamp(events.clock(), UTC)
        findings = dataset.verify(settings, now)
        bars = [reader.bars(one) for one in each]
        for one, made in zip(each, bars, strict=True):
            symbol_findings = findings[made.symbol]
            more = f"{counted(symbol_findings)} (verify.json)" if symbol_findings else ""
            beside = f", a panel of {1 + len(made.panel)} assets" if made.panel else ""
            note = f"{made.symbol} {len(made.main):,} bars{beside}, no errors{more}"
            events.emit("note", stage="verify", note=note)
            (one.out / "data_digest").write_text(made.digest() + "\n")
    cache, meter, flagged = Cache(settings.cache_dir), Meter(events.clock), panels.Made()
    trainings, problems = [], list[tuple[str, MacdError]]()
    with stage(events, spent, "features"):
        for one, made in zip(each, bars, strict=True):
            mine = events.within(symbol=made.symbol) if settings.symbols else events
            try:
                data, others, plan = _dataset(reader, made, one, mine, stacked)
            except MacdError as error:
                problems.append((made.symbol, error))
                continue
            training = Training(
                settings=one,
                bars=made,
                data=data,
                plan=plan,
                cache=cache,
                events=mine,
                meter=meter,
                spent=dict(spent),
                checked=record(findings[made.symbol], Limits().changed(one.limits), one.market),
                others=others,
                flagged=flagged,
            )
            trainings.append(training)
        if problems:
            raise _together(problems, len(each))
    for training in trainings:
        training.spent.update(spent)
    return trainings


def _dataset(
    reader: dataset.Reader, bars: Bars, settings: Settings, events: Events, stacked: int
) -> tuple[Dataset, dict[str, Dataset], Plan]:
    """Features of a symbol and its panel's others, and the split. Raises as require_moves does."""
    data = reader.dataset(bars)
    others = {name: reader.dataset(alone) for name, alone in bars.alone().items()}
    plan = dataset.plan(data, settings)
    dataset.require_moves(data, plan, settings.min_move, stacking=stacked)
    asked = settings.criteria.get("n_oof")
    wanted = asked.threshold if asked and stacked else 0
    if few := dataset.too_few_samples(data.returns, plan, settings.min_move, wanted):
        events.emit("warning", stage="features", note=few)
    return data, others, plan


def _together(problems: Sequence[tuple[str, MacdError]], symbols: int) -> MacdError:
    """One error about all symbols that can't be trained; the error itself where there is one."""
    error = problems[0][1]
    if symbols == 1:
        return error
    kind = RefusedError if all(isinstance(e, RefusedError) for _, e in problems) else UsageError
    return kind(
        f"{len(problems)} of {symbols} symbols can't be trained on these bars",
        why="\n".join(f"{name}: {e.what}; {e.why}" for name, e in problems),
        live="no model was fitted",
        hint=f"leave out {', '.join(name for name, _ in problems)}, or: {error.hint}",
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


def _fit_family(courses: Sequence[Course], family: str, events: Events) -> None:
    """Stages lgbm, lstm, tft: fit every fold, fix the best head on validation, write the model.

    The fits of all symbols run side by side. With a panel each of these stages has two families,
    the asset's own and the panel's.
    """
    trainings = [each.training for each in courses]
    count = sum(len(training.tasks(family)) for training in trainings)
    with stage_of_all(trainings, events, family, f"{count} fits"):
        fitted = fit_side_by_side(trainings, family)
        for course, entries in zip(courses, fitted, strict=True):
            training = course.training
            frame, slopes = training.calibrated({family: entries}, holdout=False)
            _, facts = _fix_head(training, frame, family)
            facts["calibration"] = slopes[family]
            module, model = training.together(family, training.final(family, entries))
            out, tf = training.settings.out, training.settings.tf
            module.save(model, out / results.MODEL_DIR, tf, facts=facts)
            course.entries[family], course.facts[family] = entries, facts


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
    head = _deciding(best, s.tf)
    market = backtest.market_of(frame, data.close, data.times_ms, head, s.tf)
    made = backtest.evaluate(market, s.policy, seed=s.seed)
    oof.write(made.curves, s.out / FILES.policies(s.tf))
    return made.document


def _deciding(best: Mapping[str, str], tf: str) -> str:
    """The head that the service decides by."""
    return best.get("stacking") or best.get("lstm") or head_names(tf)[0]


def _refit(courses: Sequence[Course], events: Events) -> None:
    """Stage refit: the base models once more, on all bars; their files replace the judged ones.

    What was judged stays as it is: figures, best heads, calibration and the meta-model are those of
    the walk-forward. What the new models say of the holdout, which they were trained on, is stored
    for the health check alone.
    """
    trainings = [each.training for each in courses]
    models = sum(len(each.facts) for each in courses)
    with stage_of_all(trainings, events, "refit", f"{models} models on all bars"):
        for family in courses[0].facts:
            fitted = fit_side_by_side(trainings, family, Training.refit_tasks)
            for course, entries in zip(courses, fitted, strict=True):
                course.again[family] = entries
        tables = [_save_refitted(course) for course in courses]
    for course, table in zip(courses, tables, strict=True):
        with _named(course, courses):
            _finish_refitted(course, table)


def _save_refitted(course: Course) -> pl.DataFrame:
    """Write the refitted models; what they say of the holdout."""
    training, s = course.training, course.training.settings
    frame = oof.table(training.data, training.plan).filter(pl.col("fold") == oof.HOLDOUT)
    for family, said in course.facts.items():
        module, model = training.together(family, course.again[family])
        more = {**said, **training.refit_facts()}
        module.save(model, s.out / results.MODEL_DIR, s.tf, facts=more)
        X, rows = training.inputs(family).X, frame["row"].to_numpy()
        slopes = [said["calibration"][head] for head in head_names(s.tf)]
        p = calibrated(module.predict(model, X, rows), slopes).astype(np.float32)
        frame = oof.with_model(frame, family, p)
    return frame


def _finish_refitted(course: Course, frame: pl.DataFrame) -> None:
    training, s = course.training, course.training.settings
    if "onnx" in s.stages:
        _export_onnx(training, course.again, stage="refit-onnx")
    if "stacking" in s.stages:
        stacked = StackingModel.from_json((s.out / FILES.stacking(s.tf)).read_bytes())
        served = _as_served(stacked, _stack_data(training, frame)).astype(np.float32)
        frame = oof.with_mean(oof.with_model(frame, "stacking", served), stacked.mean_slopes)
    oof.write(frame, s.out / FILES.refitted(s.tf))
    refit, metrics = results.refit_of(training), course.metrics
    metrics |= {"refit": refit, "caveats": [*metrics["caveats"], refit["note"]]}


def _audit(courses: Sequence[Course], events: Events) -> None:
    """Stage audit: the leak audit of each training, written to its leak_audit.json.

    The sign-randomised series of all symbols are fitted side by side.
    """
    trainings = [each.training for each in courses]
    first, s = trainings[0], trainings[0].settings
    count = sum(training.settings.surrogate_count for training in trainings)
    with stage_of_all(trainings, events, "audit", f"{count} sign-randomised series"):
        batches = [
            leak_audit.FlipBatch(_flips(each.settings), each.bars, each.events)
            for each in trainings
        ]
        nets = any(kind_of(name) != "lgbm" for name in _audited(s, 0))
        with first.meter.running():
            null = leak_audit.run_flips(
                batches,
                cache=first.cache,
                engine_name=s.engine,
                use=first.use("lstm" if nets else "lgbm"),
                count=lambda n, i, *, cached: first.meter.add(
                    _flip_cost(trainings[n], i), cached=cached
                ),
            )
        for course, flips in zip(courses, null, strict=True):
            with _named(course, courses):
                course.audit = _audit_of(course, flips)


def _flips(s: Settings) -> list[leak_audit.Flip]:
    return [
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


def _audit_of(course: Course, null: Sequence[Entry]) -> leak_audit.Audit:
    training, s = course.training, course.training.settings
    checks, by_family = leak_audit.judge_flips(null)
    fits: list[tuple[Task, Entry]] = []
    for family, fitted in course.entries.items():
        fits += zip(training.tasks(family), fitted, strict=True)
    for family, fitted in course.again.items():
        fits += zip(training.refit_tasks(family), fitted, strict=True)
    checks.append(leak_audit.check_provenance(fits, training.plan, training.assets))
    checks.append(leak_audit.check_look_ahead(training.bars, training.data, training.others))
    allowed = leak_audit.allowed_aucs(by_family, s.edge_cap)
    checks.append(leak_audit.check_too_good(course.metrics["models"], allowed))
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


def _finish(
    settings: Settings, courses: Sequence[Course], events: Events, started: float
) -> dict[str, Any]:
    """Tell how it came out, and write result.json: of each symbol, and last of the whole run."""
    mode, done = settings.mode, []
    for line in _closing_lines(courses, mode):
        events.emit("summary", note=line)
    for course in courses:
        training, s = course.training, course.training.settings
        expected = partial(results.expected_files, tf=s.tf, families=s.families, refit=s.refit)
        figures = results.short(course.metrics, course.outcomes) if course.metrics else {}
        facts = {
            "mode": mode,
            "complete": mode == "all" or results.missing(s.out, expected("all", s.stages)) == [],
            "data_digest": training.bars.digest(),
            "bars_checked": training.checked,
            "origin": dataset.origins(s),
            "seconds": round(events.clock() - started, 3),
            "peak_mb": peak_mb(),
            **figures,
        }
        done.append(results.write_result(s.out, expected(mode, s.stages), facts))
    courses[0].training.cache.prune(_KEEP_CACHED)
    result = done[0] if len(done) == 1 else _result_of_all(settings, courses, done)
    files = len(result["files"])
    events.emit("run_done", stage=mode, seconds=result["seconds"], files=files)
    return result


def _closing_lines(courses: Sequence[Course], mode: str) -> list[str]:
    if not courses[0].metrics:  # only the bars were checked
        return []
    outcomes = [each.outcomes if mode == "all" else [] for each in courses]
    if len(courses) == 1:
        return results.closing_lines(courses[0].metrics, outcomes[0])
    return results.closing_rows([each.metrics for each in courses], outcomes)


def _result_of_all(
    settings: Settings, courses: Sequence[Course], done: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """criteria.json and result.json of a run of several symbols; the latter lists all files."""
    symbols = [each.training.bars.symbol for each in courses]
    files, made = [], dict(zip(symbols, done, strict=True))
    if courses[0].metrics:
        outcomes = {name: each.outcomes for name, each in zip(symbols, courses, strict=True)}
        results.write_json(
            settings.out / FILES.criteria,
            [{"symbol": name, **asdict(o)} for name, those in outcomes.items() for o in those],
        )
        files += [Path(FILES.criteria), Path(FILES.settings)]
    for one, result in zip(settings.each, done, strict=True):
        below = one.out.relative_to(settings.out)
        own = (FILES.result, FILES.settings, *(entry["path"] for entry in result["files"]))
        files += [below / path for path in own]
    return results.write_result(settings.out, files, results.of_all(settings.mode, made))


def _failed(out: Path, events: Events, error: MacdError, state: str) -> None:
    name = getattr(error, "__notes__", ["run"])[0]
    events.emit("run_failed", stage=name, state=state, what=error.what, why=error.why)
    results.write_failure(out, error, name, state)
