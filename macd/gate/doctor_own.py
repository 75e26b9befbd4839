"""What `invoke doctor` looks for on a host that serves an application of the team's own. Pure.

It knows the units, the processes and the log lines that the inventory maps; of models, features
and bars it knows nothing, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from macd.gate.finding import Finding, short
from macd.host.alerts.conditions import lasting
from macd.host.judge.parse import step_ms
from macd.host.own import Signals

NOT_LOOKED_FOR = (
    "golden predictions, feature drift and replayed bars belong to the built-in application"
)
_CONSTANT = 20  # equal answers: fewer may be chance, of trees above all
_GRACE_S = 120.0


def units(health: Mapping[str, Any], log: str, restart: str) -> Iterator[Finding]:
    """Each unit of the application; health: as macd/host/deploy/probe.py reports it."""
    said = [line for line in log.splitlines() if line.strip()]
    for name, unit in health.get("units", {}).items():
        if unit["wrong"]:
            evidence = unit["wrong"] + (f"; the engine said: {said[-1]}" if said else "")
            yield Finding(name, False, short(evidence), f"invoke logs; {restart}")
        else:
            since = "" if unit["since"] is None else f", for {lasting(unit['since'])}"
            yield Finding(name, True, f"pid {unit['pid']} runs from the live release{since}")


def signals(
    signals: Signals | None, tf: str, report: Mapping[str, Any] | None, why: str, now: float
) -> Iterator[Finding]:
    """How old the newest line is, each share, each mapped number that is stuck."""
    if signals is None:
        nothing = "app.signals is left out of the inventory: what it decides is not known here"
        yield Finding("signals", None, nothing)
        return
    if report is None:
        yield Finding("signals", None, why or "no logs were analysed")
        return
    yield _newest(signals.files, tf, report["findings"]["timeline"], now)
    for criterion in report["criteria"]:
        yield _share(criterion, report["findings"])
    for name, answers in report["findings"]["models"].items():
        if constant := _constant(name, answers):
            yield constant


def not_looked_for() -> Finding:
    """Said where those findings would stand."""
    return Finding("not looked for", None, NOT_LOOKED_FOR)


def _newest(files: str, tf: str, timeline: Sequence[Sequence[int]], now: float) -> Finding:
    """timeline: [epoch ms at which a bucket begins, bars, ...]; their distance is their width."""
    name = "signals"
    remedy = f"invoke logs --follow; app.signals.files is {files}"
    if not timeline:
        return Finding(name, None, "no line of the live release in the window yet")
    begins = [row[0] / 1000 for row in timeline]
    width = min((b - a for a, b in pairwise(begins)), default=60.0)
    age = max(0.0, now - begins[-1] - width)
    allowed = 2 * step_ms(tf) / 1000 + _GRACE_S
    said = f"the newest line is {lasting(age)} old; bars are {tf}"
    return Finding(name, age <= allowed, said, "" if age <= allowed else remedy)


def _share(criterion: Mapping[str, Any], findings: Mapping[str, Any]) -> Finding:
    name, trials = criterion.get("title") or criterion["name"], criterion["trials"]
    if not trials:
        return Finding(name, None, "no line counts for it in the window")
    good, least = criterion["successes"], criterion["threshold"]
    evidence = f"{good} of {trials} lines, must exceed {least:.0%}"
    if good > least * trials:
        return Finding(name, True, evidence)
    lacking = [f"{count} × {what}" for what, count in findings.get("lacking", {}).items()]
    errors = [f"{row['count']} × {row['example']}" for row in findings["errors"]]
    evidence = "; ".join([evidence, *lacking[:2], *errors[:2]])
    if criterion.get("level") == "warn":
        return Finding(name, None, short(f"{evidence} (warns only)"))
    remedy = "invoke logs shows the lines; invoke disable-stacking, or invoke rollback"
    return Finding(name, False, short(evidence), remedy)


def _constant(name: str, answers: Mapping[str, Any]) -> Finding | None:
    if answers["answers"] < _CONSTANT or answers["min"] != answers["max"]:
        return None
    evidence = f"{answers['answers']} answers, every one of them {answers['min']:g}"
    remedy = "invoke health looks at the model's file; train and release again, or invoke rollback"
    return Finding(f"{name} output", False, evidence, remedy)
