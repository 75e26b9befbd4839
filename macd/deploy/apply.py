"""Carry a plan out on one host: send, stage, begin, follow, confirm over a fresh connection.

The only file of this room that acts. Until `activate` is asked nothing that serves is touched; from
then on the host carries on by itself, and all that is left here is to watch and to confirm.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from macd.deploy import plan as planning
from macd.deploy import state
from macd.deploy.candidate import ReleaseCandidate, Unpacked, unpacked
from macd.deploy.desired import Blueprint, Desired
from macd.deploy.follow import EndUnknownError, Outcome, PendingActivation, Tell, at, watch
from macd.deploy.plan import Plan
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError
from macd.inventory import Host, Inventory
from macd.ssh import blobs
from macd.ssh.ahead import LinksAhead
from macd.ssh.failures import RemoteDiskFullError
from macd.ssh.pending import Pending
from macd.ssh.session import Session, open_session

_AGAIN = "invoke deploy again; what was sent is not sent again"
_BACK_AGAIN = "invoke rollback again"


@dataclass(frozen=True)
class DeployOptions:
    """What the operator asked for. `remember` keeps what `--attach` needs, before it is needed."""

    who: str
    tell: Tell
    remember: Callable[[PendingActivation], None]
    restart: bool = False


def look(host: Host, inventory: Inventory, offer: ReleaseCandidate) -> Plan:
    """The plan for one host; changes nothing and takes no lock."""
    blueprint = Blueprint(inventory)
    with open_session(host, inventory) as session:
        found = state.observed(_ask(session, host, inventory, offer))
    wanted = blueprint.render(host, found)
    takes = _unpacked(offer, found)
    return planning.make(host.name, found, wanted, offer, now=time.time(), unpacked=takes)


def deploy(
    host: Host,
    inventory: Inventory,
    offer: ReleaseCandidate,
    wish: DeployOptions,
    ahead: LinksAhead | None = None,
) -> Outcome:
    """Make `offer` live on one host, or find out that it should not be.

    A link that was begun `ahead` is used.

    Raises:
        RefusedError: the host or the plan says no; nothing was changed.
        ContactLostError: the link died after the host had begun; it ends the matter by itself.
    """
    started = time.monotonic()
    run = _Deploy(host, inventory, offer, wish)
    with open_session(host, inventory, ahead=ahead) as session:
        try:
            run.send(session)
            begun = run.begun()
            if begun is None:
                return _nothing(run.plan)
            wish.remember(begun)
        except KeyboardInterrupt as interrupt:
            raise _interrupted(host, run.asked, _AGAIN, at(host, inventory)) from interrupt
        except ContactLostError as error:
            raise _lost(host, error, run.asked, _AGAIN, at(host, inventory)) from error
        outcome = watch(session, host, inventory, begun, wish.tell)
    return outcome.having(plan=run.plan, sent=run.sent, seconds=time.monotonic() - started)


def rollback(host: Host, inventory: Inventory, to: str, wish: DeployOptions) -> Outcome:
    """Back to `to`, or to the last good release before the live one; sends nothing.

    Raises as `deploy` does.
    """
    started = time.monotonic()
    with open_session(host, inventory) as session:
        asked = False
        try:
            held = session.submit("lock", app=host.app_dir, who=wish.who, doing="rollback")
            recovering = session.submit("recover", app=host.app_dir)
            question = state.ask(session, host, inventory)
            held.result()
            _tell_recovered(recovering, wish.tell)
            found = state.observed(question)
            if to and to == found.live:
                told = Outcome(host.name, "nothing", to, to, serving=found.unwell)
                return told.having(well=not found.unwell)
            asked = True
            token = secrets.token_hex(16)
            request = _activation(host, inventory, found, token, wish.who)
            goes_to = to or found.rollback.get("release") or ""
            wish.remember(PendingActivation(host.name, 0, token, goes_to, found.live))
            begins = session.call("activate", kind="rollback", to=to or None, after={}, **request)
            begun = PendingActivation(
                host.name, begins["number"], token, begins["release"], begins["origin"]
            )
            wish.remember(begun)
        except KeyboardInterrupt as interrupt:
            raise _interrupted(host, asked, _BACK_AGAIN, at(host, inventory)) from interrupt
        except ContactLostError as error:
            raise _lost(host, error, asked, _BACK_AGAIN, at(host, inventory)) from error
        outcome = watch(session, host, inventory, begun, wish.tell)
    return outcome.having(seconds=time.monotonic() - started)


def _nothing(plan: Plan) -> Outcome:
    told = Outcome(plan.host, "nothing", plan.release, plan.live, plan=plan)
    return told.having(serving=plan.unwell, well=not plan.unwell)


def _unpacked(offer: ReleaseCandidate, found: state.HostState) -> Unpacked:
    """What the runtime will take there; nothing where it stands already."""
    return Unpacked() if offer.lock in found.runtimes else unpacked(offer)


def _ask(session: Session, host: Host, inventory: Inventory, offer: ReleaseCandidate) -> Pending:
    wanted = {part.sha256: part.size for part in offer.parts}
    return state.ask(session, host, inventory, list(wanted.items()))


class _Deploy:
    """The part before the host takes over: one session, and no waiting where none is needed."""

    plan: Plan

    def __init__(
        self, host: Host, inventory: Inventory, offer: ReleaseCandidate, wish: DeployOptions
    ) -> None:
        self._host = host
        self._inventory = inventory
        self._offer = offer
        self._wish = wish
        self._token = secrets.token_hex(16)
        self._blueprint = Blueprint(inventory)  # made before the line is opened
        self._looked = False
        self._decided: tuple[state.HostState, Desired] | None = None
        self._staged: Pending | None = None
        self._activated: Pending | None = None
        self.sent = 0

    @property
    def asked(self) -> bool:
        """Whether the host may have begun to switch."""
        return self._activated is not None

    def send(self, session: Session) -> None:
        """Ask everything at once, send what lacks, ask for the switch behind the last byte."""
        app = self._host.app_dir
        self._wish.tell("looking", {})
        self._held = session.submit("lock", app=app, who=self._wish.who, doing="deploy")
        self._recovering = session.submit("recover", app=app)
        self._question = _ask(session, self._host, self._inventory, self._offer)

        def progress(sent: int, total: int) -> None:
            self._wish.tell("sending", {"sent": sent, "total": total})

        hooks = blobs.Hooks(self._decide, lambda: self._go(session))
        try:
            report = blobs.put(
                session, app, self._offer.blobs(), progress, hooks=hooks, create=False
            )
        except (RefusedError, RemoteDiskFullError):
            self._decide()  # knows better why
            raise
        self.sent = report.sent

    def _decide(self) -> None:
        if self._looked:
            return
        self._looked = True
        self._held.result()
        _tell_recovered(self._recovering, self._wish.tell)
        found = state.observed(self._question)
        unlocked = replace(found, lock=None)  # it is this very session that holds it
        wanted = self._blueprint.render(self._host, found)
        self.plan = planning.make(
            self._host.name,
            unlocked,
            wanted,
            self._offer,
            now=time.time(),
            restart=self._wish.restart,
            unpacked=_unpacked(self._offer, found),
        )
        self._wish.tell("planned", {"plan": self.plan})
        if self.plan.problems:
            raise RefusedError(
                f"{self._host.name}: {self._offer.id} can't be deployed",
                why="\n".join(problem.what for problem in self.plan.problems),
                live=f"{found.live or 'nothing'}, as before",
                hint="\n".join(dict.fromkeys(p.hint for p in self.plan.problems if p.hint)),
            )
        self._decided = found, wanted

    def _go(self, session: Session) -> None:
        if self._decided is None or self.plan.empty:
            return
        found, wanted = self._decided
        self._wish.tell("staging", {"runtime": "build runtime" in self.plan.steps})
        self._staged = session.submit(
            "stage",
            app=self._host.app_dir,
            manifest=self._offer.manifest,
            signature=self._offer.signature,
            accepts=dict(wanted.accepts),
            imports=list(self._offer.imports),
            index=self._inventory.service.runtime == "index",
            index_url=self._inventory.service.index_url,
            scope=self._host.scope,
            unit_text=wanted.units[f"{self._host.unit}.service"],
        )
        request = _activation(self._host, self._inventory, found, self._token, self._wish.who)
        # The right to confirm is kept before it is needed: nobody may hear which number it got.
        self._wish.remember(
            PendingActivation(self._host.name, 0, self._token, self._offer.id, found.live)
        )
        self._activated = session.submit(
            "activate",
            kind="deploy",
            to=self._offer.id,
            after=wanted.switched,
            accepts=dict(wanted.accepts),
            **request,
        )

    def begun(self) -> PendingActivation | None:
        """Wait for the host's word; None when there is nothing to do."""
        if self._staged is None or self._activated is None:
            return None
        staged = self._staged.result()
        self._wish.tell("staged", staged)
        told = self._activated.result()
        name = self._host.name
        return PendingActivation(name, told["number"], self._token, told["release"], told["origin"])


