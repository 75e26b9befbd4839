"""A change of the stacking flag that is under way, as it stands on record until it has ended."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from macd.host.failure import HostError
from macd.host.flagfile import FLAG
from macd.host.layout import Layout, load, save
from macd.host.supervisor import Process

PENDING = "pending-flag.json"


@dataclass(frozen=True)
class Change:
    """A change of the flag that is under way. state: begun, proved or reverting."""

    wanted: str
    was: str
    release: str
    unit: str
    sockets: List[str]
    scope: str
    endpoint: str
    health_s: float
    who: str
    started: float
    state: str = "begun"
    report: str = ""
    reason: str = ""


def keep(layout: Layout, change: Change) -> None:
    save(layout.state(PENDING), dataclasses.asdict(change), mode=0o600)


def interrupted(layout: Layout) -> Optional[Change]:
    document = load(layout.state(PENDING), None)
    if document is None:
        return None
    known = {field.name for field in dataclasses.fields(Change)}
    return Change(**{name: value for name, value in document.items() if name in known})


def named(change: Change) -> Dict[str, object]:
    names = ("wanted", "was", "release", "who", "report")
    return {"flag": FLAG, **{name: getattr(change, name) for name in names}}


def told(outcome: str, change: Change, process: Optional[Process], wrong: str) -> Dict[str, Any]:
    return {
        "outcome": outcome,
        "release": change.release,
        "value": change.was if outcome == "reverted" else change.wanted,
        "pid": process.pid if process else None,
        "wrong": wrong,
        "reason": change.reason,
    }


def unwatched(change: Change) -> HostError:
    return HostError(
        "stacking decides here, but no guard watches it",
        why="it was set by hand, or the guard was ended; and no gate report came along",
        live=f"{change.release}, flags as before",
        hint="invoke shadow-gate, then invoke enable-stacking; or invoke disable-stacking",
        kind="refused",
    )
