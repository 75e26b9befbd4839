"""Numbers as people read them, the interval of a share, and pages written whole."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from macd.report.page import cell, moment, render, seconds, size, write_page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.56721931, "0.5672"),
        (-0.25, "−0.25"),
        (2530.2, "2,530"),
        ("words", "words"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert cell(value) == shown  # type: ignore[arg-type]


def test_durations_sizes_moments() -> None:
    assert [seconds(v) for v in (5.0, 8.24, 296.1, 7500, None)] == [
        "5 s",
        "8.2 s",
        "4:56 min",
        "2:05 h",
        "–",
    ]
    assert [size(v) for v in (959, 66625, 5_100_000)] == ["959 B", "66.6 kB", "5.1 MB"]
    assert moment("2019-10-17T09:00:00+00:00") == "2019-10-17 09:00"
    assert moment(None) == "–"


def test_templates_escape_and_refuse_names_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.html.j2").write_text("<p>{{ words }}</p>")
    made = render("a.html.j2", templates=tmp_path, words="<script>")
    assert made == "<p>&lt;script&gt;</p>"
    with pytest.raises(jinja2.UndefinedError):
        render("a.html.j2", templates=tmp_path)


def test_a_page_replaces_the_old_one_and_leaves_nothing_beside(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_page(page, "one")
    assert write_page(page, "two ✓").read_text(encoding="utf-8") == "two ✓"
    assert list(tmp_path.iterdir()) == [page]
