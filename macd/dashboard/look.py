"""What a host is asked for the page, and the last answer, stored for when it does not answer.

A look is one JSON document. It holds no secret: units, settings, .env and key files of the host are
left out. Asking changes nothing on the host and takes no lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from macd.deploy import state
from macd.deploy.state import HostState
from macd.gate import doctor
from macd.gate.finding import Finding
from macd.host import record
from macd.host.durable import replace_file
from macd.host.record import Record
from macd.inventory import Host, Inventory
from macd.ssh.session import open_session

VERSION = 1
_MOST_RECORDS = 5000
_SECRET = ("env", "allowed_signers", "revoked", "service_settings", "units", "live_files")
_UNUSED = ("returns", "missing", "not_read", "dropins")


@dataclass(frozen=True)
class Look:
    """What a host said. asked: when, by the clock here; host_now: what its own clock said then.

    findings: the known failures that were found (macd/gate/doctor.py). report: a gate document of
    then, None where there is none, and `no_report` says why. records: the host's own journal up to
    its first damage, which `damage` names.
    """

    host: str
    env: str
    asked: datetime
    host_now: datetime
    state: HostState
    drift: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    report: Mapping[str, Any] | None = None
    no_report: str = ""
    records: tuple[Record, ...] = ()
    damage: str = ""


def look(host: Host, inventory: Inventory) -> Look:
    """Ask a host, pull its logs and judge them as they are now; nothing is signed or stored.

    Raises MacdError when it can't be reached.
    """
    with open_session(host, inventory) as session:
        question = state.ask(session, host, inventory)
        observed = state.observed(question)
        records, damage = record.parse(state.read_journal(session, host))
        clock = session.clock
    asked = datetime.now(UTC)
    case = doctor.case_of(host, inventory, observed, clock)
    return Look(
        host=host.name,
        env=host.env,
        asked=asked,
        host_now=asked + timedelta(seconds=clock.offset),
        state=_without_secrets(observed),
        drift=tuple(case.drift),
        findings=tuple(f for f in doctor.diagnose(case) if f.ok is False),
        report=case.report,
        no_report=case.no_report or ("" if case.report else "no release is live"),
        records=tuple(records[-_MOST_RECORDS:]),
        damage=damage.reason if damage else "",
    )


def _without_secrets(observed: HostState) -> HostState:
    empty = {name: type(getattr(observed, name))() for name in _UNUSED}
    hidden: dict[str, Any] = {
        name: {} if name == "units" else () if name == "live_files" else None for name in _SECRET
    }
    return replace(observed, **empty, **hidden)


# Stored.


def path_of(inventory: Inventory, host: str) -> Path:
    """Where the last look at a host is stored."""
    return inventory.state_dir / "dashboard" / f"{host}.json"


def store(seen: Look, inventory: Inventory) -> None:
    """Store a look as the last one at its host. Raises OSError as the disk has it."""
    path = path_of(inventory, seen.host)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        **asdict(seen),
        "version": VERSION,
        "asked": seen.asked.isoformat(),
        "host_now": seen.host_now.isoformat(),
        "records": [{**asdict(r), "time": r.time.isoformat()} for r in seen.records],
    }
    replace_file(path, json.dumps(document, separators=(",", ":")).encode())


def stored(inventory: Inventory, host: str) -> Look | None:
    """The last look at a host that was stored; None without one that this version can read."""
    try:
        document = json.loads(path_of(inventory, host).read_bytes())
        if document.pop("version") != VERSION:
            return None
        return Look(
            **{
                **document,
                "asked": datetime.fromisoformat(document["asked"]),
                "host_now": datetime.fromisoformat(document["host_now"]),
                "state": HostState(**document["state"]),
                "drift": tuple(document["drift"]),
                "findings": tuple(Finding(**f) for f in document["findings"]),
                "records": tuple(
                    Record(**{**r, "time": datetime.fromisoformat(r["time"])})
                    for r in document["records"]
                ),
            }
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
