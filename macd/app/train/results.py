"""What a training leaves: metrics.json, criteria.json, its closing lines, result.json with files.

result.json is written last and lists every file with its hash: no run is done without its files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from macd.app.train import backtest, caveats, comparison, oof
from macd.app.train.cache import Entry, code_digest, key_of, library_versions
from macd.app.train.holdout import Span, look
from macd.app.train.leak_audit import Audit
from macd.app.train.metrics import rounded
from macd.app.train.training import Training
from macd.criteria import Outcome, evaluate, looks_meaning, measured
from macd.errors import MacdError
from macd.heads import (
    BASELINE,
    BASELINES,
    COMPARED,
    FAMILIES,
    NAMES,
    RIDGE,
    explained,
    head_names,
    headline_of,
    in_order,
    kind_of,
    shown,
)
from macd.host.durable import replace_file, sha256_of
from macd.run_directory import FILES, auc_text, on_same_bars, read_json

MODEL_DIR = Path(FILES.models)
_FIT_FACTS = ("family", "fold", "seed", "samples", "seconds", "cpu_s", "peak_mb")
_LIBRARIES = ("numpy", "polars", "torch", "lightgbm", "scikit-learn", "onnxruntime", "TA-Lib")


def measure(
    training: Training, entries: Mapping[str, list[Entry]], frame: pl.DataFrame
) -> dict[str, Any]:
    """The content of metrics.json. The holdout is opened here; the ledger counts the looks."""
    s, data, plan = training.settings, training.data, training.plan
    frame = oof.with_model(frame, BASELINE, oof.volatility_baseline(data, plan, frame))
    frame = oof.with_model(frame, RIDGE, oof.ridge_baseline(data, plan, frame))
    models = oof.models_in(frame, COMPARED)
    figures = {model: oof.figures(frame, model, s.min_move, s.seed) for model in models}
    best = {m: oof.best_head(oof.validation_aucs(frame, m, s.min_move)) for m in models}
    validation, holdout = (
        Span(training.bars.symbol, s.tf, *(int(data.times_ms[row]) for row in ends))
        for ends in (
            (plan.folds[0].test[0], plan.folds[-1].test[-1]),
            (plan.holdout.test[0], plan.holdout.test[-1]),
        )
    )
    tested = frame.filter(pl.col("fold") == oof.HOLDOUT)
    looks = look(
        training.cache.root / "holdout.jsonl",
        holdout,
        training.bars.digest(),
        {model: oof.columns(tested, f"p_{model}") for model in models},
        training.events.clock(),
    )

    def when(row: int) -> str:
        return datetime.fromtimestamp(int(data.times_ms[row]) / 1000, UTC).isoformat()

    return {
        "symbol": training.bars.symbol,
        "cross": sorted(training.bars.cross),
        "panel": sorted(training.others),
        "tf": s.tf,
        "profile": s.profile,
        "seed": s.seed,
        "min_move": s.min_move,
        "bars": {"rows": len(data), "first": when(0), "last": when(-1)},
        **{k: v for k, v in training.lineage().items() if k.endswith(("digest", "hash"))},
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
            "looks": looks,
            "openings": looks,  # its old name
        },
        "caveats": caveats.of(validation, holdout),
        "models": figures,
        "best_head": best,
        "best_head_luck": {
            model: oof.best_head_luck(frame, model, s.min_move, s.seed) for model in models
        },
        "comparison": comparison.compare(frame, s.min_move, s.seed),
        "seeds": _seed_spread(training, entries),
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
            if (importance := _importance(training.final(family, fits)))
        },
        "fits": [
            {name: entry.facts[name] for name in _FIT_FACTS}
            for fits in entries.values()
            for entry in fits
        ],
    }


def _seed_spread(
    training: Training, entries: Mapping[str, list[Entry]]
) -> dict[str, list[dict[str, Any]]]:
    """Validation AUCs by family for each seed alone: how much of a figure is chance.

    What is judged and shipped is the mean of the seeds.
    """
    s = training.settings
    by_family: dict[str, list[dict[str, Any]]] = {}
    for seed in range(s.seed, s.seed + s.seeds):
        frame = training.predictions(entries, holdout=False, seed=seed)
        for family in entries:
            aucs = rounded(oof.validation_aucs(frame, family, s.min_move))
            by_family.setdefault(family, []).append({"seed": seed, **aucs})
    return by_family


def _importance(final: Sequence[Entry]) -> dict[str, float]:
    """Shares by feature, mean over the seeds, largest first; {} for a family that names none."""
    named: list[dict[str, float]] = [entry.facts.get("importance", {}) for entry in final]
    mean = {name: sum(shares[name] for shares in named) / len(named) for name in named[0]}
    return dict(sorted(mean.items(), key=lambda item: -item[1]))


def refit_of(training: Training) -> dict[str, str]:
    """metrics["refit"]: until when the shipped models were trained, and what that means."""
    until = datetime.fromtimestamp(training.refit_facts()["trained_until_ms"] / 1000, UTC)
    note = (
        f"The base models were refitted on all bars to {until:%Y-%m-%d}: the shipped files have no "
        "test figures of their own; all figures are those of the walk-forward and its holdout."
    )
    return {"until": until.isoformat(), "note": note}


def judge(
    training: Training,
    metrics: Mapping[str, Any],
    differences: Mapping[str, float],
    audit: Audit | None,
) -> list[Outcome]:
    """Each criterion of the settings against what this training measured."""
    s = training.settings
    values = measured(metrics, read_json(s.out / FILES.stacking(s.tf), {}))
    values |= backtest.criteria_of(metrics["policies"])
    if differences:  # a failed comparison ends the run before this
        values["onnx_test"] = 1.0, f"largest difference {max(differences.values()):.1e}"
    files = expected_files(s.mode, s.stages, s.tf, s.families, refit=s.refit)
    files = [p for p in files if p.name not in (FILES.metrics, FILES.criteria)]
    absent = missing(s.out, files)
    values["files_exist"] = 0.0 if absent else 1.0, ", ".join(absent) or f"{len(files)} files"
    if audit is not None:
        failed = ", ".join(c.name for c in audit.checks if not c.ok)
        values["leak_audit"] = 1.0 if audit.ok else 0.0, failed
    return evaluate(s.criteria, values)


def short(metrics: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures that result.json repeats."""
    return {
        "best_head": metrics["best_head"],
        **({"refit": metrics["refit"]} if "refit" in metrics else {}),
        "auc": {
            model: {
                head: {part: v[part]["value"] for part in ("val", "test", "val_all", "test_all")}
                for head, v in heads.items()
            }
            for model, heads in metrics["models"].items()
        },
        "stacking_worth": comparison.worth(metrics),
        "criteria": {outcome.name: outcome.ok for outcome in outcomes},
        "blocked_by": blocked_by(outcomes),
    }


