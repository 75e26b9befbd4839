"""The proof that a release is healthy: its own check, a new process, and answers that name it.

Activations and changes of the stacking flag use the same proof, forward and on a revert. The caller
decides what follows from it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from macd.host import untrusted
from macd.host.failure import HostError
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Process, Supervisor

POLL_S = 0.2
CHECK_TIMEOUT_S = 180
_CRASHES_THAT_SETTLE_IT = 2
_REFUSALS_THAT_SETTLE_IT = 4
_TRIES = 3
_LONGEST_REASON = 2000
_LIMIT = 64 << 10  # bytes; our service answers with a few thousand


class _BoundedSocket(socket.socket):
    """Ends a whole conversation in time: a service may drip an answer byte by byte."""

    deadline = 0.0

    def recv_into(self, *args: Any, **keywords: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it answers too slowly")
        self.settimeout(left)
        return super().recv_into(*args, **keywords)


class ProbeError(Exception):
    """No usable answer came from the service's health endpoint."""


def ask(endpoint: str, *, timeout: float = 2.0, path: str = "/healthz") -> dict[str, Any]:
    """The health document at `endpoint`: "unix:/path" or "HOST:PORT" on loopback.

    The answer is not trusted. Each text in it is made short and fit for a journal and a terminal.

    Raises:
        ProbeError: nobody answers, not in time, too long, or not with a JSON object.
    """
    # Imported while the service starts, so that the switch comes sooner.
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415

    unix = endpoint.removeprefix("unix:")
    host, _, port = endpoint.rpartition(":")
    with contextlib.closing(HTTPConnection("localhost")) as connection:
        try:
            family = socket.AF_INET if unix == endpoint else socket.AF_UNIX
            connection.sock = service = _BoundedSocket(family, socket.SOCK_STREAM)
            service.deadline = time.monotonic() + timeout
            service.settimeout(timeout)
            service.connect(unix if family == socket.AF_UNIX else (host, int(port)))
            connection.request("GET", path)
            raw = connection.getresponse().read(_LIMIT + 1)
            if len(raw) > _LIMIT:
                raise ProbeError(f"the answer is longer than {_LIMIT >> 10} KiB")
            answer = untrusted.document(json.loads(raw))
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise ProbeError(untrusted.line(f"{type(error).__name__}: {error}")) from error
    if not isinstance(answer, dict):
        raise ProbeError("the answer is not a JSON object")
    return answer


def problems(
    answer: dict[str, Any], *, release: str, manifest_sha256: str, process: Process
) -> list[str]:
    """Why this answer does not prove that `process` serves `release` well; empty when it does.

    A release id alone proves little: an old process that still answers would look healthy. So the
    manifest's hash, systemd's pid and the golden predictions count too.
    """
    findings = []
    if answer.get("release") != release:
        findings.append(f"release {answer.get('release')} answers, not {release}")
    elif answer.get("manifest_sha256") != manifest_sha256:
        findings.append("the manifest it runs has another hash than the one that was signed")
    if process.pid and answer.get("pid") != process.pid:
        findings.append(f"pid {answer.get('pid')} answers, but systemd started {process.pid}")
    if process.active != "active":
        findings.append(
            f"the unit is {process.active or 'unknown'} ({process.sub}, {process.result})"
        )
    golden = answer.get("golden")
    if not isinstance(golden, dict) or golden.get("ok") is not True:
        detail = golden.get("detail") if isinstance(golden, dict) else golden
        findings.append(f"golden predictions do not come out right here: {detail}")
    if answer.get("status") != "ok":
        findings.append(f"its status is {answer.get('status')}: {answer.get('last_error')}")
    return findings


class UnhealthyError(Exception):
    """A release did not prove itself.

    Args:
        blames_release: whether the release is at fault.
        process: a new process that runs as asked, but does not serve well; None where none does.
        wrong: why it does not serve well.
    """

    def __init__(
        self,
        reason: str,
        *,
        blames_release: bool = True,
        process: Process | None = None,
        wrong: str = "",
    ) -> None:
        super().__init__(untrusted.line(reason, _LONGEST_REASON))  # it holds a release's own text
        self.blames_release = blames_release
        self.process = process
        self.wrong = wrong


