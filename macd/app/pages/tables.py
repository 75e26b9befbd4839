"""The tables of a training's page: all figures, the split in time, the record of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from macd.app.pages.run import NAMES, TrainingRun
from macd.report.charts import interval_text
from macd.report.page import Cell, Table, cell, moment, seconds


def brief(made: Mapping[str, Any]) -> str:
    """An AUC with its interval."""
    return interval_text(made["value"], made["low"], made["high"])


def all_auc(run: TrainingRun) -> Table:
    """Every model and head: AUC on validation and holdout, headline and all bars."""
    rows: list[tuple[Cell, ...]] = []
    for model, heads in run.models.items():
        for head in run.heads:
            made = heads[head]
            val = made["val"]
            best = " ★" if run.metrics["best_head"].get(model) == head else ""
            rows.append(
                (
                    f"{NAMES[model]} {run.shown(head)}{best}",
                    *(brief(made[part]) for part in ("val", "val_all", "test", "test_all")),
                    val["n"],
                    f"{val['effective_n']:,.0f}",
                    "–" if val["base_rate"] is None else f"{val['base_rate']:.3f}",
                    "–" if val["brier"] is None else f"{val['brier']:.4f}",
                )
            )
    head_cells = (
        "model, head",
        "validation",
        "all bars",
        "holdout",
        "holdout, all bars",
        "bars",
        "effective",
        "share up",
        "Brier",
    )
    return Table(head_cells, rows)


def split(run: TrainingRun) -> Table | None:
    """Which time each fold trained on and was judged on; None without folds."""
    folds = run.metrics.get("folds", [])
    if not folds:
        return None
    rows: list[tuple[Cell, ...]] = [
        (f"fold {fold['fold']}", *(moment(at) for at in (*fold["train"], *fold["test"])))
        for fold in folds
    ]
    last = run.metrics["holdout"]
    rows.append(("holdout", "–", "–", moment(last["from"]), moment(last["to"])))
    return Table(("", "trained from", "to", "judged from", "to"), rows)


def fits(run: TrainingRun) -> Table | None:
    """Time and memory of each fit; None when there is none."""
    fits = run.metrics.get("fits", [])
    if not fits:
        return None
    rows: list[tuple[Cell, ...]] = []
    for fit in fits:
        name = "before holdout" if fit["fold"] < 0 else f"fold {fit['fold']}"
        label = f"{NAMES.get(fit['family'], fit['family'])} {name}"
        rows.append((label, str(fit["seed"]), seconds(fit["seconds"]), fit["peak_mb"]))
    return Table(("fit", "seed", "time", "peak MiB"), rows)


def facts(run: TrainingRun, host: str) -> list[tuple[str, str]]:
    """What the run was made from, as names and values."""
    m, s, r = run.metrics, run.settings, run.result
    bars = m.get("bars", {})
    cross = ", ".join(m.get("cross") or s.get("cross") or []) or "none"
    libraries = ", ".join(f"{k} {v}" for k, v in m.get("libraries", {}).items())
    params = "; ".join(
        f"{NAMES.get(name, name)}: " + _flat(meta.get("params", {}))
        for name, meta in run.metas.items()
    )
    return [
        ("Run", run.run_id),
        ("Began, ended (UTC)", f"{moment(run.started)} – {moment(run.ended)}"),
        ("Took", seconds(r.get("seconds"))),
        ("Host", host or "not recorded"),
        ("Devices", ", ".join(m.get("devices", [])) or "–"),
        ("Peak memory", f"{r['peak_mb']:,} MiB" if "peak_mb" in r else "–"),
        ("Profile, seed", f"{s.get('profile', '–')}, {s.get('seed', '–')}"),
        ("Mode", str(r.get("mode") or s.get("mode") or "–")),
        ("Cross assets", cross),
        ("Bars", f"{cell(bars.get('rows'))}, last {moment(bars.get('last'))}" if bars else "–"),
        ("Embargo", f"{s.get('embargo', '–')} bars"),
        ("Data digest", str(m.get("data_digest") or r.get("data_digest") or "–")),
        ("Feature schema", str(m.get("schema_hash", "–"))),
        ("Code digest", str(m.get("code_digest", "–"))),
        ("Parameters", params or "–"),
        ("Libraries", libraries or "–"),
    ]


def _flat(params: Mapping[str, Any]) -> str:
    inner = params.get("loop", {})
    plain = {k: v for k, v in params.items() if k != "loop"} | dict(inner)
    return ", ".join(f"{k} {v}" for k, v in plain.items())


def market(run: TrainingRun) -> str:
    """What was trained on, such as `BTCUSD 1h`."""
    return f"{run.metrics.get('symbol') or run.settings.get('symbol', '')} {run.tf}".strip()
