"""Let stacking decide, stop it, and follow the guard that watches it: the operator's side.

What counts is decided on the host again. `evidence.blockers` says before anything is asked of the
host why it would refuse, with every reason at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from macd import application
from macd.deploy import state
from macd.deploy.drift import about_stacking
from macd.deploy.state import HostState
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError
from macd.gate import report
from macd.gate.evidence import manifest_sha256
from macd.gate.report import Report
from macd.host.flag import evidence, guard_config
from macd.host.flag.flag_file import FULL, LIVE, SHADOW, first_weight
from macd.inventory import Host, Inventory
from macd.journal import Journal
from macd.ssh import archive
from macd.ssh.session import Session, open_session


@dataclass(frozen=True)
class Flipped:
    """How it ended on one host.

    result: set, already, reverted, or (a dry run) would. value: of the flag now. weight: what
    stacking counts for, in percent, 0 in shadow. pids: of all instances, where it was set. steps:
    the weights to which the guard raises it. wrong: why the service does not serve well, "" if it
    does. report: path of the evidence, "" where none is needed. lost: why the host has it not on
    record, "" if it has. ended: whether a change that was interrupted before was ended first. Of a
    dry run: was_weight, the process's weight now, and cancels, the guard's steps that end because
    one weight was asked for. weighed: whether the application knows weights: one of the team's own
    does not.
    """

    host: str
    result: str
    value: str
    release: str | None
    pid: int | None = None
    pids: Sequence[int] = ()
    reason: str = ""
    wrong: str = ""
    report: str = ""
    lost: str = ""
    weight: int = 0
    steps: Sequence[int] = ()
    ended: bool = False
    was_weight: int = 0
    cancels: Sequence[int] = ()
    weighed: bool = True


@dataclass(frozen=True)
class Flip:
    """A flip of the flag on one host that is ready to be carried out: `prepare` makes it.

    It owns the session; use it as a context manager. evidence: the newest report, verified; None
    where none is needed. requested_weight: in percent; None for the guard's steps or 100.
    """

    session: Session
    host: Host
    inventory: Inventory
    wanted: str
    state: HostState
    evidence: Report | None
    requested_weight: int | None = None

    @property
    def weight(self) -> int:
        """What stacking is to count for, in percent; the host decides by what it then finds."""
        if self.wanted == SHADOW:
            return 0
        running, upcoming = _weights(self.state)
        steps, covered = self.inventory.guard.steps, _covered(self.state)
        return first_weight(self.requested_weight, steps, running, upcoming, covered)

    @property
    def steps(self) -> Sequence[int]:
        """The weights to which the guard is to raise it."""
        if self.wanted == SHADOW or self.requested_weight is not None:
            return ()
        return [step for step in self.inventory.guard.steps if step > self.weight]

    @property
    def expected(self) -> Flipped:
        """What a dry run says: "already" or "would"."""
        live, pid = self.state.live, self.state.process.get("pid")
        there = self._steps_there
        weights: dict[str, Any] = {"weight": self.weight, "steps": self.steps}
        weights["was_weight"] = _weights(self.state)[0]
        weights["weighed"] = weighed = application.of(self.inventory).has_weights
        weights["cancels"] = there if self.requested_weight is not None else ()
        anew = self.evidence is not None and self.steps and list(self.steps) != list(there)
        if _is_so(self.state, self.wanted, self.weight) and not anew:
            steps = () if self.requested_weight is not None else there
            so: dict[str, Any] = {"weight": self.weight, "steps": steps, "weighed": weighed}
            return Flipped(self.host.name, "already", self.wanted, live, pid, **so)
        if self.evidence:
            path = str(self.evidence.path)
            return Flipped(self.host.name, "would", self.wanted, live, report=path, **weights)
        return Flipped(self.host.name, "would", self.wanted, live, pid, **weights)

    @property
    def _steps_there(self) -> Sequence[int]:
        weight = self.state.stacking.get("weight") or {}
        return list(weight.get("steps", ()))

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
                    "steps": list(guard.steps),
                },
                "weight": self.requested_weight,
            }
        answer = _set(self.session, self.host, self.inventory, self.state, asked)
        path = str(self.evidence.path) if self.evidence else ""
        steps = {"already": self._steps_there, "set": self.steps}.get(answer["outcome"], ())
        steps = (
            () if self.requested_weight is not None else [s for s in steps if s > answer["weight"]]
        )
        flipped = _flipped(self.host, answer, path, steps)
        return replace(flipped, weighed=application.of(self.inventory).has_weights)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def prepare(host: Host, inventory: Inventory, wanted: str, weight: int | None = None) -> Flip:
    """Open a session, ask the host for its state and, for LIVE, gather the evidence.

    Raises:
        RefusedError: no evidence lets stacking decide, the live release knows no weights, or the
            host's guard can't raise it in steps; nothing was changed.
    """
    _refuse_without(inventory, wanted, weight)
    session = open_session(host, inventory)
    try:
        host_state = state.observed(state.ask(session, host, inventory))
        flip = Flip(session, host, inventory, wanted, host_state, None, weight)
        if wanted == LIVE:
            try:
                flip = replace(flip, evidence=_evidence(session, host, inventory, host_state))
            except RefusedError:
                # Where stacking decides and a guard watches, the host needs none; else it refuses.
                if not 0 < flip.weight <= max(_weights(host_state)):
                    raise
            _refuse_unknown_weight(flip)
            _refuse_old_guard(flip)
        return flip
    except BaseException:
        session.close()
        raise


def _refuse_without(inventory: Inventory, wanted: str, weight: int | None) -> None:
    """Raises RefusedError: the application of the inventory has no flag, or no weights."""
    app = application.of(inventory)
    if app.flag is None:
        raise RefusedError(
            f"{app.name} has no flag that lets its models decide",
            why=f"app.flag is not set in {inventory.path}, so macd does not know what to switch",
            live="as before on every host",
            hint="set app.flag (name, where, live, shadow), then: invoke deploy",
        )
    if app.has_weights or wanted != LIVE:
        return
    if weight not in (None, FULL) or inventory.guard.steps:
        raise RefusedError(
            f"{app.name} knows no weights: its flag is {app.flag.live} or {app.flag.shadow}",
            why="--weight and guard.steps are the built-in application's; what the models of your "
            "own count for is decided in its code",
            live="flags as before",
            hint="leave out --weight, and guard.steps in the inventory",
        )


def _weights(host_state: HostState) -> tuple[int, int]:
    """What stacking counts for in the process, and from its next start on; 0 where not known."""
    weight = host_state.stacking.get("weight") or {}
    return weight.get("running") or 0, weight.get("next") or 0


def _covered(host_state: HostState) -> int:
    """Up to what weight a guard's watch covers the live release, 0 without one."""
    said = host_state.stacking
    weight = said.get("weight") or {}
    return int(weight.get("covered") or 0) if said.get("guard", "none") != "none" else 0


