"""The charts of all reports: intervals, curves, bars, counts, calibration; each one SVG string.

Every function takes plain values, returns the drawing, and leaves out what is not known (None or
NaN). The caller puts a table with the same numbers beside it. Charts take their colours from the
page (CSS classes and variables of templates/report_base.html.j2), so one drawing serves light, dark
and paper. Every text is escaped by `text`, `hint` and `tag`, and nowhere else. Pure: no file, clock
or randomness.

The charts come first; below are the pieces they are drawn with: scales, elements, axes, legend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from html import escape
from itertools import pairwise

from macd.report import numbers
from macd.report.numbers import Form

WIDTH = 360.0  # as wide as a phone: text then has its real size there, wide pages set several
SERIES = 8  # colours and dashes the page defines; a ninth series starts again
_CHAR = 6.0  # an average letter at the charts' 11 px, for laying out legends


@dataclass(frozen=True)
class Interval:
    """A line of a forest plot. `muted` marks a reading that is only there for comparison."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    series: int = 0
    muted: bool = False
    strong: bool = False


@dataclass(frozen=True)
class Curve:
    """A line of a line chart: (x, y) points, y None where it is not known."""

    label: str
    points: Sequence[tuple[float, float | None]]
    series: int = 0


@dataclass(frozen=True)
class Bin:
    """Predictions of about p, of which the share y was realised; low and high are y's interval."""

    p: float
    y: float
    n: int
    low: float | None = None
    high: float | None = None


def forest(
    rows: Sequence[Interval],
    *,
    title: str,
    desc: str = "",
    label: str = "",
    reference: float | None = None,
    band: tuple[float, float] | None = None,
    domain: tuple[float, float] | None = None,
    form: Form = numbers.auc,
) -> str:
    """Values with their intervals, one a line; `reference` is the value that means no effect.

    band: a range to shade, such as what is allowed. domain: to give several charts one scale. form:
    how a value is written.
    """
    known = finite([v for row in rows for v in (row.value, row.low, row.high)])
    if not known:
        return empty(title)
    extra = finite([reference, *(band or ())])
    low, high = domain or around([*known, *extra])
    shown = [len(numbers.interval(row.value, row.low, row.high, form)) for row in rows]
    top, step, left = 8.0, 18.0, 108.0
    right = WIDTH - max(104, 5.9 * max(shown) + 8)  # bold figures are the widest
    bottom = top + step * len(rows)
    x = Scale(low, high, left, right)
    parts = []
    if band is not None:
        a, b = x.clamp(band[0]), x.clamp(band[1])
        parts.append(tag("rect", x=a, y=top, width=b - a, height=bottom - top, class_="band"))
    parts.append(axis_x(x, top, bottom, label, most=4))
    if reference is not None and low <= reference <= high:
        parts.append(line(x(reference), top, x(reference), bottom, "reference"))
    for at, row in enumerate(rows):
        parts.append(_interval(row, x, top + step * (at + 0.5), form))
    return drawing(parts, bottom + (36 if label else 20), title, desc)


def _interval(row: Interval, x: Scale, y: float, form: Form) -> str:
    shown = numbers.interval(row.value, row.low, row.high, form)
    look = "strong" if row.strong else ("muted" if row.muted else "")
    parts = [
        hint(f"{row.label}: {shown}"),
        text(0, y + 4, fitted(row.label, 104), class_=look),
        text(WIDTH, y + 4, shown, anchor="end", class_=f"figure {look}"),
    ]
    if row.value is None or not math.isfinite(row.value):
        return tag("g", "".join(parts))
    weak = " weak" if row.muted else ""
    ends = finite([row.low, row.high])
    if len(ends) == 2:
        parts.append(
            line(x.clamp(ends[0]), y, x.clamp(ends[1]), y, f"whisker c{row.series % 8}{weak}")
        )
    size = 4.5 if row.strong else 3.8
    parts.append(
        tag("circle", cx=x.clamp(row.value), cy=y, r=size, class_=f"dot c{row.series % 8}{weak}")
    )
    return tag("g", "".join(parts))


