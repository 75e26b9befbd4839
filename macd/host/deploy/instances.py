"""What the instances of one application say, put together as one process of all symbols says it.

So status, alarms and pages read one answer, however many processes gave it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macd.host.systemd.supervisor import Process

_OF_A_SYMBOL = ("last_bar", "stacking", "age", "challenger", "seq", "started", "feed")


@dataclass(frozen=True)
class InstanceState:
    """An instance: its process, what its endpoint answered ({"unreachable": why} for nothing), and
    why that does not prove that it serves the live release well ("" if it does).
    """

    unit: str
    symbol: str
    process: Process
    answer: Mapping[str, Any]
    wrong: str


def together(instances: Sequence[InstanceState], since: Mapping[str, float]) -> dict[str, Any]:
    """As the health document of one process, the main instance's where all must agree.

    symbols: the state of each. units: by name pid, active, restarts (by systemd), since (seconds
    that it has run), wrong.
    `unreachable` only where none answers.
    """
    units = {
        one.unit: {
            "pid": one.process.pid,
            "active": one.process.active,
            "restarts": one.process.restarts,
            "since": since.get(one.unit),
            "wrong": one.wrong,
        }
        for one in instances
    }
    wrong = "; ".join(f"{one.unit}: {one.wrong}" for one in instances if one.wrong)
    answers = [one.answer for one in instances if "unreachable" not in one.answer]
    if not answers:
        return {"unreachable": wrong, "units": units}
    first = answers[0]
    starting = all(one.answer.get("status") == "starting" for one in instances if one.wrong)
    bars = [str(answer["last_bar"]) for answer in answers if answer.get("last_bar")]
    errors = [
        f"{one.symbol}: {one.answer['last_error']}"
        for one in instances
        if one.answer.get("last_error")
    ]
    return {
        **{name: first.get(name) for name in ("release", "manifest_sha256", "pid", "flags")},
        "status": "starting" if wrong and starting else "failed" if wrong else "ok",
        "golden": _golden(instances),
        "models": {one.symbol: one.wrong for one in instances if one.wrong} or {"all": "ok"},
        "stacking": _same([answer.get("stacking") for answer in answers], "off"),
        "stacking_weight": _same([answer.get("stacking_weight") for answer in answers], None),
        "started": max(str(answer.get("started") or "") for answer in answers) or None,
        "feed": _feed(answers),
        "last_bar": max(bars, default=None),
        "last_error": wrong or "; ".join(errors) or None,
        "symbols": {one.symbol: _symbol(one) for one in instances},
        "units": units,
    }


def _symbol(one: InstanceState) -> dict[str, Any]:
    said = {name: one.answer[name] for name in _OF_A_SYMBOL if one.answer.get(name) is not None}
    return {"ok": not one.wrong, **said, **({"error": one.wrong} if one.wrong else {})}


def _golden(instances: Sequence[InstanceState]) -> dict[str, Any]:
    said = {one.symbol: one.answer.get("golden") or {} for one in instances}
    bad = {symbol: golden for symbol, golden in said.items() if golden.get("ok") is not True}
    diffs = [golden["max_diff"] for golden in said.values() if golden.get("max_diff") is not None]
    detail = f"the golden predictions of {len(instances)} symbols agree"
    if bad:
        each = (f"{symbol}: {golden.get('detail', 'unknown')}" for symbol, golden in bad.items())
        detail = "; ".join(each)
    return {"ok": not bad, "max_diff": max(diffs, default=None), "detail": detail}


def _feed(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state that most say, and when a bar last came to any of them."""
    feeds = [answer["feed"] for answer in answers if isinstance(answer.get("feed"), Mapping)]
    states = [str(feed.get("state")) for feed in feeds]
    arrived = [feed["last_arrival"] for feed in feeds if feed.get("last_arrival") is not None]
    state = max(states, key=states.count, default="unknown")
    return {"state": state, "last_arrival": max(arrived, default=None)}


def _same(values: Sequence[Any], otherwise: Any) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else otherwise
