"""Make a staged release live, prove it, and commit or go back; run by the host, not the session.

The record in state/pending.json is durable before the first change. Whatever kills this process, a
power cut included, the next run of `carry_on` (the restarted unit, the boot unit, the next deploy)
finds it and ends the matter: committed if the commit was written, else everything back as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable

from macd.host.deploy import confirmation, ledger, proving
from macd.host.deploy.ledger import EventLog, Pending
from macd.host.deploy.proving import ActivationFailedError, Prover
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, point_current_at
from macd.host.store import releases, retention, snapshots
from macd.host.systemd.supervisor import Process, Supervisor

LOCK = "activation.lock"
_LONGEST_REASON = 2000
_ROOM = "room-to-go-back"
_ROOM_BYTES = 128 << 10
Record = Callable[[str, dict[str, object]], None]


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
    with ledger.locked(layout, LOCK, {"who": "activation", "doing": "activation"}):
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
        self._prover = Prover(layout.app, pending, self._supervisor)
        self._events = EventLog(layout, pending.number)
        self._kept: list[str] = []  # by the way back

    def go(self) -> str:
        """All the way forward; the way back on anything that fails."""
        try:
            self._check()
            self._switch()
            process = self._restart()
            self._soak(process)
            self._await_confirmation(process)
            self._commit()
        except ActivationFailedError as error:
            return self.revert(str(error), blames_release=error.blames_release)
        except Exception as error:  # whatever it was, what served before has to serve again
            told = f"the host could not go on: {type(error).__name__}: {error}"
            return self.revert(told, blames_release=False)
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
        self._prover.check_before()

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
        process = self._prover.until_healthy(
            self._pending.to, self._pending.manifest_sha256, self._pending.after
        )
        self._enter("restarted", pid=process.pid)
        return process

    def _soak(self, process: Process) -> None:
        self._enter("soaking", seconds=self._pending.soak_s)
        deadline = time.monotonic() + self._pending.soak_s
        while time.monotonic() < deadline:
            self._prover.still_well(process)
            time.sleep(min(proving.POLL_S * 5, max(0.0, deadline - time.monotonic())))
        self._prover.still_well(process)

    def _await_confirmation(self, process: Process) -> None:
        """Somebody must reach this host over a NEW connection, or the change locked them out."""
        since = confirmation.uptime()
        self._pending = dataclasses.replace(self._pending, waiting_since=since)
        self._enter(confirmation.WAITING, seconds=self._pending.confirm_s)
        confirmation.wait_for(self._layout, self._pending, lambda: self._prover.still_well(process))

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
            told = {"live": self._pending.origin, "serving": serving, "well": well}
            self._tell("reverted", reason=reason, kept=self._kept, **told)
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
            process = self._prover.until_healthy(origin, sha256, self._pending.before)
            return f"{origin} answers as pid {process.pid}", True
        except (ActivationFailedError, FileNotFoundError) as error:
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
            f"the host's disk has no room to go back: {error.strerror}", blames_release=False
        ) from error


def _give_room(layout: Layout) -> None:
    with contextlib.suppress(OSError):
        os.unlink(layout.state(_ROOM))
