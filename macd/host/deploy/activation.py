"""Make a staged release live, prove it, and commit or go back; run by the host, not the session.

The record in state/pending.json is durable before the first change. Whatever kills this process, a
power cut included, the next run of `carry_on` (the restarted unit, the boot unit, the next deploy)
finds it and ends the matter: committed if the commit was written, else everything back as it was.

A change stays only if it is confirmed: somebody must reach this host over a connection that was
opened after the soak ended, or the change locked them out. Whoever confirms and whoever stops
waiting decide under one lock, so that both know the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable

from macd.host import durable
from macd.host.deploy import health, ledger, locks
from macd.host.deploy.health import Prover, UnhealthyError
from macd.host.deploy.ledger import EventLog, Pending, Snapshot
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, point_current_at
from macd.host.processes import start_time
from macd.host.store import releases, retention, snapshots
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Process, Supervisor

WAITING = "awaiting confirmation"
_TICK_S = 0.02  # as coarse as the kernel tells when a process began
_LONGEST_REASON = 2000
_ROOM = "room-to-go-back"
_ROOM_BYTES = 128 << 10
Record = Callable[[str, dict[str, object]], None]


class ActivationFailedError(Exception):
    """It can't go on, and the release is not at fault."""


def carry_on(
    layout: Layout, record: Record, *, forward: bool = False, booting: bool = False
) -> str:
    """Run the pending activation (`forward`), or end one that was interrupted.

    Args:
        forward: begin it if nothing of it was done yet; else that one is given up.
        booting: systemd has not started the service yet and will; only the files are put back.

    Returns:
        "committed", "reverted", or "nothing" when none is pending.

    Raises:
        HostError: another process is at it.
        HostError, OSError: it could not be brought to its end; call again.
    """
    with locks.locked(layout, locks.ACTIVATION, {"who": "activation", "doing": "activation"}):
        pending = ledger.read_pending(layout)
        if pending is None:
            return "nothing"
        run = Activation(layout, pending, record, booting=booting)
        if run.was_committed():
            return run.after_the_commit()
        if forward and pending.state == "verified":
            return run.go()
        reason = pending.reason or f"it was interrupted while {pending.state}"
        return run.revert(reason, blames_release=bool(pending.reason))


