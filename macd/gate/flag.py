"""Let stacking decide, stop it, and follow the guard that watches it: the operator's side.

What counts is decided on the host again. `evidence.blockers` says before anything is asked of the
host why it would refuse, with every reason at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from macd.deploy import state
from macd.deploy.drift import about_stacking
from macd.deploy.state import HostState
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError
from macd.gate import report
from macd.gate.report import Report
from macd.host.flag import evidence, guard_config
from macd.host.flag.flag_file import LIVE
from macd.inventory import Host, Inventory
from macd.journal import Journal
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


@dataclass(frozen=True)
class Flip:
    """A flip of the flag on one host that is ready to be carried out: `prepare` makes it.

    It owns the session; use it as a context manager. evidence: the newest report, verified; None
    where none is needed.
    """

    session: Session
    host: Host
    inventory: Inventory
    wanted: str
    state: HostState
    evidence: Report | None

    @property
    def expected(self) -> Flipped:
        """What a dry run says: "already" or "would"."""
        live, pid = self.state.live, self.state.process.get("pid")
        if _is_so(self.state, self.wanted):
            return Flipped(self.host.name, "already", self.wanted, live, pid)
        if self.evidence:
            path = str(self.evidence.path)
            return Flipped(self.host.name, "would", self.wanted, live, report=path)
        return Flipped(self.host.name, "would", self.wanted, live, pid)

    def carry_out(self, who: str) -> Flipped:
        """Have the host set the flag and prove it.

        Raises:
            RefusedError: the host does not take the evidence; nothing was changed.
            ContactLostError: the host ends by itself what it began.
        """
        asked: dict[str, Any] = {"wanted": self.wanted, "who": who}
        if self.wanted == LIVE:
            guard = self.inventory.guard
            asked |= {
                "report": self.evidence.raw if self.evidence else b"",
                "signature": self.evidence.signature if self.evidence else b"",
                "identity": self.inventory.release.identity,
                "guard": {
                    "every_s": guard.every_hours * 3600,
                    "for_s": guard.for_hours * 3600,
                    "rule": asdict(report.rule_of(self.inventory)),
                },
            }
        answer = _set(self.session, self.host, self.inventory, self.state, asked)
        return _flipped(self.host, answer, str(self.evidence.path) if self.evidence else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def prepare(host: Host, inventory: Inventory, wanted: str) -> Flip:
    """Open a session, ask the host for its state and, for LIVE, gather the evidence.

    Raises:
        RefusedError: no evidence lets stacking decide; nothing was changed.
    """
    session = open_session(host, inventory)
    try:
        host_state = state.observed(state.ask(session, host, inventory))
        evidenced = None
        if wanted == LIVE:
            try:
                evidenced = _evidence(session, host, inventory, host_state)
            except RefusedError:
                # Where stacking decides and a guard watches, the host needs none; else it refuses.
                if not _is_so(host_state, LIVE):
                    raise
        return Flip(session, host, inventory, wanted, host_state, evidenced)
    except BaseException:
        session.close()
        raise


def _is_so(host_state: HostState, value: str) -> bool:
    """For a look only: the host knows what is under way and who watches."""
    said = host_state.stacking
    return bool(said) and said["next"] == said["running"] == value


def _evidence(session: Session, host: Host, inventory: Inventory, host_state: HostState) -> Report:
    newest = report.read(report.newest(inventory, host.name), inventory)
    now = datetime.fromtimestamp(session.clock.offset + datetime.now(UTC).timestamp(), UTC)
    blockers = evidence.blockers(
        newest.document,
        release=host_state.live,
        manifest_sha256=str(host_state.health.get("manifest_sha256", "")),
        env=host.env,
        note=session.call("gate_newest", app=host.app_dir),
        now=now,
    )
    if newest.document.get("host") != host.name:
        blockers.append(f"it is about {newest.document.get('host')}, not about {host.name}")
    if blockers:
        raise RefusedError(
            f"{host.name}: the newest gate report does not let stacking decide",
            why="\n".join([*blockers, f"the report: {newest.path}"]),
            live=f"{host_state.live or 'nothing'}, flags as before",
            hint="invoke shadow-gate makes a new one",
        )
    return newest


def _set(
    session: Session,
    host: Host,
    inventory: Inventory,
    host_state: HostState,
    asked: Mapping[str, Any],
) -> Mapping[str, Any]:
    service = {
        "unit": f"{host.unit}.service",
        "sockets": [n for n, text in host_state.units.items() if n.endswith(".socket") and text],
        "scope": host.scope,
        "endpoint": host_state.endpoint,
    }
    try:
        answer: Mapping[str, Any] = session.call(
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
    return answer


def _flipped(host: Host, answer: Mapping[str, Any], path: str) -> Flipped:
    return Flipped(
        host=host.name,
        result=answer["outcome"],
        value=answer["value"],
        release=answer["release"],
        pid=answer["pid"],
        reason=answer["reason"],
        wrong=answer["wrong"],
        report=path,
        lost=answer["unrecorded"],
    )


WATCHING, FAILING, FAILED = "watching", "failing", "failed"


@dataclass(frozen=True)
class Seen:
    """The guard as it is now. order: None if there never was one. reports: the new ones by name.

    loop: whether its own loop runs (a host with systemd has a timer instead). dead: a watch is
    ordered, but neither loop nor timer is there to carry it out. state: "failing" from the verdict
    until stacking is off. stacking: the answer of macd/host/flag/guard_config.py.
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
        """Whether stacking decides: by the process, or, where no process answers, by the file."""
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


def look(session: Session, host: Host, endpoint: str, after: str = "") -> Seen:
    """The guard now, with its reports behind the one called `after`."""
    asked = session.submit(
        "stacking",
        app=host.app_dir,
        unit=f"{host.unit}.service",
        scope=host.scope,
        endpoint=endpoint,
    )
    answer = session.call("guard_status", app=host.app_dir, after=after)
    reports = [(str(entry["name"]), entry["report"]) for entry in answer["reports"]]
    return Seen(
        host=host.name,
        order=answer["order"],
        live=answer["live"],
        flag=answer["flag"],
        reports=reports,
        now=answer["now"],
        loop=answer["loop"],
        dead=answer["dead"],
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
    recorded = [record.fields for record in journal.records() if record.kind == "guard.ended"]
    if any(dict(ended) == fields for ended in recorded):
        return False
    journal.append("guard.ended", fields, now=datetime.now(UTC))
    return True
