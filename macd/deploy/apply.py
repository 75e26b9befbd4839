"""Carry a deploy or a rollback out on one host, over one session, from top to bottom.

The only file of this room that acts. Until `activate` is asked nothing that serves is touched; from
then on the host carries on by itself, and all that is left here is to follow and to confirm.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from macd import application
from macd.deploy import plan as planning
from macd.deploy import state
from macd.deploy.candidate import ReleaseCandidate, Unpacked, unpacked
from macd.deploy.desired import Blueprint, Desired
from macd.deploy.follow import (
    EndUnknownError,
    Outcome,
    PendingActivation,
    PendingActivations,
    Report,
    at,
    follow,
)
from macd.deploy.plan import Plan
from macd.deploy.state import HostState
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError
from macd.host.flag import flag_file
from macd.inventory import Host, Inventory
from macd.ssh.ahead import LinksAhead
from macd.ssh.blobs import Upload
from macd.ssh.failures import RemoteMismatchError
from macd.ssh.session import Pending, Session, open_session


@dataclass(frozen=True)
class DeployOptions:
    """Who acts, where progress is reported, and what `--attach` needs to confirm later.

    accept: see `planning.make`.
    """

    who: str
    report: Report
    activations: PendingActivations
    restart: bool = False
    accept: Sequence[str] = ()


def look(
    host: Host, inventory: Inventory, candidate: ReleaseCandidate, accept: Sequence[str] = ()
) -> Plan:
    """The plan for one host; changes nothing and takes no lock."""
    blueprint = Blueprint(inventory)
    with open_session(host, inventory) as session:
        current = state.observed(state.ask(session, host, inventory, candidate.blob_sizes))
    desired = blueprint.render(host, current)
    return _plan(host, current, desired, candidate, accept=accept)


def deploy(
    host: Host,
    inventory: Inventory,
    candidate: ReleaseCandidate,
    options: DeployOptions,
    ahead: LinksAhead | None = None,
) -> Outcome:
    """Make `candidate` live on one host, or find out that it should not be.

    A link that was opened `ahead` is used.

    Raises:
        RefusedError: the host or the plan says no; nothing was changed.
        ContactLostError: the link died after the host had started; it ends the matter by itself.
    """
    started, report = time.monotonic(), options.report
    blueprint = Blueprint(inventory)  # before the line is opened
    with open_session(host, inventory, ahead=ahead) as session:
        with _nothing_switched(host, "invoke deploy again; what was sent is not sent again"):
            # One round trip: lock, recover, facts and missing blobs are asked together.
            report("looking", {})
            question = _Question(session, host, inventory, "deploy", options, candidate.blob_sizes)
            upload = Upload(session, host.app_dir, candidate.blobs(), create=False)
            current = question.answer()

            desired = blueprint.render(host, current)
            how = (options.restart, options.accept)
            plan = _plan(host, current, desired, candidate, *how)
            report("planned", {"plan": plan})
            _refuse_problems(plan)
            if plan.empty:
                return Outcome(
                    host.name,
                    "nothing",
                    plan.release,
                    plan.live,
                    plan=plan,
                    serving=plan.unhealthy,
                    healthy=not plan.unhealthy,
                )

            upload.send(lambda sent, total: report("sending", {"sent": sent, "total": total}))
            # The right to confirm is stored before it is needed: the answer may be lost.
            activation = PendingActivation(
                host.name, 0, secrets.token_hex(16), candidate.id, current.live
            )
            options.activations.add(activation)
            stage = _stage_request(host, inventory, desired, candidate)
            activate = {
                **_activate_request(host, inventory, current, activation, options),
                "kind": "deploy",
                "to": candidate.id,
                "after": desired.switched,
                "accepts": dict(desired.accepts),
            }
        with _host_may_switch(host, inventory):
            report("staging", {"runtime": "build runtime" in plan.steps})
            # Right behind the last byte: no round trip is spent waiting for one another.
            staged, activated = _submit_switch(session, stage, activate)
            try:
                sent = upload.result().sent
            except RemoteMismatchError:
                if not upload.resumes:
                    raise
                # What an earlier attempt left there was rotten; the host has deleted it by now.
                upload = Upload(session, host.app_dir, candidate.blobs(), create=False)
                upload.send()
                staged, activated = _submit_switch(session, stage, activate)
                sent = upload.result().sent
            report("staged", staged.result())
            activation = activation.started(activated.result())
            options.activations.add(activation)
        outcome = follow(session, host, inventory, activation, report)
    return replace(outcome, plan=plan, sent=sent, seconds=time.monotonic() - started)


def rollback(host: Host, inventory: Inventory, to: str, options: DeployOptions) -> Outcome:
    """Back to `to`, or to the last good release before the live one; sends nothing.

    Raises as `deploy` does.
    """
    started = time.monotonic()
    with open_session(host, inventory) as session:
        with _nothing_switched(host, "invoke rollback again"):
            current = _Question(session, host, inventory, "rollback", options).answer()
            if to and to == current.live:
                return Outcome(
                    host.name,
                    "nothing",
                    to,
                    to,
                    serving=current.unhealthy,
                    healthy=not current.unhealthy,
                )
            target = to or current.rollback.get("release") or ""
            activation = PendingActivation(
                host.name, 0, secrets.token_hex(16), target, current.live
            )
            options.activations.add(activation)
            request = _activate_request(host, inventory, current, activation, options)
        with _host_may_switch(host, inventory):
            answer = session.call("activate", kind="rollback", to=to or None, after={}, **request)
            activation = activation.started(answer)
            options.activations.add(activation)
        outcome = follow(session, host, inventory, activation, options.report)
    shadow = _shadow(inventory, current, target) if outcome.result == "committed" else ""
    return replace(outcome, seconds=time.monotonic() - started, shadow=shadow)


def _shadow(inventory: Inventory, before: HostState, to: str) -> str:
    """How the flag says shadow, where stacking decided before a rollback or when `to` was live."""
    flag = application.of(inventory).flag
    decided = before.stacking.get("running") == flag_file.LIVE
    decided = decided or bool(before.returns.get(to, {}).get("decided"))
    return f"{flag.name}={flag.shadow}" if flag and decided else ""


class _Question:
    """Lock, recover and facts, asked together: one round trip."""

    def __init__(
        self,
        session: Session,
        host: Host,
        inventory: Inventory,
        doing: str,
        options: DeployOptions,
        blobs: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._report = options.report
        self._locked = session.submit("lock", app=host.app_dir, who=options.who, doing=doing)
        self._recovered = session.submit("recover", app=host.app_dir)
        self._facts = state.ask(session, host, inventory, blobs)

    def answer(self) -> HostState:
        """What is there, once the lock is held and what was interrupted has ended."""
        self._locked.result()
        recovered: Mapping[str, Any] = self._recovered.result()
        if recovered["outcome"] not in ("nothing", "running"):
            self._report("recovered", dict(recovered))
        return replace(state.observed(self._facts), lock=None)  # this very session holds it


def _plan(
    host: Host,
    current: HostState,
    desired: Desired,
    candidate: ReleaseCandidate,
    restart: bool = False,
    accept: Sequence[str] = (),
) -> Plan:
    # Its runtime takes nothing where it is there already.
    takes = Unpacked() if candidate.lock in current.runtimes else unpacked(candidate)
    return planning.make(
        host.name,
        current,
        desired,
        candidate,
        now=time.time(),
        restart=restart,
        unpacked=takes,
        accept=accept,
    )


def _refuse_problems(plan: Plan) -> None:
    if plan.problems:
        raise RefusedError(
            f"{plan.host}: {plan.release} can't be deployed",
            why="\n".join(problem.what for problem in plan.problems),
            live=f"{plan.live or 'nothing'}, as before",
            hint="\n".join(dict.fromkeys(p.hint for p in plan.problems if p.hint)),
        )


def _submit_switch(
    session: Session, stage: Mapping[str, Any], activate: Mapping[str, Any]
) -> tuple[Pending, Pending]:
    return session.submit("stage", **stage), session.submit("activate", **activate)


def _stage_request(
    host: Host, inventory: Inventory, desired: Desired, candidate: ReleaseCandidate
) -> dict[str, Any]:
    return {
        "app": host.app_dir,
        "manifest": candidate.manifest,
        "signature": candidate.signature,
        "accepts": dict(desired.accepts),
        "imports": list(candidate.imports),
        "index": inventory.service.runtime == "index",
        "index_url": inventory.service.index_url,
        "scope": host.scope,
        "unit_text": desired.unit_text,
    }


def _activate_request(
    host: Host,
    inventory: Inventory,
    current: HostState,
    activation: PendingActivation,
    options: DeployOptions,
) -> dict[str, Any]:
    unit = f"{host.unit}.service"
    soak = inventory.soak
    return {
        "app": host.app_dir,
        "token": activation.token,
        "who": options.who,
        "service": {
            "unit": unit,
            "units": state.serving(host, inventory),
            "scope": host.scope,
            "endpoint": current.endpoint,
            "check": [w.replace("{app}", current.app) for w in application.of(inventory).check],
        },
        "times": {"health_s": soak.ready_s, "soak_s": soak.soak_s, "confirm_s": soak.confirm_s},
        "keep": inventory.release.keep,
        "flags": state.tool_flags(inventory),
    }


@contextlib.contextmanager
def _nothing_switched(host: Host, again: str) -> Iterator[None]:
    """What a Ctrl-C or a lost link means before the host is asked to switch."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise MacdError(
            f"{host.name}: interrupted before anything was switched",
            live=f"on {host.name} what was live before",
            hint=again,
            exit_code=ExitCode.INTERRUPTED,
        ) from interrupt
    except ContactLostError as error:
        raise ContactLostError(
            error.what,
            why=error.why,
            live=f"on {host.name} what was live before: nothing was switched",
            hint=again,
        ) from error


@contextlib.contextmanager
def _host_may_switch(host: Host, inventory: Inventory) -> Iterator[None]:
    """What they mean from then on: the host ends the matter by itself."""
    options = at(host, inventory)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise EndUnknownError(
            f"{host.name}: interrupted after the host was asked to switch",
            why="it carries on by itself; unless somebody confirms, it goes back by itself too",
            live="being decided on the host",
            hint=f"invoke deploy --attach{options} follows and confirms it; "
            f"invoke status{options} shows how it ended",
        ) from interrupt
    except ContactLostError as error:
        raise EndUnknownError(
            error.what,
            why=error.why,
            live="unknown from here: the host may have started to switch, and ends that by itself",
            hint=f"invoke deploy --attach{options} follows it; "
            f"invoke status{options} shows how it ended",
        ) from error
