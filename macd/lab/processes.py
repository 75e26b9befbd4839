"""Which processes belong to a lab, so that lab.down ends all of those and no others.

Every process a lab host starts carries MACD_LAB_ID in its environment, and children inherit it,
also when they call setsid or outlive their SSH session. What this cannot see: a process that
cleared its environment, once the daemon that was its ancestor is gone, and other users' processes.

On Linux the daemon adopts the orphans of its hosts (PR_SET_CHILD_SUBREAPER). Without that a service
that ended would stay a zombie wherever PID 1 does not reap, and would look alive to its host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from macd.host.processes import boot_id, start_time, stat_of

MARKER = "MACD_LAB_ID"
_PROC = Path("/proc")


def started_at(pid: int) -> str | None:
    """A text that names this very process: pids are reused, a pid with its start time is not.

    None when there is no such process (a zombie counts as none).
    """
    start = start_time(pid)
    return f"{boot_id()}:{start}" if start else None


def is_running(pid: int, started: str) -> bool:
    """Whether the process with this pid is still the one that was started then."""
    return pid > 0 and started_at(pid) == started


def marked(lab_id: str) -> list[int]:
    """The pids of live processes of this user that carry this lab's mark."""
    mark = f"{MARKER}={lab_id}"
    if sys.platform == "linux":
        return [pid for pid in _pids() if _has_mark(pid, mark)]
    lines = (line.split() for line in _ps("-x", "-E", "-ww", "-o", "pid=,command=").splitlines())
    return [int(words[0]) for words in lines if mark in words[1:]]


def descendants(root: int) -> list[int]:
    """The pids of everything below `root`, zombies left out.

    On Linux the daemon adopts its hosts' orphans, so that these stay below it.
    """
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    pids: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        pids += below
        todo += below
    return pids


def end(find: Callable[[], Iterable[int]], *, grace: float = 5.0) -> list[int]:
    """End what `find` names: SIGTERM, after `grace` seconds SIGKILL; returns the pids ended.

    `find` is asked again until it names nobody: a process may start another while it dies.
    """
    ended: set[int] = set()
    asked: set[int] = set()
    deadline = time.monotonic() + grace
    while left := [pid for pid in find() if pid != os.getpid()]:
        late = time.monotonic() > deadline
        for pid in left:
            if late or pid not in asked:
                send(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked.update(left)
        ended.update(left)
        if time.monotonic() > deadline + grace:
            break
        time.sleep(0.02)
    return sorted(ended)


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False when the process is gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _parents() -> list[tuple[int, int]]:
    if sys.platform == "linux":
        stats = ((pid, stat_of(pid)) for pid in _pids())
        return [(pid, int(stat[1])) for pid, stat in stats if stat and stat[0] != "Z"]
    rows = (line.split() for line in _ps("-A", "-o", "pid=,ppid=,stat=").splitlines())
    return [(int(pid), int(parent)) for pid, parent, state in rows if not state.startswith("Z")]


def _has_mark(pid: int, mark: str) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return mark.encode() in environment.split(b"\0")


def _ps(*arguments: str) -> str:
    """What ps prints, the line about itself left out where lines begin with a pid."""
    with subprocess.Popen(
        ["ps", *arguments], stdout=subprocess.PIPE, text=True, errors="replace"
    ) as ps:
        shown, _ = ps.communicate()
    return "".join(
        line for line in shown.splitlines(keepends=True) if line.split()[:1] != [str(ps.pid)]
    )


_PR_SET_CHILD_SUBREAPER = 36


class Reaper:
    """Knows which children asyncio waits for; every other child that ends is an orphan to reap."""

    def __init__(self) -> None:
        self._ours: set[int] = set()
        self._starting = 0

    def adopt_orphans(self) -> None:
        """Become the parent of the hosts' orphans, and reap them as they end (Linux only)."""
        if sys.platform != "linux":
            return
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    async def start(self, arguments: Sequence[str], **options: Any) -> asyncio.subprocess.Process:
        """Start a child that asyncio itself waits for."""
        self._starting += 1
        try:
            child = await asyncio.create_subprocess_exec(*arguments, **options)
            self._ours.add(child.pid)
        finally:
            self._starting -= 1
        asyncio.get_running_loop().create_task(self._forget(child))
        self._reap()
        return child

    async def hang_up(self, child: asyncio.subprocess.Process, *, after: float) -> None:
        """Give a command whose streams were closed `after` seconds to end; then its group gets HUP.

        What left the group with setsid stays, and so does what ignores HUP, as on a real host.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(child.wait()), after)
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGHUP)

    async def _forget(self, child: asyncio.subprocess.Process) -> None:
        await child.wait()
        self._ours.discard(child.pid)
        self._reap()

    def _reap(self) -> None:
        if self._starting or sys.platform != "linux":
            return
        for pid in _children():
            if pid not in self._ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _children() -> list[int]:
    pids: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in (thread / "children").read_text().split()]
    return pids