def closing_lines(metrics: Mapping[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """What is printed when a training is done: AUCs in the guide's shape, all on the same bars,
    differences, criteria, and last what stacking is worth beside the mean.
    """
    share = 100 * float(metrics["min_move"])
    tf = str(metrics["tf"])
    lines = [
        f"{metrics['symbol']} {metrics['tf']}  {metrics['bars']['rows']:,} bars "
        f"{metrics['bars']['first'][:10]} to {metrics['bars']['last'][:10]}, "
        f"{len(metrics['folds'])} folds, profile {metrics['profile']}, seed {metrics['seed']}",
        f"Direction of moves above {share:g} %; in brackets 95 % of week-block resamples; "
        "beside it the sign on ALL bars",
        "All on the same bars: those for which every model has a prediction",
        *filter(None, [explained(tf)]),
    ]
    same = on_same_bars(metrics)
    for model in COMPARED:
        if model in same:
            lines += ["", *_model_lines(NAMES[model], same[model], tf)]
            if model not in BASELINES:
                lines.append(f"Best head: {shown(metrics['best_head'][model], tf)}")
    lines += comparison.difference_lines(metrics)
    lines += ["", *backtest.closing_lines(metrics["policies"], tf)]
    looks = metrics["holdout"]["looks"]
    said = [f"Holdout: {looks_meaning(looks)}."] if looks > 1 else []
    lines += ["", *(f"! {text}" for text in [*metrics["caveats"], *said])]
    if outcomes:
        lines += ["", "Criteria", *(outcome.line() for outcome in outcomes)]
    if worth := comparison.worth(metrics):
        lines += ["", worth]
    return lines


def closing_rows(
    metrics: Sequence[Mapping[str, Any]], outcomes: Sequence[Sequence[Outcome]]
) -> list[str]:
    """What is printed when several symbols are trained: a row each, and who blocks a release."""
    tf = str(metrics[0]["tf"])
    rows = [("symbol", "best head", "validation AUC", "holdout AUC", "criteria")]
    rows += [_closing_row(made, met, tf) for made, met in zip(metrics, outcomes, strict=True)]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    move = 100 * float(metrics[0]["min_move"])
    lines = [
        f"{len(metrics)} symbols, {tf}, profile {metrics[0]['profile']}, seed {metrics[0]['seed']}",
        f"Direction of moves above {move:g} %; in brackets 95 % of week-block resamples",
        *filter(None, [explained(tf)]),
        "",
    ]
    for *cells, last in rows:
        lines.append("  ".join([*map(str.ljust, cells, widths), last]).rstrip())
    blocked = [
        made["symbol"] for made, met in zip(metrics, outcomes, strict=True) if blocked_by(met)
    ]
    if blocked:
        names = ",".join(blocked)
        some = len(blocked) < len(metrics)
        without = f"; invoke release --without {names} releases the others" if some else ""
        lines += ["", f"✗ {', '.join(blocked)}: a release is blocked{without}"]
    return lines


def _closing_row(
    metrics: Mapping[str, Any], outcomes: Sequence[Outcome], tf: str
) -> tuple[str, str, str, str, str]:
    model = headline_of(metrics["models"])
    head = metrics["best_head"][model]
    figures = on_same_bars(metrics).get(model, metrics["models"][model])[head]
    met = f"{sum(o.ok for o in outcomes)} of {len(outcomes)} met" if outcomes else "not judged"
    if blocked := blocked_by(outcomes):
        met += f"; blocked by {', '.join(blocked)}"
    aucs = (auc_text(figures[part]) for part in ("val", "test"))
    return metrics["symbol"], f"{NAMES[model]} {shown(head, tf)}", *aucs, met


def blocked_by(outcomes: Sequence[Outcome]) -> list[str]:
    """The criteria that forbid a release."""
    return [o.name for o in outcomes if not o.ok and o.level == "block"]


def of_all(mode: str, by_symbol: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What result.json of a run of several symbols says beside its files.

    by_symbol: their result.json. A criterion is named `SYMBOL name` here. best_head: by symbol.
    data_digest: of all of theirs.
    """
    digests = {name: result["data_digest"] for name, result in by_symbol.items()}
    facts: dict[str, Any] = {
        "mode": mode,
        "complete": all(result["complete"] for result in by_symbol.values()),
        "symbols": list(by_symbol),
        "data_digest": key_of(digests),
        "seconds": max(result["seconds"] for result in by_symbol.values()),
        "peak_mb": max(result["peak_mb"] for result in by_symbol.values()),
    }
    if all("best_head" in result for result in by_symbol.values()):
        facts["best_head"] = {symbol: result["best_head"] for symbol, result in by_symbol.items()}
        facts["criteria"] = {
            f"{symbol} {name}": ok
            for symbol, result in by_symbol.items()
            for name, ok in result["criteria"].items()
        }
        facts["blocked_by"] = [
            f"{symbol} {name}"
            for symbol, result in by_symbol.items()
            for name in result["blocked_by"]
        ]
    return facts


def _model_lines(name: str, heads: Mapping[str, Any], tf: str) -> list[str]:
    return [f"{name} {shown(head, tf):<4} {_figures(heads[head])}" for head in in_order(heads)]


def _figures(head: Mapping[str, Any]) -> str:
    val, test = head["val"], head["test"]
    return (
        f"val AUC {auc_text(val)}  test AUC {auc_text(test)}  "
        f"all bars {auc_text(head['val_all'])} | {auc_text(head['test_all'])}  "
        f"n {val['n']:,} (effective {val['effective_n']:,.0f})"
    )


def expected_files(
    mode: str,
    stages: Iterable[str],
    tf: str,
    families: Sequence[str] = FAMILIES,
    *,
    refit: bool = False,
) -> list[Path]:
    """The files a run of this mode and these base models must leave, relative to its directory."""
    nets = [family for family in families if kind_of(family) != "lgbm"]
    by_stage = {
        "verify": [Path(FILES.bars)],
        "onnx": [*(MODEL_DIR / f"{family}_{tf}.onnx" for family in nets), Path(FILES.onnx)],
        "stacking": [Path(FILES.stacking(tf)), Path(FILES.out_of_fold(tf)), Path(FILES.audit)],
    }
    for family in families:
        models = (
            [f"{family}_{tf}.pt"]
            if family in nets
            else [f"{family}_{tf}_{head}.txt" for head in head_names(tf)]
        )
        made = by_stage.setdefault(kind_of(family), [])
        made += [*(MODEL_DIR / name for name in models), Path(FILES.meta(family, tf))]
    wanted = stages if mode == "all" else [mode]
    files = [path for stage in wanted for path in by_stage[stage]]
    if mode != "verify":
        files += [Path(FILES.metrics), Path(FILES.criteria), Path(FILES.settings)]
        files += [Path(FILES.policies(tf)), Path(FILES.features(tf))]
    if refit:
        files.append(Path(FILES.refitted(tf)))
    return files


def missing(out: Path, files: Iterable[Path]) -> list[str]:
    """Which of the files are not there or empty."""
    return [
        str(path)
        for path in files
        if not (out / path).is_file() or (out / path).stat().st_size == 0
    ]


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines, whole or not at all; NaN is refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(path, (text + "\n").encode(), parents=True)


def write_result(out: Path, files: Iterable[Path], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Check that every file is there and write result.json, last; returns what it holds.

    Raises MacdError naming the files that are missing: no run is done without its artefacts.
    """
    files = sorted(set(files))
    absent = missing(out, files)
    if absent:
        raise MacdError(
            "the training ended without its artefacts",
            why="missing or empty: " + ", ".join(absent),
            hint="free disk space and run the same command again; finished fits are kept",
        )
    sized = [(path, out / path) for path in files]
    listed = [
        {"path": str(path), "size": file.stat().st_size, "sha256": sha256_of(file)}
        for path, file in sized
    ]
    result = {"state": "done", **facts, "files": listed}
    write_json(out / FILES.result, result)
    return result


def write_failure(out: Path, error: MacdError, stage: str, state: str) -> None:
    """Write result.json of a run that did not finish; the files before it stay for a resume."""
    if shutil.disk_usage(out).free < 1 << 16:
        return
    fields = {name: getattr(error, name) for name in ("what", "why", "hint")}
    write_json(out / FILES.result, {"state": state, "stage": stage, **fields})
