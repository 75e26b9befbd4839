"""One booted Debian host: systemd as PID 1 in a container that can be rebooted, cut off, killed.

The container is an overlay over the shared root, so what a test writes survives reboots and dies
with the run. It runs in a PID namespace that ends when this process ends, even by SIGKILL, and in
a cgroup of its own (two systemds in one cgroup kill each other's processes).

A power cut here is SIGKILL to every process at once; the page cache of the test machine survives
it. What un-fsynced data would look like after a real one has to be shown by other means.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.hosts.rootfs import LEASH
from tests.support.hosts.run_lock import CGROUPS, cgroup_parents, processes_in

BOOT_S = 240
_BOOT = """
set -eu
root=$1 name=$2 more=$3; shift 3
for group in "$@"; do mkdir -p "$group"; echo $$ > "$group/cgroup.procs"; done
mount -t overlay overlay -o "lowerdir=$root,upperdir=$PWD/upper,workdir=$PWD/work" "$PWD/merged"
while :; do
  rc=0
  SYSTEMD_NSPAWN_TMPFS_TMP=0 systemd-nspawn --quiet -D "$PWD/merged" --boot --machine="$name" \\
    --register=no --keep-unit --network-namespace-path="/run/netns/$name" \\
    --link-journal=no --resolv-conf=off --timezone=off --console=read-only $more || rc=$?
  [ "$rc" = 133 ] || exit "$rc"  # 133: it asked to be rebooted
done
"""
_ENVIRONMENT = (
    "env",
    "-i",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
)


@dataclass
class Machine:
    """A host by its container: everything here goes around SSH, for arranging and checking."""

    name: str
    directory: Path
    lower: Path
    files: dict[str, str]
    shown: dict[str, Path] = field(default_factory=dict)  # its path -> a directory of ours, to read
    options: tuple[str, ...] = ()  # of systemd-nspawn: what the container may not do
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Power on, with the disk as it was left; returns before the boot is done (`wait`).

        Call from the main thread: the kernel ends the container when the calling thread ends.
        """
        if not (self.directory / "upper").exists():
            self._prepare()
        groups = [str(parent / CGROUPS / self.name) for parent in cgroup_parents()]
        shown = [f"--bind-ro={here}:{there}" for there, here in self.shown.items()]
        more = " ".join([*shown, *self.options])
        self._process = subprocess.Popen(
            [*LEASH, "sh", "-c", _BOOT, "sh", str(self.lower), self.name, more, *groups],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=self._console.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def wait(self, previous_boot: str = "") -> None:
        """Return when the host has booted (not the boot named); RuntimeError if it does not."""
        # Each look starts two processes here and holds the boot up.
        self._until("has not booted", lambda: self._booted(previous_boot), every_s=0.2)

    def exec(
        self, *argv: str, input: str | None = None, check: bool = True, timeout: float = 300
    ) -> str:
        """Run a command as root on the host without SSH and return its stdout."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.leader()), "--all", "--", *_ENVIRONMENT, *argv],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {argv} ended {done.returncode}: {done.stderr}")
        return done.stdout

    def read(self, path: str) -> str:
        """Return a file's text, read from outside: no process is started, so polling is cheap.

        No part of `path` may be a symbolic link.
        """
        return Path(f"/proc/{self.leader()}/root{path}").read_text()

    def processes_of(self, unit: str) -> list[int]:
        """Return the processes of a unit by their PIDs here, its main process first."""
        found: dict[int, None] = {}
        for parent in cgroup_parents():
            for path, _, _ in os.walk(parent / CGROUPS / self.name):  # passes over what goes
                if path.endswith(f"/{unit}"):
                    with contextlib.suppress(OSError):
                        pids = (Path(path) / "cgroup.procs").read_text().split()
                        found |= dict.fromkeys(map(int, pids))
        return list(found)

    def boot_id(self) -> str:
        """Return what changes with every boot. Read from outside: see reboot."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    def reboot(self) -> None:
        """Shut down in order and boot again from the same disk; returns when it is up."""
        before, going = self.boot_id(), self.leader()
        self.exec("systemctl", "--no-block", "reboot", check=False)
        # Who enters a host that is shutting down can hang there, and the shutdown with it.
        self._until("has not gone down", lambda: self._led_by_another(going))
        self.wait(before)

    def power_cut(self) -> None:
        """End every process at once, nothing is told; the disk stays. `start` boots it again."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._until("still has processes", self._dead)

    def running(self) -> bool:
        """Tell whether the power is on."""
        return self._process is not None and self._process.poll() is None

    def limit_disk(self, path: str, megabytes: int) -> None:
        """Put a small disk of its own at `path`, until it is unmounted or the host reboots."""
        self.exec("mkdir", "-p", path)
        self.exec("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", path)

    def fill_disk(self, path: str, leave_kb: int = 0) -> None:
        """Take all space under `path` but `leave_kb`, by a file named `.filler`."""
        filler = f"{path}/.filler"
        self.exec("sh", "-c", 'cat /dev/zero > "$1" 2>/dev/null || true', "sh", filler)
        self.exec("truncate", "-s", f"-{leave_kb * 1024}", filler)

    def leader(self) -> int:
        """Return the PID, seen from here, of the host's PID 1; RuntimeError if there is none."""
        pid = self._process.pid if self._process else 0
        for expected in ("unshare", "sh", "systemd-nspawn"):
            if not pid or _command(pid) != expected:
                raise RuntimeError(f"{self.name} is not running; {self._log_tail()}")
            pid = _only_child(pid)
        if not pid or _command(pid) != "systemd":
            raise RuntimeError(f"{self.name} is not running; {self._log_tail()}")
        return pid

    def _led_by_another(self, leader: int) -> bool:
        try:
            return self.leader() != leader
        except (RuntimeError, OSError):
            return False

    @property
    def _console(self) -> Path:
        return self.directory / "console.log"

    def _prepare(self) -> None:
        for name in ("upper", "work", "merged"):
            (self.directory / name).mkdir(parents=True)
        for name, text in self.files.items():
            target = self.directory / "upper" / name
            for parent in reversed(target.relative_to(self.directory).parents[:-1]):
                (self.directory / parent).mkdir(exist_ok=True)
                (self.directory / parent).chmod(0o755)
            target.write_text(text)
            target.chmod(0o600 if name.endswith("_key") else 0o644)

    def _booted(self, previous_boot: str) -> bool:
        try:
            if self.boot_id() == previous_boot:
                return False  # a systemctl asked while it goes down may hold the reboot up
            told = self.exec("systemctl", "is-system-running", check=False, timeout=10)
            return told.strip() in ("running", "degraded")
        except (
            subprocess.TimeoutExpired
        ):  # it held the shutdown up; now that it is gone, on it goes
            return False
        except OSError:
            return False  # it has no leader for the moment
        except RuntimeError:
            if not self.running():
                raise
            return False

    def _dead(self) -> bool:
        return not any(processes_in(p / CGROUPS / self.name) for p in cgroup_parents())

    def _until(self, complaint: str, done: Callable[[], bool], every_s: float = 0.05) -> None:
        deadline = time.monotonic() + BOOT_S
        while not done():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} {complaint} in {BOOT_S} s; {self._log_tail()}")
            time.sleep(every_s)

    def _log_tail(self) -> str:
        if not self._console.exists():
            return "it was never started"
        return "its console ends: ..." + self._console.read_text(errors="replace")[-1500:]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _only_child(pid: int) -> int:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(children[0]) if len(children) == 1 else 0
