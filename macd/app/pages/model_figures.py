"""The drawings of what the models are made of: stacking weights, features, attention."""

from __future__ import annotations

from macd.app.pages.run import NAMES, TrainingRun
from macd.app.pages.training_figures import COLOURS
from macd.heads import in_order
from macd.report import charts
from macd.report.charts import Curve
from macd.report.page import Cell, Figure, Table

TOP = 20
FLAT = 0.101  # calibration slopes end at 0.1 (macd.app.train.stacking)
_MEANING = {
    "lgbm": ("Share of the total gain, mean over the heads", "% of the gain"),
    "tft": ("Mean weight in the variable selection, last training rows", "% of the weight"),
}


def weights(run: TrainingRun) -> list[Figure]:
    """The final meta-model's weights on its standardised inputs, by head."""
    figures = []
    heads = run.stacking.get("heads", {})
    for head in in_order(heads):
        made = heads[head]
        items = list(zip(made["inputs"], made["meta_coefficients"], strict=True))
        told: list[tuple[Cell, ...]] = [*items]
        beside = ("intercept", "slope", "oof_meta_auc", "n_oof_samples", "n_oof_scored")
        told += [(name, made[name]) for name in beside]
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
            f"learnt from {made['n_oof_samples']:,} out-of-fold bars, judged on "
            f"{made['n_oof_scored']:,}: AUC {made['oof_meta_auc']:.3f}; calibration slope "
            f"{made['slope']:.2f}"
        )
        if made["slope"] < FLAT:
            note += ", its lower limit: the out-of-fold scores of this head told nothing"
        figures.append(Figure(title, svg, Table(("input", "value"), told), note))
    return figures


def importance(run: TrainingRun) -> list[Figure]:
    """The features a family leans on most, as shares of all it uses."""
    figures = []
    for model, shares in run.metrics.get("importance", {}).items():
        meaning, unit = _MEANING.get(model, ("Share of all importance", "%"))
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        top = [(name, 100 * share) for name, share in ranked[:TOP]]
        rest = sum(share for _, share in ranked[TOP:])
        title = f"{NAMES.get(model, model)}: top {len(top)} of {len(ranked)} features"
        svg = charts.bars(
            top,
            title=title,
            desc=meaning,
            label=unit,
            form="{:.1f}",
            series=COLOURS.get(model, 0),
        )
        note = f"{meaning}. Equal use would be {100 / max(1, len(ranked)):.1f} %"
        if len(ranked) > TOP:
            note += f"; the other {len(ranked) - TOP} share {100 * rest:.0f} %"
        figures.append(Figure(title, svg, Table(("feature", unit), top), note + "."))
    return figures


def attention(run: TrainingRun) -> Figure | None:
    """How much the TFT looks at each of the bars behind the last one."""
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
