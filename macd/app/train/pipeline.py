"""A training from bars to result.json: which stages a mode runs, and what is made of them."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from macd.app.market.findings import Limits, counted, record
from macd.app.train import artefacts, dataset, leak_audit, moves, oof, stacking, stages, summary
from macd.app.train.cache import Cache, Entry, code_digest, library_versions
from macd.app.train.criteria import Outcome, evaluate
from macd.app.train.evaluate import figures
from macd.app.train.events import Clock, Events
from macd.app.train.fits import FAMILIES, peak_mb
from macd.app.train.holdout import open_holdout
from macd.app.train.settings import Settings
from macd.app.train.training import Meter, Training, stage
from macd.app.train.verify import verify
from macd.errors import MacdError, RefusedError
from macd.heads import shown

_KEEP_CACHED = 20 << 30  # bytes of fits on the training host, those used longest ago go first
_FIT_FACTS = ("family", "fold", "seed", "samples", "seconds", "cpu_s", "peak_mb")
_LIBRARIES = ("numpy", "polars", "torch", "lightgbm", "scikit-learn", "onnxruntime", "TA-Lib")


def run(
    settings: Settings, *, clock: Clock, environment: Mapping[str, str], echo: bool = True
) -> dict[str, Any]:
    """Run the stages of `settings.mode` and return what result.json holds.

    Everything goes below settings.out, fits also into the cache. Killed at any time, the same call
    goes on where it was. Raises MacdError; result.json then says which stage failed and why.
    """
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        (out / artefacts.RESULT).unlink(missing_ok=True)
        events = Events(out / "events.jsonl", clock, echo)
        events.emit("run_started", mode=settings.mode, profile=settings.profile, pid=os.getpid())
        artefacts.write_json(out / "settings.json", settings.as_json())
        try:
            return _stages(settings, events, environment)
        except MacdError as error:
            _failed(out, events, error, "failed")
            raise
        except KeyboardInterrupt:
            _failed(out, events, MacdError("the training was stopped"), "cancelled")
            raise


def _stages(settings: Settings, events: Events, environment: Mapping[str, str]) -> dict[str, Any]:
    started = events.clock()
    mode = settings.mode
    wanted = settings.stages if mode == "all" else (mode,)
    stacked = stacking.min_samples(environment) if "stacking" in wanted else 0
    training = _prepare(settings, events, stacked)
    if mode == "verify":
        return _finish(training, started, {})
    entries: dict[str, list[Entry]] = {}
    training.meter.total = stages.planned_cost(training, wanted)
    for family in FAMILIES:
        if family in wanted:
            entries[family] = stages.fit_family(training, family)
        elif mode in ("onnx", "stacking") and not (mode == "onnx" and family == "lgbm"):
            entries[family] = training.needed(family, mode)
        elif (known := training.finished(family)) is not None:
            entries[family] = known
    differences = stages.export_onnx(training, entries) if "onnx" in wanted else {}
    frame, audit = stages.predictions(training, entries), None
    if "stacking" in wanted:
        frame = stages.stack(training, entries, environment)
    metrics = _metrics(training, entries, frame)
    if "stacking" in wanted:
        audit = stages.audit(training, entries, _lows(metrics))
    outcomes = _criteria(training, metrics, differences, audit)
    metrics["stages"] = training.spent
    artefacts.write_json(settings.out / "metrics.json", metrics)
    artefacts.write_json(
        settings.out / "criteria.json", [dataclasses.asdict(outcome) for outcome in outcomes]
    )
    for line in summary.lines(metrics, outcomes if mode == "all" else []):
        events.emit("summary", note=line)
    return _finish(training, started, _short(metrics, outcomes))


def _prepare(settings: Settings, events: Events, stacked: int) -> Training:
    spent: dict[str, dict[str, float]] = {}
    with stage(events, spent, "verify"):
        now = datetime.fromtimestamp(events.clock(), UTC)
        findings = verify(settings, now, settings.out / "verify.json")
        bars = dataset.read(settings)
        seen = f"{counted(findings)} (verify.json)" if findings else ""
        told = f"{bars.symbol} {len(bars.main):,} bars, no errors{seen}"
        events.emit("note", stage="verify", note=told)
        (settings.out / "data_digest").write_text(bars.digest() + "\n")
    with stage(events, spent, "features"):
        data = dataset.build(bars, settings.min_move)
        plan = dataset.plan(data, settings)
        moves.require(data, plan, settings.min_move, stacking=stacked)
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
    )


def _metrics(
    training: Training, entries: Mapping[str, list[Entry]], frame: pl.DataFrame
) -> dict[str, Any]:
    s, data, plan = training.settings, training.data, training.plan
    with training.stage("report"):
        baseline = oof.volatility_baseline(data, plan, frame)
        frame = oof.with_model(frame, "volatility", baseline)
        models = oof.models_in(frame, (*FAMILIES, "stacking", "volatility"))
        told = {model: figures(frame, model, s.min_move, s.seed) for model in models}
        best = {
            model: oof.best_head({h: v["val"]["value"] or 0.0 for h, v in heads.items()})
            for model, heads in told.items()
        }
        behind = frame.filter(pl.col("fold") == oof.HOLDOUT)
        openings = open_holdout(
            training.cache.root / "holdout.jsonl",
            training.bars.digest(),
            {model: oof.columns(behind, f"p_{model}") for model in models},
            training.events.clock(),
        )

    def when(row: int) -> str:
        return datetime.fromtimestamp(int(data.times_ms[row]) / 1000, UTC).isoformat()

    return {
        "symbol": training.bars.symbol,
        "cross": sorted(training.bars.cross),
        "tf": s.tf,
        "profile": s.profile,
        "seed": s.seed,
        "min_move": s.min_move,
        "bars": {"rows": len(data), "first": when(0), "last": when(-1)},
        **{k: v for k, v in stages.lineage(training).items() if k.endswith(("digest", "hash"))},
        "code_digest": code_digest(["macd.app.train.pipeline"]),
        "libraries": library_versions(_LIBRARIES),
        "devices": sorted({str(e.facts["device"]) for fits in entries.values() for e in fits}),
        "folds": [
            {
                "fold": fold.index,
                "train": [when(int(fold.train[0])), when(int(fold.train[-1]))],
                "test": [when(int(fold.test[0])), when(int(fold.test[-1]))],
            }
            for fold in plan.folds
        ],
        "holdout": {
            "from": when(int(plan.holdout.test[0])),
            "to": when(int(plan.holdout.test[-1])),
            "openings": openings,
        },
        "models": told,
        "best_head": best,
        "seeds": stages.seed_spread(training, entries),
        "history": {
            family: [
                {"fold": entry.facts["fold"], "seed": entry.facts["seed"], "epochs": history}
                for entry in fits
                if (history := entry.facts["history"])
            ]
            for family, fits in entries.items()
        },
        "importance": {
            family: importance
            for family, fits in entries.items()
            if (importance := stages.final(training, family, fits).facts.get("importance"))
        },
        "fits": [
            {name: entry.facts[name] for name in _FIT_FACTS}
            for fits in entries.values()
            for entry in fits
        ],
    }


def _lows(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        model: {
            head: max(float(v[part]["low"] or 0.0) for part in ("val", "val_all", "test"))
            for head, v in heads.items()
        }
        for model, heads in metrics["models"].items()
    }


def _criteria(
    training: Training,
    metrics: Mapping[str, Any],
    differences: Mapping[str, float],
    audit: leak_audit.Audit | None,
) -> list[Outcome]:
    s, models, best = training.settings, metrics["models"], metrics["best_head"]
    values: dict[str, float | None] = {}
    details: dict[str, str] = {}
    if "lstm" in models:
        head = models["lstm"][best["lstm"]]
        val, test = head["val"]["value"], head["test"]["value"]
        values["lstm_val_auc"] = val
        details["lstm_val_auc"] = f"at {shown(best['lstm'], s.tf)}"
        if val is not None and test is not None:
            values["test_val_gap"] = abs(test - val)
            details["test_val_gap"] = f"test {test:.3f}, validation {val:.3f}"
    if "stacking" in models:
        head = models["stacking"][best["stacking"]]
        values["stacking_oof_auc"] = head["val"]["value"]
        details["stacking_oof_auc"] = f"at {shown(best['stacking'], s.tf)}"
        values["n_oof"] = head["val_all"]["n"]
        details["n_oof"] = (
            f"bars judged by a meta-model that had not seen them; {head['val']['n']:,} of them "
            f"moved more than {100 * s.min_move:g} %"
        )
    if differences:
        values["onnx_test"] = 1.0  # a failed comparison ends the run before this
        details["onnx_test"] = f"largest difference {max(differences.values()):.1e}"
    files = artefacts.expected(s.mode, s.stages, s.tf)
    files = [p for p in files if p.name not in ("metrics.json", "criteria.json")]
    absent = artefacts.missing(s.out, files)
    values["files_exist"] = 0.0 if absent else 1.0
    details["files_exist"] = ", ".join(absent) or f"{len(files)} files"
    if audit is not None:
        values["leak_audit"] = 1.0 if audit.ok else 0.0
        details["leak_audit"] = ", ".join(c.name for c in audit.checks if not c.ok)
    return evaluate(s.criteria, values, details)


def _short(metrics: Mapping[str, Any], outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "best_head": metrics["best_head"],
        "auc": {
            model: {
                head: {part: v[part]["value"] for part in ("val", "test", "val_all", "test_all")}
                for head, v in heads.items()
            }
            for model, heads in metrics["models"].items()
        },
        "criteria": {outcome.name: outcome.ok for outcome in outcomes},
        "blocked_by": [o.name for o in outcomes if not o.ok and o.level == "block"],
    }


def _finish(training: Training, started: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    s = training.settings
    files = artefacts.expected(s.mode, s.stages, s.tf)
    seconds = round(training.events.clock() - started, 3)
    result = artefacts.write_result(
        s.out,
        files,
        {
            "mode": s.mode,
            "complete": s.mode == "all"
            or artefacts.missing(s.out, artefacts.expected("all", s.stages, s.tf)) == [],
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
    stage = getattr(error, "__notes__", ["run"])[0]
    events.emit("run_failed", stage=stage, state=state, what=error.what, why=error.why)
    artefacts.write_failure(out, error, stage, state)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One training at a time in a run directory; the lock goes with the process."""
    with (out / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(
                f"another training is at work in {out}",
                why="its lock is held",
                hint="wait for it, or give another --out",
            ) from error
        yield
