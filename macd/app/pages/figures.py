"""The charts of a training's page: which numbers go into which chart, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from macd.heads import BASELINE, MEAN, MODELS, NAMES, PANEL, RIDGE, in_order, kind_of
from macd.host.judge.bounds import wilson
from macd.report import charts
from macd.report.charts import Bin, Curve, Interval, around, finite
from macd.report.page import Cell, Figure, Table
from macd.run_directory import TrainingRun

TOP = 20
FLAT = 0.101  # calibration slopes end at 0.1 (macd.app.train.stacking)
_MEANING = {
    "lgbm": ("Share of the total gain, mean over the heads", "% of the gain"),
    "tft": ("Mean weight in the variable selection, last training rows", "% of the weight"),
}
_INTERVAL_HEAD = ("", "AUC", "from", "to", "bars", "effective n")
_ALONE = (name for name in (*MODELS, BASELINE, MEAN) if name not in PANEL)
COLOURS = {name: at for at, name in enumerate((*_ALONE, *PANEL))}
COLOURS[RIDGE] = COLOURS[BASELINE]  # the baselines share one


def auc_by_head(run: TrainingRun, part: str) -> list[Figure]:
    """Each head's models, part `val` or `test`: the headline and, muted, the sign on all bars."""
    where = {"val": "validation", "test": "holdout"}[part]
    domain = _domain(run.models, (part, f"{part}_all"))
    figures = []
    for head in run.heads:
        rows, cells = [], []
        for model, heads in run.models.items():
            for reading, muted in ((part, False), (f"{part}_all", True)):
                made = heads[head][reading]
                name = "· all bars" if muted else NAMES[model]
                rows.append(_line(name, made, COLOURS[model], muted=muted))
                whole = f"{NAMES[model]}, {'all bars' if muted else 'moves'}"
                cells.append(_cells(whole, made))
        title = f"{run.shown(head)} ahead, {where}"
        svg = charts.forest(
            rows,
            title=f"AUC {title}",
            desc="One line a model with its 95 % interval; chance is 0.5",
            label="AUC",
            reference=0.5,
            domain=domain,
        )
        figures.append(Figure(title, svg, Table(_INTERVAL_HEAD, cells)))
    return figures


def auc_by_fold(run: TrainingRun) -> list[tuple[str, list[Figure]]]:
    """For each model and head: every fold, then all folds pooled, then the holdout."""
    groups = []
    for model, heads in run.models.items():
        figures = []
        domain = _domain({model: heads}, ("val", "test"), folds=True)
        for head in run.heads:
            made = heads[head]
            rows = [_line(f"fold {f['fold']}", f, COLOURS[model]) for f in made["folds"]]
            rows.append(_line("folds pooled", made["val"], COLOURS[model], strong=True))
            rows.append(_line("holdout", made["test"], COLOURS[model], strong=True))
            cells = [_cells(f"fold {f['fold']}", f) for f in made["folds"]]
            cells += [_cells("folds pooled", made["val"]), _cells("holdout", made["test"])]
            title = f"{NAMES[model]} {run.shown(head)}"
            svg = charts.forest(
                rows,
                title=f"AUC by fold, {title}",
                desc="Folds in the order of time, with 95 % intervals; chance is 0.5",
                reference=0.5,
                domain=domain,
            )
            figures.append(Figure(title, svg, Table(_INTERVAL_HEAD, cells)))
        groups.append((NAMES[model], figures))
    return groups


def curves(run: TrainingRun) -> list[tuple[str, list[Figure]]]:
    """Loss, and AUC of the best head, per epoch of each fit that has epochs."""
    groups = []
    for model, fits in run.metrics.get("history", {}).items():
        with_epochs = [fit for fit in fits if fit["epochs"]]
        if with_epochs:
            head = run.metrics["best_head"].get(model, run.heads[0])
            groups.append((NAMES.get(model, model), _curves(run, model, with_epochs, head)))
    return groups


def _curves(
    run: TrainingRun, model: str, fits: Sequence[Mapping[str, Any]], head: str
) -> list[Figure]:
    seeds = {fit["seed"] for fit in fits}
    stopped = any("stop_loss" in epoch for fit in fits for epoch in fit["epochs"])
    on = str(fits[0]["epochs"][-1].get("on", "train sample"))
    wanted: list[tuple[str, str]] = [("loss", "training loss")]
    if stopped:
        wanted.append(("stop_loss", "loss on the inner slice"))
    wanted.append((head, f"AUC {run.shown(head)}, {on}"))
    figures = []
    for key, name in wanted:
        drawn = [
            Curve(
                _fit_name(fit, many=len(seeds) > 1),
                [(epoch["epoch"], _of_epoch(epoch, key)) for epoch in fit["epochs"]],
                at,
            )
            for at, fit in enumerate(fits)
        ]
        title = f"{NAMES.get(model, model)}: {name}"
        most = max(len(fit["epochs"]) for fit in fits)
        head_cells = ("fit", *(f"epoch {n}" for n in range(1, most + 1)))
        rows: list[tuple[Cell, ...]] = []
        for curve in drawn:
            values: list[Cell] = [y for _, y in curve.points]
            rows.append((curve.label, *values, *([None] * (most - len(values)))))
        svg = charts.lines(drawn, title=f"{title} by epoch", x_label="epoch", y_label=name)
        figures.append(Figure(title, svg, Table(head_cells, rows)))
    return figures


