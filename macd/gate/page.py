"""The page of a gate report: the verdict, the shares against their thresholds, and the doubts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd import heads
from macd.heads import LOGGED, bars_ahead, in_order
from macd.host.judge.gate import more_words, outcome_words
from macd.host.untrusted import line
from macd.report import charts, numbers
from macd.report.charts import Curve, Interval
from macd.report.page import Figure, Table, render, write_page

PAGE = "report.html"
_LONGEST_WHY = 200  # characters in a row of a table; the report has all of it
_MOODS = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "warn"}
_SIGNS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}


def write(report: Path) -> Path:
    """Make the page beside a report.json; returns its path."""
    return write_page(report.with_name(PAGE), page(json.loads(report.read_bytes())))


def page(document: Mapping[str, Any]) -> str:
    """The HTML of one report."""
    findings = document["findings"]
    return render(
        "gate_report.html.j2",
        title=f"Gate: {document['verdict']}",
        mood=_MOODS[document["verdict"]],
        signs=_SIGNS,
        moods=_MOODS,
        doc=document,
        findings=findings,
        shares=shares(document),
        coverage=coverage(document),
        histograms=histograms(findings),
        agreement=agreement(findings),
        latency=latency(findings),
        realised=realised(findings),
        skill=skill(document.get("skill") or {}),
        skill_is_off=(document.get("skill") or {}).get("setting") == "off",
        own=document.get("own"),
        not_judged=document.get("not_judged", ""),
        symbols=symbols(document.get("symbols") or []),
        lacking=Table(("field", "lines"), list((findings.get("lacking") or {}).items())),
        meaning=document.get("meaning", ""),
        models=_models(findings),
        drift=drift_table(document.get("drift")),
        errors=_groups(findings["errors"]),
        severe=_groups(findings["severe"]),
        warnings=_groups(findings["warnings"]),
        skipped=_groups(findings["not_activated"]),
        quarantine=Table(
            ("file", "line", "why"),
            [(row["file"], row["line"], row["why"]) for row in findings["malformed"]["quarantine"]],
        ),
        logs=Table(
            ("log", "from byte", "to byte", "SHA-256"),
            [(row["name"], row["from"], row["to"], row["sha256"]) for row in document["logs"]],
        ),
        window=[_moment(document["window"][key]) for key in ("from_ms", "to_ms")],
    )


def symbols(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row for each symbol of a service that has several, the worst first; None for one."""
    if not rows:
        return None
    titles = [row["title"] for row in rows[0]["criteria"]]
    head = ("symbol", "verdict", "why", "bars", *titles, "skill", "drift", "newest bar")
    return Table(head, [_symbol(row) for row in rows])


def _symbol(row: Mapping[str, Any]) -> tuple[Any, ...]:
    against = (row["skill"] or {}).get("against", {}).get("mean")
    errors = [group["example"] for group in row["errors"][:1]]
    skill = f"{outcome_words(against)} ({against['n']:,} bars)" if against else "–"
    return (
        row["symbol"],
        row["verdict"],
        line("; ".join([*row["reasons"], *errors]) or "–", _LONGEST_WHY),
        row["bars"],
        *(_share_of(criterion) for criterion in row["criteria"]),
        skill,
        row["drift"]["outcome"] if row["drift"] else "–",
        "–" if row["newest_bar"] is None else _moment(row["newest_bar"]),
    )


def _share_of(criterion: Mapping[str, Any]) -> str:
    counted = f"{criterion['successes']} of {criterion['trials']}"
    rate = criterion["rate"]
    return "nothing to judge" if rate is None else f"{100 * rate:.1f} % ({counted})"


def drift_table(drift: Mapping[str, Any] | None) -> Table | None:
    """The two shares of the newest block against their limits; None where none was judged."""
    if drift is None:
        return None
    rows = [
        ("values outside the training's range", drift["outside"], drift["outside_limit"], None),
        ("bars of the worst feature", drift["worst"], drift["worst_limit"], drift["feature"]),
    ]
    shown = [(what, numbers.share(s), numbers.share(most), name) for what, s, most, name in rows]
    return Table(("share", "of the block", "at most", "feature"), shown)


def _moment(epoch_ms: int) -> str:
    return f"{datetime.fromtimestamp(epoch_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _groups(groups: list[Mapping[str, Any]]) -> Table:
    rows = [(g["example"], g["count"], _moment(g["first"]), _moment(g["last"])) for g in groups]
    return Table(("what", "lines", "first", "last"), rows)


def _models(findings: Mapping[str, Any]) -> Table:
    counts = ("answers", "missing", "not_finite", "outside", "stuck")
    measures = ("min", "max", "mean", "spread")
    head = ("model", "answers", "missing", "NaN or ∞", "outside (0, 1)", "stuck")
    rows = [
        (
            shown,
            *(findings["models"][name][key] for key in counts),
            *(_digits(findings["models"][name][key]) for key in measures),
        )
        for name, shown in _shown(findings).items()
    ]
    return Table((*head, "min", "max", "mean", "spread"), rows)