def _is_so(host_state: HostState, value: str, weight: int) -> bool:
    """For a look only: the host knows what is under way and who watches."""
    said = host_state.stacking
    is_set = bool(said) and said["next"] == said["running"] == value
    return is_set and (value == SHADOW or _weights(host_state) == (weight, weight))


def _refuse_unknown_weight(flip: Flip) -> None:
    """Raises RefusedError: the service would decide with 100 %. The host asks it again."""
    if flip.weight < FULL and type(flip.state.health.get("stacking_weight")) is not int:
        raise RefusedError(
            f"{flip.host.name}: stacking can't decide with {flip.weight} %",
            why="the service does not say that it knows weights; an earlier version does not",
            live=f"{flip.state.live or 'nothing'}, flags as before",
            hint="invoke release and invoke deploy bring a version that does; or --weight 100",
        )


def _refuse_old_guard(flip: Flip) -> None:
    """Raises RefusedError: the guard of an earlier version watches, but raises nothing."""
    if flip.steps and flip.state.agent_archive != archive.digest():
        raise RefusedError(
            f"{flip.host.name}: its guard can't raise stacking in steps",
            why="bin/macd-host.pyz is not of this version; guard.steps needs it",
            live=f"{flip.state.live or 'nothing'}, flags as before",
            hint=f"invoke provision, or one weight: --weight {flip.weight}",
        )


def _evidence(session: Session, host: Host, inventory: Inventory, host_state: HostState) -> Report:
    newest = report.read(report.newest(inventory, host.name), inventory)
    now = datetime.fromtimestamp(session.clock.offset + datetime.now(UTC).timestamp(), UTC)
    blockers = evidence.blockers(
        newest.document,
        release=host_state.live,
        manifest_sha256=manifest_sha256(host_state),
        env=host.env,
        note=session.call("gate_newest", app=host.app_dir),
        now=now,
    )
    if newest.document.get("host") != host.name:
        blockers.append(f"it is about {newest.document.get('host')}, not about {host.name}")
    if blockers:
        raise RefusedError(
            f"{host.name}: the newest gate report does not let stacking decide",
            why="\n".join([*blockers, *_reasons(newest), f"the report: {newest.path}"]),
            live=f"{host_state.live or 'nothing'}, flags as before",
            hint="invoke shadow-gate makes a new one",
        )
    return newest


def _reasons(newest: Report) -> list[str]:
    """Why its verdict is no PASS, as the report itself has it."""
    reasons = newest.document.get("reasons") or ()
    return [] if newest.document.get("verdict") == "PASS" else [f"because {why}" for why in reasons]


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
        "hardening": inventory.service.hardening,
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
            live="unknown from here: the host ends what it began, or the next command there does",
            hint="invoke status shows the flag of the running process; then the same command again",
            exit_code=ExitCode.CONTACT_LOST,
        ) from interrupt
    return answer


