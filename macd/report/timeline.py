"""A time line as SVG: lanes with bars for periods and signs for moments.

Places along the time are shares of the width, so letters keep their size on a phone and on a desk.
Like macd/report/charts.py it takes its colours from the page, escapes every text, and is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape

from macd.report.charts import empty, hint, tag, text

_TOP, _NAME, _BAR, _SIGNS, _GAP = 2.0, 16.0, 16.0, 19.0, 5.0  # pixels
_NEAR = 0.06  # of the width: signs closer than that are one; on a phone that is 20 pixels
_MOST_HINTS = 8
_STEPS_H = (1 / 6, 0.25, 0.5, 1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 720, 1440, 2160, 4320, 8760)


@dataclass(frozen=True)
class Bar:
    """[start, end] in epoch seconds; end None goes on. series: its colour."""

    start: float
    end: float | None
    label: str
    hint: str
    series: int = 0


@dataclass(frozen=True)
class Sign:
    """A moment in epoch seconds. mark: the character drawn. mood: good, warn, bad or ""."""

    at: float
    mark: str
    hint: str
    mood: str = ""


@dataclass(frozen=True)
class Lane:
    """What lies side by side on one line."""

    name: str
    bars: Sequence[Bar] = ()
    signs: Sequence[Sign] = ()


def timeline(lanes: Sequence[Lane], start: float, end: float, *, title: str, desc: str = "") -> str:
    """The lanes over [start, end], epoch seconds; what lies outside is left out or cut."""
    if end <= start or not lanes:
        return empty(title)

    def share(at: float) -> float:
        return min(1.0, max(0.0, (at - start) / (end - start)))

    bottom = _TOP + sum(map(_height, lanes))
    parts = []
    for at, words in time_ticks(start, end, most=4):
        x = _percent(share(at))
        parts.append(tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="rule"))
        anchor = "middle" if 0.06 < share(at) < 0.94 else "start" if share(at) < 0.5 else "end"
        parts.append(_text(x, bottom + 13, words, anchor, "tick"))
    y = _TOP
    for lane in lanes:
        parts.append(text(0, y + 12, lane.name, class_="label"))
        for bar in lane.bars:
            if bar.start < end and (bar.end is None or bar.end > start):
                parts.append(_bar(bar, share(bar.start), share(bar.end or end), y + _NAME))
        inside = [sign for sign in lane.signs if start <= sign.at <= end]
        foot = y + _height(lane) - _GAP - 4
        parts += [_sign(many, share(many[0].at), foot) for many in _together(inside, share)]
        y += _height(lane)
    label = f"{title}. {desc}" if desc else title
    return tag(
        "svg",
        hint(title) + (tag("desc", escape(desc)) if desc else "") + "".join(parts),
        class_="chart timeline",
        role="img",
        aria_label=label,
        width="100%",
        height=bottom + 20,
    )


def _height(lane: Lane) -> float:
    return _NAME + _BAR * bool(lane.bars) + _SIGNS * bool(lane.signs or not lane.bars) + _GAP


def time_ticks(start: float, end: float, most: int = 5) -> list[tuple[float, str]]:
    """At most `most` round moments within [start, end] (epoch seconds) and their names, in UTC."""
    first = datetime.fromtimestamp(start, UTC)
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
    made: list[tuple[float, str]] = []
    for hours in _STEPS_H:
        step = timedelta(hours=hours)
        at = midnight + step * ((first - midnight) // step)
        made = []
        while at.timestamp() <= end and len(made) <= most:
            if at.timestamp() >= start:
                made.append((at.timestamp(), f"{at:%m-%d}" if hours >= 24 else f"{at:%m-%d %H:%M}"))
            at += step
        if len(made) <= most:
            break
    return made[:most]


def _bar(bar: Bar, a: float, b: float, y: float) -> str:
    """A nested drawing cuts the label where the bar ends."""
    inner = tag(
        "rect", x="0", y="0", width="100%", height=_BAR, rx=3.0, class_=f"c{bar.series} bar"
    )
    inner += text(5, 12, bar.label, class_="inside")
    wide = _percent(max(b - a, 0.004))
    return tag(
        "svg",
        hint(bar.hint) + inner,
        aria_label=bar.hint,
        x=_percent(min(a, 0.996)),
        y=y,
        width=wide,
        height=_BAR,
    )


def _together(signs: Iterable[Sign], share: Callable[[float], float]) -> list[list[Sign]]:
    """Signs that would lie on each other, as one."""
    made: list[list[Sign]] = []
    for sign in sorted(signs, key=lambda sign: sign.at):
        if made and share(sign.at) - share(made[-1][0].at) < _NEAR:
            made[-1].append(sign)
        else:
            made.append([sign])
    return made


_WORST = ("bad", "warn", "good", "")


def _sign(many: Sequence[Sign], at: float, y: float) -> str:
    worst = min(many, key=lambda sign: _WORST.index(sign.mood))
    hints = [sign.hint for sign in many[-_MOST_HINTS:]]
    if len(many) > _MOST_HINTS:
        hints.insert(0, f"{len(many) - _MOST_HINTS} before, and:")
    count = tag("tspan", str(len(many)), class_="count") if len(many) > 1 else ""
    place = {"x": _percent(min(max(at, 0.01), 0.97)), "text_anchor": "middle"}
    mark = tag("text", escape(worst.mark) + count, y=y, class_=f"mark {worst.mood}", **place)
    return tag("g", hint("\n".join(hints)) + mark)


def _text(x: str, y: float, words: str, anchor: str, class_: str) -> str:
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, class_=class_)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
