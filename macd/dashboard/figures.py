"""The drawings of the dashboard: one time line a host, and curves over time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from macd.dashboard import events
from macd.dashboard.events import Event, Period
from macd.dashboard.paper import Paper
from macd.dashboard.served import MOST_POINTS, Proof, Stretch
from macd.report import charts, numbers
from macd.report.charts import Curve
from macd.report.page import Figure, Table
from macd.report.timeline import Bar, Lane, Sign, time_ticks, timeline

_MARKS = {
    events.MADE: ("+", ""),
    events.DEPLOY: ("▲", "good"),
    events.ROLLBACK: ("◀", "warn"),
    events.REVERT: ("✗", "bad"),
    events.FAILED: ("✗", "bad"),
    events.FLAG_ON: ("●", "good"),
    events.FLAG_OFF: ("○", ""),
    events.FLAG_BACK: ("✗", "bad"),
}
_VERDICTS = {"PASS": ("✓", "good"), "FAIL": ("✗", "bad")}
_LANES = (
    ("Releases made", (events.MADE,)),
    ("Releases", (events.DEPLOY, events.ROLLBACK, events.REVERT, events.FAILED)),
    ("Stacking decides", (events.FLAG_ON, events.FLAG_OFF, events.FLAG_BACK)),
    ("Gate reports", (events.GATE,)),
    ("Guard", (events.GUARD,)),
)
KEY = (
    "▲ deploy, ◀ rollback, ✗ reverted, failed or FAIL, + release made, ● stacking on, ○ off, "
    "✓ PASS, ? inconclusive. A sign with a number stands for so many, shown by the worst."
)


def time_line(host: str, host_events: Sequence[Event], start: float, end: float) -> Figure:
    """Everything that happened on a host in [start, end], epoch seconds."""
    title = f"{host}: what happened"
    lanes = []
    for name, kinds in _LANES:
        signs = [_sign(event) for event in host_events if event.kind in kinds]
        lanes.append(Lane(name, _bars(name, host_events), signs))
    inside = [event for event in host_events if start <= event.at <= end]
    desc = f"{len(inside)} events from {moment(start)} to {moment(end)} UTC; the table has them all"
    rows = [(moment(event.at), event.kind, event.text) for event in reversed(inside)]
    svg = timeline(lanes, start, end, title=title, desc=desc)
    return Figure(title, svg, Table(("UTC", "what", "in words"), rows[:200]), KEY)


def _bars(lane: str, host_events: Sequence[Event]) -> list[Bar]:
    if lane == "Releases":
        periods = events.live_periods(host_events)
        series = {name: at for at, name in enumerate(dict.fromkeys(p.label for p in periods))}
    elif lane == "Stacking decides":
        periods, series = events.stacking_periods(host_events), {}
    else:
        return []
    return [
        Bar(p.start, p.end, short(p.label), _from_to(p), series.get(p.label, 3)) for p in periods
    ]


def _from_to(period: Period) -> str:
    end = moment(period.end) if period.end is not None else "now"
    return f"{period.label}: {moment(period.start)} to {end}"


def _sign(event: Event) -> Sign:
    if event.outcome:
        mark, mood = _VERDICTS.get(event.outcome, ("?", "warn"))
    else:
        mark, mood = _MARKS[event.kind]
    return Sign(event.at, mark, f"{moment(event.at)} {event.text}", mood)


def coverage(rows: Sequence[Sequence[int]], threshold: float) -> Figure | None:
    """Coverage and activation. rows: epoch ms, bars, covered, activated; threshold: a share."""
    if not rows:
        return None
    title = "Coverage and activation"
    curves = [
        Curve("coverage", [(at / 1000, 100 * n / bars) for at, bars, n, _ in rows], 0),
        Curve("activation", [(at / 1000, 100 * m / n if n else None) for at, _, n, m in rows], 3),
    ]
    table = Table(
        ("from (UTC)", "bars", "covered", "activated"),
        [(moment(at / 1000), bars, n, m) for at, bars, n, m in rows],
    )
    note = f"Dashed: {100 * threshold:g} %, what coverage must exceed."
    svg = _over_time(curves, title, "% of bars", 100 * threshold)
    return Figure(title, svg, table, note)


def latency(parts: Sequence[Stretch]) -> Figure | None:
    """The models' time for a bar."""
    if not parts:
        return None
    title = "Latency of the models"
    curves = [
        Curve("median", [(part.start / 1000, part.median) for part in parts], 1),
        Curve("worst", [(part.start / 1000, part.most) for part in parts], 5),
    ]
    rows = [(moment(p.start / 1000), round(p.median, 3), round(p.most, 3)) for p in parts]
    svg = _over_time(curves, title, "milliseconds")
    return Figure(title, svg, Table(("from (UTC)", "median ms", "worst ms"), rows))


