"""A real systemd host and a project that knows it, for benchmarks: root on Debian only.

The host is the tests' own (tests/hosts): Debian in a container with systemd as PID 1, OpenSSH, and
an address in a network namespace. It can stand for many serving hosts: each has a directory, a unit
and a slow line of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.slow_line import SlowLine
from macd.inventory import Inventory, load, project_root
from tests.support import small_releases
from tests.support.hosts import fleet, rootfs

_NAME = "bench"
_MORE = """
soak: {ready_s: 20, soak_s: 0.2, confirm_s: 20}
release:
  keep: 3
  sign_key: ../keys/release
  allowed_signers: ../keys/allowed_signers
  identity: release@bench
service: {feed: {kind: replay}, watchdog_s: 0}
"""
# Run on the host: says that it polls, then when the release first answered from a new process.
_WATCH = """
import sys, time
app, release, old = sys.argv[1:]
sys.path.insert(0, app + "/bin/macd-host.pyz")
import json
from macd.host.deploy.health import ProbeError, ask
endpoint = json.load(open(app + "/service.json"))["endpoint"]
print("polling", flush=True)
deadline = time.time() + 120
while time.time() < deadline:
    try:
        told = ask(endpoint)
        if told.get("release") == release and str(told.get("pid")) != old:
            sys.exit(print(time.time(), flush=True))
    except ProbeError:
        pass
    time.sleep(0.01)
"""


@dataclass(frozen=True)
class RealHosts:
    """The machine, its slow lines by the name of the serving host, and the project's directory."""

    machine: fleet.TestHost
    lines: Mapping[str, SlowLine]
    root: Path
    inventory: Inventory

    def app(self, host: str) -> str:
        return self.inventory.host(host).app_dir

    def unit(self, host: str) -> str:
        return f"{self.inventory.host(host).unit}.service"

    def shape(self, rtt_ms: float = 0, mbit: float = 0) -> None:
        """Make all lines so; without arguments as fast as this machine is."""
        for line in self.lines.values():
            line.set(rtt_ms, mbit)

    def invoke(self, *words: str) -> Any:
        """Type a command, the way a user does; its JSON document. SystemExit if it fails."""
        argv = [str(Path(sys.executable).with_name("invoke")), *words, "--json"]
        done = subprocess.run(
            argv,
            cwd=self.root,
            env={**os.environ, "MACD_ROOT": str(self.root), "MACD_INVENTORY": _NAME},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(
                f"{' '.join(words)} ended {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return json.loads(done.stdout)

    def live(self, host: str) -> str:
        return self.machine.exec("readlink", f"{self.app(host)}/current").strip().split("/")[-1]

    def pid(self, host: str) -> str:
        return self.machine.exec(
            "systemctl", "show", "-p", "MainPID", "--value", self.unit(host)
        ).strip()

    def cpu_seconds(self) -> float:
        """CPU time of all that ran on the machine since it was booted, its dead included."""
        namespace = Path(f"/proc/{self.machine.machine.leader()}/ns/pid").readlink()
        ticks = 0
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended; whoever waited for it has its time
                if (process / "ns/pid").readlink() == namespace:
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    ticks += sum(map(int, fields[11:15]))  # its own, and of children waited for
        return ticks / os.sysconf("SC_CLK_TCK")


class Watcher(threading.Thread):
    """Notes when a release first answers, seen on the host, so that the line costs nothing."""

    def __init__(self, hosts: RealHosts, host: str, release: str, *, not_pid: str = "") -> None:
        super().__init__(daemon=True)
        enter = ("nsenter", "--target", str(hosts.machine.machine.leader()), "--all", "--")
        argv = [*enter, "python3", "-c", _WATCH, hosts.app(host), release, not_pid]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._told = self._process.stdout
        self._told.readline()  # it polls
        self.at = float("inf")

    def run(self) -> None:
        moment = self._told.readline()
        self._process.wait()
        if moment:
            self.at = float(moment)


@contextmanager
def running(names: list[str]) -> Iterator[RealHosts]:
    """Boot the machine and write a project whose serving hosts are `names`.

    Raises SystemExit(2) where such a machine can't be booted.
    """
    lacking = [tool for tool in rootfs.TOOLS if not shutil.which(tool)]
    if os.geteuid() or lacking:
        why = f"lacks {', '.join(lacking)}" if lacking else "is not root"
        sys.exit(f"this benchmark boots real systemd hosts: it needs root on Debian; this {why}")
    top = Path(tempfile.mkdtemp(prefix="macd-bench-"))
    lines: dict[str, SlowLine] = {}
    try:
        with fleet.booted(rootfs.cache_directory(), top / "hosts") as booted:
            prod = booted.prod
            lines |= {name: SlowLine(prod.address, prod.port) for name in names}
            root = top / "project"
            _lay_out(root, prod, lines)
            inventory = load(_NAME, root=root)
            small_releases.make_keys(inventory)
            yield RealHosts(prod, lines, root, inventory)
    finally:
        for line in lines.values():
            line.close()
        shutil.rmtree(top, ignore_errors=True)


def _lay_out(root: Path, prod: fleet.TestHost, lines: Mapping[str, SlowLine]) -> None:
    (root / "inventory").mkdir(parents=True)
    shutil.copy(project_root() / "tasks.py", root / "tasks.py")
    rows = ["ssh_config: ../ssh_config", "known_hosts: ../known_hosts", "hosts:"]
    for name in lines:
        rows.append(
            f"  {name}: {{role: serve, env: prod, ssh: {name}, app_dir: /opt/{name}, unit: {name}}}"
        )
    (root / "inventory" / f"{_NAME}.yml").write_text("\n".join(rows) + _MORE)
    blocks, host_keys = [], []
    for name, line in lines.items():
        blocks.append(f"""\
Host {name}
  HostName 127.0.0.1
  Port {line.port}
  User {prod.user}
  IdentityFile {prod.key}
  IdentitiesOnly yes
  UserKnownHostsFile {root / "known_hosts"}
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
""")
        host_keys.append(f"[127.0.0.1]:{line.port} {prod.host_key}\n")
    (root / "ssh_config").write_text("\n".join(blocks))
    (root / "known_hosts").write_text("".join(host_keys))