class Activation:
    """One pending change, from verified to committed or reverted."""

    def __init__(
        self, layout: Layout, pending: Pending, record: Record, *, booting: bool = False
    ) -> None:
        self._layout = layout
        self._booting = booting
        self._pending = pending
        self._record = record
        self._supervisor = Supervisor(pending.scope)
        self._prover = Prover(self._supervisor, pending.unit, pending.endpoint)
        self._events = EventLog(layout, pending.number)
        self._kept: list[str] = []  # by the revert

    def go(self) -> str:
        """Check, switch, restart, soak, confirm, commit; revert on anything that fails."""
        try:
            self._check()
            self._switch()
            process = self._restart()
            self._soak(process)
            self._await_confirmation(process)
            self._commit()
        except UnhealthyError as error:
            return self.revert(str(error), blames_release=error.blames_release)
        except ActivationFailedError as error:
            return self.revert(str(error), blames_release=False)
        except Exception as error:  # whatever it was, what served before has to serve again
            reason = f"the host could not go on: {type(error).__name__}: {error}"
            return self.revert(reason, blames_release=False)
        return self.after_the_commit()

    def was_committed(self) -> bool:
        """Whether the commit is on the disk and nobody has begun to take it back."""
        pending = self._pending
        recorded = any(e["number"] == pending.number for e in ledger.history(self._layout))
        return (
            recorded and pending.state != "reverting" and live_release(self._layout) == pending.to
        )

    def after_the_commit(self) -> str:
        """Say that it is committed, unless that was said already; then clear up."""
        if not any(event["state"] == "committed" for event in self._events.read()):
            self._tell("committed")
        ledger.mark_good(self._layout, self._pending.to)
        self._tidy_up()
        return "committed"

    def _enter(self, state: str, **fields: object) -> None:
        self._pending = dataclasses.replace(self._pending, state=state)
        ledger.write_pending(self._layout, self._pending)
        self._tell(state, **fields)

    def _tell(self, state: str, **fields: object) -> None:
        named = {"activation": self._pending.number, "release": self._pending.to, **fields}
        self._record(state, named)
        self._events.add(state, **named)

    def _check(self) -> None:
        self._enter("checking")
        pending = self._pending
        text = pending.after.get(pending.unit)
        sandbox = Sandbox(pending.scope, text, self._layout.app)
        health.check_before(pending.check_argv, sandbox)

    def _switch(self) -> None:
        _hold_room(self._layout)
        self._enter("switching")
        pending = self._pending
        forward = snapshots.Switch(
            self._layout,
            self._supervisor,
            before=pending.before,
            after=pending.after,
            mark=self._mark,
            edited=pending.edited,
            keys=pending.keys,
        )
        forward.carry_out()
        point_current_at(self._layout, pending.to)
        files = snapshots.changed_files(pending.before, pending.after)
        keys = snapshots.changed_keys(pending.before, pending.after, pending.keys)
        self._enter("switched", files=files, keys=keys, kept=forward.kept)

    @property
    def _mark(self) -> str:
        return f"{self._pending.kind}-{self._pending.number}"

    def _restart(self) -> Process:
        self._enter("restarting")
        process = self._restarted(
            self._pending.to, self._pending.manifest_sha256, self._pending.after
        )
        self._enter("restarted", pid=process.pid)
        return process

    def _restarted(self, release: str, manifest_sha256: str, texts: Snapshot) -> Process:
        """A new process that proves that it serves `release`, started with `texts`."""
        pending, sockets = self._pending, snapshots.sockets(texts)
        moved = [n for n in sockets if pending.before.get(n) != pending.after.get(n)]
        if moved:  # systemd changes no socket while its service runs
            self._supervisor.stop(pending.unit, *moved)
        return self._prover.restart(release, manifest_sha256, sockets, pending.health_s)

    def _check_still_healthy(self, process: Process) -> None:
        pending = self._pending
        self._prover.check_stays_healthy(pending.to, pending.manifest_sha256, process)

    def _soak(self, process: Process) -> None:
        self._enter("soaking", seconds=self._pending.soak_s)
        deadline = time.monotonic() + self._pending.soak_s
        while time.monotonic() < deadline:
            self._check_still_healthy(process)
            time.sleep(min(health.POLL_S * 5, max(0.0, deadline - time.monotonic())))
        self._check_still_healthy(process)

    def _await_confirmation(self, process: Process) -> None:
        """Somebody must reach this host over a NEW connection, or the change locked them out."""
        since = uptime()
        self._pending = dataclasses.replace(self._pending, waiting_since=since)
        self._enter(WAITING, seconds=self._pending.confirm_s)
        wait_for_confirmation(
            self._layout, self._pending, lambda: self._check_still_healthy(process)
        )

    def _commit(self) -> None:
        pending = self._pending
        entries = ledger.history(self._layout)
        if pending.kind == "rollback":
            for entry in entries:
                entry["abandoned"] = entry.get("abandoned") or entry["release"] == pending.origin
        snapshots.keep(self._layout, pending.to, pending.after)
        committed = {
            "number": pending.number,
            "release": pending.to,
            "serial": pending.serial,
            "manifest_sha256": pending.manifest_sha256,
            "kind": pending.kind,
            "who": pending.who,
            "at": time.time(),
            "written": snapshots.hashes(pending.after),
            "flags": pending.flags,
        }
        for entry in entries:
            if entry["release"] == pending.to:
                entry["abandoned"] = False
        ledger.save_history(self._layout, [*entries, committed])

    def _tidy_up(self) -> None:
        """After a commit or a revert: clear away what nothing needs, then the record itself."""
        _give_room(self._layout)
        retention.tidy(self._layout, self._pending.keep, self._pending.to)
        with contextlib.suppress(OSError):
            ledger.drop_old_logs(self._layout, self._pending.number)
        ledger.clear_pending(self._layout)

    def revert(self, reason: str, *, blames_release: bool) -> str:
        """Everything back as it was before, proved like the way forward.

        Raises:
            HostError, OSError: something could not be put back; to be called again.
        """
        reason = reason[:_LONGEST_REASON]  # a release's own words may be of any length
        touched = self._pending.state not in ("verified", "checking")
        _give_room(self._layout)
        self._note_the_revert(reason if blames_release else "", touched=touched)
        serving, well = self._put_back() if touched else self._as_it_was()
        with contextlib.suppress(OSError, HostError):
            outcome = {"live": self._pending.origin, "serving": serving, "well": well}
            self._tell("reverted", reason=reason, kept=self._kept, **outcome)
        self._tidy_up()
        return "reverted"

    def _note_the_revert(self, blame: str, *, touched: bool) -> None:
        """Write down what is about to happen; on a full disk go back all the same."""
        pending = self._pending
        with contextlib.suppress(OSError, HostError):
            if touched:
                self._pending = dataclasses.replace(pending, state="reverting", reason=blame)
                ledger.write_pending(self._layout, self._pending)
                self._tell("reverting", reason=blame)
            entries = ledger.history(self._layout)
            kept = [entry for entry in entries if entry["number"] != pending.number]
            if kept != entries:  # the commit's last fsync failed after its rename
                ledger.save_history(self._layout, kept)
            # A restart that failed says nothing against the release that served before it.
            if blame and pending.kind == "deploy" and pending.to != pending.origin:
                ledger.mark_bad(self._layout, pending.to, blame, pending.number)

    def _as_it_was(self) -> tuple[str, bool | None]:
        """What serves where nothing was switched: as it did, which may be badly."""
        untouched, origin = "it was never switched", self._pending.origin
        if origin is None or self._booting:
            return untouched, None
        try:
            sha256 = releases.manifest_sha256(self._layout, origin)
            wrong = self._prover.wrong_with(origin, sha256)
        except (OSError, HostError) as error:
            wrong = str(error)
        if wrong:
            return f"{untouched}; {origin} does not serve well: {wrong}", False
        return untouched, True

    def _put_back(self) -> tuple[str, bool | None]:
        """What serves now, in words, and whether well; None where that can't be known here."""
        pending = self._pending
        if pending.origin is None and not self._booting:
            self._supervisor.stop(*snapshots.sockets(pending.after), pending.unit)
        point_current_at(self._layout, pending.origin)
        failure: Exception | None = None
        back = snapshots.Switch(
            self._layout,
            self._supervisor,
            before=pending.after,
            after=pending.before,
            mark=f"revert-{pending.number}",
            keys=pending.keys,
        )
        try:
            back.carry_out(reload=True, must_keep=False)
            back.forget(pending.edited, self._mark)
        except (OSError, HostError) as error:
            failure = error  # on a full disk: rather the old release with wrong flags than none
        self._kept = back.kept
        well: bool | None = None
        if self._booting:
            serving = "systemd starts it next"
        elif pending.origin is None:
            serving = "nothing served before, and nothing serves now"
        else:
            serving, well = self._serve_again(pending.origin)
        if failure is not None:
            raise HostError(
                "flags, settings or units could not be put back",
                why=str(failure),
                live=f"{pending.origin}: {serving}",
            ) from failure
        return serving, well

    def _serve_again(self, origin: str) -> tuple[str, bool]:
        try:
            sha256 = releases.manifest_sha256(self._layout, origin)
            process = self._restarted(origin, sha256, self._pending.before)
            return f"{origin} answers as pid {process.pid}", True
        except (UnhealthyError, FileNotFoundError) as error:
            return f"{origin} is back, but does not serve well: {error}", False