def _of_epoch(epoch: Mapping[str, Any], key: str) -> float | None:
    value = epoch.get(key) if key in ("loss", "stop_loss") else (epoch.get("auc") or {}).get(key)
    return None if value is None else float(value)


def _fit_name(fit: Mapping[str, Any], *, many: bool) -> str:
    name = "before holdout" if fit["fold"] < 0 else f"fold {fit['fold']}"
    return f"{name}, seed {fit['seed']}" if many else name


def calibration(run: TrainingRun) -> list[Figure]:
    """Calibration of each model's best head on the validation folds, as reliability diagrams.

    Overlapping labels are not independent trials: each bin's count is scaled by effective n / n.
    """
    figures = []
    for model, heads in run.models.items():
        head = run.metrics["best_head"][model]
        made = heads[head]
        share = made["val"]["effective_n"] / max(1, made["val"]["n"])
        bins, cells = [], []
        for point in made["reliability"]:
            trials = point["n"] * share
            low, high = wilson(point["y"] * trials, trials) if trials > 0 else (None, None)
            bins.append(Bin(point["p"], point["y"], int(point["n"]), low, high))
            cells.append((point["p"], point["y"], low, high, int(point["n"])))
        title = f"{NAMES[model]} {run.shown(head)}"
        brier, base = made["val"]["brier"], made["val"]["base_rate"]
        note = ""
        if brier is not None and base is not None:
            note = f"Brier {brier:.4f}; always predicting {base:.3f} scores {base * (1 - base):.4f}"
        svg = charts.reliability(
            bins,
            title=f"Calibration, {title}",
            desc="Ten equally filled bins; on the diagonal the probabilities are calibrated",
            series=COLOURS[model],
        )
        table = Table(("predicted", "observed", "from", "to", "bars"), cells)
        figures.append(Figure(title, svg, table, note))
    return figures


def spread(run: TrainingRun) -> list[Figure]:
    """Distribution of each model's best head's probabilities, over the validation folds."""
    if not run.oof.is_file():
        return []
    import polars as pl  # noqa: PLC0415 - the other pages don't need it

    frame = pl.read_parquet(run.oof).filter(pl.col("fold") >= 0)
    figures = []
    for model in run.models:
        head = run.metrics["best_head"][model]
        name = f"p_{model}_{head}"
        if name not in frame.columns:
            continue
        values = frame[name].drop_nulls().drop_nans()
        edges = [k / 40 for k in range(41)]
        at = (values.cast(pl.Float64) * 40).floor().clip(0, 39).cast(pl.Int64).to_list()
        counts = [0] * 40
        for k in at:
            counts[k] += 1
        used = [k for k, count in enumerate(counts) if count] or [0]
        first, last = min(used[0], 19), max(used[-1], 20)
        title = f"{NAMES[model]} {run.shown(head)}"
        svg = charts.histogram(
            counts[first : last + 1],
            edges[first : last + 2],
            title=f"Predicted probabilities, {title}",
            x_label="predicted probability",
            y_label="bars",
            reference=0.5,
            series=COLOURS[model],
        )
        rows = [(f"{edges[k]:.3f} to {edges[k + 1]:.3f}", counts[k]) for k in used]
        figures.append(Figure(title, svg, Table(("probability", "bars"), rows)))
    return figures


def surrogates(run: TrainingRun) -> list[Figure]:
    """The sign-randomised null test: each AUC, their mean, and the band around chance."""
    figures = []
    for model, heads in run.audit.get("surrogates", {}).items():
        name = NAMES.get(model, model)
        for head in in_order(heads):
            made = heads[head]
            colour = COLOURS.get(model, 0)
            rows = [
                Interval(f"series {at}", value, series=colour, muted=True)
                for at, value in enumerate(made["values"], start=1)
            ]
            rows.append(Interval("mean", made["mean"], series=colour, strong=True))
            cells: list[tuple[Cell, ...]] = [(row.label, row.value) for row in rows]
            band = (0.5 - made["band"], 0.5 + made["band"])
            title = f"{name} {run.shown(head)} on sign-randomised bars"
            svg = charts.forest(
                rows,
                title=title,
                desc=f"The mean must lie within {band[0]:.3f} and {band[1]:.3f}",
                reference=0.5,
                band=band,
            )
            figures.append(Figure(title, svg, Table(("", "AUC"), cells)))
    return figures


