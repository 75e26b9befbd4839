"""The model card: what these models are for, how good they are, and where not to trust them.

Written from the manifest's own details, so that card and manifest can't disagree. The words stand
in templates/card.j2, once for the page and for Markdown. Pure but for reading the templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from macd.criteria import looks_at, looks_meaning
from macd.heads import (
    BASELINE,
    BASELINES,
    NAMES,
    RIDGE,
    bars_ahead,
    explained,
    headline_of,
    shown,
)
from macd.run_directory import auc_text

TEMPLATES = Path(__file__).parents[2] / "templates"
HTML, MARKDOWN = "card.html", "card.md"
_COLUMNS = (
    *("model", "head", "validation", "holdout", "validation, all bars", "holdout, all bars"),
    "n",
)
_PLAIN = "{% block header %}{% endblock %}{% block main %}{% endblock %}"
_NAMES = {**NAMES, **{name: f"{NAMES[name]} (baseline)" for name in BASELINES}}
_PARTS = ("val", "test", "val_all", "test_all")


def render(
    details: Mapping[str, Any],
    *,
    app: str,
    env: str,
    serial: int,
    created: datetime,
    expires: datetime,
    templates: Path = TEMPLATES,
) -> dict[str, bytes]:
    """card.html and card.md of a release with these manifest details."""
    words = {
        "title": f"Model card: {details['symbol']} {details['tf']}",
        "details": details,
        "app": app,
        "env": env,
        "serial": serial,
        "created": f"{created:%Y-%m-%d %H:%M} UTC",
        "expires": f"{expires:%Y-%m-%d %H:%M} UTC",
        "columns": _COLUMNS,
        "rows": _rows(details),
        "checked": _checked(details),
        "looks": looks_at(details["holdout"]),
        "looks_meaning": looks_meaning(looks_at(details["holdout"])),
        "caveats": list(details.get("caveats", [])),
        "heads": explained(details["tf"]),
        "missed": [outcome for outcome in details["criteria"] if not outcome["ok"]],
        "accepted": " ".join(str(details["accepted"] or "").split()),
        "baseline": _NAMES[BASELINE],
        "linear": _NAMES[RIDGE] if RIDGE in details["metrics"] else "",
    }
    return {
        HTML: _filled(templates, words, html=True),
        MARKDOWN: _filled(templates, words, html=False),
    }


def _filled(templates: Path, words: Mapping[str, Any], *, html: bool) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=jinja2.select_autoescape(["j2"] if html else []),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    layout = "report_base.html.j2" if html else environment.from_string(_PLAIN)
    text = environment.get_template("card.j2").render(words, html=html, layout=layout)
    return text.encode() if html else f"{text.rstrip()}\n".encode()


def _rows(details: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a model and head: name, head (the headline starred), four AUCs, samples."""
    rows = []
    for model, name in _NAMES.items():
        for head, figures in sorted(details["metrics"].get(model, {}).items(), key=_bars_ahead):
            named = shown(head, details["tf"])
            is_best = details["best_head"].get(model) == head
            star = " ★" if is_best and model == headline_of(details["metrics"]) else ""
            aucs = [auc_text(figures[part]) for part in _PARTS]
            n = figures["val"]["n"]
            rows.append((name, f"{named}{star}", *aucs, "–" if n is None else f"{n:,}"))
    return rows


def _checked(details: Mapping[str, Any]) -> list[str]:
    """What the checks of the bars let pass on request, a sentence each."""
    bars = details.get("bars_checked") or {}
    limits = ", ".join(f"{name} {value:g}" for name, value in bars.get("limits", {}).items())
    sentences = [f"bars checked with other limits than the usual ones: {limits}"] if limits else []
    for finding in bars.get("accepted", []):
        time, count = finding["from"] or "the whole file", finding["count"]
        more = f" and {count - 1:,} more to {finding['to']}" if count > 1 else ""
        sentences.append(
            f"accepted by a person: {finding['symbol']} {finding['check']} at {time}{more} "
            f"({finding['detail']}); reason given: {finding['reason']}"
        )
    return sentences


def _bars_ahead(item: tuple[str, Any]) -> int:
    """Canonical JSON sorts heads as words: 12h before 5h."""
    return bars_ahead(item[0])
