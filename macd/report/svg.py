"""The few pieces every chart is drawn with: elements, scales, ticks, axes, a legend.

Charts are strings of SVG that take their colours from the page (CSS classes and variables of
templates/report_base.html.j2), so one drawing serves light, dark and paper. Every text is escaped
here and nowhere else. Pure: no file, clock or randomness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360.0  # as wide as a phone: text then has its real size there, wide pages set several
SERIES = 8  # colours and dashes the page defines; a ninth series starts again
_CHAR = 6.0  # an average letter at the charts' 11 px, for laying out legends


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
    """A straight line."""
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
    parts = []
    for value in ticks(scale.low, scale.high, most):
        x = scale(value)
        parts.append(line(x, top, x, bottom, "rule"))
        parts.append(text(x, bottom + 13, number(value), anchor="middle", class_="tick"))
    if label:
        middle = (scale.start + scale.end) / 2
        parts.append(text(middle, bottom + 28, label, anchor="middle", class_="label"))
    return "".join(parts)


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