def _activation(
    host: Host, inventory: Inventory, found: state.HostState, token: str, who: str
) -> dict[str, Any]:
    unit = f"{host.unit}.service"
    soak = inventory.soak
    serve = ["{release}/runtime/bin/python", "-I", "{release}/app/serve.py", "--root", found.app]
    return {
        "app": host.app_dir,
        "token": token,
        "who": who,
        "service": {
            "unit": unit,
            "units": [unit, f"{host.unit}.socket"],
            "scope": host.scope,
            "endpoint": found.endpoint,
            "check": [*serve, "--check", "--release", "{release}"],
        },
        "times": {"health_s": soak.ready_s, "soak_s": soak.soak_s, "confirm_s": soak.confirm_s},
        "keep": inventory.release.keep,
        "flags": state.tool_flags(inventory),
    }


def _tell_recovered(recovering: Pending, tell: Tell) -> None:
    outcome: Mapping[str, Any] = recovering.result()
    if outcome["outcome"] not in ("nothing", "running"):
        tell("recovered", dict(outcome))


def _interrupted(host: Host, asked: bool, again: str, there: str) -> MacdError:
    if asked:
        return MacdError(
            f"{host.name}: interrupted after the host was asked to switch",
            why="it carries on by itself; unless somebody confirms, it goes back by itself too",
            live="being decided on the host",
            hint=f"invoke deploy --attach{there} follows and confirms it; "
            f"invoke status{there} shows how it ended",
            exit_code=ExitCode.CONTACT_LOST,
        )
    return MacdError(
        f"{host.name}: interrupted before anything was switched",
        live=f"on {host.name} what was live before",
        hint=again,
    )


def _lost(host: Host, error: ContactLostError, asked: bool, again: str, there: str) -> MacdError:
    if asked:
        return EndUnknownError(
            error.what,
            why=error.why,
            live="unknown from here: the host may have begun to switch, and ends that by itself",
            hint=f"invoke deploy --attach{there} follows it; "
            f"invoke status{there} shows how it ended",
        )
    return ContactLostError(
        error.what,
        why=error.why,
        live=f"on {host.name} what was live before: nothing was switched",
        hint=again,
    )
