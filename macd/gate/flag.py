"""Let stacking decide, or stop it: the operator's side. What counts is decided on the host again.

`standing` says before anything is asked of the host why it would refuse, with every reason at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from macd.deploy import state
from macd.deploy.state import HostState
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError
from macd.gate import evidence, report
from macd.gate.report import Report
from macd.host.flag import gate_note
from macd.host.flag.flag_file import LIVE, SHADOW
from macd.inventory import Host, Inventory
from macd.ssh.session import Session, open_session


@dataclass(frozen=True)
class Flipped:
    """How it ended on one host.

    result: set, already, reverted, or (a dry run) would. value: of the flag now. wrong: why the
    service does not serve well, "" if it does. report: path of the evidence, "" where none is
    needed. lost: why the host has it not on record, "" if it has.
    """

    host: str
    result: str
    value: str
    release: str | None
    pid: int | None = None
    reason: str = ""
    wrong: str = ""
    report: str = ""
    lost: str = ""


def enable(host: Host, inventory: Inventory, who: str, *, dry_run: bool = False) -> Flipped:
    """Let stacking decide, on the evidence of the newest report.

    Raises:
        RefusedError: no such evidence, or the host does not take it; nothing was changed.
        ContactLostError: the host ends by itself what it began.
    """
    with open_session(host, inventory) as session:
        found = state.observed(state.ask(session, host, inventory))
        looks_so = _is_so(found, LIVE)
        if dry_run and looks_so:
            return Flipped(host.name, "already", LIVE, found.live, found.process.get("pid"))
        try:
            evidenced = _evidence(session, host, inventory, found)
        except RefusedError:
            if not looks_so:
                raise
            evidenced = None  # where a guard watches, the host needs none; else it refuses
        if dry_run and evidenced:
            return Flipped(host.name, "would", LIVE, found.live, report=str(evidenced.path))
        claim = {
            "report": evidenced.raw if evidenced else b"",
            "signature": evidenced.signature if evidenced else b"",
            "identity": inventory.release.identity,
            "guard": {
                "every_s": inventory.guard.every_hours * 3600,
                "for_s": inventory.guard.for_hours * 3600,
                "rule": asdict(report.rule_of(inventory)),
            },
        }
        told = _set(session, host, inventory, found, {"wanted": LIVE, "who": who, **claim})
    return _flipped(host, told, str(evidenced.path) if evidenced else "")


def disable(host: Host, inventory: Inventory, who: str, *, dry_run: bool = False) -> Flipped:
    """Back to shadow; needs no evidence. Raises as `enable` does."""
    with open_session(host, inventory) as session:
        found = state.observed(state.ask(session, host, inventory))
        if dry_run:
            result = "already" if _is_so(found, SHADOW) else "would"
            return Flipped(host.name, result, SHADOW, found.live, found.process.get("pid"))
        told = _set(session, host, inventory, found, {"wanted": SHADOW, "who": who})
    return _flipped(host, told, "")


def _is_so(found: HostState, value: str) -> bool:
    """For a look only: the host knows what is under way and who watches."""
    said = found.stacking
    return bool(said) and said["next"] == said["running"] == value


def _evidence(session: Session, host: Host, inventory: Inventory, found: HostState) -> Report:
    newest = report.read(report.newest(inventory, host.name), inventory)
    now = datetime.fromtimestamp(session.clock.offset + datetime.now(UTC).timestamp(), UTC)
    sha256 = str(found.health.get("manifest_sha256", ""))
    told = evidence.standing(newest.document, release=found.live, manifest_sha256=sha256, now=now)
    noted = session.call("gate_newest", app=host.app_dir)
    told += gate_note.closed(noted, found.live, newest.document.get("made"))
    if newest.document.get("host") != host.name or newest.document.get("env") != host.env:
        told.append(f"it is about {newest.document.get('host')}, not about {host.name}")
    if told:
        raise RefusedError(
            f"{host.name}: the newest gate report does not let stacking decide",
            why="\n".join([*told, f"the report: {newest.path}"]),
            live=f"{found.live or 'nothing'}, flags as before",
            hint="invoke shadow-gate makes a new one",
        )
    return newest


def _set(
    session: Session, host: Host, inventory: Inventory, found: HostState, asked: Mapping[str, Any]
) -> Mapping[str, Any]:
    service = {
        "unit": f"{host.unit}.service",
        "sockets": [n for n, text in found.units.items() if n.endswith(".socket") and text],
        "scope": host.scope,
        "endpoint": found.endpoint,
    }
    try:
        told: Mapping[str, Any] = session.call(
            "set_flag", app=host.app_dir, service=service, health_s=inventory.soak.ready_s, **asked
        )
    except ContactLostError as error:
        raise ContactLostError(
            error.what,
            why=error.why,
            live="unknown from here: the host ends what it began, or the next command there does",
            hint="invoke status shows the flag of the running process; then the same command again",
        ) from error
    except KeyboardInterrupt as interrupt:
        raise MacdError(
            f"{host.name}: interrupted while the host was setting the flag",
            live="the host ends what it began",
            hint="invoke status shows the flag of the running process",
            exit_code=ExitCode.CONTACT_LOST,
        ) from interrupt
    return told


def _flipped(host: Host, told: Mapping[str, Any], path: str) -> Flipped:
    return Flipped(
        host=host.name,
        result=told["outcome"],
        value=told["value"],
        release=told["release"],
        pid=told["pid"],
        reason=told["reason"],
        wrong=told["wrong"],
        report=path,
        lost=told["lost"],
    )