def _shown(findings: Mapping[str, Any]) -> dict[str, str]:
    """The models of a report by their titles; of an application of the team's own some, or more."""
    models = findings["models"]
    known = {name: title for name, title in LOGGED.items() if name in models}
    return {**known, **{name: name for name in models if name not in LOGGED}}


def _digits(value: float | None) -> str | None:
    """Probabilities under one another, digit under digit."""
    return None if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"


_SERIES = {"p": 4, "lgb": 0, "lstm": 1, "tft": 2, "stacking": 3}
_SERIES |= {family: 5 + at for at, family in enumerate(heads.PANEL)}
_FAMILIES = ("lgb", "lstm", "tft", *heads.PANEL, "stacking")
_OTHERS = {"mean": "models' mean", "challenger": "challenger"}
_NAMES = {**LOGGED, **{family: heads.NAMES[family] for family in heads.PANEL}}


def shares(document: Mapping[str, Any]) -> list[Figure]:
    """One small forest a criterion: the rate with three kinds of bounds, and its threshold."""
    made = []
    for at, criterion in enumerate(document["criteria"]):
        kinds = (
            ("Wilson 95 %", criterion["wilson"]),
            ("exact, one look", criterion["clopper_pearson"]),
            ("any look", criterion["anytime"]),
        )
        rate = None if criterion["rate"] is None else 100 * criterion["rate"]
        rows = [
            Interval(label, rate, 100 * low, 100 * high, series=at % 8, strong=not n, muted=n == 1)
            for n, (label, (low, high)) in enumerate(kinds)
        ]
        lowest = min(100 * criterion["threshold"], *(row.low or 0.0 for row in rows))
        title = f"{criterion['title']}: must exceed {100 * criterion['threshold']:g} %"
        made.append(
            Figure(
                title,
                charts.forest(
                    rows,
                    title=title,
                    reference=100 * criterion["threshold"],
                    # Little happens far below the threshold; air for the dot at 100 %.
                    domain=(max(0.0, lowest - 5), 101.0),
                    label="% of bars",
                    form=lambda value: numbers.decimal(value, 1),
                ),
                Table(
                    ("bounds", "share", "low", "high"),
                    [
                        (label, *map(numbers.share, (criterion["rate"], *bounds)))
                        for label, bounds in kinds
                    ],
                ),
                f"{criterion['successes']:,} of {criterion['trials']:,}",
            )
        )
    return made


def coverage(document: Mapping[str, Any]) -> list[Figure]:
    """Coverage and activation over time; the dashed line is what coverage must exceed."""
    rows = document["findings"]["timeline"]
    if not rows:
        return []
    began = rows[0][0]
    hours = [(row[0] - began) / 3.6e6 for row in rows]
    covered = [(h, 100 * row[2] / row[1]) for h, row in zip(hours, rows, strict=True)]
    activated = [
        (h, 100 * row[3] / row[2] if row[2] else None) for h, row in zip(hours, rows, strict=True)
    ]
    is_mapped = any(row["name"] == "ml_coverage" for row in document["criteria"])
    title = "Coverage and activation over time" if is_mapped else "Good bars over time"
    threshold = next(
        (100 * row["threshold"] for row in document["criteria"] if row["name"] == "ml_coverage"),
        None,
    )
    curves = [Curve("coverage", covered, 0), Curve("activation", activated, 3)]
    if not is_mapped:
        curves = [Curve("good by every share", covered, 0)]
    start = f"{datetime.fromtimestamp(began / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    table = Table(
        ("hours", "bars", "covered", "activated"),
        [(h, *row[1:]) for h, row in zip(hours, rows, strict=True)],
    )
    svg = charts.lines(
        curves,
        title=title,
        x_label=f"hours since {start}",
        y_label="% of bars",
        reference=threshold,
    )
    note = "" if threshold is None else f"dashed: {threshold:g} %, what coverage must exceed"
    return [Figure(title, svg, table, note)]


def histograms(findings: Mapping[str, Any]) -> list[Figure]:
    """How each model's probabilities are spread."""
    made = []
    for at, (name, shown) in enumerate(_shown(findings).items()):
        counts = findings["models"][name]["histogram"]
        edges = [n / len(counts) for n in range(len(counts) + 1)]
        title = f"{shown}: probability of up" if name in LOGGED else f"{shown}: in [0, 1]"
        svg = charts.histogram(
            counts,
            edges,
            title=title,
            x_label="probability",
            y_label="bars",
            reference=0.5,
            series=_SERIES.get(name, at % 8),
        )
        rows = [
            (f"{a:.2f} to {b:.2f}", count)
            for count, a, b in zip(counts, edges, edges[1:], strict=False)
        ]
        made.append(Figure(title, svg, Table(("probability", "bars"), rows)))
    return made