def weights(run: TrainingRun) -> list[Figure]:
    """The final meta-model's weights on its standardised inputs, by head."""
    figures = []
    heads = run.stacking.get("heads", {})
    for head in in_order(heads):
        made = heads[head]
        items = list(zip(made["inputs"], made["meta_coefficients"], strict=True))
        cells: list[tuple[Cell, ...]] = [*items]
        beside = ("intercept", "slope", "oof_meta_auc", "n_oof_samples", "n_oof_scored")
        cells += [(name, made[name]) for name in beside]
        title = f"Weights at {run.shown(head)}"
        svg = charts.bars(
            items,
            title=f"Stacking: {title.lower()}",
            desc="Change of the log-odds per standard deviation of each input",
            label="log-odds per standard deviation",
            form="{:+.3f}",
            series=COLOURS["stacking"],
        )
        note = (
            f"fitted on {made['n_oof_samples']:,} out-of-fold bars, tested on "
            f"{made['n_oof_scored']:,}: AUC {made['oof_meta_auc']:.3f}; calibration slope "
            f"{made['slope']:.2f}"
        )
        if made["slope"] < FLAT:
            note += ", its lower limit: the out-of-fold scores of this head carry no signal"
        figures.append(Figure(title, svg, Table(("input", "value"), cells), note))
    return figures


def importance(run: TrainingRun) -> list[Figure]:
    """The features a family uses most, as shares of all it uses."""
    figures = []
    for model, shares in run.metrics.get("importance", {}).items():
        meaning, unit = _MEANING.get(kind_of(model), ("Share of all importance", "%"))
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        top = [(name, 100 * share) for name, share in ranked[:TOP]]
        rest = sum(share for _, share in ranked[TOP:])
        title = f"{NAMES.get(model, model)}: top {len(top)} of {len(ranked)} features"
        svg = charts.bars(
            top, title=title, desc=meaning, label=unit, form="{:.1f}", series=COLOURS.get(model, 0)
        )
        note = f"{meaning}. Equal use would be {100 / max(1, len(ranked)):.1f} %"
        if len(ranked) > TOP:
            note += f"; the other {len(ranked) - TOP} share {100 * rest:.0f} %"
        figures.append(Figure(title, svg, Table(("feature", unit), top), note + "."))
    return figures


def attention(run: TrainingRun) -> Figure | None:
    """The TFT's attention to each of the bars before the forecast."""
    past = run.metas.get("tft", {}).get("attention")
    if not past:
        return None
    points: list[tuple[float, float | None]] = [
        (at - len(past) + 1, 100 * share) for at, share in enumerate(past)
    ]
    title = "TFT: attention to past bars"
    svg = charts.lines(
        [Curve("attention", points, COLOURS["tft"])],
        title=title,
        desc="0 is the bar the forecast is made at",
        x_label="bars before the forecast",
        y_label="% of the attention",
        reference=100 / len(past),
    )
    note = "Mean over heads and the last training rows; the dashed line is equal attention."
    return Figure(title, svg, Table(("bar", "% of the attention"), points), note)


def durations(run: TrainingRun) -> Figure | None:
    """Where the time went, by stage of the last call."""
    stages = run.metrics.get("stages", {})
    if not stages:
        return None
    items = [(name, stage["seconds"]) for name, stage in stages.items()]
    rows = [(name, stage["seconds"], stage["peak_mb"]) for name, stage in stages.items()]
    svg = charts.bars(items, title="Seconds by stage", label="seconds", form="{:.1f}")
    return Figure("Time by stage", svg, Table(("stage", "seconds", "peak MiB"), rows))


def _domain(
    models: Mapping[str, Mapping[str, Any]], parts: Sequence[str], *, folds: bool = False
) -> tuple[float, float]:
    made = [
        heads[head][part] for heads in models.values() for head in in_order(heads) for part in parts
    ]
    if folds:
        made += [
            f for heads in models.values() for head in in_order(heads) for f in heads[head]["folds"]
        ]
    return around(finite([0.5, *(m[k] for m in made for k in ("value", "low", "high"))]))


def _line(
    name: str, made: Mapping[str, Any], series: int, *, muted: bool = False, strong: bool = False
) -> Interval:
    return Interval(name, made["value"], made["low"], made["high"], series, muted, strong)


def _cells(name: str, made: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        name,
        *(None if made[k] is None else round(made[k], 4) for k in ("value", "low", "high")),
        made["n"],
        made["effective_n"],
    )
