"""The proof that an application of the team's own runs from its release, and serves.

It answers no health endpoint of ours, so the kernel is asked where its new process came from: its
working directory, its interpreter, its environment. Then the declared probe says whether it serves.
All units of an application are restarted, proved and watched together. So are the instances of the
built-in application, each proved by its own health endpoint.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from macd.host.deploy.health import (
    POLL_S,
    AsAsked,
    ProbeError,
    Prover,
    UnhealthyError,
    any_way,
    ask,
    get,
    problems,
)
from macd.host.deploy.instances import InstanceState, together
from macd.host.layout import Layout
from macd.host.own import Instance, Probe, Service
from macd.host.processes import Kernel
from macd.host.store import releases
from macd.host.systemd.supervisor import Process, Supervisor

_TIMEOUT_S = 2.0
_AT_ONCE = 16  # instances that are asked side by side


def prover_of(
    layout: Layout, service: Service, supervisor: Supervisor, unit: str, endpoint: str
) -> Prover:
    """Who proves what serves here: the units' probes, or where it has none, `unit`'s endpoint.

    endpoint: where the service's own settings do not say it.
    """
    if not service.units:
        return Prover(supervisor, unit, service.endpoint or endpoint)
    provers = [
        Prover(supervisor, name, probe.endpoint)
        if isinstance(probe, Instance)
        else OwnProver(layout, supervisor, name, probe)
        for name, probe in service.units.items()
    ]
    if service.instances:
        return Instances(provers, service.instances)
    return Together(provers)


class OwnProver(Prover):
    """Asks the kernel about one unit's process, and then the unit's probe."""

    def __init__(
        self,
        layout: Layout,
        supervisor: Supervisor,
        unit: str,
        probe: Probe,
        kernel: Kernel = Kernel(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(supervisor, unit)
        self.probe = probe
        self.takes_s = probe.running
        self._layout = layout
        self._kernel = kernel
        self._said: set[str] = set()  # invocations whose line was found

    def asked(self, release: str, manifest_sha256: str, process: Process) -> tuple[str, bool]:
        if process.active != "active":
            return self._not_active(process), False
        wrong = self.not_from(release, manifest_sha256, process.pid)
        return (wrong, True) if wrong else (self.not_ready(process), False)

    def _not_active(self, process: Process) -> str:
        if self.probe.notify and process.active == "activating":
            return "it has not told systemd that it is ready (READY=1)"
        shown = f"{process.active or 'unknown'} ({process.sub}, {process.result})"
        return f"the unit is {shown}"

    def not_from(self, release: str, manifest_sha256: str, pid: int) -> str:
        """Why process `pid` is not proved to run from `release`; "" if it is."""
        try:
            if releases.manifest_sha256(self._layout, release) != manifest_sha256:
                return "the manifest on the disk has another hash than the one that was signed"
        except OSError as error:
            return f"the manifest on the disk can't be read: {error.strerror}"
        text = self.supervisor.unit_text(self.unit) or ""
        python = f"{self._layout.current}/runtime/bin/"
        by_runtime = any(
            line.startswith("ExecStart=") and python in line for line in text.splitlines()
        )
        place = self._layout.release(release)
        findings = [
            self._kernel.wrong_directory(pid, f"{place}/source"),
            self._kernel.wrong_interpreter(pid, f"{place}/runtime") if by_runtime else "",
            self._kernel.wrong_variable(pid, "MACD_RELEASE", release),
        ]
        return "; ".join(finding for finding in findings if finding)

    def not_ready(self, process: Process) -> str:
        """Why the unit's probe does not say that it serves; "" if it does."""
        probe = self.probe
        if probe.http:
            return self._not_answering(probe.http, process.pid)
        if probe.running:
            age = self._kernel.age(process.pid)
            return (
                "" if age >= probe.running else f"it has run for {age:.0f} s of {probe.running:g}"
            )
        if probe.log and process.invocation not in self._said:
            if not self.supervisor.has_said(process.invocation, probe.log):
                return f"it has written no line that matches {probe.log}"
            self._said.add(process.invocation)
        return ""  # notify: systemd says active when it has said so

    def _not_answering(self, url: str, pid: int) -> str:
        parts = urlsplit(url)
        path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        port = parts.port or 80
        named = parts.hostname or ""
        reasons = []
        for host in ("127.0.0.1", "::1") if named == "localhost" else (named,):
            try:
                status, _ = get(f"{host}:{port}", path, _TIMEOUT_S)
                said = "" if 200 <= status < 300 else f"{url} answers {status}{self._meant(status)}"
            except ProbeError as error:
                said = f"{url}: {error}"
            # Whoever answers, or fails to: another process there proves nothing about this one.
            held = self._kernel.held_by_others(host, port, pid, self.unit)
            if not said and not held:
                return ""
            reasons.append("; ".join(part for part in (said, held) if part))
        return reasons[0]

    def _meant(self, status: int) -> str:
        """A redirect or a refusal may mean that the address is not the one of readiness."""
        other = 300 <= status < 500
        return (
            f" (perhaps ready: of {self.unit} names another address than its own)" if other else ""
        )


