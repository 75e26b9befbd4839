"""Make a staged release live, prove it, and commit or revert; the host runs it, not the session.

The record in state/pending.json is durable before the first change. Whatever kills this process, a
power cut included, the next run of `resume` (the restarted unit, the boot unit, the next deploy)
ends the activation: committed if the commit was written, else reverted.

A change stays only if it is confirmed. Somebody must reach this host over a connection that was
opened after the soak ended, or the change locked them out. Confirming and giving up happen under
one lock, so that both sides know the same outcome.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

from macd.host import durable, own
from macd.host.deploy import adopt, health, ledger, locks
from macd.host.deploy.health import Prover, UnhealthyError
from macd.host.deploy.ledger import EventLog, Pending, Snapshot
from macd.host.deploy.probe import prover_of
from macd.host.failure import HostError
from macd.host.flag import flag_file
from macd.host.flag.flag_file import SHADOW
from macd.host.layout import Layout, live_release, point_current_at, point_previous_at
from macd.host.own import Service
from macd.host.processes import start_time
from macd.host.store import releases, retention, snapshots
from macd.host.store.manifest import ManifestError
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Process, Supervisor

WAITING = "awaiting confirmation"
_TICK_S = 0.02  # the kernel's precision of a process's start
_LONGEST_REASON = 2000
_ROOM = "room-to-go-back"
_ROOM_BYTES = 128 << 10
Record = Callable[[str, dict[str, object]], None]


class ActivationFailedError(Exception):
    """It can't continue, and the release is not at fault."""


