"""Scales, ticks and escaping: what every chart stands on."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.report.charts import (
    Scale,
    around,
    drawing,
    finite,
    fitted,
    legend,
    number,
    tag,
    text,
    ticks,
)


def test_a_scale_maps_ends_and_middle_also_downwards() -> None:
    down = Scale(0.0, 10.0, 100.0, 20.0)
    assert (down(0), down(5), down(10)) == (100, 60, 20)
    assert down(20) == -60
    assert down.clamp(20) == 20
    assert Scale(3.0, 3.0, 0.0, 10.0)(3.0) == 5.0


@pytest.mark.parametrize(
    ("low", "high", "most", "made"),
    [
        (0.42, 0.63, 3, [0.5, 0.6]),
        (0.42, 0.63, 6, [0.45, 0.5, 0.55, 0.6]),
        (0.0, 1.0, 6, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.05, 0.15, 5, [-0.05, 0.0, 0.05, 0.1, 0.15]),
        (1, 4, 4, [1, 2, 3, 4]),
        (2.0, 2.0, 5, [2.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, most: int, made: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(made)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 12))
def test_ticks_never_leave_the_axis_nor_crowd_it(low: float, span: float, most: int) -> None:
    made = ticks(low, low + span, most)
    assert len(made) <= most
    assert all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in made)


def test_unknown_numbers_are_left_out() -> None:
    assert finite([None, float("nan"), math.inf, 1, 0.5]) == [1.0, 0.5]
    assert ticks(float("nan"), 1.0) == []
    low, high = around([])
    assert low < high
    low, high = around([0.5])
    assert low < 0.5 < high


def test_every_text_and_attribute_is_escaped() -> None:
    evil = "</text><script>alert('x')</script>\"&"
    made = drawing([text(0, 0, evil), tag("g", "", title=evil)], 10, evil, evil)
    root = ElementTree.fromstring(made)
    assert [e.tag for e in root.iter()] == ["svg", "title", "text", "g"]
    assert root.findtext("text") == root.findtext("title") == evil
    assert root.get("aria-label") == f"{evil}. {evil}"


def test_numbers_and_names_stay_short() -> None:
    assert number(-0.05) == "−0.05"
    assert number(20000) == "20k"
    assert fitted("short", 100) == "short"
    assert fitted("a_very_long_feature_name", 60) == "a_very_lo…"


def test_a_legend_wraps_instead_of_running_out() -> None:
    few, low = legend([("a", "s0"), ("b", "s1")], 0)
    many, high = legend([(f"before holdout {k}", f"s{k}") for k in range(6)], 0)
    assert high > low > 0
    ends = [float(e.get("x2") or 0) for e in ElementTree.fromstring(f"<g>{many}</g>").iter("line")]
    assert len(ends) == 6
    assert max(ends) < 360
    assert legend([], 0) == ("", 0.0)
    assert "a" in few
