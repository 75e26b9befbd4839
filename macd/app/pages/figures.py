"""The charts of a training's page: which numbers go into which chart, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from macd.app.pages import names
from macd.heads import BASELINE, MEAN, MODELS, NAMES, PANEL, RIDGE, in_order, kind_of
from macd.host.judge.bounds import wilson
from macd.report import charts, numbers
from macd.report.charts import Bin, Curve, Interval, around, finite
from macd.report.page import Cell, Figure, Table, moment
from macd.run_directory import TrainingRun

TOP = 20
FLAT = 0.101  # calibration slopes of older runs ended at 0.1
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
    domain = _domain(run.compared, (part, f"{part}_all"))
    figures = []
    for head in run.heads:
        rows, cells = [], []
        for model, heads in run.compared.items():
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
            values: list[Cell] = [numbers.decimal(y, 4) for _, y in curve.points]
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

    On all bars, which production meets; runs of earlier versions have only those that moved.

    Overlapping labels are not independent trials: each bin's count is scaled by effective n / n.
    """
    figures = []
    part = "val_all" if "comparison" in run.metrics else "val"  # older runs: moves only
    for model, heads in run.models.items():
        head = run.metrics["best_head"][model]
        made = heads[head]
        share = made[part]["effective_n"] / max(1, made[part]["n"])
        bins, cells = [], []
        for point in made["reliability"]:
            trials = point["n"] * share
            low, high = wilson(point["y"] * trials, trials) if trials > 0 else (None, None)
            bins.append(Bin(point["p"], point["y"], int(point["n"]), low, high))
            ends = (point["p"], point["y"], low, high)
            cells.append((*map(numbers.share, ends), numbers.count(point["n"])))
        title = f"{NAMES[model]} {run.shown(head)}"
        brier, base = made[part]["brier"], made[part]["base_rate"]
        note = ""
        if brier is not None and base is not None:
            always = numbers.decimal(base * (1 - base), 4)
            note = f"Brier {numbers.decimal(brier, 4)}; always {numbers.share(base)}: {always}"
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
        rows = [
            (
                f"{numbers.share(edges[k])} to {numbers.share(edges[k + 1])}",
                numbers.count(counts[k]),
            )
            for k in used
        ]
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
            cells: list[tuple[Cell, ...]] = [(row.label, numbers.auc(row.value)) for row in rows]
            band = (0.5 - made["band"], 0.5 + made["band"])
            title = f"{name} {run.shown(head)} on sign-randomised bars"
            svg = charts.forest(
                rows,
                title=title,
                desc=f"The mean must lie within {numbers.auc(band[0])} and {numbers.auc(band[1])}",
                reference=0.5,
                band=band,
            )
            figures.append(Figure(title, svg, Table(("", "AUC"), cells)))
    return figures