def resume(layout: Layout, record: Record, *, start: bool = False, booting: bool = False) -> str:
    """Run the pending activation (`start`), or end one that was interrupted.

    Args:
        start: begin it if nothing of it was done yet; without it, such an activation is reverted.
        booting: systemd has not started the service yet and will; only the files are restored.

    Returns:
        "committed", "reverted", or "nothing" when none is pending.

    Raises:
        HostError: another process runs it.
        HostError, OSError: it could not be ended; call again.
    """
    with locks.locked(layout, locks.ACTIVATION, {"who": "activation", "doing": "activation"}):
        pending = ledger.read_pending(layout)
        if pending is None:
            return "nothing"
        run = Activation(layout, pending, record, booting=booting)
        if run.was_committed():
            return run.after_the_commit()
        if start and pending.state == "verified":
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
        self._prover, self._prover_before = map(self._prover_of, (pending.after, pending.before))
        self._events = EventLog(layout, pending.number)
        self._set_aside: list[str] = []  # paths, by the revert

    def _prover_of(self, texts: Snapshot) -> Prover:
        pending, service = self._pending, self._service(texts)
        return prover_of(self._layout, service, self._supervisor, pending.unit, pending.endpoint)

    def _service(self, texts: Snapshot) -> Service:
        return own.parse(texts.get(snapshots.SETTINGS))

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
        except Exception as error:  # whatever it was, the earlier release has to serve again
            reason = f"the host could not continue: {type(error).__name__}: {error}"
            return self.revert(reason, blames_release=False)
        return self.after_the_commit()

    def was_committed(self) -> bool:
        """Whether the commit is on the disk and no revert has started."""
        pending = self._pending
        recorded = any(e["number"] == pending.number for e in ledger.history(self._layout))
        return (
            recorded and pending.state != "reverting" and live_release(self._layout) == pending.to
        )

    def after_the_commit(self) -> str:
        """Report the commit unless that was done already; then clear up."""
        if not any(event["state"] == "committed" for event in self._events.read()):
            self._report("committed")
        ledger.mark_good(self._layout, self._pending.to)
        self._tidy_up()
        return "committed"

    def _enter(self, state: str, **fields: object) -> None:
        self._pending = dataclasses.replace(self._pending, state=state)
        ledger.write_pending(self._layout, self._pending)
        self._report(state, **fields)

    def _report(self, state: str, **fields: object) -> None:
        fields = {"activation": self._pending.number, "release": self._pending.to, **fields}
        self._record(state, fields)
        self._events.add(state, **fields)

    def _check(self) -> None:
        self._enter("checking")
        pending = self._pending
        service = self._service(pending.after)
        text = pending.after.get(service.unit or pending.unit)
        sandbox = Sandbox(pending.scope, text, self._layout.app)
        is_own = bool(service.name)
        release = self._layout.release(pending.to) if is_own else ""
        health.check_before(pending.check_argv, sandbox, release)

    def _switch(self) -> None:
        _reserve_room(self._layout)
        self._enter("switching")
        pending = self._pending
        switch = snapshots.Switch(
            self._layout,
            self._supervisor,
            before=pending.before,
            after=pending.after,
            mark=self._mark,
            edited=pending.edited,
            keys=pending.keys,
        )
        if pending.origin is None:
            adopt.take_over(self._layout, self._supervisor)
        switch.carry_out()
        if pending.to != pending.origin:  # a new release starts in shadow
            flag_file.write_dropin(
                self._service(pending.after), self._layout, pending.scope, SHADOW
            )
        if pending.origin is None:
            adopt.enable(self._layout, self._supervisor, pending.after)
        point_current_at(self._layout, pending.to)
        self._point_previous(pending.to)
        files = snapshots.changed_files(pending.before, pending.after)
        keys = snapshots.changed_keys(pending.before, pending.after, pending.keys)
        self._enter("switched", files=files, keys=keys, kept=switch.kept)

    @property
    def _mark(self) -> str:
        return f"{self._pending.kind}-{self._pending.number}"

    def _restart(self) -> Process:
        self._enter("restarting")
        pending = self._pending
        process = self._restarted(self._prover, pending.to, pending.manifest_sha256, pending.after)
        self._enter("restarted", pid=process.pid)
        return process

    def _restarted(
        self, prover: Prover, release: str, manifest_sha256: str, texts: Snapshot
    ) -> Process:
        """A new process that proves that it serves `release`, started with `texts`."""
        pending, sockets = self._pending, snapshots.sockets(texts)
        moved = [n for n in sockets if pending.before.get(n) != pending.after.get(n)]
        if moved:  # systemd changes no socket while its service runs
            self._supervisor.stop(pending.unit, *moved)
        return prover.restart(release, manifest_sha256, sockets, pending.health_s)

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
        self._pending = dataclasses.replace(self._pending, waiting_since=uptime())
        self._enter(WAITING, seconds=self._pending.confirm_s)
        wait_for_confirmation(
            self._layout, self._pending, lambda: self._check_still_healthy(process)
        )

    def _history_with(self, live: str | None) -> list[dict[str, Any]]:
        """What was committed, as it reads once `live` is: a rollback abandons its origin."""
        pending = self._pending
        entries = ledger.history(self._layout)
        if pending.kind == "rollback" and live == pending.to:
            for entry in entries:
                entry["abandoned"] = entry.get("abandoned") or entry["release"] == pending.origin
        return entries

    def _point_previous(self, live: str | None) -> None:
        """Say to the service where a rollback would go to; nothing depends on it."""
        with contextlib.suppress(OSError, HostError, ManifestError):
            bad = [entry["release"] for entry in ledger.bad_releases(self._layout)]
            target = releases.rollback_target(self._history_with(live), live, bad)
            point_previous_at(self._layout, target)

    def _commit(self) -> None:
        pending = self._pending
        entries = self._history_with(pending.to)
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
        """After a commit or a revert: remove what nothing needs, then the record itself."""
        _release_room(self._layout)
        retention.tidy(self._layout, self._pending.keep, self._pending.to)
        with contextlib.suppress(OSError):
            ledger.drop_old_logs(self._layout, self._pending.number)
        ledger.clear_pending(self._layout)

    def revert(self, reason: str, *, blames_release: bool) -> str:
        """Restore everything as it was before, with the same proof as an activation.

        Raises:
            HostError, OSError: something could not be restored; call again.
        """
        reason = reason[:_LONGEST_REASON]  # a release's own text may be of any length
        touched = self._pending.state not in ("verified", "checking")
        _release_room(self._layout)
        self._note_the_revert(reason if blames_release else "", touched=touched)
        serving, healthy = self._restore() if touched else self._as_it_was()
        with contextlib.suppress(OSError, HostError):
            # `well`: the name of `healthy` up to 0.1
            outcome = {"live": self._pending.origin, "healthy": healthy, "well": healthy}
            kept = self._set_aside
            self._report("reverted", reason=reason, kept=kept, serving=serving, **outcome)
        self._tidy_up()
        return "reverted"

    def _note_the_revert(self, blame: str, *, touched: bool) -> None:
        """Record what is about to happen; on a full disk the revert happens all the same."""
        pending = self._pending
        with contextlib.suppress(OSError, HostError):
            if touched:
                self._pending = dataclasses.replace(pending, state="reverting", reason=blame)
                ledger.write_pending(self._layout, self._pending)
                self._report("reverting", reason=blame)
            entries = ledger.history(self._layout)
            others = [entry for entry in entries if entry["number"] != pending.number]
            if others != entries:  # the commit's last fsync failed after its rename
                ledger.save_history(self._layout, others)
            # A restart that failed says nothing against the release that served before it.
            if blame and pending.kind == "deploy" and pending.to != pending.origin:
                ledger.mark_bad(self._layout, pending.to, blame, pending.number)

    def _as_it_was(self) -> tuple[str, bool | None]:
        """What serves where nothing was switched, and whether it is healthy: as before."""
        untouched, origin = "it was never switched", self._pending.origin
        if origin is None and (by_hand := adopt.describe(self._layout, self._supervisor)):
            return f"{untouched}; {by_hand}", None
        if origin is None or self._booting:
            return untouched, None
        try:
            sha256 = releases.manifest_sha256(self._layout, origin)
            wrong = self._prover_before.wrong_with(origin, sha256)
        except (OSError, HostError) as error:
            wrong = str(error)
        if wrong:
            return f"{untouched}; {origin} does not serve well: {wrong}", False
        return untouched, True

    def _restore(self) -> tuple[str, bool | None]:
        """What serves now, in words, and whether it is healthy; None: unknown here."""
        pending = self._pending
        if pending.origin is None and not (self._booting or adopt.waits(self._layout)):
            self._supervisor.stop(*snapshots.sockets(pending.after), *self._prover.units)
        point_current_at(self._layout, pending.origin)
        self._point_previous(pending.origin)
        failure: Exception | None = None
        switch = snapshots.Switch(
            self._layout,
            self._supervisor,
            before=pending.after,
            after=pending.before,
            mark=f"revert-{pending.number}",
            keys=pending.keys,
        )
        try:
            switch.carry_out(reload=True, must_keep=False)
            switch.forget(pending.edited, self._mark)
            if pending.dropin and pending.to != pending.origin:
                was = self._service(pending.before)
                flag_file.write_dropin(was, self._layout, pending.scope, pending.dropin)
        except (OSError, HostError) as error:
            failure = error  # on a full disk: rather the old release with wrong flags than none
        self._set_aside = switch.kept
        healthy: bool | None = None
        if pending.origin is None:
            start = not self._booting
            serving, healthy = adopt.give_back(self._layout, self._supervisor, start=start)
        elif self._booting:
            # Of units that come back with it, this boot knows nothing yet.
            known = [name for name, text in pending.after.items() if text is not None]
            later = [name for name in self._prover_before.units if name not in known]
            self._supervisor.start_later(*later)
            serving = "systemd starts it next"
        else:
            serving, healthy = self._serve_again(pending.origin)
        if failure is not None:
            raise HostError(
                "flags, settings or units could not be restored",
                why=str(failure),
                live=f"{pending.origin or 'no release'}: {serving}",
            ) from failure
        return serving, healthy

    def _serve_again(self, origin: str) -> tuple[str, bool]:
        try:
            sha256 = releases.manifest_sha256(self._layout, origin)
            process = self._restarted(self._prover_before, origin, sha256, self._pending.before)
            return f"{origin} answers as pid {process.pid}", True
        except (UnhealthyError, FileNotFoundError) as error:
            return f"{origin} is back, but does not serve well: {error}", False