def lines(
    curves: Sequence[Curve],
    *,
    title: str,
    desc: str = "",
    x_label: str = "",
    y_label: str = "",
    reference: float | None = None,
    marks: Sequence[tuple[float, str]] | None = None,
    at: Callable[[float], str] | None = None,
) -> str:
    """Curves over a common x with a legend; a gap where y is not known, a dot for a lone point.

    marks: places on the x axis with their names, such as days, in place of round numbers. at: how
    an x is written.
    """
    xs = finite([x for curve in curves for x, _ in curve.points])
    ys = finite([y for curve in curves for _, y in curve.points])
    if not xs or not ys:
        return empty(title)
    top, bottom, left = 24.0, 160.0, 40.0
    low, high = (min(xs), max(xs)) if max(xs) > min(xs) else (xs[0] - 0.5, xs[0] + 0.5)
    x = Scale(low, high, left + 4, WIDTH - 10)
    y = Scale(*around([*ys, *finite([reference])]), bottom, top)
    axis = _whole_axis(x, top, bottom, x_label) if marks is None else _named(x, top, bottom, marks)
    parts = [axis_y(y, left, WIDTH - 4, y_label), axis]
    if reference is not None:
        parts.append(line(left, y(reference), WIDTH - 4, y(reference), "reference"))
    parts += [_curve(curve, x, y, dashed=len(curves) > 1, at=at) for curve in curves]
    names = [(curve.label, series_class(curve.series)) for curve in curves]
    keys, high_keys = legend(names if len(curves) > 1 else [], bottom + 36)
    return drawing([*parts, keys], bottom + 38 + high_keys, title, desc)


def _whole_axis(x: Scale, top: float, bottom: float, label: str) -> str:
    """An x axis that shows no halves of an epoch."""
    span = max(1, math.floor(x.high) - math.ceil(x.low))
    return axis_x(x, top, bottom, label, most=min(7, span + 1))


def _named(x: Scale, top: float, bottom: float, marks: Sequence[tuple[float, str]]) -> str:
    """An x axis with the names of some places."""
    parts = []
    for value, words in marks:
        if x.low <= value <= x.high:
            parts.append(line(x(value), top, x(value), bottom, "rule"))
            inside = min(x(value), WIDTH - 2.9 * len(words))
            parts.append(text(inside, bottom + 13, words, anchor="middle", class_="tick"))
    return "".join(parts)


def _curve(
    curve: Curve, x: Scale, y: Scale, *, dashed: bool, at: Callable[[float], str] | None = None
) -> str:
    look = series_class(curve.series) if dashed else f"c{curve.series % 8}"
    parts, run = [hint(curve.label)], []
    place = at or number
    for where, value in [*curve.points, (0.0, None)]:
        if value is not None and math.isfinite(value):
            run.append((x(where), y(value)))
            label = hint(f"{curve.label}: {place(where)}, {f'{value:.4g}'.replace('-', '−')}")
            parts.append(tag("circle", label, cx=x(where), cy=y(value), r=5, class_="hover"))
            continue
        if len(run) == 1:
            (cx, cy) = run[0]
            parts.append(tag("circle", cx=cx, cy=cy, r=3, class_=f"dot c{curve.series % 8}"))
        elif run:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in run)
            parts.append(tag("polyline", points=path, class_=f"stroke {look}"))
        run = []
    return tag("g", "".join(parts))


def equity(curves: Sequence[Curve], *, title: str, desc: str = "") -> str:
    """What one unit became over time, in percent, and below it how far it lay below its peak.

    Points are (days since 1970 UTC, value of one unit); the curves share their days.
    """
    days = finite([x for curve in curves for x, _ in curve.points])
    if not days or min(days) == max(days):
        return empty(title)
    grown = [[(x, 100 * (y or 0.0) - 100) for x, y in curve.points] for curve in curves]
    fallen = [below_peak(curve.points) for curve in curves]
    x = Scale(min(days), max(days), 44.0, WIDTH - 8)
    upper = Scale(*around([0.0, *(y for line_ in grown for _, y in line_)]), 146.0, 24.0)
    deepest = min(-1.0, *(y for line_ in fallen for _, y in line_))
    lower = Scale(deepest * 1.05, 0.0, 224.0, 176.0)
    parts = [
        axis_y(upper, x.start, x.end, "% won or lost, net of costs"),
        line(x.start, upper(0.0), x.end, upper(0.0), "axis"),
        axis_y(lower, x.start, x.end, "% below the highest value so far", most=3),
    ]
    for day, label in month_ticks(x.low, x.high):
        parts.append(line(x(day), upper.end, x(day), lower.start, "rule"))
        parts.append(text(x(day), lower.start + 13, label, anchor="middle", class_="tick"))
    for curve, rise, fall in zip(curves, grown, fallen, strict=True):
        for scale, points in ((upper, rise), (lower, fall)):
            path = " ".join(f"{x(a):.1f},{scale(b):.1f}" for a, b in points)
            parts.append(
                tag("polyline", points=path, class_=f"stroke {series_class(curve.series)}")
            )
    parts += _day_by_day(curves, x, upper.end, lower.start)
    names = [(curve.label, series_class(curve.series)) for curve in curves]
    keys, high_keys = legend(names, lower.start + 20)
    return drawing([*parts, keys], lower.start + 22 + high_keys, title, desc)


