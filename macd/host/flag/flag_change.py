"""A change of the stacking flag that is under way, as it stands on record until it has ended."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from macd.host.failure import HostError
from macd.host.flag.flag_file import FLAG
from macd.host.layout import Layout, discard, load, save
from macd.host.systemd.supervisor import Process

PENDING = "pending-flag.json"


@dataclass(frozen=True)
class Change:
    """A change of the flag that is under way. state: begun, proved or reverting."""

    wanted: str
    was: str
    release: str
    unit: str
    sockets: list[str]
    scope: str
    endpoint: str
    health_s: float
    who: str
    started: float
    state: str = "begun"
    report: str = ""
    reason: str = ""


Record = Callable[[str, dict[str, object]], None]


class Notes:
    """What goes on record of a change: it must for stacking to decide, and may for shadow.

    A disk that takes nothing any more is no reason to leave stacking on. lost: why it took no
    word of the way to shadow, "" while it took all.
    """

    def __init__(self, layout: Layout, record: Record, *, must: bool) -> None:
        self._layout, self._record, self._must = layout, record, must
        self.lost = ""

    def may(self) -> Notes:
        """The same, for the way back to shadow."""
        return Notes(self._layout, self._record, must=False)

    def keep(self, change: Change) -> None:
        with self._noting():
            save(self._layout.state(PENDING), dataclasses.asdict(change), mode=0o600)

    def record(self, kind: str, fields: dict[str, object]) -> None:
        with self._noting():
            self._record(kind, fields)

    def forget(self) -> None:
        with self._noting():
            discard(self._layout.state(PENDING))

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (HostError, OSError) as error:
            if self._must:
                raise
            self.lost = self.lost or f"the host could not put it on record: {error}"


def interrupted(layout: Layout) -> Change | None:
    document = load(layout.state(PENDING), None)
    if document is None:
        return None
    known = {field.name for field in dataclasses.fields(Change)}
    return Change(**{name: value for name, value in document.items() if name in known})


def named(change: Change) -> dict[str, object]:
    names = ("wanted", "was", "release", "who", "report")
    return {"flag": FLAG, **{name: getattr(change, name) for name in names}}


def told(
    outcome: str, change: Change, process: Process | None, wrong: str, lost: str = ""
) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "release": change.release,
        "value": change.was if outcome == "reverted" else change.wanted,
        "pid": process.pid if process else None,
        "wrong": wrong,
        "reason": change.reason,
        "lost": lost,
    }


def unwatched(change: Change) -> HostError:
    return HostError(
        "stacking decides here, but no guard watches it",
        why="it was set by hand, or the guard was ended; and no gate report came along",
        live=f"{change.release}, flags as before",
        hint="invoke shadow-gate, then invoke enable-stacking; or invoke disable-stacking",
        kind="refused",
    )
