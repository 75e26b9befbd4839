"""What the page of a training opens with: what its policies earned, and how the models compare.

Both are of bars that no model was trained on. Runs of earlier versions have neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from macd.app.pages.figures import COLOURS
from macd.heads import COMPARED, NAMES
from macd.report import charts, numbers
from macd.report.charts import Curve, Interval
from macd.report.page import Cell, Figure, Table
from macd.run_directory import FILES, TrainingRun

PARTS = {"val": "validation", "test": "holdout"}
_HOLD = "buy_and_hold"
_DAY_MS = 86_400_000
_ROWS = 24  # of the table beside the curves


def equity(run: TrainingRun) -> list[Figure]:
    """Growth and drawdown of the policies that matter most, on validation and on the holdout."""
    path = run.directory / FILES.policies(run.tf)
    policies = run.metrics.get("policies")
    if not policies or not path.is_file():
        return []
    import polars as pl  # noqa: PLC0415 - the other pages don't need it

    table = pl.read_parquet(path)
    figures = []
    for part, where in PARTS.items():
        rows = table.filter(pl.col("part") == part)
        days = (rows["bar_time"].dt.epoch("ms") // _DAY_MS).cast(pl.Float64).to_list()
        curves = [
            Curve(
                _title(policies, part, key), list(zip(days, rows[key].to_list(), strict=True)), at
            )
            for at, key in _leading(policies, part)
            if key in rows.columns
        ]
        title = f"Policies net of costs, {where}"
        svg = charts.equity(
            curves, title=title, desc="Above what each won or lost, below its drawdown, by day"
        )
        figures.append(Figure(title, svg, _equity_table(curves)))
    return figures


def _leading(policies: Mapping[str, Any], part: str) -> list[tuple[int, str]]:
    """The configured policy, what it is measured against, and each one's colour."""
    configured = policies["settings"]["configured"]
    wanted = ("base", configured.replace("stacking", "mean"), configured, "prob_stacking")
    colours = dict(
        zip(dict.fromkeys((*wanted, "prob_mean", _HOLD)), (0, 2, 3, 1, 5, 4), strict=False)
    )
    keys = dict.fromkeys((*wanted, _HOLD))
    return [(colours[key], key) for key in keys if key in policies[part]]


def _title(policies: Mapping[str, Any], part: str, key: str) -> str:
    title = str(policies[part][key]["title"]).capitalize()
    return f"{title} (configured)" if key == policies["settings"]["configured"] else title


def _equity_table(curves: Sequence[Curve]) -> Table:
    """Some of the days, the last among them."""
    count = len(curves[0].points) if curves else 0
    at = sorted({round(k * (count - 1) / (_ROWS - 1)) for k in range(_ROWS)}) if count else []
    rows: list[tuple[Cell, ...]] = [
        (
            f"{charts.date_of(curves[0].points[k][0])}",
            *(numbers.gain((curve.points[k][1] or 0.0) - 1.0) for curve in curves),
        )
        for k in at
    ]
    return Table(("day", *(curve.label for curve in curves)), rows)


def policies_table(run: TrainingRun, part: str) -> Table | None:
    """Every policy's figures on one part; None where the run has none."""
    policies = run.metrics.get("policies")
    if not policies:
        return None
    head = ("policy", "a trade, bp net", "trades", "hits", "exposure", "turnover a year")
    more = ("net result", "Sharpe", "deflated", "largest drawdown")
    rows: list[tuple[Cell, ...]] = []
    for key, made in policies[part].items():
        rows.append(
            (
                _title(policies, part, key),
                _edge(made),
                numbers.count(made["trades"]),
                numbers.share(made["hit_rate"]),
                numbers.share(made["exposure"]),
                numbers.count(made["turnover"]),
                numbers.gain(made["net_return"]),
                numbers.decimal(made["sharpe"], 2, signed=True),
                numbers.share(made["deflated_sharpe"]),
                numbers.share(made["max_drawdown"]),
            )
        )
    return Table((*head, *more), rows)


