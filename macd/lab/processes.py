"""Which processes belong to a lab: so that lab.down ends all of those and no others.

Every process a lab host starts carries MACD_LAB_ID in its environment, and children inherit it,
also when they call setsid or outlive their SSH session. What this cannot see: a process that
cleared its environment, once the daemon that was its ancestor is gone, and other users' processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MARKER = "MACD_LAB_ID"
_PROC = Path("/proc")


def started_at(pid: int) -> str | None:
    """A text that names this very process: pids are reused, a pid with its start time is not.

    None when there is no such process (a zombie counts as none).
    """
    if sys.platform == "linux":
        fields = _stat(pid)
        if fields is None or fields[0] == "Z":
            return None
        return f"{_boot_id()}:{fields[19]}"
    shown = _ps("-o", "stat=,lstart=", "-p", str(pid)).split()
    return None if not shown or shown[0].startswith("Z") else " ".join(shown[1:])


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
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


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
        stats = ((pid, _stat(pid)) for pid in _pids())
        return [(pid, int(stat[1])) for pid, stat in stats if stat and stat[0] != "Z"]
    rows = (line.split() for line in _ps("-A", "-o", "pid=,ppid=,stat=").splitlines())
    return [(int(pid), int(parent)) for pid, parent, state in rows if not state.startswith("Z")]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: the name before may hold blanks and ')'."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


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
