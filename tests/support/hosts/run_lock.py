"""Give each test run a number of its own, so runs side by side never share a name or address.

A claim is an flock on `runs/<n>.lock`: the kernel drops it however the run ends, so "is the owner
still alive?" needs no pid guessing. Whoever takes a number clears what its last owner left; a
number whose lock is held belongs to somebody else and is not touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

LAST_NUMBER = 250  # the third byte of the run's addresses
CGROUPS = "macd-test-hosts"


@dataclass(frozen=True)
class RunLock:
    """A number held by this process until `release`; everything a run makes carries it."""

    number: int
    directory: Path
    lock: int

    def name(self, host: str) -> str:
        """Return the machine name of one host of this run, e.g. macd-3-prod."""
        return f"{prefix(self.number)}{host}"

    def address(self, last: int) -> str:
        """Return an address of this run's own /24 in the range reserved for benchmarks."""
        return f"198.18.{self.number}.{last}"

    def release(self) -> None:
        """Remove everything this run made and give the number back."""
        _clear(self.number, self.directory)
        os.close(self.lock)


def take(cache: Path) -> RunLock:
    """RunLock the lowest free number; clear first what dead runs left behind, theirs only."""
    runs = cache / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    mine: RunLock | None = None
    for number in range(1, LAST_NUMBER + 1):
        lock_path = runs / f"{number}.lock"
        if mine and not lock_path.exists():
            break
        lock = os.open(lock_path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        directory = runs / str(number)
        _clear(number, directory)
        if mine:
            os.close(lock)
        else:
            directory.mkdir()
            mine = RunLock(number, directory, lock)
    if mine is None:
        raise RuntimeError(f"all {LAST_NUMBER} test runs of {runs} are taken")
    return mine


def prefix(number: int) -> str:
    """Return what the names of one run's machines, namespaces and cgroups begin with."""
    return f"macd-{number}-"


def cgroup_parents() -> list[Path]:
    """Return the hierarchies systemd needs: one on cgroup v2, two on a hybrid machine."""
    mount = Path("/sys/fs/cgroup")
    if (mount / "cgroup.procs").exists():
        return [mount]
    return [mount / name for name in ("systemd", "unified") if (mount / name).exists()]


def _clear(number: int, directory: Path) -> None:
    begin = prefix(number)
    for parent in cgroup_parents():
        for group in (parent / CGROUPS).glob(f"{begin}*"):
            _end_cgroup(group)
    for namespace in Path("/run/netns").glob(f"{begin}*"):
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True)
    for host in ("j", "p"):  # a stray process that entered a namespace keeps it, and its link
        link = ["ip", "link", "del", f"macd{number}{host}"]
        subprocess.run(link, check=False, stderr=subprocess.DEVNULL)
    unreachable = ["ip", "route", "del", "unreachable", f"198.18.{number}.8/30"]
    subprocess.run(unreachable, check=False, stderr=subprocess.DEVNULL)
    for left in Path("/run/systemd/nspawn/propagate").glob(f"{begin}*"):
        left.rmdir()
    if directory.exists():
        shutil.rmtree(directory)


def processes_in(group: Path) -> list[int]:
    """Return the PIDs in a cgroup and all below it; groups may vanish while we look."""
    found: list[int] = []
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            found += map(int, Path(directory, "cgroup.procs").read_text().split())
    return found


def _end_cgroup(group: Path) -> None:
    """Kill what still runs in a group and remove it with its children."""
    deadline = time.monotonic() + 120
    while pids := processes_in(group):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {pids} of {group} do not die")
        time.sleep(0.05)
    for directory, _, _ in os.walk(group, topdown=False):
        Path(directory).rmdir()
