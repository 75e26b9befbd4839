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
from typing import Callable, Dict, List, Optional

from macd.host import durable, ledger, probe, releases
from macd.host.failure import HostError
from macd.host.layout import Layout, load, point_current_at, save
from macd.host.ledger import EventLog, Pending, Snapshot
from macd.host.supervisor import Process, Supervisor

LOCK = "activation.lock"
_POLL_S = 0.2
_CHECK_TIMEOUT_S = 180
_CRASHES_THAT_SETTLE_IT = 2
Record = Callable[[str, Dict[str, object]], None]


class ActivationFailedError(Exception):
    """The new release did not prove itself; `blames_release` tells whether it is at fault."""

    def __init__(self, reason: str, *, blames_release: bool = True) -> None:
        super().__init__(reason)
        self.blames_release = blames_release


def carry_on(layout: Layout, record: Record, *, booting: bool = False) -> str:
    """Run the pending activation, or end one that was interrupted.

    Args:
        booting: systemd has not started the service yet and will; only the files are put back.

    Returns:
        "committed", "reverted", or "nothing" when none is pending.

    Raises:
        HostError: another process is at it, or the way back itself failed (it is tried again by
            the next run; the message says what is live).
    """
    with ledger.locked(layout, LOCK, {"who": "activation", "doing": "activation"}):
        pending = ledger.read_pending(layout)
        if pending is None:
            return "nothing"
        run = Activation(layout, pending, record, booting=booting)
        if any(entry["number"] == pending.number for entry in ledger.history(layout)):
            run.tidy_up()
            return "committed"
        if pending.state != "verified" or booting:
            reason = pending.reason or f"it was interrupted while {pending.state}"
            return run.revert(reason, blames_release=bool(pending.reason))
        return run.go()


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
            before = self._supervisor.show(self._pending.unit)
            self._prove_before_the_switch()
            self._switch()
            process = self._restart(before)
            self._soak(process)
            self._await_confirmation(process)
            self._commit()
        except ActivationFailedError as error:
            return self.revert(str(error), blames_release=error.blames_release)
        except (HostError, OSError) as error:
            return self.revert(f"the host could not go on: {error}", blames_release=False)
        with contextlib.suppress(OSError, HostError):  # it is committed, whatever the disk says now
            self._tell("committed")
            self.tidy_up()
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
        self._tell("checking")
        if not self._pending.check_argv:
            return
        try:
            done = subprocess.run(
                self._pending.check_argv,
                capture_output=True,
                text=True,
                timeout=_CHECK_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ActivationFailedError(f"its own check did not run here: {error}") from error
        if done.returncode != 0:
            said = (done.stdout.strip() or done.stderr.strip()).splitlines()
            raise ActivationFailedError("its own check failed here: " + " ".join(said[-3:]))

    def _switch(self) -> None:
        self._enter("switching")
        _put(self._layout, self._supervisor, self._pending.after)
        point_current_at(self._layout, self._pending.to)
        self._enter("switched")

    def _restart(self, before: Process) -> Process:
        self._enter("restarting")
        pending = self._pending
        process = _until_healthy(
            self._supervisor,
            pending,
            release=pending.to,
            manifest_sha256=pending.manifest_sha256,
            before=before,
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
        now = self._supervisor.show(self._pending.unit)
        if not now.is_same_life(process) or now.restarts != process.restarts:
            raise ActivationFailedError(f"it did not stay up: {now.result or now.active}")
        try:
            answer = probe.ask(self._pending.endpoint)
        except probe.ProbeError as error:
            raise ActivationFailedError(f"it stopped answering: {error}") from error
        wrong = self._problems(answer, now)
        if wrong:
            raise ActivationFailedError("; ".join(wrong))

    def _problems(self, answer: Dict[str, object], process: Process) -> List[str]:
        return probe.problems(
            answer,
            release=self._pending.to,
            manifest_sha256=self._pending.manifest_sha256,
            process=process,
        )

    def _await_confirmation(self, process: Process) -> None:
        """Somebody must reach this host over a NEW connection, or the change locked them out."""
        self._enter("awaiting confirmation", seconds=self._pending.confirm_s)
        deadline = time.monotonic() + self._pending.confirm_s
        while load(self._layout.state("confirmed.json"), {}).get("token") != self._pending.token:
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
        _keep_snapshot(self._layout, pending.to, pending.after)
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

    def tidy_up(self) -> None:
        """After a commit or a revert: drop the pending record, then what nothing needs any more."""
        ledger.clear_pending(self._layout)
        keep = worth_keeping(self._layout, self._pending.keep)
        locks = {releases.read_manifest(self._layout, kept).lock for kept in keep}
        releases.retire(self._layout, keep, locks)

    def revert(self, reason: str, *, blames_release: bool) -> str:
        """Everything back as it was before, proved like the way forward.

        Raises:
            HostError: what was live before does not come up again either.
        """
        pending = self._pending
        touched = pending.state != "verified"
        self._note_the_revert(reason if blames_release else "", touched=touched)
        serving = self._put_back() if touched else "it was never switched"
        with contextlib.suppress(OSError, HostError):
            self._tell("reverted", reason=reason, live=pending.origin, serving=serving)
        self.tidy_up()
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
        if self._booting:
            point_current_at(self._layout, pending.origin)
            _put(self._layout, self._supervisor, pending.before)
            return "systemd starts it next"
        now = self._supervisor.show(pending.unit)
        if pending.origin is None:
            if now.loaded == "loaded" and now.active != "inactive":
                self._supervisor.stop(pending.unit)
            point_current_at(self._layout, None)
            _put(self._layout, self._supervisor, pending.before)
            return "nothing served before, and nothing serves now"
        point_current_at(self._layout, pending.origin)
        _put(self._layout, self._supervisor, pending.before)
        sha256 = releases.manifest_sha256(self._layout, pending.origin)
        try:
            process = _until_healthy(
                self._supervisor,
                pending,
                release=pending.origin,
                manifest_sha256=sha256,
                before=now,
            )
            return f"{pending.origin} answers as pid {process.pid}"
        except ActivationFailedError as error:
            return f"{pending.origin} is back, but does not serve well: {error}"


def _until_healthy(
    supervisor: Supervisor, pending: Pending, *, release: str, manifest_sha256: str, before: Process
) -> Process:
    """Restart, and wait for a NEW process that proves itself.

    Raises:
        ActivationFailedError: not within health_s, or it crashed so often that waiting is idle.
    """
    deadline = time.monotonic() + pending.health_s
    restarting = supervisor.restart(pending.unit)
    wrong = ["it has not answered yet"]
    while time.monotonic() < deadline:
        now = supervisor.show(pending.unit)
        # reset-failed has set the count to 0, but an old systemd may keep it
        crashes = now.restarts - (before.restarts if now.restarts >= before.restarts else 0)
        if restarting.poll() not in (None, 0) or crashes >= _CRASHES_THAT_SETTLE_IT:
            raise ActivationFailedError(f"it does not start: {now.result} ({'; '.join(wrong)})")
        if now.pid and not now.is_same_life(before):
            try:
                answer = probe.ask(pending.endpoint)
                wrong = probe.problems(
                    answer, release=release, manifest_sha256=manifest_sha256, process=now
                )
                if not wrong:
                    return now
            except probe.ProbeError as error:
                wrong = [f"it does not answer: {error}"]
        time.sleep(_POLL_S)
    raise ActivationFailedError(f"not healthy within {pending.health_s:g} s: {'; '.join(wrong)}")


def _put(layout: Layout, supervisor: Supervisor, texts: Snapshot) -> None:
    """Write flags, settings and units as the snapshot has them; reload if a unit changed."""
    for name, path in ((".env", layout.env), ("service.json", layout.service_settings)):
        if name not in texts or _text(path) == texts[name]:
            continue
        content = texts[name]
        if content is None:
            os.unlink(path)
            durable.sync_directory(layout.app)
        else:
            durable.replace_file(path, content.encode(), mode=_mode(path))
    units = {name: text for name, text in texts.items() if name not in (".env", "service.json")}
    supervisor.install(units)


def take_snapshot(layout: Layout, supervisor: Supervisor, units: List[str]) -> Snapshot:
    """What goes with the live release now: flags, settings and unit files."""
    taken: Snapshot = {unit: supervisor.unit_text(unit) for unit in units}
    taken[".env"] = _text(layout.env)
    taken["service.json"] = _text(layout.service_settings)
    return taken


def _keep_snapshot(layout: Layout, release: str, texts: Snapshot) -> None:
    save(layout.state("snapshots", f"{release}.json"), texts, mode=0o600)


def snapshot_of(layout: Layout, release: str) -> Snapshot:
    """What went with a release when it was last live. Raises HostError when it never was."""
    found = load(layout.state("snapshots", f"{release}.json"), None)
    if found is None:
        raise HostError(f"{release} was never live here", kind="refused")
    return dict(found)


def remember_live_snapshot(layout: Layout, release: Optional[str], texts: Snapshot) -> None:
    """Before another release goes live: keep the flags the present one really had."""
    if release is not None:
        _keep_snapshot(layout, release, texts)


def worth_keeping(layout: Layout, keep: int) -> "set[str]":
    """`keep` newest good releases, the live one, its predecessor, and the newest failed one."""
    here = set(releases.on_host(layout))
    bad = [entry["release"] for entry in ledger.bad_releases(layout)]
    good: List[str] = []
    for entry in reversed(ledger.history(layout)):
        if entry["release"] not in good:
            good.append(entry["release"])
    kept = [one for one in good if one in here][: max(keep, 2)]
    target = releases.rollback_target(ledger.history(layout), good[0] if good else None)
    failed = [one for one in bad if one in here and one not in good][-1:]
    return here & {*kept, *failed, *([target] if target else [])}


def _text(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        return 0o600 if path.endswith(".env") else 0o644
