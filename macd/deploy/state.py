"""What a host says of itself: one question, one answer, typed; of one host or of several.

Changes nothing on any host and takes no lock.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from macd import application
from macd.deploy.fleet import code_of, side_by_side, worst
from macd.deploy.lineage import time_shown
from macd.errors import ContactLostError, MacdError
from macd.host.alerts.conditions import lasting
from macd.host.flag.flag_file import FULL, LIVE, SHADOW
from macd.host.systemd import namespaces
from macd.inventory import Host, Inventory
from macd.ssh.failures import RemoteFileNotFoundError
from macd.ssh.refusals import UnreachableError
from macd.ssh.session import Pending, Session, open_session

PROVISIONED = ("recover.service", "alerts.service", "alerts.timer")


@dataclass(frozen=True)
class HostState:
    """The answer of deploy_facts (macd/host/deploy/status.py); times are epoch seconds there.

    `units` maps unit name to its text or None, `dropins` to what changes it from beside its file
    ({"path", "sets"}); `not_read` are those whose files systemd has not read since; `missing`
    lists [sha256, bytes already there]; `returns` has for each release that may come back the
    names of what is restored with it, and whether stacking decided (macd/host/deploy/rollback.py);
    `last` is the last event of the newest activation, `healthy` in it whether what was left serves.
    `free`, `free_inodes` (-1: not counted) and `noexec` are of the file system of `app`,
    `blobs_free` is of another one where blobs arrive (-1: it is none). `lacks`
    names missing packages of the system (macd/host/store/runtimes.py), `no_namespaces` says why
    systemd can't protect the service there (macd/host/systemd/namespaces.py), `selinux` why it may
    not start a program (selinux.py beside it), `no_directory` names those that an own application
    is to write and that are not there. `expires` is of the live release. `stacking` is the answer
    of `stacking_state` in macd/host/flag/guard_config.py, `alerts` that of `status` in
    macd/host/alerts/look.py, `by_hand` that of `processes` in macd/host/deploy/byhand.py.
    `adopted`: how a service that people put there does, which the first deploy takes over.
    `others_ran`: when other releases ran since an own application's live one was committed
    (macd/host/deploy/ledger.py).
    """

    app: str
    exists: bool
    python: Mapping[str, str]
    endpoint: str
    live: str | None = None
    live_files: Sequence[Sequence[Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    expires: float | None = None
    history: Sequence[Mapping[str, Any]] = ()
    bad: Sequence[Mapping[str, Any]] = ()
    releases: Sequence[str] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    foreign: Sequence[str] = ()
    runtimes: Sequence[str] = ()
    serial: Mapping[str, Any] = field(default_factory=dict)
    pending: Mapping[str, Any] | None = None
    last: Mapping[str, Any] | None = None
    flag_change: Mapping[str, Any] | None = None
    lock: Mapping[str, Any] | None = None
    process: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    stacking: Mapping[str, Any] = field(default_factory=dict)
    alerts: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, str | None] = field(default_factory=dict)
    dropins: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    not_read: Sequence[str] = ()
    by_hand: Sequence[Mapping[str, Any]] = ()
    adopted: str = ""
    others_ran: Sequence[Mapping[str, Any]] = ()
    env: str | None = None
    service_settings: str | None = None
    agent_archive: str | None = None
    allowed_signers: str | None = None
    accepts: str | None = None
    revoked: str | None = None
    missing: Sequence[Sequence[Any]] = ()
    rollback: Mapping[str, Any] = field(default_factory=dict)
    returns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    readiness: Mapping[str, Any] = field(default_factory=dict)
    free: int = 0
    free_inodes: int = -1
    blobs_free: int = -1
    noexec: str = ""
    no_namespaces: str = ""
    selinux: str = ""
    lacks: Sequence[Mapping[str, Any]] = ()
    no_directory: Sequence[str] = ()

    def unprotected(self, hardening: str) -> str:
        """That the host can't protect the service as `service.hardening` says; "" if it can."""
        if not self.no_namespaces or hardening == namespaces.CONTAINER:
            return ""
        return f"the service can't be protected as its unit says: {self.no_namespaces}"

    @property
    def lock_holder(self) -> str:
        """Who holds the deploy lock, doing what, for how long; "" when it is free."""
        if self.lock is None:
            return ""
        age = f"{self.lock.get('age_s', 0):.0f} s"
        return f"{self.lock.get('who')}, {self.lock.get('doing', 'deploy')}, for {age}"

    @property
    def under_way(self) -> str:
        """The activation that has not ended, and whether its process lives; "" if there is none."""
        at = self.pending
        if at is None:
            return ""
        alive = "at work" if at["runner"] else "its process died; the next deploy ends it"
        return f"activation {at['number']}, {at['kind']} of {at['to']}: {at['state']}; {alive}"

    @property
    def reverted(self) -> str:
        """That the newest activation was reverted, when and why; "" if it was not."""
        last = self.last
        if last is None or last["state"] != "reverted":
            return ""
        text = f"activation {last['number']} of {last.get('release')} was reverted"
        text += f", {time_shown(last['at'])}: {' '.join(str(last.get('reason')).split())[:200]}"
        healthy = last.get("healthy", last.get("well"))
        return text if healthy is not False else f"{text}; {last.get('serving')}"

    @property
    def flag_under_way(self) -> str:
        """The change of the stacking flag that has not ended; "" if there is none."""
        change = self.flag_change
        if change is None:
            return ""
        text = f"stacking from {_share(change, 'was')} to {_share(change, 'wanted')}"
        text += f", started {time_shown(change['started'])} by {change['who']}: {change['state']}"
        end = "the next deploy, enable-stacking or disable-stacking ends it"
        return f"{text}; at work" if self.lock else f"{text}; it was INTERRUPTED, {end}"

    @property
    def exposure(self) -> str:
        """With what weight stacking decides, how it came to it, what follows; "" in shadow."""
        weight = self.stacking.get("weight") or {}
        if self.stacking.get("running") != LIVE or not weight.get("running"):
            return ""
        # One's own application has a flag, and no weights.
        text = "decides" if self.details.get("own") else f"decides with {weight['running']} %"
        if weight["raised"]:
            last = weight["raised"][-1]
            text += f", raised by the guard from {last['from']} % at {time_shown(last['at'])}"
        if weight["steps"]:
            text += "; next " + ", then ".join(f"{step} %" for step in weight["steps"])
        return text + (f"; it waits: {weight['waits']}" if weight["waits"] else "")

    @property
    def taken_back(self) -> str:
        """That the guard disabled stacking of what is live, when and why; "" where it did not."""
        failed = (self.stacking.get("weight") or {}).get("failed")
        if not failed or self.exposure:
            return ""
        return f"in shadow: the guard disabled it at {time_shown(failed['at'])}: {failed['why']}"

    @property
    def unwatched(self) -> str:
        """That nobody looks for alarms there, and since when; "" where the host does."""
        seen = self.alerts
        if seen.get("installed") and seen["runs"] and (seen["age_s"] is None or not seen["late"]):
            return ""
        age = seen.get("age_s")
        since = "" if age is None else f": the last look was {lasting(age)} ago"
        return f"nobody looks for alarms here{since}"

    @property
    def serves_well(self) -> bool:
        """What answers is the live release, run by systemd, in good health."""
        return (
            self.live is not None
            and self.health.get("release") == self.live
            and self.health.get("status") == "ok"
            and self.process.get("active") == "active"
        )

    @property
    def inactive(self) -> str:
        """What systemd says of a service that does not run; of instances, of one of them."""
        unit = self.process.get("unit", "the service")
        return f"{unit} is {self.process.get('active') or 'unknown'}"

    @property
    def unhealthy(self) -> str:
        """Why what is live does not serve well; "" if it does, or if nothing is live."""
        if self.live is None or self.serves_well:
            return ""
        if self.process.get("active") != "active":
            return self.inactive
        if "unreachable" in self.health:
            return f"it does not answer: {self.health['unreachable']}"
        serves = self.health.get("release")
        if serves != self.live:
            # A process of one's own application that names no release: the host says what it knows.
            known = self.health.get("last_error") if serves is None else None
            return str(known or f"the running process serves {serves}")
        if self.health.get("status") == "starting":
            return f"it is still loading {self.live}"
        return f"its status is {self.health.get('status')}: {self.health.get('last_error')}"


