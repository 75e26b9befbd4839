"""Three ways of deploying one release over one shaped line: ours, tar over ssh, and rsync.

What benchmarks.deploy_rtt measures, and nothing about how it judges. Each way is a process of its
own, its start included.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_hosts import RealHosts, Watcher
from tests.support import small_releases
from tests.support.local_host import EMPTY_LOCK

BIG, CHANGED, FILES = 30 << 20, 300_000, 20


@dataclass(frozen=True)
class Figure:
    """Seconds until live, and bytes up on the wire."""

    seconds: float
    up: int


class Releases:
    """Signed releases made of random bytes, which don't compress."""

    def __init__(self, hosts: RealHosts, size: int = BIG, changed: int = CHANGED) -> None:
        self._inventory = hosts.inventory
        self._size = size
        self._changed = changed
        self._serial = 0
        self._random = random.Random(3)
        self._parts: dict[str, bytes] = {}

    def make(self, kind: str = "") -> str:
        """Another release: "first", all bytes new; "two changed", two files of it; "", none."""
        self._serial += 1
        names = [f"data/ml_models/part{n:02}.bin" for n in range(FILES)]
        sizes: list[int] = []
        if kind == "first":
            rest = max(0, self._size - 2 * self._changed) // (FILES - 2)
            sizes = [self._changed, self._changed, *[rest] * (FILES - 2)]
        elif kind:
            sizes = [self._changed] * 2
        new = zip(names, sizes, strict=False)
        self._parts |= {name: self._random.randbytes(size) for name, size in new}
        return small_releases.make(self._inventory, self._serial, more=self._parts)


class Bench:
    """One host, one service, and a line to it."""

    def __init__(self, hosts: RealHosts, mbit: float) -> None:
        self.hosts = hosts
        self.name = next(iter(hosts.lines))
        self.line = hosts.lines[self.name]
        self.app = hosts.app(self.name)
        self.root = hosts.root
        self.mbit = mbit
        self.releases = Releases(hosts)
        hosts.invoke("provision", "--yes")
        self.ours(self.releases.make())  # builds the runtime, which later ones share
        self.ways: dict[str, Callable[[str], None]] = {"ours": self.ours, "tar": self.tar}
        if shutil.which("rsync"):
            self.ways["rsync"] = self.rsync

    def link(self, rtt_ms: float) -> None:
        """The line's delay; below zero: as fast as this machine is."""
        self.line.set(*((rtt_ms, self.mbit) if rtt_ms >= 0 else (0, 0)))

    def ours(self, identifier: str) -> None:
        self.hosts.invoke("deploy", "--yes", "--release", identifier)

    def tar(self, identifier: str) -> None:
        here = self.root / "releases" / identifier
        sums = self._sums(here)
        there = f"{self.app}/releases/{identifier}"
        script = f"rm -rf {there}; mkdir -p {there}; tar xzf - -C {there}; {self._rest(identifier)}"
        with subprocess.Popen(
            ["tar", "czf", "-", "-C", str(here), "."], stdout=subprocess.PIPE
        ) as packed:
            subprocess.run([*self.ssh, f"set -e; {script}"], stdin=packed.stdout, check=True)
        sums.unlink()

    def rsync(self, identifier: str) -> None:
        here = self.root / "releases" / identifier
        sums = self._sums(here)
        live = self.hosts.live(self.name)
        with tempfile.TemporaryDirectory(prefix="macd-cm-") as directory:
            master = ["-o", "ControlMaster=auto", "-o", f"ControlPath={directory}/m"]
            ssh = [*self.ssh[:-1], *master, "-o", "ControlPersist=60"]
            there = f"{self.app}/releases/{identifier}"
            argv = ["rsync", "-a", f"--link-dest={self.app}/releases/{live}", "-e", " ".join(ssh)]
            subprocess.run([*argv, f"{here}/", f"{self.name}:{there}/"], check=True)
            subprocess.run([*ssh, self.name, f"set -e; {self._rest(identifier)}"], check=True)
            subprocess.run([*ssh, "-O", "exit", self.name], check=True, stderr=subprocess.DEVNULL)
        sums.unlink()

    def _sums(self, here: Path) -> Path:
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(here)}\n"
            for path in sorted(here.rglob("*"))
            if path.is_file() and path.name != "SUMS"
        ]
        (here / "SUMS").write_text("".join(lines))
        return here / "SUMS"

    def _rest(self, identifier: str) -> str:
        lock = hashlib.sha256(EMPTY_LOCK).hexdigest()
        return (
            f"cd {self.app}; (cd releases/{identifier}; sha256sum -c --quiet SUMS;"
            f" ln -sfn ../../runtimes/{lock} runtime);"
            f' if [ "$(readlink current)" != releases/{identifier} ]; then'
            f" ln -sfn releases/{identifier} .c; mv -T .c current;"
            f" systemctl restart {self.hosts.unit(self.name)}; fi"
        )

    @property
    def ssh(self) -> list[str]:
        return ["ssh", "-F", str(self.root / "ssh_config"), self.name]

    def handshake(self) -> float:
        """Seconds of `ssh host true`."""
        began = time.monotonic()
        subprocess.run([*self.ssh, "true"], check=True)
        return time.monotonic() - began

    def restart(self) -> float:
        """Seconds of a restart until the new process answers, typed on the host itself."""
        live, pid = self.hosts.live(self.name), self.hosts.pid(self.name)
        seen = Watcher(self.hosts, self.name, live, not_pid=pid)
        began = time.time()
        seen.start()
        self.hosts.machine.exec("systemctl", "restart", self.hosts.unit(self.name))
        seen.join(30)
        return seen.at - began

    def timed(self, way: Callable[[str], None], identifier: str, *, noop: bool) -> Figure:
        """Do it; seconds until the new process answers (no-op: until it returned)."""
        self.line.reset_counters()
        if noop:
            began = time.time()
            way(identifier)
            return Figure(time.time() - began, self.line.counters.bytes_up)
        seen = Watcher(self.hosts, self.name, identifier)
        seen.start()
        began = time.time()
        way(identifier)
        seen.join(30)
        return Figure(seen.at - began, self.line.counters.bytes_up)
