"""The model card: what these models are for, how good they are, and where not to trust them.

Written from the manifest's own details, so that card and manifest can't disagree. The words stand
in templates/card.j2; for several symbols in several_card.j2, for an application of one's own in
own_card.j2; once for the page and for Markdown. Pure but for reading the templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from macd.host.untrusted import line
from macd.run_directory import auc_text
from macd.sizes import size

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
    packages: Mapping[str, str] | None = None,
    templates: Path = TEMPLATES,
) -> dict[str, bytes]:
    """card.html and card.md of a release with these manifest details.

    packages: name -> version in its lock; shown for an application of one's own.
    """
    words = {
        "details": details,
        "app": app,
        "env": env,
        "serial": serial,
        "created": f"{created:%Y-%m-%d %H:%M} UTC",
        "expires": f"{expires:%Y-%m-%d %H:%M} UTC",
        "missed": [outcome for outcome in details["criteria"] if not outcome["ok"]],
        "accepted": " ".join(str(details["accepted"] or "").split()),
    }
    if details.get("own"):
        more, template = _of_own(details, packages or {}), "own_card.j2"
    elif details.get("symbols"):
        more, template = _of_several(details), "several_card.j2"
    else:
        more, template = _of(details), "card.j2"
    return {
        HTML: _filled(templates, template, {**words, **more}, html=True),
        MARKDOWN: _filled(templates, template, {**words, **more}, html=False),
    }


def _of(details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": f"Model card: {details['symbol']} {details['tf']}",
        "columns": _COLUMNS,
        "rows": _rows(details),
        "checked": _checked(details),
        "looks": looks_at(details["holdout"]),
        "looks_meaning": looks_meaning(looks_at(details["holdout"])),
        "caveats": list(details.get("caveats", [])),
        "heads": explained(details["tf"]),
        "baseline": _NAMES[BASELINE],
        "linear": _NAMES[RIDGE] if RIDGE in details["metrics"] else "",
    }


def _of_several(details: Mapping[str, Any]) -> dict[str, Any]:
    each, missed = details["symbols"], [c for c in details["criteria"] if not c["ok"]]
    caveats = [(name, text) for name, own in each.items() for text in own.get("caveats", [])]
    checked = [sentence for own in each.values() for sentence in _checked(own)]
    return {
        "title": f"Model card: {len(each)} symbols, {details['tf']}",
        "symbols": list(each),
        "columns": ("symbol", *_COLUMNS, "holdout looks", "criteria missed"),
        "rows": [_row_of(name, own) for name, own in each.items()],
        "asked": len(details["criteria"]) // len(each),
        "shown": [{**c, "title": f"{c['symbol']}: {c['title']}"} for c in missed],
        "caveats": [f"{', '.join(names)}: {text}" for text, names in _by_text(caveats).items()],
        "checked": list(dict.fromkeys(checked)),
        "heads": explained(details["tf"]),
    }


def _row_of(symbol: str, own: Mapping[str, Any]) -> tuple[str, ...]:
    """The row of one symbol: the deciding model, at its best head."""
    model = headline_of(own["metrics"])
    head = own["best_head"][model]
    figures = own["metrics"][model][head]
    aucs = [auc_text(figures[part]) for part in _PARTS]
    n, missed = figures["val"]["n"], [c["name"] for c in own["criteria"] if not c["ok"]]
    return (
        symbol,
        NAMES[model],
        shown(head, own["tf"]),
        *aucs,
        "–" if n is None else f"{n:,}",
        str(looks_at(own["holdout"])),
        ", ".join(missed) or "none",
    )


def _by_text(said: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Sentences that are said of several symbols, each once with their names."""
    names: dict[str, list[str]] = {}
    for name, text in said:
        names.setdefault(text, []).append(name)
    return names


def _of_own(details: Mapping[str, Any], packages: Mapping[str, str]) -> dict[str, Any]:
    own = details["own"]
    values = details["metrics"].items()
    return {
        "title": f"Card of {own['name']}",
        "rows": [(name, "not measured" if v is None else f"{v:.6g}") for name, v in values],
        "limits": [*unknown_of_own(own["check"])],
        "models": [
            (line(m["path"]), size(m["size"]), m["sha256"][:12], came_from(m["from"], details))
            for m in details.get("models", [])
        ],
        "packages": [f"{name} {version}" for name, version in sorted(packages.items())],
    }


def came_from(place: str, details: Mapping[str, Any]) -> str:
    """Where a model of a release came from; place: "run" or "source"."""
    if place == "run":
        return "the training"
    return "the source, not in git" if details["code"]["commit"] else "the source"


def unknown_of_own(check: str) -> list[str]:
    """What a release of an application of one's own can't have, a sentence each."""
    checked = (
        f"Its own check ({check}) has to exit with 0 on each host before the switch: in the "
        "service's sandbox, or as the login on a host of scope user, which has none."
        if check
        else "It has no check of its own (app.check): only its probe says that it serves."
    )
    return [
        "No golden predictions: nothing shows that it computes on a host what it computed here. "
        + checked,
        "No feature skew and no drift: the features of its training are not known here.",
        "No replay and no challenger: both need the built-in application's models.",
        "The gate judges what the application logs (signals:), and nothing without it.",
    ]


def _filled(templates: Path, template: str, words: Mapping[str, Any], *, html: bool) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=jinja2.select_autoescape(["j2"] if html else []),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    layout = "report_base.html.j2" if html else environment.from_string(_PLAIN)
    text = environment.get_template(template).render(words, html=html, layout=layout)
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
    if market := bars.get("market"):
        sentences.append(f"bars checked by the hours of {market}: nights and weekends are no gaps")
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