def _share(change: Mapping[str, Any], name: str) -> str:
    """What stacking counts for before or after a change, as "25 %" or "shadow"."""
    if change[name] == SHADOW:
        return "shadow"
    if change[name] != LIVE:
        return str(change[name])
    return f"{change.get('was_weight' if name == 'was' else 'weight') or FULL} %"


def ask(
    session: Session, host: Host, inventory: Inventory, wanted: Sequence[tuple[str, int]] = ()
) -> Pending:
    """Put the question without waiting; `observed` reads the answer."""
    return session.submit(
        "deploy_facts",
        app=host.app_dir,
        unit=f"{host.unit}.service",
        units=unit_names(host, inventory),
        scope=host.scope,
        endpoint=inventory.service.health,
        wanted=[list(pair) for pair in wanted],
        flags=tool_flags(inventory),
        writes=list(application.of(inventory).writes),
        commands=commands(host, inventory),
        flag=flag_document(inventory),
    )


def flag_document(inventory: Inventory) -> dict[str, str] | None:
    """The flag of its application, for a host that may not know it yet; None without one."""
    flag = application.of(inventory).flag
    return asdict(flag) if flag else None


def commands(host: Host, inventory: Inventory) -> list[list[str]]:
    """The words of what the units run, as far as the inventory says it."""
    units = application.of(inventory).units(host.unit).values()
    return [shlex.split(unit.command) for unit in units if unit.command]


