"""The proof that a release is healthy: its own check, a new process, and answers that name it.

Activations and changes of the stacking flag use the same proof, forward and on a revert. The caller
decides what follows from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from macd.host import untrusted
from macd.host.failure import HostError
from macd.host.own import SOURCE
from macd.host.systemd import starting
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Process, Supervisor

POLL_S = 0.2
CHECK_TIMEOUT_S = 180
_CRASHES_THAT_SETTLE_IT = 2
_REFUSALS_THAT_SETTLE_IT = 4
_TRIES = 3
_PYTHON = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
_LONGEST_REASON = 2000
_LIMIT = 256 << 10  # bytes; ours answers with a few thousand, and 150 to 1,500 for each symbol
_MOST_ITEMS = 1000  # symbols, in an answer that is no longer than that


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


def get(endpoint: str, path: str, timeout: float) -> tuple[int, bytes]:
    """The status and the first 64 KiB or so of the answer at `endpoint`, as `ask` takes it.

    Raises ProbeError: nobody answers, not in time, or not by HTTP.
    """
    # Imported while the service starts, so that the switch comes sooner.
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415

    unix = endpoint.removeprefix("unix:")
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    with contextlib.closing(HTTPConnection("localhost")) as connection:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            family = family if unix == endpoint else socket.AF_UNIX
            connection.sock = service = _BoundedSocket(family, socket.SOCK_STREAM)
            service.deadline = time.monotonic() + timeout
            service.settimeout(timeout)
            service.connect(unix if family == socket.AF_UNIX else (host, int(port)))
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read(_LIMIT + 1)
        except FileNotFoundError as error:
            raise ProbeError("there is no socket") from error
        except ConnectionRefusedError as error:
            raise ProbeError("nobody listens there") from error
        except (OSError, HTTPException, ValueError) as error:
            raise ProbeError(untrusted.line(f"{type(error).__name__}: {error}")) from error


def ask(endpoint: str, *, timeout: float = 2.0, path: str = "/healthz") -> dict[str, Any]:
    """The health document at `endpoint`: "unix:/path" or "HOST:PORT" on loopback.

    The answer is not trusted. Each text in it is made short and fit for a journal and a terminal.

    Raises:
        ProbeError: nobody answers, not in time, too long, or not with a JSON object.
    """
    _, raw = get(endpoint, path, timeout)
    if len(raw) > _LIMIT:
        raise ProbeError(f"the answer is longer than {_LIMIT >> 10} KiB")
    try:
        answer = untrusted.document(json.loads(raw), items=_MOST_ITEMS)
    except (ValueError, RecursionError) as error:
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


def check_before(argv: Sequence[str], sandbox: Sandbox, release: str = "") -> None:
    """Run the release's own check while the old release still serves.

    Args:
        argv: the check, which imports everything and predicts; empty: there is none.
        sandbox: of the unit that is to run it.
        release: the directory of an own application's release, in whose tree the check works.

    Raises:
        UnhealthyError: the check failed or did not run.
    """
    if not argv:
        return
    try:
        done = run_check(argv, sandbox, release, CHECK_TIMEOUT_S)
    except HostError as error:
        why = f"its own check was not run: {error} ({error.why})"
        raise UnhealthyError(why, blames_release=False) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnhealthyError(f"its own check did not run here: {error}") from error
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        if release:  # of a script nobody here knows: what it printed, and why it ended
            said = [*done.stdout.strip().splitlines(), *done.stderr.strip().splitlines()]
        words = " ".join(said[-3:])
        if release and any(sign in words for sign in ("Read-only file", "Permission denied")):
            words += " (it may write nothing but /tmp: what it would write is live)"
        raise UnhealthyError("its own check failed here: " + words)


def run_check(
    argv: Sequence[str], sandbox: Sandbox, release: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """A release's own check, run beside what is live; it may write nothing. Raises as Sandbox.run.

    release: as `check_before` has it.
    """
    if not release:
        return sandbox.run(list(argv), timeout=timeout)
    settings = {"MACD_RELEASE": os.path.basename(release), **_PYTHON}
    source = os.path.join(release, SOURCE)
    return sandbox.run(list(argv), timeout=timeout, settings=settings, cwd=source)


AsAsked = Callable[[Process, str], bool]  # a new process, and where it answers


def any_way(process: Process, endpoint: str) -> bool:
    """For a restart that may lead to any process."""
    return True


class Prover:
    """Asks one service, and the supervisor about its unit, whether a release serves well.

    An application of the team's own is asked otherwise: see macd/host/deploy/probe.py.
    takes_s: how long it is to have run before it can be proved.
    """

    takes_s = 0.0

    def __init__(self, supervisor: Supervisor, unit: str, endpoint: str = "") -> None:
        self.supervisor = supervisor
        self.unit = unit
        self.endpoint = endpoint

    @property
    def units(self) -> list[str]:
        return [self.unit]

    def asked(self, release: str, manifest_sha256: str, process: Process) -> tuple[str, bool]:
        """Why its answer does not prove that `process` serves `release` well ("" if it does).

        And whether that is final: the process has started, it is the one asked, and it says no.
        """
        try:
            answer = ask(os.path.expanduser(self.endpoint))
        except ProbeError as error:
            return f"it does not answer: {error}", False
        wrong = problems(answer, release=release, manifest_sha256=manifest_sha256, process=process)
        started = process.active == "active" and answer.get("status") in ("ok", "failed")
        return "; ".join(wrong), started and answer.get("pid") == process.pid

    def wrong_with(self, release: str, manifest_sha256: str) -> str:
        """Why `release` does not serve well as it runs now, "" if it does; restarts nothing."""
        wrong = ""
        for _ in range(_TRIES):
            now = self.supervisor.show(self.unit)
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
            now = self.supervisor.show(self.unit)
            if not now.is_same_life(process) or now.restarts != process.restarts:
                said = self._last_words_of(process.invocation, now.invocation)
                raise UnhealthyError(f"it did not stay up: {now.result or now.active}{said}")
            wrong, _ = self.asked(release, manifest_sha256, now)
            if not wrong:
                return
            time.sleep(POLL_S)
        raise UnhealthyError(f"it did not stay healthy: {wrong}")

    def _last_words_of(self, *lives: str) -> str:
        said = self.supervisor.last_line(self.unit, lambda life, _: life in lives)
        return f"; its last words: {said}" if said else ""

    def restart(
        self,
        release: str,
        manifest_sha256: str,
        sockets: list[str],
        seconds: float,
        *,
        runs_as_asked: AsAsked = any_way,
    ) -> Process:
        """Restart, and wait for a NEW process that serves `release` well and runs as asked.

        Raises:
            UnhealthyError: not in `seconds`, or it crashed so often that waiting is useless.
        """
        deadline = time.monotonic() + seconds
        restart = self.begin(release, manifest_sha256, sockets, runs_as_asked=runs_as_asked)
        while time.monotonic() < deadline:
            if process := restart.proved():
                return process
            time.sleep(POLL_S)
        raise restart.late(seconds)

    def begin(
        self,
        release: str,
        manifest_sha256: str,
        sockets: list[str],
        *,
        runs_as_asked: AsAsked = any_way,
    ) -> Restart:
        """Begin a restart for somebody who looks after several units."""
        return Restart(self, release, manifest_sha256, sockets, runs_as_asked)


class Restart:
    """One restart under way; `proved` is asked until it answers, `late` when it has taken too long.

    process: a new process that runs as asked, whether it serves well or not; None while there is
    none.
    """

    def __init__(
        self,
        prover: Prover,
        release: str,
        manifest_sha256: str,
        sockets: list[str],
        runs_as_asked: AsAsked,
    ) -> None:
        self._prover = prover
        self._release = release
        self._manifest_sha256 = manifest_sha256
        self._runs_as_asked = runs_as_asked
        self._before = prover.supervisor.show(prover.unit)
        self._began = time.time()
        self._restarting = prover.supervisor.restart(prover.unit, sockets)
        self._refusals = self._ends = 0
        self.process: Process | None = None
        self.wrong = "it has not answered yet"

    def proved(self) -> Process | None:
        """The new process, once it serves well.

        Raises:
            UnhealthyError: waiting longer is useless.
        """
        prover, before = self._prover, self._before
        ended = self._restarting.poll()  # asked first: what is shown then is not what it ends
        now = prover.supervisor.show(prover.unit)
        # reset-failed has set the count to 0, but an old systemd may keep it
        crashes = now.restarts - (before.restarts if now.restarts >= before.restarts else 0)
        if ended not in (None, 0) or crashes >= _CRASHES_THAT_SETTLE_IT:
            # "success" is the word between two tries
            how = "" if now.result == "success" else f" ({now.result})"
            raise UnhealthyError(f"it does not start{how}: {self._last_words() or self.wrong}")
        is_over = ended == 0 and not now.pid and now.active == "inactive"
        self._ends = self._ends + 1 if is_over else 0
        if self._ends > _REFUSALS_THAT_SETTLE_IT:
            why = "it ended by itself, without an error: a service stays, and forks nothing away"
            raise UnhealthyError("; ".join(part for part in (why, self._last_words()) if part))
        if now.pid and not now.is_same_life(before):
            self.process = now if self._runs_as_asked(now, prover.endpoint) else None
            self.wrong, final = prover.asked(self._release, self._manifest_sha256, now)
            # One that serves well before that may be one that the restart ends: systemd starts
            # what crashed by itself, and the link leads to another release by then.
            if self.process and not self.wrong and ended == 0:
                return now
            self._refusals = self._refusals + 1 if final else 0
            if self._refusals > _REFUSALS_THAT_SETTLE_IT:
                raise UnhealthyError(self.wrong, process=self.process, wrong=self.wrong)
        return None

    def late(self, seconds: float) -> UnhealthyError:
        """What to raise once `seconds` are over."""
        wrong = self.wrong or "it serves well, but systemd has not ended the restart"
        reason = f"not healthy within {seconds:g} s: {wrong}"
        return UnhealthyError(reason, process=self.process, wrong=wrong)

    def _is_new(self, life: str, at: float) -> bool:
        """Whether a line is of what this restart started."""
        return life != self._before.invocation and at >= self._began

    def _last_words(self) -> str:
        lines = self._prover.supervisor.log(self._prover.unit, 20, self._is_new)
        step, words = starting.refused_step(lines)
        if step and (remedy := starting.remedy(step, words)):
            return f"systemd says: {words}; do: {remedy}"
        said = self._prover.supervisor.last_line(self._prover.unit, self._is_new)
        return f"its last words: {said}" if said else ""