def agreement(findings: Mapping[str, Any]) -> list[Figure]:
    """How often two models are on the same side of a half."""
    pairs = findings["agreement"]
    if not pairs:
        return []
    title = "Models on the same side of a half"
    items = [(_pair(name), pair["same_side"]) for name, pair in pairs.items()]
    rows = [
        (
            _pair(name),
            numbers.share(pair["same_side"]),
            numbers.decimal(pair["correlation"], 2),
            numbers.count(pair["n"]),
        )
        for name, pair in pairs.items()
    ]
    svg = charts.bars(
        items,
        title=title,
        label="share of bars",
        form=lambda value: numbers.decimal(value, 2),
        series=2,
    )
    return [Figure(title, svg, Table(("pair", "same side", "correlation", "bars"), rows))]


def latency(findings: Mapping[str, Any]) -> list[Figure]:
    """How long the models took, a decade in twenty steps."""
    figures = findings["latency_ms"]
    if not figures["n"]:
        return []
    title = "Latency of the models"
    items = [(name, figures[name]) for name in ("p50", "p90", "p99", "max")]
    svg = charts.bars(
        items,
        title=title,
        label="milliseconds",
        form=lambda value: numbers.decimal(value, 2),
        series=1,
    )
    steps = [(f"up to {limit:.3g} ms", count) for limit, count in figures["steps"]]
    return [Figure(title, svg, Table(("latency", "bars"), steps), f"{figures['n']:,} bars")]


def realised(findings: Mapping[str, Any]) -> list[Figure]:
    """AUC of realised outcomes, by horizon."""
    made = []
    for head in in_order({row["head"] for row in findings["realised"]}):
        rows = sorted(
            (
                {**row, "of": "lgb" if row["model"] == "lgbm" else row["model"]}
                for row in findings["realised"]
                if row["head"] == head
            ),
            key=lambda row: _FAMILIES.index(row["of"]),
        )
        if all(row["value"] is None for row in rows):
            continue
        ahead = head if head.endswith("h") else f"{bars_ahead(head)} bars"
        title = f"Realised AUC, {ahead} ahead"
        marks = [
            Interval(
                _NAMES[row["of"]], row["value"], row["low"], row["high"], series=_SERIES[row["of"]]
            )
            for row in rows
        ]
        table = Table(
            ("model", "AUC", "low", "high", "bars", "worth"),
            [
                (_NAMES[r["of"]], r["value"], r["low"], r["high"], r["n"], r["effective_n"])
                for r in rows
            ],
        )
        svg = charts.forest(marks, title=title, reference=0.5, domain=(0.0, 1.0), label="AUC")
        most = max(rows, key=lambda row: int(row["n"]))
        note = f"{most['n']:,} bars, worth {most['effective_n']:,.0f} that don't overlap"
        made.append(Figure(title, svg, table, note))
    return made


def skill(comparison: Mapping[str, Any]) -> list[Figure]:
    """What stacking's scores have over those of others, with bounds that hold at every look."""
    made = []
    for score, words in (("log_score", "Log score"), ("brier", "Brier score")):
        rows = [
            (_OTHERS[name], row, row[score])
            for name, row in comparison.get("against", {}).items()
            if row[score]["value"] is not None
        ]
        if not rows:
            continue
        title = f"{words} of stacking minus that of the other forecast"
        marks = [
            Interval(other, figure["value"], figure["low"], figure["high"], series=3)
            for other, _, figure in rows
        ]
        table = Table(
            ("minus", "difference", "low", "high", "bars", "outcome"),
            [
                (
                    f"{other} {row.get('release', '')}".strip(),
                    *(_signed(figure[key]) for key in ("value", "low", "high")),
                    row["n"],
                    _said(row),
                )
                for other, row, figure in rows
            ],
        )
        ends = [abs(figure[end]) for _, _, figure in rows for end in ("low", "high")]
        widest = max(1.2 * max(ends), 1e-4)
        svg = charts.forest(
            marks,
            title=title,
            reference=0.0,
            domain=(-widest, widest),
            label="more is better",
            form=_signed,
        )
        made.append(Figure(title, svg, table, f"{rows[0][1]['n']:,} bars at {comparison['head']}"))
    return made


def _said(row: Mapping[str, Any]) -> str:
    return f"{outcome_words(row)}{more_words(row)}"


def _signed(value: float | None) -> str:
    return "" if value is None else numbers.decimal(value, 4, signed=True)


def _pair(name: str) -> str:
    a, _, b = name.partition(" and ")
    return f"{LOGGED[a]}, {LOGGED[b]}"
