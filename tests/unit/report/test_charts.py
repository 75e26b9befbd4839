"""Each chart puts its numbers where the axis says they are, names them, and survives gaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from macd.report import charts
from macd.report.charts import Bin, Curve, Interval

NAN = float("nan")


def parsed(svg: str) -> Element:
    return ElementTree.fromstring(svg)


def of_class(root: Element, name: str) -> list[Element]:
    return [e for e in root.iter() if name in (e.get("class") or "").split()]


def at(element: Element, *names: str) -> list[float]:
    return [float(element.get(name) or NAN) for name in names]


def axis(root: Element, *, x: bool = True) -> Callable[[float], float]:
    """The map of values to pixels, read off the drawn grid and its numbers."""
    anchor, place = ("middle", "x") if x else ("end", "y")
    numbers = [t for t in of_class(root, "tick") if t.get("text-anchor") == anchor]
    known = [(float((t.text or "").replace("−", "-")), at(t, place)[0]) for t in numbers]
    (a, pa), (b, pb) = known[0], known[-1]
    off = 0.0 if x else 3.5
    return lambda value: pa - off + (value - a) / (b - a) * (pb - pa)


def test_forest_places_points_and_whiskers_on_its_axis() -> None:
    rows = [Interval("LSTM", 0.56, 0.53, 0.59), Interval("pooled", 0.48, 0.46, 0.51, strong=True)]
    root = parsed(charts.forest(rows, title="AUC", reference=0.5))
    place = axis(root)
    dots, whiskers = of_class(root, "dot"), of_class(root, "whisker")
    for row, dot, whisker in zip(rows, dots, whiskers, strict=True):
        assert at(dot, "cx")[0] == pytest.approx(place(row.value or 0), abs=0.1)
        ends = at(whisker, "x1", "x2")
        assert ends == pytest.approx([place(row.low or 0), place(row.high or 0)], abs=0.1)
    (reference,) = of_class(root, "reference")
    assert at(reference, "x1")[0] == pytest.approx(place(0.5), abs=0.1)
    words = "".join(root.itertext())
    assert "0.560 [0.530, 0.590]" in words
    assert float(dots[1].get("r") or 0) > float(dots[0].get("r") or 0)


def test_forest_says_not_known_instead_of_drawing_a_guess() -> None:
    rows = [
        Interval("fold 0", None),
        Interval("fold 1", 0.5, NAN, None),
        Interval("fold 2", NAN, 0.4, 0.6),
    ]
    root = parsed(charts.forest(rows, title="AUC"))
    assert len(of_class(root, "dot")) == 1
    assert of_class(root, "whisker") == []
    assert "".join(root.itertext()).count("not known") == 4  # the line and its hint, twice


def test_forest_keeps_to_a_given_domain_and_shades_a_band() -> None:
    svg = charts.forest(
        [Interval("wild", 0.9, 0.2, 0.95)], title="t", domain=(0.4, 0.6), band=(0.48, 0.52)
    )
    root = parsed(svg)
    place = axis(root)
    (whisker,), (dot,), (band,) = (of_class(root, n) for n in ("whisker", "dot", "band"))
    assert at(whisker, "x1", "x2") == pytest.approx([place(0.4), place(0.6)], abs=0.1)
    assert at(dot, "cx")[0] == pytest.approx(place(0.6), abs=0.1)
    x, width = at(band, "x", "width")
    assert [x, x + width] == pytest.approx([place(0.48), place(0.52)], abs=0.1)


def test_lines_break_at_gaps_and_dot_lone_points() -> None:
    curve = Curve(
        "fold 0", [(1, 0.7), (2, 0.65), (3, None), (4, 0.6), (5, NAN), (6, 0.5), (7, 0.4)]
    )
    root = parsed(charts.lines([curve], title="loss"))
    strokes = [e for e in of_class(root, "stroke") if e.tag == "polyline"]
    assert [len((e.get("points") or "").split()) for e in strokes] == [2, 2]
    (dot,) = of_class(root, "dot")
    assert at(dot, "cx")[0] == pytest.approx(axis(root)(4), abs=0.1)
    assert at(dot, "cy")[0] == pytest.approx(axis(root, x=False)(0.6), abs=0.1)


def test_lines_name_their_series_only_when_there_are_several() -> None:
    points = [(1.0, 0.5), (2.0, 0.4)]
    one = charts.lines([Curve("only", points)], title="t")
    assert [e.text for e in parsed(one).iter("text") if e.text == "only"] == []
    two = charts.lines([Curve("first", points), Curve("second", points, 1)], title="t")
    assert [e.text for e in parsed(two).iter("text") if e.text in ("first", "second")] == [
        "first",
        "second",
    ]


def test_one_epoch_is_drawn_too() -> None:
    root = parsed(charts.lines([Curve("a", [(1, 0.7)]), Curve("b", [(1, 0.6)], 1)], title="t"))
    assert len(of_class(root, "dot")) == 2
    assert [t.text for t in of_class(root, "tick") if t.get("text-anchor") == "middle"] == ["1"]


def test_bars_grow_from_zero_both_ways() -> None:
    root = parsed(charts.bars([("up", 0.2), ("down", -0.1), ("none", None)], title="t"))
    place = axis(root)
    up, down = of_class(root, "bar")
    x, width = at(up, "x", "width")
    assert [x, x + width] == pytest.approx([place(0), place(0.2)], abs=0.1)
    x, width = at(down, "x", "width")
    assert [x, x + width] == pytest.approx([place(-0.1), place(0)], abs=0.1)
    assert "not known" in "".join(root.itertext())


def test_histogram_heights_are_counts() -> None:
    root = parsed(charts.histogram([10, 40, 20], [0.2, 0.4, 0.6, 0.8], title="t", reference=0.5))
    heights = [at(e, "height")[0] for e in of_class(root, "bar")]
    assert heights[1] / heights[0] == pytest.approx(4, rel=0.01)
    assert heights[1] / heights[2] == pytest.approx(2, rel=0.01)
    with pytest.raises(ValueError, match="edges"):
        charts.histogram([1, 2], [0.0, 1.0], title="t")


def test_reliability_puts_honest_points_on_the_diagonal() -> None:
    bins = [Bin(0.3, 0.3, 10), Bin(0.7, 0.7, 10), Bin(0.5, 0.65, 10, 0.55, 0.75)]
    root = parsed(charts.reliability(bins, title="t"))
    (diagonal,) = of_class(root, "reference")
    x1, y1, x2, y2 = at(diagonal, "x1", "y1", "x2", "y2")
    for dot, honest in zip(of_class(root, "dot"), (True, True, False), strict=True):
        cx, cy = at(dot, "cx", "cy")
        on = y1 + (cx - x1) / (x2 - x1) * (y2 - y1)
        assert math.isclose(cy, on, abs_tol=0.2) is honest
        assert honest or cy < on, "more came true than was said: above the diagonal"
    assert len(of_class(root, "whisker")) == 1


@pytest.mark.parametrize(
    "svg",
    [
        charts.forest([], title="t"),
        charts.forest([Interval("a", None)], title="t"),
        charts.lines([], title="t"),
        charts.lines([Curve("a", [(1, None)])], title="t"),
        charts.bars([("a", NAN)], title="t"),
        charts.histogram([0], [0.0, 1.0], title="t"),
        charts.reliability([], title="t"),
    ],
)
def test_nothing_to_draw_is_said_in_words(svg: str) -> None:
    root = parsed(svg)
    assert "no values" in "".join(root.itertext())
    assert root.get("role") == "img"


def test_hostile_names_stay_text() -> None:
    evil = "<img src=x onerror=alert(1)>"
    made = [
        charts.forest([Interval(evil, 0.5)], title=evil, label=evil),
        charts.lines([Curve(evil, [(1, 1.0), (2, 2.0)])] * 2, title=evil, y_label=evil),
        charts.bars([(evil, 1.0)], title=evil),
        charts.histogram([1], [0.0, 1.0], title=evil, x_label=evil),
        charts.reliability([Bin(0.5, 0.5, 1)], title=evil, x_label=evil),
    ]
    for svg in made:
        assert "<img" not in svg
        assert not [e for e in parsed(svg).iter() if e.tag == "img"]


DAYS = [(17_500.0 + k, value) for k, value in enumerate((1.0, 1.1, 0.88, 0.99))]


def test_equity_shows_growth_and_the_fall_from_the_highest_value() -> None:
    root = parsed(charts.equity([Curve("one", DAYS), Curve("two", DAYS[:1] * 4, 1)], title="t"))
    assert charts.below_peak(DAYS) == [
        (17_500.0, 0.0),
        (17_501.0, 0.0),
        (17_502.0, pytest.approx(-20.0)),
        (17_503.0, pytest.approx(-10.0)),
    ]
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 4, "two curves, above and below"
    hints = [h.text for h in root.iter() if h.tag.endswith("title") and "one" in (h.text or "")]
    assert hints[1] == "2017-12-01: one +10.0 %, two 0.0 %"
    assert len(hints) == len(DAYS)


@given(st.lists(st.floats(0.1, 3.0), min_size=2, max_size=200))
def test_nothing_lies_above_its_peak_nor_below_ruin(values: list[float]) -> None:
    fallen = [y for _, y in charts.below_peak([(float(k), v) for k, v in enumerate(values)])]
    assert all(-100.0 <= y <= 0.0 for y in fallen)
    highest = max(range(len(values)), key=values.__getitem__)
    assert values[highest] < 1.0 or fallen[highest] == 0.0


@given(st.floats(0, 40_000), st.floats(2, 20_000))
@example(23_830.0, 20_000.0)
def test_month_ticks_are_few_inside_and_the_first_of_a_month(first: float, span: float) -> None:
    made = charts.month_ticks(first, first + span)
    assert len(made) <= 5
    for day, label in made:
        assert first - 1 < day <= first + span
        assert charts.date_of(day).day == 1
        assert f"{charts.date_of(day):%Y-%m}" == label


def test_a_roc_curve_ends_in_the_corners() -> None:
    root = parsed(charts.roc([[0, 0], [0.2, 0.5], [1, 1]], title="t"))
    (line,) = [e for e in root.iter() if e.tag.endswith("polyline")]
    points = [tuple(map(float, pair.split(","))) for pair in (line.get("points") or "").split()]
    (x0, y0), (x1, y1) = points[0], points[-1]
    middle = points[1]
    assert middle == pytest.approx((x0 + 0.2 * (x1 - x0), y0 + 0.5 * (y1 - y0)), abs=0.2)


def test_the_points_of_a_curve_tell_their_values() -> None:
    svg = charts.lines([Curve("loss", [(1, 0.7), (2, -0.61)])], title="t")
    assert "loss: 1, 0.7<" in svg
    assert "loss: 2, −0.61<" in svg