def weights(run: TrainingRun) -> list[Figure]:
    """The final meta-model's weights on its inputs, by head; older runs standardised them."""
    figures = []
    heads = run.stacking.get("heads", {})
    for head in in_order(heads):
        made = heads[head]
        weights = zip(map(names.feature, made["inputs"]), made["meta_coefficients"], strict=True)
        items = list(weights)
        beside = [("intercept", made["intercept"]), ("calibration slope", made["slope"])]
        cells: list[tuple[Cell, ...]] = [
            (name, numbers.difference(value)) for name, value in (*items, *beside)
        ]
        unit = "unit" if set(made.get("scale", [])) == {1.0} else "standard deviation"
        title = f"Weights at {run.shown(head)}"
        svg = charts.bars(
            items,
            title=f"Stacking: {title.lower()}",
            desc=f"Change of the log-odds per {unit} of each input",
            label=f"log-odds per {unit}",
            form=numbers.difference,
            series=COLOURS["stacking"],
        )
        note = (
            f"fitted on {numbers.count(made['n_oof_samples'])} out-of-fold samples, tested on "
            f"{numbers.count(made['n_oof_scored'])}: AUC {numbers.auc(made['oof_meta_auc'])}; "
            f"calibration slope {numbers.decimal(made['slope'], 2)}"
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
        top = [(names.feature(name), 100 * share) for name, share in ranked[:TOP]]
        rest = sum(share for _, share in ranked[TOP:])
        title = f"{NAMES.get(model, model)}: top {len(top)} of {len(ranked)} features"
        svg = charts.bars(
            top, title=title, desc=meaning, label=unit, form=_one, series=COLOURS.get(model, 0)
        )
        note = f"{meaning}. Equal use would be {numbers.share(1 / max(1, len(ranked)))}"
        if len(ranked) > TOP:
            note += f"; the other {len(ranked) - TOP} share {numbers.share(rest)}"
        cells = [(name, numbers.decimal(value, 1)) for name, value in top]
        figures.append(Figure(title, svg, Table(("feature", unit), cells), note + "."))
    return figures


def roc(run: TrainingRun) -> list[Figure]:
    """The ROC curve of each model's best head on all validation bars."""
    figures = []
    for model, heads in run.models.items():
        head = run.metrics["best_head"][model]
        points = heads[head].get("roc")
        if points:
            title = f"{NAMES[model]} {run.shown(head)}"
            svg = charts.roc(
                points,
                title=f"ROC curve, {title}",
                desc="On the diagonal is chance",
                series=COLOURS[model],
            )
            cells = [tuple(map(numbers.share, point)) for point in points]
            table = Table(("falling bars called up", "rising bars called up"), cells)
            area = heads[head]["val_all"]
            note = f"Area {numbers.interval(area['value'], area['low'], area['high'])}."
            figures.append(Figure(title, svg, table, note))
    return figures


def hits(run: TrainingRun) -> list[Figure]:
    """How often each model's best head is right on all bars, the surer its answers."""
    figures = []
    for model, heads in run.models.items():
        head = run.metrics["best_head"][model]
        parts = heads[head].get("confidence")
        if not parts or not any(parts.values()):
            continue
        rows, cells = [], []
        for part, where in (("val", "validation"), ("test", "holdout")):
            for made in parts[part]:
                ends = [numbers.share(0.5 + made[key]) for key in ("from", "to")]
                muted = part == "test"
                name = f"{'· ' if muted else ''}{ends[0].removesuffix(' %')} to {ends[1]}"
                rows.append(_line(name, made, COLOURS[model], muted=muted))
                hits = [numbers.share(made[k]) for k in ("value", "low", "high")]
                cells.append((f"{ends[0]} to {ends[1]}, {where}", *hits, numbers.count(made["n"])))
        title = f"{NAMES[model]} {run.shown(head)}"
        svg = charts.forest(
            rows,
            title=f"Right by confidence, {title}",
            desc="Share of bars whose direction was right, by the probability of the side taken",
            label="share right",
            reference=0.5,
            form=numbers.share,
        )
        table = Table(("probability of the side", "right", "from", "to", "bars"), cells)
        figures.append(Figure(title, svg, table, "· is the holdout."))
    return figures


def contributions(run: TrainingRun) -> list[Figure]:
    """What LightGBM's features add to its signals, by family and by feature, each head."""
    made = run.metrics.get("contributions")
    if not made:
        return []
    unit = "change of the log-odds, mean size"
    figures = []
    for key, what, most in (("by_family", "family", TOP), ("by_feature", "feature", 12)):
        for head in in_order(made[key]):
            ranked = list(made[key][head].items())[:most]
            items = [(names.feature(n) if what == "feature" else n, v) for n, v in ranked]
            title = f"{run.shown(head)}, by {what}"
            svg = charts.bars(
                items,
                title=f"Contributions to LightGBM {title}",
                desc=f"Mean over {numbers.count(made['rows'])} holdout bars",
                label=unit,
                series=COLOURS["lgbm"],
            )
            cells = [(name, numbers.auc(value)) for name, value in items]
            figures.append(Figure(title, svg, Table((what, unit), cells)))
    return figures


def latest(run: TrainingRun) -> list[tuple[str, Table]]:
    """What stood behind LightGBM's answers at the newest bars, a table a head."""
    made = run.metrics.get("contributions", {})
    tables = []
    for head in in_order(made.get("by_family", {})):
        families = list(made["latest"][0]["heads"][head]["by_family"])
        rows: list[tuple[Cell, ...]] = []
        for bar in reversed(made["latest"]):
            at = bar["heads"][head]
            given = (numbers.difference(at["by_family"][name]) for name in families)
            most, size = next(iter(at["largest"].items()))
            most_moved = f"{names.feature(most)} {numbers.difference(size)}"
            rows.append((moment(bar["time"]), numbers.share(at["p"]), *given, most_moved))
        columns = ("bar (UTC)", "up, uncalibrated", *families, "largest feature")
        tables.append((run.shown(head), Table(columns, rows)))
    return tables


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
    cells = [(f"{at:g}".replace("-", "−"), numbers.decimal(value, 1)) for at, value in points]
    return Figure(title, svg, Table(("bar", "% of the attention"), cells), note)


def durations(run: TrainingRun) -> Figure | None:
    """Where the time went, by stage of the last call."""
    stages = run.metrics.get("stages", {})
    if not stages:
        return None
    items = [(names.stage(name), stage["seconds"]) for name, stage in stages.items()]
    rows = [
        (name, numbers.decimal(seconds, 1), numbers.count(stage["peak_mb"]))
        for (name, seconds), stage in zip(items, stages.values(), strict=True)
    ]
    svg = charts.bars(items, title="Seconds by stage", label="seconds", form=_one)
    return Figure("Time by stage", svg, Table(("stage", "seconds", "peak MiB"), rows))


def _one(value: float | None) -> str:
    return numbers.decimal(value, 1)


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
        *(numbers.auc(made[k]) for k in ("value", "low", "high")),
        numbers.count(made["n"]),
        numbers.count(made["effective_n"]),
    )
