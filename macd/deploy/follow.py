"""Watch an activation the host carries out, and confirm it the way that proves something.

The confirmation goes over a connection opened after the soak: an older one that still works would
not show that the host can be reached with what was soaked. It is tried for as long as the host
waits, which the host alone decides.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macd import application
from macd.deploy.plan import Plan
from macd.errors import ContactLostError, ExitCode, MacdError
from macd.host.deploy.activation import WAITING
from macd.host.deploy.health import CHECK_TIMEOUT_S
from macd.host.durable import replace_file
from macd.inventory import Host, Inventory
from macd.ssh.contact import Contact
from macd.ssh.session import Session, open_session

Report = Callable[[str, Mapping[str, Any]], None]
_WAIT_S = 5.0
_AGAIN_S = 1.0
_PATIENCE_S = 60.0  # beyond the activation's own times, before contact counts as lost


@dataclass(frozen=True)
class PendingActivation:
    """An activation that a host was asked for; `token` is the right to confirm it.

    `number` is 0 until the host has said which it is.
    """

    host: str
    number: int
    token: str
    release: str
    origin: str | None

    def started(self, answer: Mapping[str, Any]) -> PendingActivation:
        """The same, with what the host answered when it was asked for."""
        return dataclasses.replace(
            self, number=answer["number"], release=answer["release"], origin=answer["origin"]
        )

    def is_of(self, outcome: Outcome) -> bool:
        """Whether that is how it ended."""
        same = self.host == outcome.host and self.release == outcome.release
        return same and self.number in (0, outcome.number)


class PendingActivations:
    """Activations started from here, in private files: `--attach` may confirm them."""

    def __init__(self, inventory: Inventory) -> None:
        self._directory = inventory.state_dir / "activations"

    def add(self, pending: PendingActivation) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # whole or not at all: a token that is lost confirms nothing
        replace_file(self._path(pending.host), json.dumps(asdict(pending)).encode(), mode=0o600)

    def of(self, host: str) -> PendingActivation | None:
        try:
            document: Mapping[str, Any] = json.loads(self._path(host).read_text())
            return PendingActivation(**document)
        except (OSError, ValueError, TypeError):
            return None

    def _path(self, host: str) -> Path:
        return self._directory / f"{host}.json"


@dataclass(frozen=True)
class Outcome:
    """How it ended on one host: committed, reverted or nothing (to do).

    healthy: whether what is live now serves well; None where the host could not report.
    `files`, `keys`: units and settings, and keys of .env but stacking's, that were switched with
    the release. `kept`: where the texts lie on the host that people had changed, and that went.
    `shadow`: how .env says it, where a rollback ended that stacking decides.
    """

    host: str
    result: str
    release: str
    live: str | None
    reason: str = ""
    serving: str = ""
    healthy: bool | None = None
    number: int = 0
    sent: int = 0
    seconds: float = 0.0
    plan: Plan | None = None
    files: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    shadow: str = ""

    @property
    def exit_code(self) -> ExitCode:
        if self.healthy is False:  # 4 would promise that the old one serves
            return ExitCode.FAILED
        return ExitCode.REVERTED if self.result == "reverted" else ExitCode.DONE


def follow(
    session: Session,
    host: Host,
    inventory: Inventory,
    activation: PendingActivation,
    report: Report,
    *,
    attached: bool = False,
) -> Outcome:
    """Follow to the end; reconnects when the session dies. Closes it.

    Args:
        attached: the session is not the one that began it, so it may do to confirm it.

    Raises:
        ContactLostError: the host could not be reached again in all the time it had.
        EndUnknownError: interrupted; the host goes on.
    """
    run = _Follower(host, inventory, activation, report)
    try:
        return run.to_the_end(session, attached=attached)
    except KeyboardInterrupt as interrupt:
        raise run.interrupted() from interrupt
    finally:
        run.let_go()


def attach(
    host: Host,
    inventory: Inventory,
    activation: PendingActivation | None,
    report: Report,
    *,
    ended: bool = True,
) -> Outcome | None:
    """Follow the activation that is under way, or say how the newest one ended; None: never one.

    With `activation` (this machine started it) it is confirmed too; else it is only watched.
    Without `ended` None too where the newest one is over and was not started here.
    """
    with open_session(host, inventory) as session:
        answer = session.call("follow", app=host.app_dir)
        if not answer["number"]:
            return None
        first = answer["events"][0] if answer["events"] else {}
        release = str(first.get("release", ""))
        if activation is not None and not activation.number and activation.release == release:
            activation = dataclasses.replace(activation, number=answer["number"])
        if activation is None or activation.number != answer["number"]:
            if answer["over"] and not ended:
                return None
            activation = PendingActivation(host.name, answer["number"], "", release, None)
        return follow(session, host, inventory, activation, report, attached=True)


def keep_confirming(
    attempt: Callable[[], bool], wait: Callable[[float], bool], failed: Callable[[str], None]
) -> None:
    """Try again and again until `attempt` says that all is said, or the activation is over.

    There is no deadline here: the host has one, and when it gives up it is followed to its end.

    Args:
        attempt: over a connection of its own; raises MacdError while the host can't be reached.
        wait: so many seconds, or until it is over; whether it is.
    """
    while True:
        try:
            if attempt():
                return
        except MacdError as error:
            failed(error.what)
        if wait(_AGAIN_S):
            return


def _longest(inventory: Inventory) -> float:
    """How many seconds a host may take from any point of an activation to its end."""
    times, units = inventory.soak, application.of(inventory).ends.values()
    ready_s = times.ready_s + max(unit.ready.running for unit in units)
    return CHECK_TIMEOUT_S + 2 * ready_s + times.soak_s + times.confirm_s + _PATIENCE_S


def at(host: Host, inventory: Inventory) -> str:
    """The options that lead a next command to that host's environment; "" where it is the usual."""
    env = "" if host.env == "prod" else f" --env {host.env}"
    return env + ("" if inventory.name == "lab" else f" --inventory {inventory.name}")


