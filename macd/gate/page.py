"""The page of a gate report: the verdict, the shares against their thresholds, and the doubts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.gate import page_figures as figures
from macd.report.page import Table, render, write_page

PAGE = "report.html"
_MOODS = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "warn"}
_SIGNS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}


def write(report: Path) -> Path:
    """Make the page beside a report.json; returns its path."""
    return write_page(report.with_name(PAGE), page(json.loads(report.read_bytes())))


def page(document: Mapping[str, Any]) -> str:
    """The HTML of one report."""
    found = document["findings"]
    return render(
        "gate_report.html.j2",
        title=f"Gate: {document['verdict']}",
        mood=_MOODS[document["verdict"]],
        signs=_SIGNS,
        moods=_MOODS,
        doc=document,
        found=found,
        shares=figures.shares(document),
        coverage=figures.coverage(document),
        histograms=figures.histograms(found),
        agreement=figures.agreement(found),
        latency=figures.latency(found),
        realised=figures.realised(found),
        models=_models(found),
        errors=_groups(found["errors"]),
        severe=_groups(found["severe"]),
        warnings=_groups(found["warnings"]),
        skipped=_groups(found["not_activated"]),
        quarantine=Table(
            ("file", "line", "why"),
            [(one["file"], one["line"], one["why"]) for one in found["malformed"]["quarantine"]],
        ),
        logs=Table(
            ("log", "from byte", "to byte", "SHA-256"),
            [(one["name"], one["from"], one["to"], one["sha256"]) for one in document["logs"]],
        ),
        window=[_moment(document["window"][key]) for key in ("from_ms", "to_ms")],
    )


def _moment(epoch_ms: int) -> str:
    return f"{datetime.fromtimestamp(epoch_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _groups(groups: list[Mapping[str, Any]]) -> Table:
    rows = [(g["example"], g["count"], _moment(g["first"]), _moment(g["last"])) for g in groups]
    return Table(("what", "lines", "first", "last"), rows)


def _models(found: Mapping[str, Any]) -> Table:
    counts = ("answers", "missing", "not_finite", "outside", "stuck")
    measures = ("min", "max", "mean", "spread")
    head = ("model", "answers", "missing", "NaN or ∞", "outside (0, 1)", "stuck")
    rows = [
        (
            shown,
            *(found["models"][name][key] for key in counts),
            *(_digits(found["models"][name][key]) for key in measures),
        )
        for name, shown in figures.NAMES.items()
    ]
    return Table((*head, "min", "max", "mean", "spread"), rows)


def _digits(value: float | None) -> str | None:
    """Probabilities under one another, digit under digit."""
    return None if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