def below_peak(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Percent below the highest value so far, one unit at the start counted."""
    peak, fallen = 1.0, []
    for x, y in points:
        peak = max(peak, y or 0.0)
        fallen.append((x, 100 * ((y or 0.0) / peak - 1.0)))
    return fallen


def _day_by_day(curves: Sequence[Curve], x: Scale, top: float, bottom: float) -> list[str]:
    """Bands that show all curves' values of a day where the pointer rests, at most 80 of them."""
    count = len(curves[0].points)
    at = sorted({round(k * (count - 1) / 79) for k in range(80)})
    edges = [
        x.start,
        *((x(curves[0].points[a][0]) + x(curves[0].points[b][0])) / 2 for a, b in pairwise(at)),
        x.end,
    ]
    bands = []
    for k, left, right in zip(at, edges, edges[1:], strict=False):
        day = date_of(curves[0].points[k][0])
        gains = [f"{c.label} {numbers.gain((c.points[k][1] or 0.0) - 1.0)}" for c in curves]
        mark = hint(f"{day}: {', '.join(gains)}")
        band = tag(
            "rect", mark, x=left, y=top, width=right - left, height=bottom - top, class_="hover"
        )
        bands.append(band)
    return bands


def month_ticks(first: float, last: float, most: int = 5) -> list[tuple[float, str]]:
    """At most `most` beginnings of months within [first, last], days since 1970, with names."""
    begin, end = date_of(first), date_of(last)
    months = range(12 * begin.year + begin.month, 12 * end.year + end.month)
    starts = [date(m // 12, m % 12 + 1, 1) for m in months]
    for step in (1, 2, 3, 6, 12, 24, 60, 120, 240, 1200):
        kept = [day for day in starts if (12 * day.year + day.month - 1) % step == 0]
        if len(kept) <= most:
            break
    return [(float((day - date(1970, 1, 1)).days), f"{day:%Y-%m}") for day in kept]


def date_of(day: float) -> date:
    """The UTC date so many days after 1970-01-01."""
    return date(1970, 1, 1) + timedelta(days=math.floor(day))


def roc(points: Sequence[Sequence[float]], *, title: str, desc: str = "", series: int = 0) -> str:
    """A ROC curve: of the bars that fell, and of those that rose, the shares called "up"."""
    if not points:
        return empty(title)
    top, left = 24.0, 44.0
    x, y = Scale(0.0, 1.0, left, WIDTH - 12), Scale(0.0, 1.0, 240.0, top)
    parts = [
        axis_y(y, left, x.end, "share of rising bars called up"),
        axis_x(x, top, y.start, "share of falling bars called up"),
        line(x(0), y(0), x(1), y(1), "reference"),
        _curve(
            Curve("rising called up, by falling called up", [(a, b) for a, b in points], series),
            x,
            y,
            dashed=False,
        ),
    ]
    return drawing(parts, y.start + 36, title, desc)


def bars(
    items: Sequence[tuple[str, float | None]],
    *,
    title: str,
    desc: str = "",
    label: str = "",
    form: Form = numbers.auc,
    series: int = 0,
) -> str:
    """Horizontal bars from zero, each with its name and value; values below zero go left.

    form: how a value is written.
    """
    known = finite([value for _, value in items])
    if not known:
        return empty(title)
    top, step, right = 6.0, 17.0, WIDTH - 56
    left = max(132.0, min(186.0, _CHAR * max(len(name) for name, _ in items) + 10))
    bottom = top + step * len(items)
    low, high = min(0.0, *known), max(0.0, *known)
    x = Scale(low, high if high > low else low + 1.0, left, right)
    parts = [axis_x(x, top, bottom, label, most=4)]
    for at, (name, value) in enumerate(items):
        y = top + step * at
        shown = numbers.interval(value, None, None, form)
        group = [hint(f"{name}: {shown}"), text(0, y + 12.5, fitted(name, left - 8))]
        group.append(text(WIDTH, y + 12.5, shown, anchor="end", class_="figure"))
        if value is not None and math.isfinite(value):
            a, b = sorted((x(0.0), x(value)))
            look = f"bar c{series % 8}" + (" weak" if value < 0 else "")
            group.append(tag("rect", x=a, y=y + 3, width=b - a, height=step - 5, class_=look))
        parts.append(tag("g", "".join(group)))
    parts.append(line(x(0.0), top, x(0.0), bottom, "axis"))
    return drawing(parts, bottom + (36 if label else 20), title, desc)


def histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    title: str,
    desc: str = "",
    x_label: str = "",
    y_label: str = "",
    reference: float | None = None,
    series: int = 0,
) -> str:
    """Counts between edges (one more edge than counts)."""
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}")
    if not counts or not any(counts):
        return empty(title)
    top, bottom, left = 24.0, 110.0, 40.0
    x = Scale(edges[0], edges[-1], left, WIDTH - 8)
    y = Scale(0.0, max(counts) * 1.05, bottom, top)
    parts = [axis_y(y, left, WIDTH - 8, y_label, most=4), axis_x(x, bottom, bottom, x_label)]
    for count, a, b in zip(counts, edges, edges[1:], strict=False):
        mark = hint(f"{number(a)} to {number(b)}: {count:,}")
        wide = max(0.5, x(b) - x(a) - 1)
        tall = bottom - y(count)
        parts.append(
            tag(
                "rect",
                mark,
                x=x(a) + 0.5,
                y=y(count),
                width=wide,
                height=tall,
                class_=f"bar c{series % 8}",
            )
        )
    if reference is not None:
        parts.append(line(x.clamp(reference), top, x.clamp(reference), bottom, "reference"))
    return drawing(parts, bottom + (36 if x_label else 20), title, desc)


def reliability(
    bins: Sequence[Bin],
    *,
    title: str,
    desc: str = "",
    x_label: str = "predicted probability",
    y_label: str = "observed share",
    series: int = 0,
) -> str:
    """Calibration: what was predicted against what was observed; on the diagonal both agree."""
    if not bins:
        return empty(title)
    known = finite([v for b in bins for v in (b.p, b.y, b.low, b.high)])
    low, high = around([*known, 0.5])
    low, high = max(0.0, low), min(1.0, high)
    top, left = 24.0, 44.0
    right, bottom = WIDTH - 12, 240.0
    x, y = Scale(low, high, left, right), Scale(low, high, bottom, top)
    parts = [axis_y(y, left, right, y_label), axis_x(x, top, bottom, x_label)]
    parts.append(line(x(low), y(low), x(high), y(high), "reference"))
    path = " ".join(f"{x(b.p):.1f},{y(b.y):.1f}" for b in bins)
    parts.append(tag("polyline", points=path, class_=f"stroke thin c{series % 8}"))
    for b in bins:
        marks = [hint(f"predicted {b.p:.3f}, observed {b.y:.3f}, {b.n:,} bars")]
        if b.low is not None and b.high is not None:
            marks.append(
                line(x(b.p), y.clamp(b.low), x(b.p), y.clamp(b.high), f"whisker c{series % 8}")
            )
        marks.append(tag("circle", cx=x(b.p), cy=y(b.y), r=3.8, class_=f"dot c{series % 8}"))
        parts.append(tag("g", "".join(marks)))
    return drawing(parts, bottom + 36, title, desc)


@dataclass(frozen=True)
class Scale:
    """A linear map from values [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def clamp(self, value: float) -> float:
        """As a call, but never outside the drawing."""
        return self(min(max(value, self.low), self.high))


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers: what is not known has no place on an axis."""
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers (steps of 1, 2 or 5) that lie within [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [round(k * step, 12) for k in range(first, last + 1)]


def around(values: Sequence[float], *, margin: float = 0.06) -> tuple[float, float]:
    """A domain that holds the values with a little air; (0, 1) when there are none."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = (high - low) * margin or abs(high) * margin or 0.5
    return low - air, high + air


def number(value: float) -> str:
    """A tick's label: as short as it can be and still exact."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", "−")


def tag(name: str, content: str = "", **attributes: str | float) -> str:
    """One element. `class_` gives class, `text_anchor` gives text-anchor; values are escaped."""
    parts = []
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{name}{''.join(parts)}>{content}</{name}>"


def text(x: float, y: float, words: str, *, anchor: str = "start", class_: str = "") -> str:
    """A line of text whose baseline is at y; escaped."""
    extra = {"class_": class_} if class_ else {}
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, **extra)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def hint(words: str) -> str:
    """What a mark says when the pointer rests on it; goes inside the mark."""
    return tag("title", escape(words))


def drawing(parts: Iterable[str], height: float, title: str, desc: str = "") -> str:
    """The whole chart: an image with a name for those who can't see it, scaled to its column."""
    label = f"{title}. {desc}" if desc else title
    return tag(
        "svg",
        hint(title) + "".join(parts),
        class_="chart",
        role="img",
        aria_label=label,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
    )


def empty(title: str, words: str = "no values") -> str:
    """What stands where a chart would, when there is nothing to draw."""
    return drawing([text(WIDTH / 2, 34, words, anchor="middle", class_="muted")], 60, title, words)


def axis_x(scale: Scale, top: float, bottom: float, label: str = "", most: int = 5) -> str:
    """Grid lines, numbers and a label below; takes 18 px, or 33 with a label."""
    parts, values = [], ticks(scale.low, scale.high, most)
    while most > 2 and len(values) > 1 and not _apart(values, scale):
        most -= 1
        values = ticks(scale.low, scale.high, most)
    for value in values:
        x, words = scale(value), number(value)
        parts.append(line(x, top, x, bottom, "rule"))
        inside = min(x, WIDTH - 2.9 * len(words))  # a number at the end of the axis isn't cut
        parts.append(text(inside, bottom + 13, words, anchor="middle", class_="tick"))
    if label:
        middle = (scale.start + scale.end) / 2
        parts.append(text(middle, bottom + 28, label, anchor="middle", class_="label"))
    return "".join(parts)


def _apart(values: Sequence[float], scale: Scale) -> bool:
    """Whether the numbers below an axis leave a gap between them."""
    widest = 5.6 * max(len(number(value)) for value in values)
    return widest + 6 <= abs(scale(values[1]) - scale(values[0]))


def axis_y(scale: Scale, left: float, right: float, label: str = "", most: int = 5) -> str:
    """Grid lines and numbers left of `left`; the label stands above the axis, upright."""
    parts = []
    for value in ticks(scale.low, scale.high, most):
        y = scale(value)
        parts.append(line(left, y, right, y, "rule"))
        parts.append(text(left - 5, y + 3.5, number(value), anchor="end", class_="tick"))
    if label:
        parts.append(text(2, min(scale.start, scale.end) - 9, label, class_="label"))
    return "".join(parts)


def series_class(index: int) -> str:
    """The class that gives a series its colour and dash."""
    return f"s{index % SERIES}"


def legend(names: Sequence[tuple[str, str]], top: float) -> tuple[str, float]:
    """(name, class) pairs as a legend that wraps; returns it and the height it takes."""
    parts, x, y = [], 4.0, top + 10
    for name, class_ in names:
        wide = 24 + len(name) * _CHAR + 10
        if x > 4.0 and x + wide > WIDTH:
            x, y = 4.0, y + 16
        parts.append(line(x, y - 3.5, x + 18, y - 3.5, f"stroke {class_}"))
        parts.append(text(x + 23, y, name))
        x += wide
    return "".join(parts), y - top + 6 if names else 0.0


def fitted(words: str, room: float) -> str:
    """Words cut to about `room` pixels, with an ellipsis; the whole belongs in a hint."""
    most = max(1, int(room / _CHAR))
    return words if len(words) <= most else words[: most - 1] + "…"
