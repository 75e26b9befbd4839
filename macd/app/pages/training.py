"""The page of one training: its figures, their uncertainty, the baseline, and the run's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.app.pages import figures, names, opening
from macd.app.pages.changes import changes
from macd.criteria import GUIDE, drop_of, looks_at, looks_meaning, rule_of
from macd.heads import BASELINE, MODELS, NAMES, PANEL, RIDGE, explained, headline_of
from macd.report import numbers
from macd.report.page import Cell, Table, moment, render, seconds, write_page
from macd.run_directory import TrainingRun, read_run

PAGE = "report.html"


@dataclass(frozen=True)
class Verdict:
    """How the run ended, in one line. mood: good, warn or bad."""

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


Compared = Mapping[str, Mapping[str, Any]]


def write(run_dir: Path, *, host: str = "", compared: Compared | None = None) -> Path:
    """Make run_dir/report.html from what the training left there; returns its path.

    `host`: where it ran, which the run itself does not know. `compared`: by what another run is
    ("the previous run") the document of macd/app/train/compare_runs.py about it and this one.
    Stages that did not run are shown as not run. Raises UsageError when the directory holds no
    training, MacdError when a file in it is damaged.
    """
    return write_page(run_dir / PAGE, page(read_run(run_dir), host, compared))


def page(run: TrainingRun, host: str = "", compared: Compared | None = None) -> str:
    best = run.metrics.get("best_head", {}).get(headline(run), "")
    return render(
        "training_report.html.j2",
        run=run,
        title=f"Training {market(run)}",
        verdict=verdict(run),
        headline=headline(run),
        heads=explained(run.tf),
        tiles=tiles(run),
        cautions=cautions(run),
        criteria=run.criteria,
        marks=[mark(outcome) for outcome in run.criteria],
        measured=[shown_value(outcome) for outcome in run.criteria],
        equity=opening.equity(run),
        comparison=opening.discrimination(run, best) if best else [],
        changes=changes(compared or {}),
        policy_words=opening.policy_words(run),
        policies=[
            (where, made)
            for part, where in opening.PARTS.items()
            if (made := opening.policies_table(run, part))
        ],
        move=f"{100 * float(run.metrics.get('min_move', 0)):g} %",
        all_figures=all_auc(run),
        validation=figures.auc_by_head(run, "val") if run.models else [],
        holdout=figures.auc_by_head(run, "test") if run.models else [],
        folds=figures.auc_by_fold(run),
        audit=run.audit,
        audit_is_older=bool(run.audit) and run.result.get("mode") not in ("all", "stacking"),
        surrogates=figures.surrogates(run),
        curves=figures.curves(run),
        checks=[names.check(check["name"]) for check in run.audit.get("checks", [])],
        calibration=figures.calibration(run),
        roc=figures.roc(run),
        hits=figures.hits(run),
        contributions=figures.contributions(run),
        latest=figures.latest(run),
        spread=figures.spread(run),
        weights=figures.weights(run),
        importance=figures.importance(run),
        attention=figures.attention(run),
        findings=run.findings,
        said=names.words,
        split=split_table(run),
        durations=figures.durations(run),
        fits=fits_table(run),
        facts=facts(run, host),
        files=run.result.get("files", []),
        looks=looks_at(run.metrics.get("holdout", {})),
        missing=[NAMES[name] for name in _expected(run) if name not in run.models],
    )


def _expected(run: TrainingRun) -> list[str]:
    """The models a whole training of these settings has."""
    return [name for name in MODELS if name not in PANEL or run.settings.get("panel")]


def verdict(run: TrainingRun) -> Verdict:
    """How the run ended and whether a release may be made of it."""
    if run.state == "unfinished":
        return Verdict(
            "warn",
            "This run has not finished",
            "it goes on, or it was killed; figures below are as far as it came",
            "invoke train.status shows which",
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
        return Verdict(
            "warn", f"Stage {run.result.get('mode', '')} is done; no criteria were evaluated"
        )
    missed = [o for o in run.criteria if not o["ok"]]
    blocking = [o["title"] for o in missed if o["level"] == "block"]
    met = f"{len(run.criteria) - len(missed)} of {len(run.criteria)} criteria met"
    if blocking:
        return Verdict(
            "bad",
            f"{met}: a release is blocked",
            "not met: " + numbers.typeset("; ".join(blocking)),
        )
    if missed:
        titles = numbers.typeset("; ".join(o["title"] for o in missed))
        return Verdict("warn", f"{met}: a release may be made, with warnings", f"not met: {titles}")
    return Verdict("good", f"{met}: a release may be made")


def headline(run: TrainingRun) -> str:
    """The model the first numbers are of: what production decides by, as far as it was trained."""
    return headline_of(run.models)


_BASELINES = {
    BASELINE: "what trailing volatility alone reaches, all folds",
    RIDGE: "what a linear model of the last 48 returns reaches, all folds",
}
_ALONE = {BASELINE: "Volatility alone", RIDGE: "A linear model of the last returns"}


def tiles(run: TrainingRun) -> list[Tile]:
    """The headline and, beside it, the figures that qualify it."""
    model = headline(run)
    if not model:
        return []
    head = run.metrics["best_head"][model]
    made = run.compared[model][head]
    move = f"{100 * run.metrics['min_move']:g} %"
    tiles = [
        _tile(
            f"{NAMES[model]} {run.shown(head)}, validation",
            made["val"],
            f"bars that moved more than {move}; nobody knows these in advance",
        ),
        _tile("The same on ALL bars", made["val_all"], "what production sees"),
        _tile("The same on the holdout", made["test"], f"all bars {brief(made['test_all'])}"),
    ]
    for name, note in _BASELINES.items():
        if head in run.compared.get(name, {}):
            tiles.append(_tile(NAMES[name], run.compared[name][head]["val"], note))
    val = made["val"]
    tiles.append(
        Tile(
            "Effective sample size",
            numbers.count(val["effective_n"]),
            f"of {numbers.count(val['n'])} bars",
            f"labels {run.shown(head)} ahead overlap and are not independent",
        )
    )
    return tiles


def _tile(title: str, made: Mapping[str, Any], note: str) -> Tile:
    value, _, interval = brief(made).partition(" [")
    if made["value"] is None:
        return Tile(title, "–", "not known", note)
    return Tile(title, value, f"[{interval}" if interval else "no interval", note)


def cautions(run: TrainingRun) -> list[str]:
    """What qualifies the numbers: audit, what was chosen after looking, chance, baseline."""
    cautions = []
    model = headline(run)
    if run.audit and not run.audit.get("ok"):
        failed = ", ".join(names.check(c["name"]) for c in run.audit["checks"] if not c["ok"])
        cautions.append(f"The leak audit did not pass ({failed}): treat every figure as unproven.")
    if model and not run.audit:
        cautions.append("No leak audit ran: nothing shows that these figures are free of leaks.")
    if (looks := looks_at(run.metrics.get("holdout", {}))) > 1:
        cautions.append(f"Holdout: {looks_meaning(looks)}.")
    cautions += run.metrics.get("caveats", [])
    if model:
        cautions += _doubts(run, model)
    return cautions


def _doubts(run: TrainingRun, model: str) -> list[str]:
    head = run.metrics["best_head"][model]
    made = run.compared[model][head]
    val, doubts = made["val"], []
    name = f"{NAMES[model]} {run.shown(head)}"
    # A model may use a baseline inverted, so its distance from 0.5 counts.
    reached = {
        words: abs(run.compared[each][head]["val"]["value"] - 0.5)
        for each, words in _ALONE.items()
        if head in run.compared.get(each, {})
        and run.compared[each][head]["val"]["value"] is not None
    }
    simplest, reach = max(reached.items(), key=lambda each: each[1], default=("", 0.0))
    if val["low"] is not None and val["low"] <= 0.5:
        doubts.append(f"The interval of {name} holds 0.5: chance explains it.")
    elif val["low"] is not None and val["low"] <= 0.5 + reach:
        doubts.append(f"{simplest} is {reach:.3f} from chance, within the interval of {name}.")
    drop, detail = drop_of(run.metrics, model)
    if drop is not None and drop > 0:
        doubts.append(f"{name} is worse on the holdout than chance explains: {detail}.")
    return doubts


def mark(outcome: Mapping[str, Any]) -> tuple[str, str, str]:
    """Sign, what it means, and mood of a criterion's outcome."""
    if outcome["ok"]:
        return "✓", "met", "good"
    if outcome["level"] == "block":
        return "✗", "not met, blocks a release", "bad"
    return "⚠", "not met, warns", "warn"


