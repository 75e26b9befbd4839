"""The look all reports share: templates, figures with their tables, and how numbers are written.

A page is one file that asks for nothing from anywhere: style and drawings stand in it, and its
content security policy forbids the rest. Everything put into a template is escaped unless it is a
drawing made by macd.report.charts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from macd import sizes
from macd.host.durable import replace_file
from macd.report import numbers

TEMPLATES = Path(__file__).parents[2] / "templates"

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Table:
    """Columns and rows of plain values; the first column names the row."""

    head: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]


@dataclass(frozen=True)
class Figure:
    """A drawing, what it shows, and the same numbers as a table."""

    title: str
    svg: str
    table: Table
    note: str = ""

    @property
    def drawing(self) -> Markup:
        """The SVG as the template may print it: made by our charts, which escape every text."""
        return Markup(self.svg)  # noqa: S704 - see above


def render(template: str, *, templates: Path = TEMPLATES, **context: Any) -> str:
    """A page from a template; autoescape is on, and a name the context lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "seconds": seconds, "size": size, "moment": moment}
    environment.filters["typeset"] = numbers.typeset
    return environment.get_template(template).render(**context)


def write_page(path: Path, html: str) -> Path:
    """Write the page whole or not at all; somebody may have the old one open."""
    replace_file(path, html.encode())
    return path


def cell(value: Cell) -> str:
    """A table's value for people: a dash where it is not known, thin grouping, few digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return shown.replace("-", "−")
    return value


def seconds(value: float | None) -> str:
    """A duration: `5 s`, `8.2 s`, `4:56 min`, `2:05 h`."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.0f} s" if value == int(value) else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def size(value: float | None) -> str:
    """A file's size, `–` where nobody knows."""
    return "–" if value is None else sizes.size(value)


def moment(iso: str | None) -> str:
    """`2019-10-17T09:00:00+00:00` becomes `2019-10-17 09:00`; all times are UTC."""
    return iso[:16].replace("T", " ") if iso else "–"
