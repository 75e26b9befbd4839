"""The proof that a release serves well here: its own check, a new process, answers that name it.

Apart from activation.py, which decides what follows from it: the way forward and the way back are
proved by the same questions.
"""

from __future__ import annotations

import subprocess
import time

from macd.host import untrusted
from macd.host.deploy import probe
from macd.host.deploy.ledger import Pending, Snapshot
from macd.host.failure import HostError
from macd.host.store import snapshots
from macd.host.systemd.sandbox import Confinement
from macd.host.systemd.supervisor import Process, Supervisor

POLL_S = 0.2
CHECK_TIMEOUT_S = 180
_CRASHES_THAT_SETTLE_IT = 2
_REFUSALS_THAT_SETTLE_IT = 4
_TRIES = 3
_LONGEST_REASON = 2000


class ActivationFailedError(Exception):
    """The new release did not prove itself; `blames_release` tells whether it is at fault."""

    def __init__(self, reason: str, *, blames_release: bool = True) -> None:
        super().__init__(untrusted.line(reason, _LONGEST_REASON))  # a release's own words are in it
        self.blames_release = blames_release


class Prover:
    """Asks on behalf of one activation."""

    def __init__(self, app: str, pending: Pending, supervisor: Supervisor) -> None:
        self._app = app
        self._pending = pending
        self._supervisor = supervisor

    def check_before(self) -> None:
        """Import everything and run the golden predictions while the old release still serves.

        As the user and behind the walls of the unit that is to run it.

        Raises:
            ActivationFailedError: its own check failed or did not run.
        """
        if not self._pending.check_argv:
            return
        text = self._pending.after.get(self._pending.unit)
        walls = Confinement(self._pending.scope, text, self._app)
        try:
            done = walls.run(self._pending.check_argv, timeout=CHECK_TIMEOUT_S)
        except HostError as error:
            why = f"its own check was not run: {error} ({error.why})"
            raise ActivationFailedError(why, blames_release=False) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ActivationFailedError(f"its own check did not run here: {error}") from error
        if done.returncode != 0:
            said = (done.stdout.strip() or done.stderr.strip()).splitlines()
            raise ActivationFailedError("its own check failed here: " + " ".join(said[-3:]))

    def still_well(self, process: Process) -> None:
        """One answer that is late or lost proves nothing; another process does.

        Raises:
            ActivationFailedError: it is another process, or it says no again and again.
        """
        wrong = ""
        for _ in range(_TRIES):
            now = self._supervisor.show(self._pending.unit)
            if not now.is_same_life(process) or now.restarts != process.restarts:
                said = self._supervisor.last_words(self._pending.unit)
                told = f"; its last words: {said}" if said else ""
                raise ActivationFailedError(f"it did not stay up: {now.result or now.active}{told}")
            wrong, _ = self._asked(self._pending.to, self._pending.manifest_sha256, now)
            if not wrong:
                return
            time.sleep(POLL_S)
        raise ActivationFailedError(f"it did not stay well: {wrong}")

    def wrong_with(self, release: str, manifest_sha256: str) -> str:
        """Why `release` does not serve well as it runs now, "" if it does; restarts nothing."""
        wrong = ""
        for _ in range(_TRIES):
            now = self._supervisor.show(self._pending.unit)
            wrong, _ = self._asked(release, manifest_sha256, now)
            if not wrong:
                break
            time.sleep(POLL_S)
        return wrong

    def _asked(self, release: str, manifest_sha256: str, process: Process) -> tuple[str, bool]:
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

    def until_healthy(self, release: str, manifest_sha256: str, texts: Snapshot) -> Process:
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
                # "success" is the word between two tries
                how = "" if now.result == "success" else f" ({now.result})"
                raise ActivationFailedError(f"it does not start{how}: {why}")
            if now.pid and not now.is_same_life(before):
                wrong, final = self._asked(release, manifest_sha256, now)
                if not wrong:
                    return now
                refusals = refusals + 1 if final else 0
                if refusals > _REFUSALS_THAT_SETTLE_IT:
                    raise ActivationFailedError(wrong)
            time.sleep(POLL_S)
        raise ActivationFailedError(f"not healthy within {pending.health_s:g} s: {wrong}")