_FORMS: dict[str, numbers.Form] = {
    **dict.fromkeys(("test_val_gap", "stacking_vs_mean", "stacking_vs_best"), numbers.difference),
    "flag_matters": numbers.share,
    "net_edge": numbers.basis_points,
    "n_oof": numbers.count,
    "holdout_looks": numbers.count,
}


def shown_value(outcome: Mapping[str, Any]) -> str:
    """What was measured for a criterion, and its details."""
    value, name, detail = outcome.get("value"), outcome["name"], outcome.get("detail", "")
    if value is None:
        shown = "not measured"
    elif name in GUIDE and not rule_of(name).wanted:
        shown = "yes" if value == 1 else "no"
    else:
        shown = f"measured {_FORMS.get(name, numbers.auc)(value)}"
    if name == "leak_audit" and detail:
        detail = ", ".join(names.check(check) for check in detail.split(", "))
    return f"{shown} · {numbers.typeset(detail)}" if detail else shown


def brief(made: Mapping[str, Any]) -> str:
    return numbers.interval(made["value"], made["low"], made["high"])


def all_auc(run: TrainingRun) -> Table:
    """Every model and head: AUC on validation and holdout, headline and all bars."""
    rows: list[tuple[Cell, ...]] = []
    for model, heads in run.compared.items():
        for head in run.heads:
            made = heads[head]
            val = made["val"]
            is_best = run.metrics["best_head"].get(model) == head
            best = " ★" if is_best and model == headline(run) else ""
            rows.append(
                (
                    f"{NAMES[model]} {run.shown(head)}{best}",
                    *(brief(made[part]) for part in ("val", "val_all", "test", "test_all")),
                    numbers.count(val["n"]),
                    numbers.count(val["effective_n"]),
                    numbers.share(val["base_rate"]),
                    numbers.decimal(val["brier"], 4),
                )
            )
    head_cells = (
        "model, head",
        "validation",
        "all bars",
        "holdout",
        "holdout, all bars",
        "bars",
        "effective n",
        "share up",
        "Brier",
    )
    return Table(head_cells, rows)


