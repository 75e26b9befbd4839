"""What changed against other runs: documents of macd/app/train/compare_runs.py, for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from macd.app.pages import names
from macd.heads import NAMES, shown
from macd.report import numbers
from macd.report.page import Cell, Table

PARTS = {"val": "validation", "test": "holdout"}
_MOST = 12  # names of features in a cell
_LONG = 60  # letters of a value


@dataclass(frozen=True)
class Change:
    """One comparison: this run, the challenger, against another; no figures where none are left."""

    title: str
    verdict: str
    figures: Table | None = None
    differs: tuple[str, ...] | None = None
    limits: tuple[str, ...] = ()


def changes(compared: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """compared: by what the other run is ("the previous run") the document about both.

    A document with `unable` alone says why there is no comparison.
    """
    return [
        Change(f"Against {other}", f"not compared, {numbers.typeset(comparison['unable'])}.")
        if "unable" in comparison
        else Change(
            f"Against {other}, {comparison['champion']['run']}",
            _sentence(comparison["verdict"]["text"]),
            _figures(comparison),
            tuple(_differs(comparison["differs"])),
            tuple(map(_sentence, comparison["limits"])),
        )
        for other, comparison in compared.items()
    ]


def _sentence(words: str) -> str:
    """A sentence about champion and challenger, where one of them is the run of this page."""
    for role, who in (("challenger", "this run"), ("champion", "the other run")):
        words = words.replace(f"the {role}", who).replace(f"The {role}", who.capitalize())
    return numbers.typeset(words)


def _figures(comparison: Mapping[str, Any]) -> Table | None:
    """AUC on all bars that both tested; None where there is no such bar."""
    if not any(parts[part]["n"] for parts in comparison["parts"].values() for part in parts):
        return None
    rows: list[tuple[Cell, ...]] = []
    for head, parts in comparison["parts"].items():
        for model in parts["val_all"]["models"]:
            cells: list[Cell] = [f"{NAMES[model]} {shown(head, comparison['tf'])}"]
            for part in PARTS:
                made = parts[f"{part}_all"]["models"][model]
                value, low, high = (made["difference"]["auc"][k] for k in ("value", "low", "high"))
                cells += [numbers.auc(made[side]["auc"]) for side in ("champion", "challenger")]
                cells.append(numbers.interval(value, low, high, numbers.difference))
            rows.append(tuple(cells))
    head = [
        column for where in PARTS.values() for column in (f"{where}: there", "here", "difference")
    ]
    return Table(("model, head", *head), rows)


def _differs(differs: Mapping[str, Any]) -> Iterator[str]:
    for section, changed in differs.items():
        for name, change in changed.items():
            if section == "features":
                lost, gained = (_listed(change[way]) for way in ("lost", "gained"))
                yield f"Features of {NAMES.get(name, name)}: lost {lost}; gained {gained}"
            else:
                before, after = (_short(value) for value in change)
                yield f"{section.capitalize()}, {_said(name)}: {before} → {after}"


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _MOST} more" if len(keys) > _MOST else ""
    return (", ".join(map(names.feature, keys[:_MOST])) or "none") + more


def _said(name: str) -> str:
    """A setting such as params.lstm.epochs."""
    return " ".join(NAMES.get(part, names.words(part)) for part in name.split("."))


def _short(value: Any) -> str:
    if value is None:
        return numbers.UNKNOWN
    text = str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
