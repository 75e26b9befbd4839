"""Follow the guard of a host from here, and catch up with what it did while nobody was there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from macd.deploy.drift import about_stacking
from macd.host.flag import guard_config
from macd.host.flag.flag_file import LIVE
from macd.inventory import Host, Inventory
from macd.journal import Journal
from macd.ssh.session import Session, open_session

WATCHING, FAILING, FAILED = "watching", "failing", "failed"


@dataclass(frozen=True)
class Seen:
    """The guard as it is now. order: None if there never was one. reports: the new ones by name.

    loop: whether its own loop runs (a host with systemd has a timer instead). dead: a watch is
    ordered, but neither loop nor timer is there to carry it out. state: "failing" from the verdict
    until stacking is off. stacking: the answer of macd/host/flag/stacking.py.
    """

    host: str
    order: Mapping[str, Any] | None
    live: str | None
    flag: str
    reports: Sequence[tuple[str, Mapping[str, Any]]]
    now: float
    loop: bool
    dead: bool = False
    stacking: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drift(self) -> list[str]:
        """What is wrong with who decides here; [] while a flip or a deploy is under way."""
        return about_stacking(self.stacking)

    @property
    def decides(self) -> bool:
        """Whether stacking decides: by the process, or where nobody can tell by the file."""
        return (self.stacking.get("running") or self.flag) == LIVE

    @property
    def state(self) -> str:
        return str(self.order["state"]) if self.order else "none"

    @property
    def over(self) -> bool:
        return self.state not in (WATCHING, FAILING)

    @property
    def unjudged(self) -> str:
        """How often in a row the guard could not judge, and why; "" while it can."""
        return guard_config.unjudged(dict(self.order) if self.order else None)

    @property
    def idle(self) -> bool:
        """Whether what it watches is not live any more, which its next look will find."""
        if self.order is None or self.state != WATCHING:
            return False
        running = self.stacking.get("running") == LIVE  # as the guard asks: a 0 is no proof
        return self.live != self.order["release"] or not (running or self.flag in (LIVE, ""))


def connect(host: Host, inventory: Inventory) -> Session:
    """A session that `look` can ask again and again."""
    return open_session(host, inventory)


def look(session: Session, host: Host, endpoint: str, after: str = "") -> Seen:
    """The guard now, with its reports behind the one called `after`."""
    asked = session.submit(
        "stacking",
        app=host.app_dir,
        unit=f"{host.unit}.service",
        scope=host.scope,
        endpoint=endpoint,
    )
    told = session.call("guard_status", app=host.app_dir, after=after)
    reports = [(str(one["name"]), one["report"]) for one in told["reports"]]
    return Seen(
        host=host.name,
        order=told["order"],
        live=told["live"],
        flag=told["flag"],
        reports=reports,
        now=told["now"],
        loop=told["loop"],
        dead=told["dead"],
        stacking=asked.result(),
    )


def catch_up(seen: Seen, host: Host, inventory: Inventory) -> bool:
    """Put the end of a watch into the journal here; True if it was not there yet."""
    if seen.order is None or not seen.over:
        return False
    order = seen.order
    fields = {
        "env": host.env,
        "host": host.name,
        "release": order["release"],
        "result": order["state"],
        "reason": order["reason"],
        "ended": datetime.fromtimestamp(order["ended"], UTC).isoformat(),
    }
    journal = Journal(inventory.state_dir / "journal.jsonl")
    known = [record.fields for record in journal.records() if record.kind == "guard.ended"]
    if any(dict(one) == fields for one in known):
        return False
    journal.append("guard.ended", fields, now=datetime.now(UTC))
    return True
