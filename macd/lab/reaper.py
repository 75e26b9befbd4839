"""Children of the lab: started, hung up, and reaped, also the orphans that services leave behind.

On Linux the daemon adopts orphans of its hosts (PR_SET_CHILD_SUBREAPER). Without that a service
that ended would stay a zombie wherever PID 1 does not reap, and would look alive to its host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (thread / "children").read_text().split()]
    return found