class Together(Prover):
    """All units of one application: one that fails, fails all. The process is the first unit's."""

    _all_as_asked = False  # of one's own application the flag is the main unit's

    def __init__(self, provers: Sequence[Prover]) -> None:
        super().__init__(provers[0].supervisor, provers[0].unit)
        self._main, *self._others = self._provers = list(provers)
        self._proved: dict[str, Process] = {}

    @property
    def units(self) -> list[str]:
        return [prover.unit for prover in self._provers]

    def asked(self, release: str, manifest_sha256: str, process: Process) -> tuple[str, bool]:
        wrong, final = self._main.asked(release, manifest_sha256, process)
        reasons = [self._named(self._main, wrong)]
        for prover in self._others:
            now = prover.supervisor.show(prover.unit)
            reasons.append(self._named(prover, prover.asked(release, manifest_sha256, now)[0]))
        return "; ".join(part for part in reasons if part), final

    def check_stays_healthy(self, release: str, manifest_sha256: str, process: Process) -> None:
        for prover in self._provers:
            of_it = process if prover is self._main else self._proved.get(prover.unit)
            try:
                prover.check_stays_healthy(
                    release, manifest_sha256, of_it or prover.supervisor.show(prover.unit)
                )
            except UnhealthyError as error:
                raise UnhealthyError(self._named(prover, str(error))) from error

    def restart(
        self,
        release: str,
        manifest_sha256: str,
        sockets: list[str],
        seconds: float,
        *,
        runs_as_asked: AsAsked = any_way,
    ) -> Process:
        seconds += max(prover.takes_s for prover in self._provers)
        deadline = time.monotonic() + seconds
        main = self._main.begin(release, manifest_sha256, sockets, runs_as_asked=runs_as_asked)
        under_way = {self._main.unit: (self._main, main)}
        for prover in self._others:
            asked = runs_as_asked if self._all_as_asked else any_way
            restart = prover.begin(release, manifest_sha256, [], runs_as_asked=asked)
            under_way[prover.unit] = (prover, restart)
        self._proved = {}
        while time.monotonic() < deadline:
            for unit, (prover, restart) in list(under_way.items()):
                try:
                    process = restart.proved()
                except UnhealthyError as error:
                    raise self._failed(prover, error, main.process) from error
                if process:
                    self._proved[unit] = process
                    del under_way[unit]
            if not under_way:
                return self._proved[self._main.unit]
            time.sleep(POLL_S)
        prover, restart = next(iter(under_way.values()))
        raise self._failed(prover, restart.late(seconds), main.process)

    def _failed(
        self, prover: Prover, error: UnhealthyError, process: Process | None
    ) -> UnhealthyError:
        reason = self._named(prover, str(error))
        return UnhealthyError(reason, process=process, wrong=self._named(prover, error.wrong))

    def _named(self, prover: Prover, wrong: str) -> str:
        return f"{prover.unit}: {wrong}" if wrong and self._others else wrong

    def report(self, release: str, manifest_sha256: str) -> dict[str, Any]:
        """What runs now, in the place of a health document of the built-in application.

        release: of the first unit's process, by its environment. status: ok or failed.
        units: by name pid, active, since (seconds), wrong.
        """
        kernel, running = Kernel(), None
        units: dict[str, dict[str, Any]] = {}
        reasons = []
        for prover in self._provers:
            now = prover.supervisor.show(prover.unit)
            wrong, _ = prover.asked(release, manifest_sha256, now)
            since = kernel.age(now.pid) if now.pid else None
            known = {"pid": now.pid, "active": now.active, "since": since, "wrong": wrong}
            units[prover.unit] = known
            reasons += [self._named(prover, wrong)] if wrong else []
            if prover is self._main and now.pid:
                with contextlib.suppress(OSError):
                    running = kernel.environment(now.pid).get("MACD_RELEASE")
        wrong = "; ".join(reasons)
        if not units[self.unit]["pid"]:
            return {"unreachable": wrong, "units": units}
        status = "failed" if wrong else "ok"
        return {"release": running, "status": status, "last_error": wrong or None, "units": units}


class Instances(Together):
    """Units of the built-in application that serve a symbol each; all of them obey the flag."""

    _all_as_asked = True

    def __init__(self, provers: Sequence[Prover], instances: Mapping[str, Instance]) -> None:
        super().__init__(provers)
        self._instances = instances

    def report(self, release: str, manifest_sha256: str) -> dict[str, Any]:
        """What all of them say, as one process of several symbols says it, and `units` as above."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # one that hangs takes seconds
            asked = [
                pool.submit(self._state_of, unit, one, release, manifest_sha256)
                for unit, one in self._instances.items()
            ]
        states = [one.result() for one in asked]
        kernel = Kernel()
        since = {one.unit: kernel.age(one.process.pid) for one in states if one.process.pid}
        return together(states, since)

    def _state_of(
        self, unit: str, one: Instance, release: str, manifest_sha256: str
    ) -> InstanceState:
        process = self.supervisor.show(unit)
        try:
            answer = ask(os.path.expanduser(one.endpoint))
        except ProbeError as error:
            answer = {"unreachable": str(error)}
            wrong = f"it does not answer: {error}"
            if process.active != "active":
                wrong = f"it is {process.active or 'unknown'} ({process.sub}, {process.result})"
            return InstanceState(unit, one.symbol, process, answer, wrong)
        said = problems(answer, release=release, manifest_sha256=manifest_sha256, process=process)
        if answer.get("status") == "starting" and answer.get("pid") == process.pid:
            said = [f"it is still loading {release}"]  # it says nothing else yet
        return InstanceState(unit, one.symbol, process, answer, "; ".join(said))
