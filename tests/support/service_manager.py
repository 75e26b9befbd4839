"""A service manager for one pretended host: real processes, systemctl's words, no waiting about.

Knows what deploying needs: several units, restarts on failure up to a start limit, readiness by
sd_notify, InvocationID, NRestarts, reset-failed, and a journal of units with a working directory.
The real systemd has its own tests; this one is for the many runs that would take it minutes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

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
JOURNAL = r"""#!/bin/sh
for word in "$@"; do
  case "$word" in
    _SYSTEMD_INVOCATION_ID=*) exec cat {top}/run/journal/*."${{word#*=}}" ;;
    --user-unit=*|_SYSTEMD_USER_UNIT=*) unit=${{word#*=}} ;;
  esac
done
for file in $(ls -tr {top}/run/journal/"${{unit:?}}".*); do
  life='"_SYSTEMD_INVOCATION_ID": "'${{file##*.}}'"'
  life="$life, \"_SOURCE_REALTIME_TIMESTAMP\": \"$(date -r "$file" +%s%6N)\""
  sed 's/[\\"]/\\&/g; s/.*/{{'"$life"', "MESSAGE": "&"}}/' "$file"
done
"""
_BURST = 5
_MAIN = "macd-analysis.service"


@dataclass
class _Service:
    """One life after another of a unit's process."""

    name: str
    units: Path
    runtime: Path
    loaded: str | None = None
    dropins: dict[str, str] | None = None
    process: subprocess.Popen[bytes] | None = None
    invocation: str = ""
    restarts: int = 0
    state: str = "inactive"
    result: str = "success"
    lock: threading.RLock = field(default_factory=threading.RLock)

    def settings(self) -> dict[str, str]:
        if self.loaded is None:
            path = self.units / self.name
            self.loaded = path.read_text() if path.exists() else ""
        return dict(line.partition("=")[::2] for line in self.loaded.splitlines() if "=" in line)

    def start(self) -> bool:
        return self._ready(self._begun())

    def restart(self) -> bool:
        """As one step: two that are asked for at once leave one process, as with systemd."""
        with self.lock:
            self.stop()
            self.restarts = 0
            begun = self._begun()
        return self._ready(begun)

    def _begun(self) -> tuple[subprocess.Popen[bytes], socket.socket | None] | None:
        """A new process, and where it says that it is ready; None: there is none."""
        with self.lock:
            if self.state == "failed" and self.result == "start-limit-hit":
                return None
            known = self.settings()
            if "ExecStart" not in known:
                return None
            environment = {"PATH": "/usr/bin:/bin", **self.beside()}
            for path in self.environment_files():
                with contextlib.suppress(EnvFileError, OSError):  # as with "-" before it
                    environment.update(readings(Path(path).read_bytes())[0])
            notify = None
            if known.get("Type") == "notify":
                notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                address = str(self.runtime / f"notify{uuid.uuid4().hex}")
                notify.bind(address)
                environment["NOTIFY_SOCKET"] = address
            self.invocation = uuid.uuid4().hex
            words = [word.replace("%%", "%") for word in shlex.split(known["ExecStart"])]
            with self._journal() as said:
                try:
                    self.process = process = subprocess.Popen(
                        words,
                        env=environment,
                        cwd=known.get("WorkingDirectory"),
                        stdout=said,
                        stderr=said or subprocess.DEVNULL,
                        start_new_session=True,
                    )
                except OSError:
                    self.state, self.result = "failed", "exit-code"
                    return None
            self.state = "activating" if notify else "active"
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        return process, notify

    @contextlib.contextmanager
    def _journal(self) -> Iterator[IO[bytes] | None]:
        """Where what it prints goes; None: nowhere."""
        if "WorkingDirectory" not in self.settings():
            yield None
            return
        directory = self.runtime / "journal"
        directory.mkdir(exist_ok=True)
        with (directory / f"{self.name}.{self.invocation}").open("wb") as file:
            yield file

    def beside(self) -> dict[str, str]:
        """What Environment= lines of drop-ins set, as they were at the last daemon-reload."""
        if self.dropins is None:
            paths = sorted((self.units / f"{self.name}.d").glob("*.conf"))
            lines = [line for path in paths for line in path.read_text().splitlines()]
            self.dropins = {}
            for key, _, value in (line.partition("=") for line in lines):
                if key == "Environment":
                    words = (word.partition("=") for word in shlex.split(value))
                    self.dropins.update({name: said for name, _, said in words})
        return self.dropins

    def environment_files(self) -> list[str]:
        lines = (self.loaded or "").splitlines()
        pairs = [line.partition("=") for line in lines]
        return [value.lstrip("-") for name, _, value in pairs if name == "EnvironmentFile"]

    def _ready(self, begun: tuple[subprocess.Popen[bytes], socket.socket | None] | None) -> bool:
        """Wait for it, without the lock: it can be shown and stopped meanwhile."""
        if begun is None:
            return False
        process, notify = begun
        if notify is None:
            return True
        notify.settimeout(0.05)
        while process.poll() is None:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096):
                    with self.lock:
                        if self.process is process:
                            self.state = "active"
                    return True
        return False

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        _end_session(process)  # as systemd ends what is left of a unit
        with self.lock:
            if self.process is not process:
                return  # stopped, or started anew, by somebody
            if code == 0 and self.settings().get("Type") != "notify":
                self.state, self.process = "inactive", None
                return
            self.state, self.result = "failed", "exit-code"
            if code == 0 or self.restarts >= _BURST:
                self.result = "start-limit-hit"
                return
            self.restarts += 1
        time.sleep(0.05)
        with self.lock:
            begun = self._begun() if self.process is process else None
        self._ready(begun)

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
            _end_session(process)

    def command(self, words: list[str]) -> tuple[int, str]:
        verb = words[0]
        if verb == "show":
            return 0, self.shown()
        if verb == "daemon-reload":
            self.loaded = None
            self.dropins = None
        elif verb == "reset-failed":
            with self.lock:
                self.restarts, self.result = 0, "success"
                self.state = "inactive" if self.state == "failed" else self.state
        elif verb == "restart":
            return (0, "") if self.restart() else (1, "it did not start")
        elif verb == "start" and self.process is None:
            return (0, "") if self.start() else (1, "it did not start")
        elif verb == "stop" or words[:2] == ["disable", "--now"]:
            self.stop()
        return 0, ""

    def shown(self) -> str:
        with self.lock:
            there = self.name == _MAIN or "WorkingDirectory" in self.settings()
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
                self.settings()
                files = "\nEnvironmentFiles=".join(
                    f"{path} (ignore_errors=yes)" for path in self.environment_files()
                )
                told["EnvironmentFiles"] = files
                pairs = (f"{name}={value}" for name, value in self.beside().items())
                told["Environment"] = " ".join(map(shlex.quote, pairs))
        return "".join(f"{name}={value}\n" for name, value in told.items())


def _end_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def manager(top: Path) -> Iterator[None]:
    """Serve `top`/bin/systemctl, which the pretended host calls, until the block ends."""
    client = top / "bin" / "systemctl"
    client.write_text(CLIENT.format(top=top))
    client.chmod(0o755)
    ask = top / "run" / "ask"
    os.mkfifo(ask)
    journal = top / "bin" / "journalctl"
    journal.write_text(JOURNAL.format(top=top))
    journal.chmod(0o755)
    units = top / "home" / ".config" / "systemd" / "user"
    services: dict[str, _Service] = {}
    lock = threading.Lock()
    descriptor = os.open(ask, os.O_RDWR)

    def answer(number: str, words: list[str]) -> None:
        words = [word for word in words if word not in ("--user", "--no-block")]
        named = [word for word in words[1:] if word.endswith(".service")]
        with lock:
            for name in named:
                services.setdefault(name, _Service(name, units, top / "run"))
            asked = [services[name] for name in named] or list(services.values())
        code, text = 0, ""
        for service in asked:
            result, said = service.command(words)
            code, text = max(code, result), text + said
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
        for service in services.values():
            service.stop()
