"""Run one long job on its host: start it, write heartbeats, stop it on request, record its end.

The runner is detached from any SSH session (`python3 -m macd.host.jobs.runner RUN_DIRECTORY`), so
a lost connection can't change the job. The job's state is what this process records.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from macd.host import durable
from macd.host.layout import load, save
from macd.host.processes import boot_id, start_time

SPEC, PROCESS, HEARTBEAT, LOG = "spec.json", "process.json", "heartbeat.json", "log"
EXIT, CANCEL = "exit.json", "cancel"
HEARTBEAT_S = 5.0
_POLL_S = 0.25
_GRACE_S = 20.0
_DISK_FULL_S = 600.0
_PR_SET_PDEATHSIG = 1


def main(directory: str) -> int:
    """Run the job of `directory` to its end. Returns its exit code (128 + signal when killed)."""
    spec = load(os.path.join(directory, SPEC), None)
    if spec is None or os.path.exists(os.path.join(directory, EXIT)):
        return 2
    stop = _StopRequest()
    _write_process(directory, None)
    with open(os.path.join(directory, LOG), "ab") as log:
        try:
            child = subprocess.Popen(
                spec["argv"],
                cwd=spec["cwd"],
                env={**os.environ, **spec["env"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with(os.getpid()),  # noqa: PLW1509 - this process has one thread
            )
        except OSError as error:
            log.write(f"could not start {spec['argv'][0]}: {error}\n".encode())
            _write_exit(directory, {"code": 127, "signal": 0, "cancelled": False})
            return 127
    _write_process(directory, child.pid)
    _watch(directory, child, stop)
    code = child.wait()
    end = {
        "code": code if code >= 0 else 128 - code,
        "signal": -code if code < 0 else 0,
        "cancelled": os.path.exists(os.path.join(directory, CANCEL)),
        "stopped": stop.asked,
    }
    _write_exit(directory, end)
    return int(end["code"])


def end_with(runner: int) -> Callable[[], None] | None:
    """On Linux: the kernel kills the job when its runner is killed, so every job has an owner."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != runner:
            os._exit(1)

    return set_death_signal


class _StopRequest:
    """A request to end the job: SIGTERM to this runner, or the file `cancel`."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _watch(directory: str, child: subprocess.Popen[bytes], stop: _StopRequest) -> None:
    """Until the child ends: keep the heartbeat, pass a stop request on, kill after a grace time."""
    next_beat = 0.0
    kill_at = 0.0
    while child.poll() is None:
        now = time.monotonic()
        if now >= next_beat:
            _beat(directory)
            next_beat = now + HEARTBEAT_S
        stop.asked = stop.asked or os.path.exists(os.path.join(directory, CANCEL))
        if stop.asked and not kill_at:
            kill_at = now + _GRACE_S
            _signal(child.pid, signal.SIGTERM)
        elif kill_at and now >= kill_at:
            _signal(child.pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    _signal(child.pid, signal.SIGKILL)  # workers it may have left behind


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _beat(directory: str) -> None:
    # A full disk must not end the job: a missing heartbeat changes nothing.
    with contextlib.suppress(OSError):
        save(os.path.join(directory, HEARTBEAT), {"at": time.time()})


def _write_process(directory: str, child: int | None) -> None:
    document = {
        "runner": identity(os.getpid()),
        "child": identity(child) if child is not None else {},
        "started": time.time(),
    }
    save(os.path.join(directory, PROCESS), document)


def _write_exit(directory: str, end: dict[str, Any]) -> None:
    deadline = time.monotonic() + _DISK_FULL_S
    while True:
        try:
            save(os.path.join(directory, EXIT), {**end, "at": time.time()})
            return
        except OSError:  # a full disk, often filled by this very job; somebody may free space
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def identity(pid: int) -> dict[str, Any]:
    """A pid with what distinguishes it from a later process of the same number."""
    return {"pid": pid, "start": start_time(pid), "boot": boot_id()}


def is_alive(process: dict[str, Any]) -> bool:
    """True while the very process that `identity` described runs, on this boot."""
    if process.get("boot") != boot_id():
        return False
    start = start_time(int(process.get("pid", 0)))
    return bool(start) and start == process.get("start")


if __name__ == "__main__":
    directory = durable.expand(sys.argv[1])
    sys.exit(main(directory))
