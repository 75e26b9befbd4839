"""Make a staged release live, prove it, and commit or go back; run by the host, not the session.

The record in state/pending.json is durable before the first change. Whatever kills this process, a
power cut included, the next run of `carry_on` (the restarted unit, the boot unit, the next deploy)
finds it and ends the matter: committed if the commit was written, else everything back as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import time
from typing import Callable, Dict, Optional, Tuple

from macd.host import ledger, probe, releases, retention, snapshots
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, point_current_at
from macd.host.ledger import EventLog, Pending, Snapshot
from macd.host.supervisor import Process, Supervisor

LOCK = "activation.lock"
_POLL_S = 0.2
_CHECK_TIMEOUT_S = 180
_CRASHES_THAT_SETTLE_IT = 2
_REFUSALS_THAT_SETTLE_IT = 4
_TRIES = 3
_LONGEST_REASON = 2000
_ROOM = "room-to-go-back"
_ROOM_BYTES = 128 << 10
Record = Callable[[str, Dict[str, object]], None]


class ActivationFailedError(Exception):
    """The new release did not prove itself; `blames_release` tells whether it is at fault."""

    def __init__(self, reason: str, *, blames_release: bool = True) -> None:
        super().__init__(reason)
        self.blames_release = blames_release


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
        self._events = EventLog(layout, pending.number)

    def go(self) -> str:
        """All the way forward; the way back on anything that fails."""
        try:
            self._prove_before_the_switch()
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

    def _prove_before_the_switch(self) -> None:
        """Import everything and run the golden predictions while the old release still serves."""
        self._enter("checking")
        if not self._pending.check_argv:
            return
        try:
            done = subprocess.run(
                self._pending.check_argv,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_CHECK_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ActivationFailedError(f"its own check did not run here: {error}") from error
        if done.returncode != 0:
            said = (done.stdout.strip() or done.stderr.strip()).splitlines()
            raise ActivationFailedError("its own check failed here: " + " ".join(said[-3:]))

    def _switch(self) -> None:
        _hold_room(self._layout)
        self._enter("switching")
        snapshots.put(self._layout, self._supervisor, self._pending.after)
        point_current_at(self._layout, self._pending.to)
        self._enter("switched")

    def _restart(self) -> Process:
        self._enter("restarting")
        process = self._until_healthy(
            self._pending.to, self._pending.manifest_sha256, self._pending.after
        )
        self._enter("restarted", pid=process.pid)
        return process

    def _soak(self, process: Process) -> None:
        self._enter("soaking", seconds=self._pending.soak_s)
        deadline = time.monotonic() + self._pending.soak_s
        while time.monotonic() < deadline:
            self._still_well(process)
            time.sleep(min(_POLL_S * 5, max(0.0, deadline - time.monotonic())))
        self._still_well(process)

    def _still_well(self, process: Process) -> None:
        """One answer that is late or lost proves nothing; another process does."""
        wrong = ""
        for _ in range(_TRIES):
            now = self._supervisor.show(self._pending.unit)
            if not now.is_same_life(process) or now.restarts != process.restarts:
                raise ActivationFailedError(f"it did not stay up: {now.result or now.active}")
            wrong, _ = self._asked(self._pending.to, self._pending.manifest_sha256, now)
            if not wrong:
                return
            time.sleep(_POLL_S)
        raise ActivationFailedError(f"it did not stay well: {wrong}")

    def _asked(self, release: str, manifest_sha256: str, process: Process) -> Tuple[str, bool]:
        """Why its answer does not prove that `process` serves `release` well ("" if it does).

        And whether that is its last word: it has started, it is the one asked, and says no.
        """
        try:
            answer = probe.ask(self._pending.endpoint)
        except probe.ProbeError as error:
            return f"it does not answer: {error}", False
        wrong = probe.problems(
            answer, release=release, manifest_sha256=manifest_sha256, process=process
        )
        started = process.active == "active" and answer.get("status") in ("ok", "failed")
        return "; ".join(wrong), started and answer.get("pid") == process.pid

    def _until_healthy(self, release: str, manifest_sha256: str, texts: Snapshot) -> Process:
        """Restart, and wait for a NEW process that proves itself.

        Raises:
            ActivationFailedError: not in health_s, or it crashed so often that waiting is idle.
        """
        pending, unit = self._pending, self._pending.unit
        moved = [
            n for n in snapshots.sockets(texts) if pending.before.get(n) != pending.after.get(n)
        ]
        if moved:  # systemd changes no socket while its service runs
            self._supervisor.stop(unit, *moved)
        before = self._supervisor.show(unit)
        deadline = time.monotonic() + pending.health_s
        restarting = self._supervisor.restart(unit, snapshots.sockets(texts))
        wrong, refusals = "it has not answered yet", 0
        while time.monotonic() < deadline:
            now = self._supervisor.show(unit)
            # reset-failed has set the count to 0, but an old systemd may keep it
            crashes = now.restarts - (before.restarts if now.restarts >= before.restarts else 0)
            if restarting.poll() not in (None, 0) or crashes >= _CRASHES_THAT_SETTLE_IT:
                said = self._supervisor.last_words(unit)
                why = f"its last words: {said}" if said else wrong
                raise ActivationFailedError(f"it does not start: {now.result} ({why})")
            if now.pid and not now.is_same_life(before):
                wrong, final = self._asked(release, manifest_sha256, now)
                if not wrong:
                    return now
                refusals = refusals + 1 if final else 0
                if refusals > _REFUSALS_THAT_SETTLE_IT:
                    raise ActivationFailedError(wrong)
            time.sleep(_POLL_S)
        raise ActivationFailedError(f"not healthy within {pending.health_s:g} s: {wrong}")

    def _await_confirmation(self, process: Process) -> None:
        """Somebody must reach this host over a NEW connection, or the change locked them out."""
        self._enter("awaiting confirmation", seconds=self._pending.confirm_s)
        deadline = time.monotonic() + self._pending.confirm_s
        while not ledger.is_confirmed(self._layout, self._pending):
            if time.monotonic() > deadline:
                waited = f"{self._pending.confirm_s:g} s"
                raise ActivationFailedError(
                    f"nobody confirmed over a fresh connection within {waited}",
                    blames_release=False,
                )
            self._still_well(process)
            time.sleep(_POLL_S)

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
        serving = self._put_back() if touched else "it was never switched"
        with contextlib.suppress(OSError, HostError):
            self._tell("reverted", reason=reason, live=self._pending.origin, serving=serving)
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

    def _put_back(self) -> str:
        pending = self._pending
        if pending.origin is None and not self._booting:
            self._supervisor.stop(*snapshots.sockets(pending.after), pending.unit)
        point_current_at(self._layout, pending.origin)
        failure: Optional[Exception] = None
        try:
            snapshots.put(self._layout, self._supervisor, pending.before, reload=True)
        except (OSError, HostError) as error:
            failure = error  # on a full disk: rather the old release with wrong flags than none
        if self._booting:
            serving = "systemd starts it next"
        elif pending.origin is None:
            serving = "nothing served before, and nothing serves now"
        else:
            serving = self._serve_again(pending.origin)
        if failure is not None:
            raise HostError(
                "flags, settings or units could not be put back",
                why=str(failure),
                live=f"{pending.origin}: {serving}",
            ) from failure
        return serving

    def _serve_again(self, origin: str) -> str:
        try:
            sha256 = releases.manifest_sha256(self._layout, origin)
            process = self._until_healthy(origin, sha256, self._pending.before)
            return f"{origin} answers as pid {process.pid}"
        except (ActivationFailedError, FileNotFoundError) as error:
            return f"{origin} is back, but does not serve well: {error}"


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