def split_table(run: TrainingRun) -> Table | None:
    """The train/test split: the periods of each fold; None without folds."""
    folds = run.metrics.get("folds", [])
    if not folds:
        return None
    rows: list[tuple[Cell, ...]] = [
        (f"fold {fold['fold']}", *(moment(at) for at in (*fold["train"], *fold["test"])))
        for fold in folds
    ]
    last = run.metrics["holdout"]
    rows.append(("holdout", "–", "–", moment(last["from"]), moment(last["to"])))
    return Table(("", "trained from", "to", "tested from", "to"), rows)


def fits_table(run: TrainingRun) -> Table | None:
    """Time and memory of each fit; None when there is none."""
    fits = run.metrics.get("fits", [])
    if not fits:
        return None
    rows: list[tuple[Cell, ...]] = []
    for fit in fits:
        name = "before holdout" if fit["fold"] < 0 else f"fold {fit['fold']}"
        label = f"{NAMES.get(fit['family'], fit['family'])} {name}"
        rows.append(
            (label, str(fit["seed"]), seconds(fit["seconds"]), numbers.count(fit["peak_mb"]))
        )
    return Table(("fit", "seed", "time", "peak MiB"), rows)


def facts(run: TrainingRun, host: str) -> list[tuple[str, str]]:
    m, s, r = run.metrics, run.settings, run.result
    bars = m.get("bars", {})
    rows = numbers.count(bars.get("rows"))
    cross = ", ".join(m.get("cross") or s.get("cross") or []) or "none"
    libraries = ", ".join(f"{k} {v}" for k, v in m.get("libraries", {}).items())
    params = "; ".join(
        f"{NAMES.get(name, name)}: " + _flat(meta.get("params", {}))
        for name, meta in run.metas.items()
    )
    return [
        ("Run", run.id),
        ("Started, ended (UTC)", f"{moment(run.started)} – {moment(run.ended)}"),
        ("Took", seconds(r.get("seconds"))),
        ("Host", host or "not recorded"),
        ("Devices", ", ".join(m.get("devices", [])) or "–"),
        ("Peak memory", f"{r['peak_mb']:,} MiB" if "peak_mb" in r else "–"),
        ("Profile, seed", f"{s.get('profile', '–')}, {s.get('seed', '–')}{_averaged(s)}"),
        ("Mode", str(r.get("mode") or s.get("mode") or "–")),
        ("Cross assets", cross),
        ("Bars", f"{rows}, last {moment(bars.get('last'))}" if bars else "–"),
        ("Embargo", f"{s.get('embargo', '–')} bars"),
        ("Data digest", str(m.get("data_digest") or r.get("data_digest") or "–")),
        ("Feature schema", str(m.get("schema_hash", "–"))),
        ("Code digest", str(m.get("code_digest", "–"))),
        ("Parameters", params or "–"),
        ("Libraries", libraries or "–"),
    ]


def _averaged(settings: Mapping[str, Any]) -> str:
    seeds = settings.get("seeds", 1)
    return f", mean of {seeds} seeds" if seeds > 1 else ""


def _flat(params: Mapping[str, Any]) -> str:
    inner = params.get("loop", {})
    plain = {k: v for k, v in params.items() if k != "loop"} | dict(inner)
    return ", ".join(f"{names.words(k)} {v}" for k, v in plain.items())


def market(run: TrainingRun) -> str:
    """What was trained on, such as `BTCUSD 1h`."""
    return f"{run.metrics.get('symbol') or run.settings.get('symbol', '')} {run.tf}".strip()