class EndUnknownError(ContactLostError):
    """Contact was lost or given up after the host was asked to switch: it ends that by itself."""


class _Follower:
    def __init__(
        self, host: Host, inventory: Inventory, activation: PendingActivation, report: Report
    ) -> None:
        self._host = host
        self._inventory = inventory
        self._activation = activation
        self._report = report
        self._seen = 0
        self._last: dict[str, Any] = {}
        self._live: str | None = activation.origin
        self._switched: dict[str, Any] = {}
        self._set_aside: list[str] = []
        self._confirming: threading.Thread | None = None
        self._over = threading.Event()
        self._lost = ""

    def to_the_end(self, session: Session, *, attached: bool) -> Outcome:
        with Contact(
            self._host,
            self._inventory,
            watcher=self,
            patience=_longest(self._inventory),
            longest_wait=_AGAIN_S,
            for_good=(),  # whatever answers there now, the host goes on
            session=session,
        ) as contact:
            self._session, self._may_confirm = session, attached
            try:
                while (outcome := contact.use(self._look)) is None:
                    pass
            except ContactLostError as error:
                number = self._activation.number
                raise EndUnknownError(
                    f"contact with {self._host.name} was lost during activation {number}",
                    why=self._lost,
                    live="unknown from here: the host commits or goes back by itself",
                    hint=f"invoke status{at(self._host, self._inventory)} shows how it ended",
                ) from error
        return outcome

    def lost(self, error: MacdError, *, gives_up_in: float) -> None:
        if not self._lost:
            self._report("contact lost", {"why": error.what})
        self._lost = error.what

    def back(self) -> None:
        self._lost = ""
        self._report("contact again", {})

    def _look(self, session: Session) -> Outcome | None:
        """Wait for what is new and say it; the outcome once it is over."""
        if session is not self._session:
            self._session, self._may_confirm = session, True
            self._confirmed_by(session)
        answer = session.call(
            "follow",
            app=self._host.app_dir,
            number=self._activation.number,
            seen=self._seen,
            wait=_WAIT_S,
        )
        self._live = answer["live"]
        for event in answer["events"]:
            self._seen += 1
            self._last = event
            if event["state"] == "switched":
                self._switched = event
            self._set_aside += [
                path for path in event.get("kept", ()) if path not in self._set_aside
            ]
            self._report(event["state"], event)
            if event["state"] == WAITING and not (
                self._may_confirm and self._confirmed_by(session)
            ):
                self._confirm_from_outside()
        if answer["over"]:
            return self._outcome()
        if not answer["events"] and not answer["runner"]:
            # Its process was killed; systemd or this call ends it, never a person.
            session.call("recover", app=self._host.app_dir)
        return None

    def _outcome(self) -> Outcome:
        how = str(self._last.get("state", "reverted"))
        if how not in ("committed", "reverted"):  # the last event was lost on a full disk
            how = "committed" if self._live == self._activation.release else "reverted"
        healthy = self._last.get("healthy", self._last.get("well"))
        return Outcome(
            host=self._host.name,
            result=how,
            release=self._activation.release,
            live=self._live,
            reason=str(self._last.get("reason", "")),
            serving=str(self._last.get("serving", "")),
            healthy=True if how == "committed" else healthy,
            number=self._activation.number,
            files=tuple(self._switched.get("files", ())),
            keys=tuple(self._switched.get("keys", ())),
            kept=tuple(self._set_aside),
        )

    def _confirm_from_outside(self) -> None:
        if self._confirming is not None or not self._activation.token:
            return

        def attempt() -> bool:
            with open_session(self._host, self._inventory) as fresh:
                return self._confirm_over(fresh)

        def failed(why: str) -> None:
            self._report("confirming", {"failed": why})

        def confirm() -> None:
            keep_confirming(attempt, self._over.wait, failed)

        thread = threading.Thread(target=confirm, name="confirm", daemon=True)
        thread.start()
        self._confirming = thread  # only now: a Ctrl-C inside start() leaves nothing to join

    def _confirmed_by(self, session: Session) -> bool:
        """As `_confirm_over`, by the session that follows: what the host refuses ends nothing."""
        try:
            return self._confirm_over(session)
        except ContactLostError:
            raise
        except MacdError as error:
            self._report("confirming", {"failed": error.what})
            return False

    def _confirm_over(self, fresh: Session) -> bool:
        """Whether there is nothing more to confirm; the host takes no word before its soak ended,
        nor over a connection that is older than that."""
        if not self._activation.token:
            return True
        answer = fresh.call(
            "confirm",
            app=self._host.app_dir,
            number=self._activation.number,
            token=self._activation.token,
        )
        if answer["confirmed"]:
            self._report("confirmed", {})
        return bool(answer["confirmed"] or answer["over"])

    def let_go(self) -> None:
        """The confirming connection closes on its own; give it a moment to do it in order."""
        self._over.set()
        if self._confirming is not None:
            self._confirming.join(2.0)

    def interrupted(self) -> EndUnknownError:
        doing = self._last.get("state", "verified")
        there = at(self._host, self._inventory)
        return EndUnknownError(
            f"interrupted; {self._host.name} goes on with activation {self._activation.number}",
            why=f"it is {doing}; unless somebody confirms over a fresh connection it goes back",
            live=f"being decided on {self._host.name}: {self._either}",
            hint=f"invoke deploy --attach{there} follows and confirms it; "
            f"invoke status{there} shows the end",
        )

    @property
    def _either(self) -> str:
        """What may be live at the end."""
        new, origin = self._activation.release, self._activation.origin
        if new == origin:
            return f"{new}, as it would be now or as it was before"
        if origin is None and self._activation.token:
            return f"{new} or what ran before (nothing of macd's was live)"
        return f"{new} or {origin or 'what was live before'}"