def outside(parts: Sequence[Stretch]) -> Figure | None:
    """How many features lie outside what the models were trained on."""
    if not parts:
        return None
    title = "Features outside the training's range"
    curves = [
        Curve("mean of the bars", [(part.start / 1000, part.mean) for part in parts], 6),
        Curve("most", [(part.start / 1000, part.most) for part in parts], 4),
    ]
    rows = [(moment(p.start / 1000), round(p.mean, 2), p.most) for p in parts]
    svg = _over_time(curves, title, "features")
    return Figure(title, svg, Table(("from (UTC)", "mean", "most"), rows))


def skill(parts: Sequence[Proof]) -> Figure | None:
    """Stacking against the mean of the models; None with fewer than two moments."""
    if len(parts) < 2:
        return None
    title = "Log score of stacking minus the mean's"
    curves = [
        Curve("so far", [(part.bar / 1000, part.value) for part in parts], 3),
        Curve("lowest", [(part.bar / 1000, part.low) for part in parts], 4),
        Curve("highest", [(part.bar / 1000, part.high) for part in parts], 4),
    ]
    rows = [(moment(p.bar / 1000), p.n, _nats(p.value), _nats(p.low), _nats(p.high)) for p in parts]
    note = (
        "Above 0 stacking is better. The bounds hold at every look: once both lie below 0, it is "
        "proved worse."
    )
    svg = _over_time(curves, title, "nats a bar, more is better", 0.0)
    table = Table(("bars until (UTC)", "bars", "so far", "lowest", "highest"), rows)
    return Figure(title, svg, table, note)


def _nats(value: float) -> str:
    return numbers.decimal(value, 4, signed=True)


def equity(
    made: Paper | None, fee_bps: float, slippage_bps: float, last: str = ""
) -> Figure | None:
    """What the positions would have earned. last: as `last 30 days`, where these are not all."""
    if made is None:
        return None
    span = f"of the {last}" if last else "since the first line"
    title = f"Paper result {span}"
    step = max(1, -(-len(made.points) // MOST_POINTS))
    points = [*made.points[:-1:step], made.points[-1]]
    curve = Curve("one unit, net", [(at / 1000, 100 * (v - 1)) for at, v in points], 2)
    note = (
        f"Paper, net of {fee_bps:g} bp fee and {slippage_bps:g} bp slippage a trade; no claim. "
        f"{numbers.gain(made.net)} in {numbers.counted(made.trades, 'trade')}; holding throughout: "
        f"{numbers.gain(made.market)}. Deepest fall: {numbers.share(made.drawdown)}. "
        f"In a position on {numbers.share(made.exposure)} of the bars. An open position counts at "
        f"the last close.{' More --days look further back.' if last else ''}"
    )
    rows = [(moment(at / 1000), numbers.gain(v - 1)) for at, v in points]
    svg = _over_time([curve], title, "% won or lost, net of costs", 0.0)
    return Figure(title, svg, Table(("bar (UTC)", f"net {span}"), rows), note)


def _over_time(
    curves: Sequence[Curve], title: str, y_label: str, reference: float | None = None
) -> str:
    """x in epoch seconds."""
    xs = [x for curve in curves for x, _ in curve.points]
    return charts.lines(
        curves,
        title=title,
        y_label=y_label,
        reference=reference,
        marks=time_ticks(min(xs), max(xs), most=4),
        at=moment,
    )


def moment(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M}"


def short(release: str) -> str:
    """A release's id as people tell it apart: `11-29 03:37 7e2a`; other names as they are."""
    try:
        made = datetime.strptime(release.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return release
    return f"{made:%m-%d %H:%M} {release.partition('-')[2][:4]}"
