"""The time line: what lies in its time is drawn, signs that lie on each other are one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.report.timeline import Bar, Lane, Sign, time_ticks, timeline

DAY = 86_400.0
START = datetime(2026, 3, 1, tzinfo=UTC).timestamp()


def drawn(*lanes: Lane, days: float = 10) -> ET.Element:
    svg = timeline(lanes, START, START + days * DAY, title="prod", desc="all of it")
    return ET.fromstring(svg)


def texts(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in svg.iter("text")]


def titles(svg: ET.Element) -> list[str]:
    return [title.text or "" for title in svg.iter("title")]


def test_it_names_itself_for_those_who_cannot_see_it() -> None:
    svg = drawn(Lane("Releases"))
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "prod. all of it"
    assert [d.text for d in svg.iter("desc")] == ["all of it"]
    assert titles(svg)[0] == "prod"


def test_bars_and_signs_outside_are_left_out_and_what_reaches_in_is_cut() -> None:
    bars = (
        Bar(START - 9 * DAY, START - DAY, "gone", "gone"),
        Bar(START - DAY, START + 5 * DAY, "reaches in", "a"),
        Bar(START + 5 * DAY, None, "goes on", "b"),
        Bar(START + 20 * DAY, None, "later", "c"),
    )
    signs = (Sign(START - DAY, "✗", "before"), Sign(START + 5 * DAY, "▲", "inside"))
    svg = drawn(Lane("Releases", bars, signs))
    assert "gone" not in texts(svg)
    assert "later" not in texts(svg)
    places = [(n.get("x"), n.get("width")) for n in svg.iter("svg") if n.get("y")]
    assert places == [("0.00%", "50.00%"), ("50.00%", "50.00%")]
    assert "before" not in titles(svg)
    assert "inside" in titles(svg)


def test_signs_that_would_lie_on_each_other_are_one_with_the_worst_mark() -> None:
    signs = [Sign(START + DAY + k, "✓", f"PASS {k}", "good") for k in range(11)]
    signs.insert(5, Sign(START + DAY + 5.5, "✗", "FAIL", "bad"))
    svg = drawn(Lane("Guard", (), signs))
    assert "✗12" in texts(svg)
    hint = next(title for title in titles(svg) if "FAIL" in title)
    assert hint.startswith("4 before, and:")
    far = drawn(Lane("Guard", (), [Sign(START + k * DAY, "✓", "") for k in (1, 3, 5)]))
    assert texts(far).count("✓") == 3


def test_words_are_escaped() -> None:
    evil = '<script>"&'
    lane = Lane(evil, (Bar(START, None, evil, evil),), (Sign(START + 1, evil, evil),))
    svg = timeline([lane], START, START + DAY, title=evil, desc=evil)
    assert "<script" not in svg
    assert texts(ET.fromstring(svg)).count(evil) == 3


def test_no_time_is_no_drawing() -> None:
    assert "no values" in timeline([Lane("x")], START, START, title="t")


@given(st.floats(0, 4e9), st.floats(60, 4e8), st.integers(1, 8))
def test_ticks_are_few_in_order_and_inside(start: float, span: float, most: int) -> None:
    made = time_ticks(start, start + span, most)
    assert len(made) <= most
    moments = [at for at, _ in made]
    assert moments == sorted(set(moments))
    assert all(start <= at <= start + span for at in moments)
    assert all(re.fullmatch(r"\d\d-\d\d( \d\d:\d\d)?", words) for _, words in made)


@pytest.mark.parametrize(("days", "first"), [(0.25, "03-01 00:00"), (30, "03-01"), (800, "03-01")])
def test_ticks_are_round(days: float, first: str) -> None:
    assert time_ticks(START, START + days * DAY)[0][1] == first
