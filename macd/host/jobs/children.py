"""The processes that a job of this host starts: it owns them all, and none outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from types import FrameType

from macd.host.jobs.runner import PROCESS
from macd.host.layout import load
from macd.host.processes import stat_of

_POLL_S = 0.2
_KILLED_S = 5.0
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


class Stopped(BaseException):
    """Somebody asked the run to end."""


def stop_on_signals() -> None:
    """From now on SIGTERM and SIGINT raise Stopped, once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    ignore_signals()
    raise Stopped


def ignore_signals() -> None:
    """From now on SIGTERM and SIGINT do nothing: what ends a job is not ended itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def own_descendants(directory: str) -> int:
    """On Linux: orphans of what we start become ours; a runner that dies asks us to end them all.

    Returns the runner's pid.
    """
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.prctl(_SET_CHILD_SUBREAPER, 1)
        libc.prctl(_SET_PDEATHSIG, signal.SIGTERM)
    runner = int(load(os.path.join(directory, PROCESS), {})["runner"]["pid"])
    if os.getppid() != runner:  # it died before we could be told
        os._exit(1)
    return runner


def asked_already(runner: int) -> int:
    """The process group that the runner asked to end, for `end_processes`; -1 where it asked none:
    one that died has asked nobody but us.
    """
    return os.getpgrp() if os.getppid() == runner else -1


def end_processes(*, grace: float = 0.0, spared: int = -1) -> int:
    """End all that was started, also what left its session; how many there were.

    That is every process below this one: only a process that does nothing but its job may call it.

    grace: seconds to end by themselves once they are asked; 0 kills. spared: a process group that
    was asked already.
    """
    theirs = descendants()
    for pid in theirs if grace else []:
        if _group(pid) != spared:
            _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and descendants():
        time.sleep(_POLL_S)
    deadline = time.monotonic() + _KILLED_S
    while (left := descendants()) and time.monotonic() < deadline:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.05)
    return len(theirs)


def descendants() -> list[int]:
    """The processes below this one that run; those that are over are taken off the system."""
    below: dict[int, list[int]] = {}
    over = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit() and (fields := stat_of(name)):
            below.setdefault(int(fields[1]), []).append(int(name))
            if fields[0] == "Z":
                over.add(int(name))
    pids: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        children = below.get(waiting.pop(), [])
        waiting += children
        pids += children
    for pid in over & set(pids):
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
    return [pid for pid in pids if pid not in over]


def _group(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return -1


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