def _hold_room(layout: Layout) -> None:
    """Set some of the disk aside, so that going back has room even if the disk is full then.

    Raises:
        ActivationFailedError: there is no room now, so nothing is begun.
    """
    try:
        descriptor = os.open(layout.state(_ROOM), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _ROOM_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ActivationFailedError(
            f"the host's disk has no room to go back: {error.strerror}"
        ) from error


def _give_room(layout: Layout) -> None:
    with contextlib.suppress(OSError):
        os.unlink(layout.state(_ROOM))


def confirm(layout: Layout, number: int, token: str, opened: float | None) -> bool:
    """Confirm an activation that waits for it; False: it does not wait (yet, or any more).

    Args:
        opened: when the connection's process began, by `uptime`; None where nobody can tell.
    """
    with _deciding(layout):
        pending = ledger.read_pending(layout)
        if pending is None or (pending.number, pending.token) != (number, token):
            return False
        if pending.state != WAITING or _too_old(opened, pending.waiting_since):
            return False
        ledger.confirm(layout, pending)
        return True


def wait_for_confirmation(
    layout: Layout,
    pending: Pending,
    check: Callable[[], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once it is confirmed; `pending` is on the disk as waiting.

    Raises:
        ActivationFailedError: nobody did in confirm_s, and nobody can any more; or what
            `check` raised.
    """
    deadline = clock() + pending.confirm_s
    while not ledger.is_confirmed(layout, pending):
        if clock() >= deadline and _given_up(layout, pending):
            raise ActivationFailedError(
                f"nobody confirmed over a fresh connection within {pending.confirm_s:g} s"
            )
        check()
        sleep(max(0.0, min(health.POLL_S, deadline - clock())))


def _given_up(layout: Layout, pending: Pending) -> bool:
    """Take no word any more; False: it was given in the last moment."""
    with _deciding(layout):
        if ledger.is_confirmed(layout, pending):
            return False
        with contextlib.suppress(OSError):  # a full disk takes no word either
            ledger.write_pending(layout, dataclasses.replace(pending, state="reverting"))
        return True


def _deciding(layout: Layout) -> contextlib.AbstractContextManager[None]:
    """One at a time; on the directory itself, which takes no room on a full disk."""
    return durable.one_at_a_time(layout.state())


def _too_old(opened: float | None, since: float | None) -> bool:
    return opened is not None and since is not None and opened + _TICK_S < since


def uptime() -> float | None:
    """Seconds since this host booted; None on a system that does not tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)


def process_began() -> float | None:
    """When this process began, by `uptime`; None on a system that does not tell."""
    try:
        return int(start_time(os.getpid())) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
