"""Three ways of deploying one release over one shaped line: ours, tar over ssh, and rsync.

What benchmarks.deploy_rtt measures, and nothing about how it judges.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from macd import lab
from macd.deploy import apply, offer, provision
from macd.host.probe import ProbeError, ask
from macd.inventory import Inventory, load, project_root
from macd.lab import Fault
from macd.release.store import Store
from macd.remote.session import open_session
from tests import small_releases
from tests.deployment import EMPTY_LOCK

BIG, CHANGED, FILES = 30 << 20, 300_000, 20


@dataclass(frozen=True)
class Figure:
    """Seconds until live, and bytes up on the wire."""

    seconds: float
    up: int


@contextmanager
def running_lab() -> Iterator[Inventory]:
    root = Path(tempfile.mkdtemp(prefix="macd-rtt-"))
    try:
        (root / "tasks.py").touch()
        (root / "inventory").mkdir()
        text = (project_root() / "inventory" / "lab.yml").read_text()
        text = text.replace("soak_s: 3", "soak_s: 0.2")
        (root / "inventory" / "lab.yml").write_text(text)
        shutil.copytree(project_root() / "templates", root / "templates")
        lab.up(root)
        inventory = load("lab", root=root)
        small_releases.make_keys(inventory)
        yield inventory
    finally:
        lab.down(root)
        shutil.rmtree(root, ignore_errors=True)


class Bench:
    """One host, one service, and releases made of random bytes."""

    def __init__(self, inventory: Inventory, mbit: float) -> None:
        self.inventory = inventory
        self.root = inventory.root
        self.mbit = mbit
        self.host = inventory.host("prod")
        self.app = lab.status(self.root).hosts["prod"].home / "macd-analysis"
        self._serial = 0
        self._random = random.Random(3)
        self._parts: dict[str, bytes] = {}
        provision.provision(self.host, inventory, who="benchmark")
        self.ours(self.release())  # builds the runtime, which later ones share

    @property
    def endpoint(self) -> str:
        return str(json.loads((self.app / "service.json").read_text())["endpoint"])

    def release(self, kind: str = "") -> str:
        """A new release: all bytes new, or two files of it."""
        self._serial += 1
        names = [f"data/ml_models/part{n:02}.bin" for n in range(FILES)]
        if kind == "first":
            size = (BIG - 2 * CHANGED) // (FILES - 2)
            sizes = [CHANGED, CHANGED, *[size] * (FILES - 2)]
            new = zip(names, sizes, strict=True)
        else:
            new = zip(names[:2], [CHANGED] * 2, strict=True) if kind else zip([], [], strict=True)
        self._parts |= {name: self._random.randbytes(size) for name, size in new}
        return small_releases.make(self.inventory, self._serial, more=self._parts)

    def link(self, rtt_ms: float) -> None:
        shaped = Fault(rtt_ms=rtt_ms, mbit=self.mbit) if rtt_ms >= 0 else Fault()
        lab.set_fault(self.root, "prod", shaped)

    def ours(self, identifier: str) -> None:
        wish = apply.Wish("benchmark", lambda kind, fields: None, lambda begun: None)
        chosen = offer.read(Store(self.root / "releases"), identifier, "prod")
        outcome = apply.deploy(self.host, self.inventory, chosen, wish)
        if outcome.result == "reverted":
            raise SystemExit(f"reverted: {outcome.reason}")

    def tar(self, identifier: str) -> None:
        here = self.root / "releases" / identifier
        sums = self._sums(here)
        there = f"macd-analysis/releases/{identifier}"
        script = f"rm -rf {there}; mkdir -p {there}; tar xzf - -C {there}; {self._rest(identifier)}"
        with subprocess.Popen(
            ["tar", "czf", "-", "-C", str(here), "."], stdout=subprocess.PIPE
        ) as packed:
            subprocess.run([*self.ssh, f"set -e; {script}"], stdin=packed.stdout, check=True)
        sums.unlink()

    def rsync(self, identifier: str) -> None:
        here = self.root / "releases" / identifier
        sums = self._sums(here)
        live = (self.app / "current").readlink().name
        with tempfile.TemporaryDirectory(prefix="macd-cm-") as directory:
            master = ["-o", "ControlMaster=auto", "-o", f"ControlPath={directory}/m"]
            ssh = [*self.ssh[:-1], *master, "-o", "ControlPersist=60"]
            there = f"macd-analysis/releases/{identifier}"
            argv = ["rsync", "-az", f"--link-dest=../{live}", "-e", " ".join(ssh)]
            subprocess.run([*argv, f"{here}/", f"lab-prod:{there}/"], check=True)
            subprocess.run([*ssh, "lab-prod", f"set -e; {self._rest(identifier)}"], check=True)
            subprocess.run([*ssh, "-O", "exit", "lab-prod"], check=True, stderr=subprocess.DEVNULL)
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
            f"cd macd-analysis; (cd releases/{identifier}; sha256sum -c --quiet SUMS;"
            f" ln -sfn ../../runtimes/{lock} runtime);"
            f' if [ "$(readlink current)" != releases/{identifier} ]; then'
            f" ln -sfn releases/{identifier} .c; mv -T .c current;"
            " systemctl --user restart macd-analysis.service; fi"
        )

    @property
    def ssh(self) -> list[str]:
        return ["ssh", "-F", str(self.root / ".lab" / "ssh_config"), "lab-prod"]

    def handshake(self) -> float:
        began = time.monotonic()
        subprocess.run([*self.ssh, "true"], check=True)
        return time.monotonic() - began

    def restart(self) -> float:
        """Seconds of a restart until the new process answers; nothing of it crosses the line."""
        live = (self.app / "current").readlink().name
        self.link(-1)
        with open_session(self.host, self.inventory) as session:
            before = ask(self.endpoint)["pid"]
            seen = Watcher(self.endpoint, live, not_pid=int(before))
            began = time.time()
            seen.start()
            session.run(["systemctl", "--user", "restart", "macd-analysis.service"])
            seen.join(30)
        return seen.at - began

    def timed(self, way: Callable[[str], None], identifier: str, *, noop: bool) -> Figure:
        """Do it; seconds until the new process answers (no-op: until it returned)."""
        lab.reset_counters(self.root, "prod")
        seen = Watcher(self.endpoint, identifier)
        began = time.time()
        if not noop:
            seen.start()
        way(identifier)
        ended = time.time()
        if not noop:
            seen.join(30)
        up = lab.status(self.root).hosts["prod"].counters.bytes_up
        return Figure((ended if noop else seen.at) - began, up)


class Watcher(threading.Thread):
    """Notes when a release first answers; on this machine, so that the line costs nothing."""

    def __init__(self, endpoint: str, release: str, *, not_pid: int = 0) -> None:
        super().__init__(daemon=True)
        self._not_pid = not_pid
        self._endpoint = endpoint
        self._release = release
        self.at = float("inf")

    def run(self) -> None:
        deadline = time.time() + 120
        while time.time() < deadline:
            try:
                told = ask(self._endpoint)
                if told.get("release") == self._release and told.get("pid") != self._not_pid:
                    self.at = time.time()
                    return
            except ProbeError:
                pass
            time.sleep(0.01)