def _reserve_room(layout: Layout) -> None:
    """Reserve room on the disk, so that a revert has some even if the disk is full then.

    Raises:
        ActivationFailedError: there is no room now, so nothing is started.
    """
    try:
        descriptor = os.open(layout.state(_ROOM), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _ROOM_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ActivationFailedError(
            f"the host's disk has no room for a revert: {error.strerror}"
        ) from error


def _release_room(layout: Layout) -> None:
    with contextlib.suppress(OSError):
        os.unlink(layout.state(_ROOM))


def confirm(layout: Layout, number: int, token: str, opened: float | None) -> bool:
    """Confirm an activation that waits for it; False: it does not wait (yet, or any more).

    Args:
        opened: when the connection's process started, by `uptime`; None: unknown.
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
        ActivationFailedError: nobody confirmed in confirm_s, and now nobody can.
        Exception: what `check` raised.
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
    """Accept no confirmation any more; False: it came at the last moment."""
    with _deciding(layout):
        if ledger.is_confirmed(layout, pending):
            return False
        with contextlib.suppress(OSError):  # a full disk takes no confirmation either
            ledger.write_pending(layout, dataclasses.replace(pending, state="reverting"))
        return True


def _deciding(layout: Layout) -> contextlib.AbstractContextManager[None]:
    """The lock of both sides; on the directory itself, which needs no room on a full disk."""
    return durable.one_at_a_time(layout.state())


def _too_old(opened: float | None, since: float | None) -> bool:
    return opened is not None and since is not None and opened + _TICK_S < since


def uptime() -> float | None:
    """Seconds since this host booted; None: unknown."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)


def process_started() -> float | None:
    """When this process started, by `uptime`; None: unknown."""
    try:
        return int(start_time(os.getpid())) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
