"""What a host says of itself: one question, one answer, typed; of one host or of several.

Changes nothing on any host and takes no lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from macd.deploy.fleet import code_of, side_by_side, worst
from macd.errors import ContactLostError, MacdError
from macd.host.flag.flag_file import FLAG
from macd.inventory import Host, Inventory
from macd.ssh.failures import RemoteFileNotFoundError
from macd.ssh.refusals import UnreachableError
from macd.ssh.session import Pending, Session, open_session


@dataclass(frozen=True)
class HostState:
    """The answer of deploy_facts (macd/host/deploy/status.py); times are epoch seconds there.

    `units` maps unit name to its text or None, `dropins` to what changes it from beside its file
    ({"path", "sets"}); `not_read` are those whose files systemd has not read since; `missing`
    lists [sha256, bytes already there]; `returns` has for each release that may come back the
    names of what is restored with it (macd/host/deploy/rollback.py); `last` is the last event of
    the newest activation, `healthy` in it whether what was left serves. `free`, `free_inodes` (-1:
    not counted) and `noexec` are of the file system of `app`. `lacks` names missing packages of the
    system (macd/host/store/runtimes.py). `stacking` is the answer of `stacking_state` in
    macd/host/flag/guard_config.py.
    """

    app: str
    exists: bool
    python: Mapping[str, str]
    endpoint: str
    live: str | None = None
    live_files: Sequence[Sequence[Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
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
    units: Mapping[str, str | None] = field(default_factory=dict)
    dropins: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    not_read: Sequence[str] = ()
    env: str | None = None
    service_settings: str | None = None
    agent_archive: str | None = None
    allowed_signers: str | None = None
    accepts: str | None = None
    revoked: str | None = None
    missing: Sequence[Sequence[Any]] = ()
    rollback: Mapping[str, Any] = field(default_factory=dict)
    returns: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    readiness: Mapping[str, Any] = field(default_factory=dict)
    free: int = 0
    free_inodes: int = -1
    noexec: str = ""
    lacks: Sequence[Mapping[str, Any]] = ()

    @property
    def held(self) -> str:
        """Who holds the deploy lock, doing what, for how long; "" when it is free."""
        if self.lock is None:
            return ""
        age = f"{self.lock.get('age_s', 0):.0f} s"
        return f"{self.lock.get('who')}, {self.lock.get('doing', 'deploy')}, for {age}"

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
    def unhealthy(self) -> str:
        """Why what is live does not serve well; "" if it does, or if nothing is live."""
        if self.live is None or self.serves_well:
            return ""
        if self.process.get("active") != "active":
            return f"the service is {self.process.get('active') or 'unknown'}"
        if "unreachable" in self.health:
            return f"it does not answer: {self.health['unreachable']}"
        if self.health.get("release") != self.live:
            return f"the running process serves {self.health.get('release')}"
        return f"its status is {self.health.get('status')}: {self.health.get('last_error')}"


def ask(
    session: Session, host: Host, inventory: Inventory, wanted: Sequence[tuple[str, int]] = ()
) -> Pending:
    """Put the question without waiting; `observed` reads the answer."""
    return session.submit(
        "deploy_facts",
        app=host.app_dir,
        unit=f"{host.unit}.service",
        units=unit_names(host),
        scope=host.scope,
        endpoint=inventory.service.health,
        wanted=[list(pair) for pair in wanted],
        flags=tool_flags(inventory),
    )


def tool_flags(inventory: Inventory) -> list[str]:
    """The keys of .env that the tool sets; all others are the team's, and are left alone."""
    return sorted({FLAG, *inventory.service.env})


def observed(answer: Pending) -> HostState:
    """Wait for the answer of `ask`."""
    return HostState(**answer.result())


def unit_names(host: Host) -> list[str]:
    """Every unit of ours: the service, its socket, and what ends an interrupted activation."""
    return [f"{host.unit}.service", f"{host.unit}.socket", f"{host.unit}-recover.service"]


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
        try:
            return session.read(f"{host.app_dir}/state/journal.jsonl", limit=256 << 20)
        except RemoteFileNotFoundError:
            return b""