def _flipped(host: Host, answer: Mapping[str, Any], path: str, steps: Sequence[int]) -> Flipped:
    return Flipped(
        host=host.name,
        result=answer["outcome"],
        value=answer["value"],
        release=answer["release"],
        pid=answer["pid"],
        pids=answer.get("pids", ()),
        reason=answer["reason"],
        wrong=answer["wrong"],
        report=path,
        lost=answer["unrecorded"],
        weight=answer["weight"],
        steps=steps,
        ended=answer.get("ended", "nothing") != "nothing",
    )


WATCHING, FAILING, FAILED = "watching", "failing", "failed"


@dataclass(frozen=True)
class Seen:
    """The guard as it is now. watch: None if there never was one. reports: the new ones by name.

    loop: whether its own loop runs (a host with systemd has a timer instead). dead: a watch is
    set, but neither loop nor timer is there to carry it out. state: "failing" from the verdict
    until stacking is off. stacking: the answer of macd/host/flag/guard_config.py. weighed: as in
    Flipped.
    """

    host: str
    watch: Mapping[str, Any] | None
    live: str | None
    flag: str
    reports: Sequence[tuple[str, Mapping[str, Any]]]
    now: float
    loop: bool
    dead: bool = False
    stacking: Mapping[str, Any] = field(default_factory=dict)
    weighed: bool = True

    @property
    def drift(self) -> list[str]:
        """What is wrong with who decides here; [] while a flip or a deploy is under way.

        Where nothing is live, what people run there by hand is their own matter.
        """
        return about_stacking(self.stacking) if self.live else []

    @property
    def decides(self) -> bool:
        """Whether stacking decides: by the process, or, where none answers, by its next start."""
        said = self.stacking.get("running") or self.stacking.get("next") or self.flag
        return said == LIVE

    @property
    def state(self) -> str:
        return str(self.watch["state"]) if self.watch else "none"

    @property
    def over(self) -> bool:
        return self.state not in (WATCHING, FAILING)

    @property
    def unwatched(self) -> bool:
        """Whether nobody watches what should be: a watch that only waits for its end needs none."""
        return self.dead and not self.idle

    @property
    def unjudged(self) -> str:
        """How often in a row the guard could not judge, and why; "" while it can."""
        return guard_config.unjudged(dict(self.watch) if self.watch else None)

    @property
    def idle(self) -> bool:
        """Whether what it watches is not live any more, which its next look will find."""
        if self.watch is None or self.state != WATCHING:
            return False
        running = self.stacking.get("running") == LIVE  # as the guard asks: a 0 is no proof
        return self.live != self.watch["release"] or not (running or self.flag in (LIVE, ""))


def look(session: Session, host: Host, inventory: Inventory, after: str = "") -> Seen:
    """The guard now, with its reports behind the one called `after`."""
    asked = session.submit(
        "stacking",
        app=host.app_dir,
        unit=f"{host.unit}.service",
        scope=host.scope,
        endpoint=inventory.service.health,
        flag=state.flag_document(inventory),
    )
    answer = session.call("guard_status", app=host.app_dir, after=after, scope=host.scope)
    reports = [(str(entry["name"]), entry["report"]) for entry in answer["reports"]]
    return Seen(
        host=host.name,
        watch=answer["order"],
        live=answer["live"],
        flag=answer["flag"],
        reports=reports,
        now=answer["now"],
        loop=answer["loop"],
        dead=answer["dead"],
        stacking=asked.result(),
        weighed=application.of(inventory).has_weights,
    )


def new_raises(seen: Seen, host: Host, inventory: Inventory) -> list[dict[str, Any]]:
    """Put the guard's raises into the journal here; those that were not there yet."""
    watch = seen.watch or {}
    raised = [
        {
            "env": host.env,
            "host": host.name,
            "release": watch["release"],
            "weight": step["to"],
            "was_weight": step["from"],
            "verdict": step["verdict"],
            "at": datetime.fromtimestamp(step["at"], UTC).isoformat(),
        }
        for step in watch.get("raised", ())
    ]
    if not raised:
        return []
    journal = Journal(inventory.state_dir / "journal.jsonl")
    recorded = [dict(r.fields) for r in journal.records() if r.kind == "guard.raised"]
    new = [fields for fields in raised if fields not in recorded]
    for fields in new:
        journal.append("guard.raised", fields, now=datetime.now(UTC))
    return new


def catch_up(seen: Seen, host: Host, inventory: Inventory) -> bool:
    """Put the end of a watch into the journal here; True if it was not there yet."""
    if seen.watch is None or not seen.over:
        return False
    watch = seen.watch
    fields = {
        "env": host.env,
        "host": host.name,
        "release": watch["release"],
        "result": watch["state"],
        "reason": watch["reason"],
        "ended": datetime.fromtimestamp(watch["ended"], UTC).isoformat(),
    }
    journal = Journal(inventory.state_dir / "journal.jsonl")
    recorded = [record.fields for record in journal.records() if record.kind == "guard.ended"]
    if any(dict(ended) == fields for ended in recorded):
        return False
    journal.append("guard.ended", fields, now=datetime.now(UTC))
    return True
