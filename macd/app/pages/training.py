"""The page of one training: what it reached, against what, how sure, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.app.pages import model_figures, tables
from macd.app.pages import training_figures as figures
from macd.app.pages.run import NAMES, TrainingRun, read_run
from macd.app.pages.tables import brief
from macd.report.charts import interval_text
from macd.report.page import render, write_page

PAGE = "report.html"


@dataclass(frozen=True)
class Verdict:
    """The page's first answer. mood: good, warn or bad."""

    mood: str
    words: str
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Tile:
    """A number people look at first, with what qualifies it."""

    title: str
    value: str
    interval: str
    note: str


def write(run_dir: Path, *, host: str = "") -> Path:
    """Make run_dir/report.html from what the training left there; returns its path.

    `host`: where it ran, which the run itself does not know. Stages that did not run are shown as
    not run. Raises UsageError when the directory holds no training, MacdError when a file in it is
    damaged.
    """
    return write_page(run_dir / PAGE, page(read_run(run_dir), host))


def page(run: TrainingRun, host: str = "") -> str:
    """The HTML of a run's page."""
    return render(
        "training_report.html.j2",
        run=run,
        title=f"Training {tables.market(run)}",
        verdict=verdict(run),
        headline=headline(run),
        tiles=tiles(run),
        cautions=cautions(run),
        criteria=run.criteria,
        marks=[mark(outcome) for outcome in run.criteria],
        move=f"{100 * float(run.metrics.get('min_move', 0)):g} %",
        all_figures=tables.all_auc(run),
        validation=figures.auc_by_head(run, "val") if run.models else [],
        holdout=figures.auc_by_head(run, "test") if run.models else [],
        folds=figures.auc_by_fold(run),
        audit=run.audit,
        audit_is_older=bool(run.audit) and run.result.get("mode") not in ("all", "stacking"),
        surrogates=figures.surrogates(run),
        curves=figures.curves(run),
        calibration=figures.calibration(run),
        spread=figures.spread(run),
        weights=model_figures.weights(run),
        importance=model_figures.importance(run),
        attention=model_figures.attention(run),
        findings=run.findings,
        split=tables.split(run),
        durations=figures.durations(run),
        fits=tables.fits(run),
        facts=tables.facts(run, host),
        files=run.result.get("files", []),
        missing=[name for name in ("lgbm", "lstm", "tft", "stacking") if name not in run.models],
        names=NAMES,
    )


def verdict(run: TrainingRun) -> Verdict:
    """How the run ended and whether a release may be made of it."""
    if run.state == "unfinished":
        return Verdict(
            "warn",
            "This run has not finished",
            "it goes on, or it was killed; figures below are as far as it came",
            "invoke train.status tells which",
        )
    if run.state != "done":
        stage = run.result.get("stage", "run")
        state = "was stopped" if run.state == "cancelled" else "failed"
        older = "; figures below are from an earlier call" if run.metrics else ""
        why = f"{run.result.get('what', '')}: {run.result.get('why', '')}".strip(": ")
        return Verdict(
            "bad", f"This run {state} in stage {stage}", why + older, run.result.get("hint", "")
        )
    if not run.criteria:
        return Verdict("warn", f"Stage {run.result.get('mode', '')} is done; nothing was judged")
    missed = [o for o in run.criteria if not o["ok"]]
    blocking = [o["title"] for o in missed if o["level"] == "block"]
    met = f"{len(run.criteria) - len(missed)} of {len(run.criteria)} criteria met"
    if blocking:
        return Verdict("bad", f"{met}: a release is blocked", "not met: " + "; ".join(blocking))
    if missed:
        told = "; ".join(o["title"] for o in missed)
        return Verdict("warn", f"{met}: a release may be made, with warnings", "not met: " + told)
    return Verdict("good", f"{met}: a release may be made")


def headline(run: TrainingRun) -> str:
    """The model the first numbers are of: what production decides by, as far as it was trained."""
    return next((m for m in ("stacking", "lstm", "tft", "lgbm") if m in run.models), "")


def tiles(run: TrainingRun) -> list[Tile]:
    """The headline and, with equal rank, what keeps it honest."""
    model = headline(run)
    if not model:
        return []
    head = run.metrics["best_head"][model]
    made, baseline = run.models[model][head], run.models.get("volatility", {}).get(head)
    move = f"{100 * run.metrics['min_move']:g} %"
    told = [
        _tile(
            f"{NAMES[model]} {run.shown(head)}, validation",
            made["val"],
            f"bars that moved more than {move}; nobody knows these in advance",
        ),
        _tile("The same on ALL bars", made["val_all"], "what production meets"),
        _tile("The same on the holdout", made["test"], f"all bars {brief(made['test_all'])}"),
    ]
    if baseline is not None:
        note = "what trailing volatility alone reaches, all folds"
        told.append(_tile("Volatility only", baseline["val"], note))
    val = made["val"]
    told.append(
        Tile(
            "Effective sample",
            f"{val['effective_n']:,.0f}",
            f"of {val['n']:,} bars",
            f"labels {run.shown(head)} ahead overlap; this many are worth counting",
        )
    )
    return told


def _tile(title: str, made: Mapping[str, Any], note: str) -> Tile:
    value, _, interval = interval_text(made["value"], made["low"], made["high"]).partition(" [")
    if made["value"] is None:
        return Tile(title, "–", "not known", note)
    return Tile(title, value, f"[{interval}" if interval else "no interval", note)


def cautions(run: TrainingRun) -> list[str]:
    """What a reader must know before believing the numbers."""
    told = []
    model = headline(run)
    if run.audit and not run.audit.get("ok"):
        failed = ", ".join(c["name"] for c in run.audit["checks"] if not c["ok"])
        told.append(f"The leak audit did not pass ({failed}): treat every figure as unproven.")
    if model and not run.audit:
        told.append("No leak audit ran: nothing shows that these figures are free of leaks.")
    openings = run.metrics.get("holdout", {}).get("openings", 1)
    if openings > 1:
        told.append(
            f"The holdout has been looked at with {openings} different recipes: its figures are a "
            "choice among several, and flatter."
        )
    if model:
        told += _doubts(run, model)
    return told


def _doubts(run: TrainingRun, model: str) -> list[str]:
    head = run.metrics["best_head"][model]
    made, baseline = run.models[model][head], run.models.get("volatility", {}).get(head)
    val, test, told = made["val"], made["test"], []
    name = f"{NAMES[model]} {run.shown(head)}"
    # A model may hold the baseline upside down, so its distance from a half is what counts.
    known = baseline is not None and baseline["val"]["value"] is not None
    reach = abs(baseline["val"]["value"] - 0.5) if baseline is not None and known else 0.0
    if val["low"] is not None and val["low"] <= 0.5:
        told.append(f"The interval of {name} holds 0.5: chance explains it.")
    elif val["low"] is not None and val["low"] <= 0.5 + reach:
        told.append(
            f"Volatility alone stands {reach:.3f} from chance, within the interval of {name}."
        )
    if None not in (val["value"], test["value"]) and abs(test["value"] - val["value"]) >= 0.02:
        told.append(
            f"Holdout and validation differ by {abs(test['value'] - val['value']):.3f}: the regime "
            "changed or luck had a part; the validation has more bars behind it."
        )
    return told


def mark(outcome: Mapping[str, Any]) -> tuple[str, str, str]:
    """Sign, what it means, and mood of a criterion's outcome."""
    if outcome["ok"]:
        return "✓", "met", "good"
    if outcome["level"] == "block":
        return "✗", "not met, blocks a release", "bad"
    return "⚠", "not met, warns", "warn"