def check_before(argv: Sequence[str], sandbox: Sandbox) -> None:
    """Run the release's own check while the old release still serves.

    Args:
        argv: the check, which imports everything and predicts; empty: there is none.
        sandbox: of the unit that is to run it.

    Raises:
        UnhealthyError: the check failed or did not run.
    """
    if not argv:
        return
    try:
        done = sandbox.run(list(argv), timeout=CHECK_TIMEOUT_S)
    except HostError as error:
        why = f"its own check was not run: {error} ({error.why})"
        raise UnhealthyError(why, blames_release=False) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnhealthyError(f"its own check did not run here: {error}") from error
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        raise UnhealthyError("its own check failed here: " + " ".join(said[-3:]))


class Prover:
    """Asks one service, and the supervisor about its unit, whether a release serves well."""

    def __init__(self, supervisor: Supervisor, unit: str, endpoint: str) -> None:
        self._supervisor = supervisor
        self._unit = unit
        self._endpoint = endpoint

    def asked(self, release: str, manifest_sha256: str, process: Process) -> tuple[str, bool]:
        """Why its answer does not prove that `process` serves `release` well ("" if it does).

        And whether that is final: the process has started, it is the one asked, and it says no.
        """
        try:
            answer = ask(self._endpoint)
        except ProbeError as error:
            return f"it does not answer: {error}", False
        wrong = problems(answer, release=release, manifest_sha256=manifest_sha256, process=process)
        started = process.active == "active" and answer.get("status") in ("ok", "failed")
        return "; ".join(wrong), started and answer.get("pid") == process.pid

    def wrong_with(self, release: str, manifest_sha256: str) -> str:
        """Why `release` does not serve well as it runs now, "" if it does; restarts nothing."""
        wrong = ""
        for _ in range(_TRIES):
            now = self._supervisor.show(self._unit)
            wrong, _ = self.asked(release, manifest_sha256, now)
            if not wrong:
                break
            time.sleep(POLL_S)
        return wrong

    def check_stays_healthy(self, release: str, manifest_sha256: str, process: Process) -> None:
        """One late or lost answer proves nothing; another process does.

        Raises:
            UnhealthyError: it is another process, or it says no again and again.
        """
        wrong = ""
        for _ in range(_TRIES):
            now = self._supervisor.show(self._unit)
            if not now.is_same_life(process) or now.restarts != process.restarts:
                said = self._supervisor.last_line(self._unit)
                said = f"; its last words: {said}" if said else ""
                raise UnhealthyError(f"it did not stay up: {now.result or now.active}{said}")
            wrong, _ = self.asked(release, manifest_sha256, now)
            if not wrong:
                return
            time.sleep(POLL_S)
        raise UnhealthyError(f"it did not stay healthy: {wrong}")

    def restart(
        self,
        release: str,
        manifest_sha256: str,
        sockets: list[str],
        seconds: float,
        *,
        runs_as_asked: Callable[[Process], bool] = lambda process: True,
    ) -> Process:
        """Restart, and wait for a NEW process that serves `release` well and runs as asked.

        Raises:
            UnhealthyError: not in `seconds`, or it crashed so often that waiting is useless.
        """
        unit = self._unit
        before = self._supervisor.show(unit)
        deadline = time.monotonic() + seconds
        restarting = self._supervisor.restart(unit, sockets)
        proved: Process | None = None
        wrong, refusals = "it has not answered yet", 0
        while time.monotonic() < deadline:
            now = self._supervisor.show(unit)
            # reset-failed has set the count to 0, but an old systemd may keep it
            crashes = now.restarts - (before.restarts if now.restarts >= before.restarts else 0)
            if restarting.poll() not in (None, 0) or crashes >= _CRASHES_THAT_SETTLE_IT:
                said = self._supervisor.last_line(unit)
                why = f"its last words: {said}" if said else wrong
                # "success" is the word between two tries
                how = "" if now.result == "success" else f" ({now.result})"
                raise UnhealthyError(f"it does not start{how}: {why}")
            if now.pid and not now.is_same_life(before):
                proved = now if runs_as_asked(now) else None
                wrong, final = self.asked(release, manifest_sha256, now)
                if proved and not wrong:
                    return now
                refusals = refusals + 1 if final else 0
                if refusals > _REFUSALS_THAT_SETTLE_IT:
                    raise UnhealthyError(wrong, process=proved, wrong=wrong)
            time.sleep(POLL_S)
        reason = f"not healthy within {seconds:g} s: {wrong}"
        raise UnhealthyError(reason, process=proved, wrong=wrong)