def tool_flags(inventory: Inventory) -> list[str]:
    """The keys of .env that the tool sets; all others are the team's, and are left alone."""
    return sorted(application.of(inventory).variables)


def observed(answer: Pending) -> HostState:
    """Wait for the answer of `ask`."""
    return HostState(**answer.result())


def unit_names(host: Host, inventory: Inventory) -> list[str]:
    """Every unit of ours: what serves, and provision's: what ends an interrupted activation, and
    what looks for alarms."""
    return [*serving(host, inventory), *(f"{host.unit}-{end}" for end in PROVISIONED)]


def serving(host: Host, inventory: Inventory) -> list[str]:
    """The units that go live with a release, the main one first."""
    return list(application.of(inventory).units(host.unit))


def observe(host: Host, inventory: Inventory) -> HostState:
    """One host as it is now; changes nothing."""
    with open_session(host, inventory) as session:
        return observed(ask(session, host, inventory))


def observe_each(
    hosts: Sequence[Host], inventory: Inventory
) -> tuple[list[tuple[str, HostState]], dict[str, MacdError]]:
    """Each host by name, and of those that can't be reached why; changes nothing.

    Raises what `observe` does otherwise; where none can be reached, one error that names them all.
    """
    results = side_by_side(hosts, lambda host: observe(host, inventory))
    unreachable = dict(results.failed)
    for error in unreachable.values():
        if not isinstance(error, UnreachableError | ContactLostError):
            raise error
    if unreachable and not results.done:
        raise _none(unreachable)
    return list(results.done.items()), unreachable


def _none(unreachable: Mapping[str, MacdError]) -> MacdError:
    if len(unreachable) == 1:
        return next(iter(unreachable.values()))
    return MacdError(
        f"none of {', '.join(unreachable)} can be reached",
        why="\n".join(f"{name}: {error.what}" for name, error in unreachable.items()),
        live="as before: nothing was done on any host",
        hint="\n".join(dict.fromkeys(error.hint for error in unreachable.values() if error.hint)),
        exit_code=worst(code_of(error) for error in unreachable.values()),
    )


def fetch_journal(host: Host, inventory: Inventory) -> bytes:
    """The host's own journal as it stands; empty where nothing was ever recorded."""
    with open_session(host, inventory) as session:
        return read_journal(session, host)


def read_journal(session: Session, host: Host) -> bytes:
    """As `fetch_journal`, in a session that is open."""
    try:
        return session.read(f"{host.app_dir}/state/journal.jsonl", limit=256 << 20)
    except RemoteFileNotFoundError:
        return b""
