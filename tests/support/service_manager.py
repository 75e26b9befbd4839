"""A service manager for one pretended host: real processes, systemctl's words, no waiting about.

Knows what deploying needs: restarts on failure up to a start limit, readiness by sd_notify,
InvocationID, NRestarts, reset-failed. The real systemd has its own tests; this one is for the many
runs that would take it minutes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from macd.host.envfile import EnvFileError, readings

CLIENT = """#!/bin/sh
# a line to the manager, an answer from it
answer={top}/run/answer.$$
mkfifo "$answer"
echo "$$ $*" >{top}/run/ask
{{ read code; cat; }} <"$answer"
rm "$answer"
exit "$code"
"""
_BURST = 5


@dataclass
class _Service:
    """One life after another of a unit's process."""

    units: Path
    runtime: Path
    loaded: str | None = None
    process: subprocess.Popen[bytes] | None = None
    invocation: str = ""
    restarts: int = 0
    state: str = "inactive"
    result: str = "success"
    lock: threading.RLock = field(default_factory=threading.RLock)

    def settings(self) -> dict[str, str]:
        if self.loaded is None:
            self.loaded = (self.units / "macd-analysis.service").read_text()
        return dict(line.partition("=")[::2] for line in self.loaded.splitlines() if "=" in line)

    def start(self) -> bool:
        with self.lock:
            if self.state == "failed" and self.result == "start-limit-hit":
                return False
            known = self.settings()
            environment = {"PATH": "/usr/bin:/bin"}
            with contextlib.suppress(EnvFileError, OSError):  # as with "-" before it
                data = Path(known["EnvironmentFile"].lstrip("-")).read_bytes()
                environment.update(readings(data)[0])
            notify = None
            if known.get("Type") == "notify":
                notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                address = str(self.runtime / f"notify{uuid.uuid4().hex}")
                notify.bind(address)
                environment["NOTIFY_SOCKET"] = address
            self.invocation = uuid.uuid4().hex
            self.process = subprocess.Popen(
                shlex.split(known["ExecStart"]), env=environment, stderr=subprocess.DEVNULL
            )
            self.state = "activating" if notify else "active"
            process = self.process
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        return notify is None or self._until_ready(notify, process)

    def _until_ready(self, notify: socket.socket, process: subprocess.Popen[bytes]) -> bool:
        notify.settimeout(0.05)
        while process.poll() is None:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096):
                    self.state = "active"
                    return True
        return False

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with self.lock:
            if self.process is not process:
                return  # stopped, or started anew, by somebody
            self.state, self.result = "failed", "exit-code"
            if code == 0 or self.restarts >= _BURST:
                self.result = "start-limit-hit"
                return
            self.restarts += 1
        time.sleep(0.05)
        with self.lock:
            if self.process is process:
                self.start()

    def stop(self) -> None:
        with self.lock:
            process, self.process = self.process, None
            self.state = "inactive"
        if process:
            process.terminate()
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def command(self, words: list[str]) -> tuple[int, str]:
        verb, unit = words[0], words[1] if len(words) > 1 else ""
        if verb == "show":
            return 0, self.shown(unit)
        if verb == "daemon-reload":
            self.loaded = None
        elif verb == "reset-failed":
            with self.lock:
                self.restarts, self.result = 0, "success"
                self.state = "inactive" if self.state == "failed" else self.state
        elif verb == "restart":
            self.stop()
            self.restarts = 0
            return (0, "") if self.start() else (1, "it did not start")
        elif verb == "stop":
            self.stop()
        return 0, ""

    def shown(self, unit: str) -> str:
        with self.lock:
            there = unit == "macd-analysis.service"
            pid = self.process.pid if self.process and self.process.poll() is None else 0
            told = {
                "LoadState": "loaded" if there else "not-found",
                "ActiveState": self.state if there else "inactive",
                "MainPID": pid if there else 0,
                "InvocationID": self.invocation,
                "NRestarts": self.restarts,
                "Result": self.result,
            }
            if there:
                named = self.settings().get("EnvironmentFile", "").lstrip("-")
                told["EnvironmentFiles"] = f"{named} (ignore_errors=yes)"
        return "".join(f"{name}={value}\n" for name, value in told.items())


@contextmanager
def manager(top: Path) -> Iterator[None]:
    """Serve `top`/bin/systemctl, which the pretended host calls, until the block ends."""
    client = top / "bin" / "systemctl"
    client.write_text(CLIENT.format(top=top))
    client.chmod(0o755)
    ask = top / "run" / "ask"
    os.mkfifo(ask)
    service = _Service(top / "home" / ".config" / "systemd" / "user", top / "run")
    descriptor = os.open(ask, os.O_RDWR)

    def answer(number: str, words: list[str]) -> None:
        code, text = service.command([word for word in words if word != "--user"])
        (top / "run" / f"answer.{number}").write_text(f"{code}\n{text}")

    def serve() -> None:
        with open(descriptor, closefd=False) as asked:
            for line in asked:
                number, *words = line.split()
                if number == "end":
                    return
                threading.Thread(target=answer, args=(number, words), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        os.write(descriptor, b"end\n")
        thread.join()
        os.close(descriptor)
        service.stop()
