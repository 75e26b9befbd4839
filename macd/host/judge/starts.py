"""What the guard's evidence says since the flip, and since later starts: late breaks count.

One long look back forgives a model that breaks after twenty good hours. So the watch is cut into
equal parts, and all bars since the beginning of each are judged at every look. The starts are fixed
when the watch is ordered and share the 5 %: the bounds of each hold at all of its looks, and so
all of them together (Bonferroni; Shin, Ramdas and Rinaldo 2022, "E-detectors", for the idea).
Standard library and pure but for reading the logs: the guard runs this on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.host.judge import gate, reading
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.continuity import step_ms
from macd.host.judge.gate import Decision, Findings, Rule
from macd.host.judge.parse import Bad, Line

_MOST_BARS = 50_000  # of each start: bars of a minute for a month
MOST = 6  # more starts find a break sooner but each needs more bars to be sure of it
_SEVERE_NAMED = 5


class _Each:
    """Several analyses of the same lines, read once."""

    def __init__(self, parts: Sequence[Analysis]) -> None:
        self.parts = parts

    def add(self, line: Line | Bad, file: str, number: int) -> None:
        for part in self.parts:
            part.add(line, file, number)

    def finish(self) -> None:
        for part in self.parts:
            part.finish()


def planned(order: Mapping[str, Any]) -> list[float]:
    """The starts of a watch in epoch seconds, the flip first: known before its first bar."""
    lasts = order["until"] - order["since"]
    count = max(1, min(MOST, int(lasts / order["every_s"])))
    return [order["since"] + at * lasts / count for at in range(count)]


def judge(live: Path, order: Mapping[str, Any], now: datetime) -> tuple[Decision, dict[str, Any]]:
    """What the logs in `live` say, and the report of it.

    The verdict is the one since the flip, but FAIL where any later start fails.
    """
    plan = planned(order)
    alpha, rule = gate.ALPHA / len(plan), Rule(**order["rule"])
    end = round(now.timestamp() * 1000)
    begins = [round(at * 1000) for at in plan if at == plan[0] or at < now.timestamp()]
    parts = [Analysis(Window(begin, end, order["release"]), _MOST_BARS) for begin in begins]
    first = f"trades_{datetime.fromtimestamp(order['since'], UTC):%Y%m%d}.jsonl"
    sources = [one for one in reading.ordered(live) if one.name >= first] if live.is_dir() else []
    reading.analyse(sources, _Each(parts), workers=1)
    whole = parts[0]
    severe = tuple(one["example"] for one in whole.severe.document()[:_SEVERE_NAMED])
    decision = gate.decide(
        Findings(whole.tally(), severe, _holes(whole, end), whole.causes()), rule, alpha
    )
    later = [
        (part, gate.decide(Findings(part.tally(), causes=part.causes()), rule, alpha))
        for part in parts[1:]
    ]
    failed = [(part, one) for part, one in later if one.verdict == gate.FAIL]
    if failed and decision.verdict != gate.FAIL:
        part, one = failed[-1]  # the shortest stretch names the break best
        since = f"{datetime.fromtimestamp(part.window.start / 1000, UTC):%Y-%m-%d %H:%MZ}"
        reasons = tuple(f"since {since}: {reason}" for reason in one.reasons)
        decision = Decision(gate.FAIL, decision.criteria, (*reasons, *_holes(whole, end)))
    return decision, {
        "kind": "guard-report",
        "release": order["release"],
        "made": now.isoformat(),
        "window": {"from_ms": begins[0], "to_ms": end},
        "rule": order["rule"],
        "alpha": alpha,
        **gate.document(decision),
        "later": [_told(part, one) for part, one in later],
        "bars": len(whole.bars) + whole.junk,
        "findings": whole.document(),
    }


def _told(part: Analysis, decision: Decision) -> dict[str, Any]:
    rates = {one.name: [one.successes, one.trials] for one in decision.criteria}
    return {"from_ms": part.window.start, "verdict": decision.verdict, "rates": rates}


def _holes(found: Analysis, now_ms: int) -> tuple[str, ...]:
    """Why the lines can't all be there: with holes in the evidence nothing is PASS."""
    newest = found.newest_signal
    told = []
    if newest is None or gate.too_old(now_ms - newest.time, step_ms(newest.tf)):
        told.append("stale: no new bar is told")
    if found.whole.broken or found.whole.incomplete:
        told.append(
            f"lines or bars are missing at {found.whole.broken + found.whole.incomplete} places"
        )
    if found.whole.intruders:
        told.append("lines of another release stand between those of the live one")
    return tuple(told)
