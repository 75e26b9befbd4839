"""Processes of this machine, as the system lists them. Pids are used again: a start time is not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from macd.host import untrusted

_LISTENS = "0A"  # in the kernel's tables of sockets; addresses there are in its byte order
_V4 = "7F"  # how 127.x.y.z ends
_ONE = "00000000000000000000000001000000"  # ::1
_MOST = 1 << 22  # bytes of one file


def stat_of(pid: int | str, proc: str = "/proc") -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where there is no such process.

    The name before the state may hold blanks and ")".
    """
    try:
        with open(f"{proc}/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> str:
    """When a process started, as the system writes it; "" when there is none (a zombie is none)."""
    if os.path.isdir("/proc/self"):
        fields = stat_of(pid)
        return fields[19] if fields and fields[0] != "Z" else ""
    try:
        argv = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    state, _, start = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else start.strip()


def of_session(leader: int) -> list[int]:
    """The pids in the session that `leader` began, whether it still runs; none without /proc."""
    if not os.path.isdir("/proc/self"):
        return []
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if stat_of(pid)[3:4] == [str(leader)]]


def boot_id() -> str:
    """Changes with every boot; "" where the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Kernel:
    """/proc, or a directory that looks like it.

    What can't be read is no proof: each finding then says so.
    """

    proc: str = "/proc"
    clock: Callable[[], float] = _boottime  # seconds since boot

    def wrong_directory(self, pid: int, wanted: str) -> str:
        """Why `pid` is not proved to work in the directory `wanted`, or below it; "" if it is."""
        link = f"{self.proc}/{pid}/cwd"
        try:
            at = os.readlink(link)
            # By inode: the service's own mounts may show another path.
            if os.path.samestat(os.stat(link), os.stat(wanted)):
                return ""
        except OSError as error:
            return f"its working directory can't be read: {error.strerror}"
        if at.startswith(os.path.realpath(wanted) + "/"):
            return ""
        return f"its working directory is {untrusted.line(at, 200)}, not {wanted}"

    def wrong_interpreter(self, pid: int, runtime: str) -> str:
        """Why `pid` is not proved to be run by a program of the `runtime`; "" if it is.

        By the path it was started by (the Python there is a link to the system's). A program that
        writes its title there is known by the libraries of the runtime that it has loaded.
        """
        top = os.path.realpath(runtime)
        try:
            first = self._read(pid, "cmdline").split(b"\0")[0]
        except OSError as error:
            return f"its command can't be read: {error.strerror}"
        directory = os.path.dirname(os.fsdecode(first))
        if directory and os.path.realpath(directory) == os.path.join(top, "bin"):
            return ""
        with contextlib.suppress(OSError):
            if f" {top}/".encode() in self._read(pid, "maps"):
                return ""
        shown = untrusted.line(os.fsdecode(first), 100) or "nothing"
        return f"it was started by {shown}, not by {runtime}/bin"

    def wrong_variable(self, pid: int, name: str, wanted: str) -> str:
        """Why `pid` is not proved to have been started with `name`=`wanted`; "" if it is."""
        try:
            variables = self.environment(pid)
        except OSError as error:
            return f"its environment can't be read: {error.strerror}"
        if variables.get(name) == wanted:
            return ""
        if not variables:
            return (
                "its environment can't be read: it wrote its title over it"
                " (SPT_NOENV=1 in serve.env keeps setproctitle from that)"
            )
        return f"its environment has {name}={untrusted.line(variables.get(name, ''), 100)}"

    def environment(self, pid: int) -> dict[str, str]:
        """What `pid` was started with. Raises OSError where it can't be read."""
        pairs = (entry.partition(b"=") for entry in self._read(pid, "environ").split(b"\0"))
        return {os.fsdecode(name): os.fsdecode(value) for name, sign, value in pairs if sign}

    def age(self, pid: int) -> float:
        """For how many seconds `pid` has run; 0 where that is not known."""
        fields = stat_of(pid, self.proc)
        if not fields:
            return 0.0
        return max(0.0, self.clock() - int(fields[19]) / os.sysconf("SC_CLK_TCK"))

    def held_by_others(self, host: str, port: int, pid: int, unit: str) -> str:
        """Why who listens there is not proved to be of `pid`'s `unit`; "" if it is.

        host: 127.0.0.1, say, or ::1.
        """
        sockets = {f"socket:[{inode}]" for inode in self._listening(host, port)}
        if not sockets:
            return ""  # then nobody answered either
        family = self._family(pid, unit)
        unread = []
        for member in family:
            try:
                sockets -= self._sockets(member)
            except OSError as error:
                unread.append(f"pid {member}: {error.strerror}")
        if not sockets:
            return ""
        for other in self._pids():
            with contextlib.suppress(OSError):
                if other not in family and sockets & self._sockets(other):
                    with contextlib.suppress(OSError):
                        words = self._read(other, "cmdline").replace(b"\0", b" ")
                        shown = untrusted.line(os.fsdecode(words).strip(), 100)
                    return f"port {port} is held by pid {other} ({shown}), which is not of {unit}"
        if unread:
            return f"whose port {port} is can't be proved: {', '.join(unread)}"
        return f"port {port} is held by a process that is not of {unit}"

    def ports(self, pid: int) -> set[int]:
        """TCP ports on which `pid` or a descendant of it listens, as far as that can be read."""
        sockets: set[str] = set()
        for member in self._with_descendants({pid}):
            with contextlib.suppress(OSError):
                sockets |= self._sockets(member)
        rows = [row for table in ("tcp", "tcp6") for row in self._listeners(table)]
        return {number for _, number, inode in rows if f"socket:[{inode}]" in sockets}

    def _family(self, pid: int, unit: str) -> set[int]:
        """`pid`, its descendants, and what else is in the unit's control group."""
        family, group = {pid}, self._group(pid)
        if group and group.rpartition("/")[2] == unit:
            family |= {other for other in self._pids() if self._group(other) == group}
        return self._with_descendants(family)

    def _with_descendants(self, family: set[int]) -> set[int]:
        parents = {}
        for other in self._pids():
            fields = stat_of(other, self.proc)
            if fields:
                parents[other] = int(fields[1])
        grown = True
        while grown:
            more = {child for child, parent in parents.items() if parent in family} - family
            family |= more
            grown = bool(more)
        return family

    def _group(self, pid: int) -> str:
        with contextlib.suppress(OSError):
            for line in os.fsdecode(self._read(pid, "cgroup")).splitlines():
                number, _, path = line.split(":", 2)
                if number == "0" or "name=systemd" in line:
                    return path
        return ""

    def _listening(self, host: str, port: int) -> list[str]:
        """The inodes of the sockets that get what is sent there.

        A socket of IPv6 that takes all addresses gets IPv4 too, where no other one does.
        """
        ends, tables = (_V4, ("tcp", "tcp6")) if ":" not in host else (_ONE, ("tcp6",))
        for table in tables:
            inodes = [
                inode
                for at, number, inode in self._listeners(table)
                if number == port and (not at.strip("0") or at.endswith(ends))
            ]
            if inodes:
                return inodes
        return []

    def _listeners(self, table: str) -> list[tuple[str, int, str]]:
        """Address, port and inode of each socket that listens."""
        rows = []
        with contextlib.suppress(OSError), open(f"{self.proc}/net/{table}") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        split = [(row[1].rpartition(":"), row[9]) for row in rows if row[3] == _LISTENS]
        return [(at, int(number, 16), inode) for (at, _, number), inode in split]

    def _sockets(self, pid: int) -> set[str]:
        targets = set()
        for name in os.listdir(f"{self.proc}/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                targets.add(os.readlink(f"{self.proc}/{pid}/fd/{name}"))
        return targets

    def _pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self.proc) if name.isdigit()]

    def _read(self, pid: int, name: str) -> bytes:
        with open(f"{self.proc}/{pid}/{name}", "rb") as file:
            return file.read(_MOST)