def policy_words(run: TrainingRun) -> list[str]:
    """What the curves are of, what they leave out, and that they promise nothing."""
    policies = run.metrics.get("policies")
    if not policies:
        return []
    s = policies["settings"]
    policy, configured = s["policy"], s["configured"]
    edges = " and ".join(
        f"{_edge(made)} in {numbers.count(made['trades'])} trades on {where}"
        for made, where in ((policies[part][configured], where) for part, where in PARTS.items())
    )
    title = policies["val"][configured]["title"]
    words = [f"Configured policy, {title}, basis points a trade: {edges}."]
    changed = policies["flag_changes"].get("val", {}).get(policy["kind"])
    if changed is not None:
        held_out = policies["flag_changes"].get("test", {}).get(policy["kind"])
        words[0] += (
            f" The stacking flag changes {numbers.share(changed)} of its actions on validation, "
            f"{numbers.share(held_out)} on the holdout."
        )
    words.append(
        f"At {run.shown(s['head'])}, net of {policy['fee_bps']:g} bp fee and "
        f"{policy['slippage_bps']:g} bp slippage for each buying and each selling. "
        f"Not modelled: {'; '.join(policies['not_modelled'])}. "
        "The head was chosen by its AUC on the same validation bars, so the figures there flatter. "
        "This is what would have happened once, on these bars. It is no claim of profit."
    )
    return words


def _edge(made: Mapping[str, Any]) -> str:
    """Mean of a trade in basis points."""
    mean = made["mean_net_bp"]
    if mean["value"] is None:
        return "no trade"
    return numbers.interval(mean["value"], mean["low"], mean["high"], numbers.basis_points)


def discrimination(run: TrainingRun, head: str) -> list[Figure]:
    """AUC on all bars where every model speaks, and what stacking adds to the mean and the best."""
    compared = run.metrics.get("comparison", {}).get(head)
    if not compared:
        return []
    rows, cells = [], []
    for model in (name for name in COMPARED if name in compared["val_all"]["models"]):
        for part, where in PARTS.items():
            made, muted = compared[f"{part}_all"]["models"][model], part == "test"
            name = f"· {where}" if muted else NAMES[model]
            rows.append(_line(name, made, COLOURS.get(model, 0), muted=muted))
            cells.append(
                (
                    f"{NAMES[model]}, {where}",
                    *_written(made, numbers.auc),
                    *(numbers.decimal(made[k], 4) for k in ("brier", "log_loss")),
                )
            )
    title = f"AUC on all bars, {run.shown(head)} ahead"
    svg = charts.forest(
        rows,
        title=title,
        desc="Every model on the same bars with its 95 % interval; chance is 0.5",
        reference=0.5,
    )
    bars = " and ".join(
        f"{numbers.count(compared[f'{part}_all']['n'])} {where} bars"
        for part, where in PARTS.items()
    )
    table = Table(("", "AUC", "from", "to", "Brier", "log loss"), cells)
    return [
        Figure(title, svg, table, f"The same {bars} for all."),
        *_differences(run, head, compared),
    ]


def _differences(run: TrainingRun, head: str, compared: Mapping[str, Any]) -> list[Figure]:
    rows, cells = [], []
    for key, made in compared["val_all"]["differences"].items():
        one, _, other = key.partition("_minus_")
        against = NAMES[made.get("best", other)] + (" (best)" if "best" in made else "")
        for part, where in PARTS.items():
            difference, muted = compared[f"{part}_all"]["differences"][key], part == "test"
            if one == "stacking":
                label = f"· {where}" if muted else against
                rows.append(_line(label, difference, COLOURS[one], muted=muted))
            whole = f"{NAMES[one]} minus {against}, {where}"
            cells.append((whole, *_written(difference, numbers.difference)))
    if not rows:
        return []
    title = f"Stacking minus others, {run.shown(head)} ahead"
    svg = charts.forest(
        rows,
        title=f"{title}: difference of AUC on all bars",
        desc="Paired on the same bars with 95 % intervals; 0 is no difference",
        reference=0.0,
        form=numbers.difference,
    )
    return [Figure(title, svg, Table(("", "difference", "from", "to"), cells))]


def _line(name: str, made: Mapping[str, Any], series: int, *, muted: bool) -> Interval:
    return Interval(name, made["value"], made["low"], made["high"], series, muted)


def _written(made: Mapping[str, Any], form: numbers.Form) -> tuple[str, ...]:
    return tuple(form(made[key]) for key in ("value", "low", "high"))
