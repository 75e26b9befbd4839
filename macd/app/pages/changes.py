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
    """One comparison: this run, the challenger, against another."""

    title: str
    verdict: str
    figures: Table
    differs: Table
    limits: tuple[str, ...]


def changes(compared: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """compared: by what the other run is ("the previous run") the document about both."""
    return [
        Change(
            f"Against {other}, {found['champion']['run']}",
            numbers.typeset(found["verdict"]["text"]),
            _figures(found),
            Table(("what", "there", "here"), list(_differs(found["differs"]))),
            tuple(numbers.typeset(limit) for limit in found["limits"]),
        )
        for other, found in compared.items()
    ]


def _figures(found: Mapping[str, Any]) -> Table:
    """AUC on all bars that both tested."""
    rows: list[tuple[Cell, ...]] = []
    for head, parts in found["parts"].items():
        for model in parts["val_all"]["models"]:
            cells: list[Cell] = [f"{NAMES[model]} {shown(head, found['tf'])}"]
            for part in PARTS:
                made = parts[f"{part}_all"]["models"][model]
                apart = made["difference"]["auc"]
                ends = (apart[key] for key in ("value", "low", "high"))
                cells += [numbers.auc(made[side]["auc"]) for side in ("champion", "challenger")]
                cells.append(numbers.interval(*ends, numbers.difference))
            rows.append(tuple(cells))
    head = [
        column for where in PARTS.values() for column in (f"{where}: there", "here", "difference")
    ]
    return Table(("model, head", *head), rows)


def _differs(differs: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    for section, changed in differs.items():
        for name, change in changed.items():
            if section == "features":
                lost, gained = (_listed(change[way]) for way in ("lost", "gained"))
                yield f"Features of {NAMES.get(name, name)}", f"only {lost}", f"only {gained}"
            else:
                before, after = (_short(value) for value in change)
                yield f"{section.capitalize()}: {_said(name)}", before, after


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
