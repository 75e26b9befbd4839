"""A service that people put on a real systemd host by hand, moved to macd and back.

As docs/moving-in.md says it: the inventory is the one that `invoke init` wrote. Its models are
trained on a real systemd host as well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from macd.inventory import project_root
from tests.support import commands, their_app
from tests.support.hosts.end_to_end import TRAINING, TRAINING_PYTHON
from tests.support.hosts.fleet import Hosts

pytestmark = pytest.mark.hosts

APP = "/opt/macd-analysis"
UNITS = ("macd-analysis.service", "macd-analysis-web.service")
SYSTEMD = "/etc/systemd/system"
SOAK = "soak: {ready_s: 60, soak_s: 1, confirm_s: 60}\n"


@dataclass(frozen=True)
class Moved:
    """The hosts, a project beside them, and the team's repository."""

    hosts: Hosts
    root: Path
    there: Path

    def invoke(self, *words: str, code: int = 0) -> str:
        environment = {**os.environ, "MACD_ROOT": str(self.root), "MACD_INVENTORY": "ours"}
        done = commands.run(self.root, *words, env=environment, timeout=300)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def on_prod(self, *argv: str, check: bool = True) -> str:
        return self.hosts.prod.exec(*argv, check=check).strip()

    def pid(self, unit: str = UNITS[0]) -> str:
        return self.on_prod("systemctl", "show", "-p", "MainPID", "--value", unit)

    def works_in(self, unit: str) -> str:
        """The directory of its process, "" where none runs."""
        return self.on_prod("readlink", f"/proc/{self.pid(unit)}/cwd", check=False)

    def health(self) -> dict[str, Any]:
        program = (
            "import urllib.request as r;"
            "print(r.urlopen('http://127.0.0.1:8080/health', timeout=5).read().decode())"
        )
        said = self.on_prod("python3", "-c", program, check=False)
        return json.loads(said) if said.startswith("{") else {}

    @property
    def live(self) -> str:
        return self.on_prod("readlink", f"{APP}/current").removeprefix("releases/")

    def by_hand(self) -> dict[str, str]:
        """What people put there, by path: content, owner and mode of everything but logs."""
        macds = ("releases", "runtimes", "blobs", "bin", "state*")
        own = " -o ".join(f"-path './{place}'" for place in ("logs", "data/live", *macds))
        script = (
            f"cd {APP} && find . \\( {own} -o -name __pycache__ \\) -prune "
            "-o -type f -exec sha256sum {} + | sort -k 2; "
            f"sha256sum {SYSTEMD}/macd-analysis*.service {SYSTEMD}/macd-analysis*.d/*; "
            f"stat -c '%n %U %a' {APP} {APP}/.env {APP}/logs {APP}/data/live"
        )
        lines = self.on_prod("sh", "-c", script).splitlines()
        return {line.split()[-1] if line[:1].isalnum() else line: line for line in lines}


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 240
    while not (seen := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.5)
    return seen


@pytest.fixture
def moved(hosts: Hosts, tmp_path: Path) -> Moved:
    """A host as its team runs it, and their repository, with the models, here."""
    root = tmp_path / "macd"
    (root / "inventory").mkdir(parents=True)
    (root / "tasks.py").write_text((project_root() / "tasks.py").read_text())
    (root / "templates").symlink_to(project_root() / "templates")
    there = their_app.repository(tmp_path / "ml-signals", models=True)
    made = Moved(hosts, root, there)
    prod = hosts.prod
    prod.exec("useradd", "--system", "--no-create-home", "trader")
    prod.exec("mkdir", "-p", APP)
    packed = subprocess.run(
        ["tar", "-C", there, "--exclude=.git", "--exclude=data/klines", "-cz", "."],
        check=True,
        capture_output=True,
    ).stdout
    subprocess.run(
        ["ssh", "-F", hosts.ssh_config, prod.alias, f"tar -C {APP} -xz --no-same-owner"],
        input=packed,
        check=True,
    )
    prod.exec("python3", "-m", "venv", "--without-pip", f"{APP}/venv")
    environment = "# Jun: do not touch\nHEALTH_PORT=8080\nWEB_PORT=8081\nEXCHANGE_API_KEY=s3cret\n"
    prod.exec("sh", "-c", f"cat > {APP}/.env && chmod 600 {APP}/.env", input=environment)
    prod.exec("sh", "-c", f"mkdir -p {APP}/logs {APP}/data/live; chown -R trader: {APP}")
    for unit in UNITS:
        text = (there / "ops" / unit).read_text()
        prod.exec("sh", "-c", f"cat > {SYSTEMD}/{unit}", input=text)
    prod.exec("mkdir", "-p", f"{SYSTEMD}/macd-analysis.service.d")
    dropin = (there / "ops/override.conf").read_text()
    prod.exec("sh", "-c", f"cat > {SYSTEMD}/{UNITS[0]}.d/override.conf", input=dropin)
    prod.exec("systemctl", "daemon-reload")
    prod.exec("systemctl", "enable", "--now", *UNITS)
    until(lambda: made.health().get("status") == "ok")
    return made


def released(moved: Moved, fault: str = "") -> str:
    """A release of the repository as it is now, with a fault or without one."""
    file = moved.there / "FAULT"
    file.write_text(fault) if fault else file.unlink(missing_ok=True)
    (moved.there / "CHANGES").write_text(f"{time.time()}\n")
    their_app.commit(moved.there, fault or "better")
    moved.invoke("release")
    return max(path.name for path in (moved.root / "releases").glob("2*"))


def trainable(written: str) -> str:
    """The inventory of init, for a host that has no GPU and no package index."""
    for old, new in (
        ("work_dir: ~/work/ml-signals", f"work_dir: ~/work/ml-signals, python: {TRAINING}"),
        ("\n#   require_gpu: false", "\n  min_free_gb: 1\n  require_gpu: false"),
    ):
        assert old in written
        written = written.replace(old, new)
    lines = written.splitlines(keepends=True)
    return "".join(line for line in lines if "setup: requirements-gpu.txt" not in line)


def trained(moved: Moved) -> None:
    """A run of their stages on the real h800, behind its jump host; its files are here."""
    h800 = moved.hosts.h800
    h800.exec("sh", "-c", f"cat > {TRAINING}; chmod 755 {TRAINING}", input=TRAINING_PYTHON)
    moved.invoke("host.trust", "jump", "--yes")
    moved.invoke("host.trust", "h800", "--yes")
    said = moved.invoke("train", "--host", "h800")
    assert "lstm_1h_val_auc" in said
    (run,) = (moved.root / "runs").glob("2*")
    result = json.loads((run / "result.json").read_text())
    assert (result["state"], result["stages"]) == ("done", ["verify", "lstm", "lgb"])
    assert (run / "artefacts/data/ml_models/lstm_1h.onnx").is_file()


def test_a_service_by_hand_is_moved_judged_and_given_back(moved: Moved) -> None:
    before, old = moved.by_hand(), moved.pid()

    # Look and decide: nothing changes on the host.
    typed = ["--name", "ours", "--source", str(moved.there), "--prod", "prod", "--yes"]
    typed += ["--train", "h800", "--jump", "jumphost"]
    typed += ["--ssh-config", str(moved.hosts.ssh_config), "--keys", str(moved.root / "keys")]
    said = moved.invoke("init", *typed)
    assert "s3cret" not in said
    inventory = moved.root / "inventory/ours.yml"
    written = inventory.read_text()
    for words in (
        "app_dir: /opt/macd-analysis",
        "http://127.0.0.1:8080/health",
        "user: trader",
        "where: dropin",
    ):
        assert words in written
    inventory.write_text(f"{trainable(written)}\n{SOAK}")
    trained(moved)
    first = released(moved)
    assert "lstm_1h.onnx" in moved.invoke("health")
    moved.invoke("provision", "--dry-run")
    moved.invoke("plan")
    assert (moved.by_hand(), moved.pid()) == (before, old)

    # Provision keeps what was there, and the service runs on.
    moved.invoke("provision", "--adopt", "--yes")
    assert moved.pid() == old
    assert "0 changes" in moved.invoke("provision", "--yes")

    # The first deploy takes over.
    moved.invoke("deploy", "--yes")
    assert moved.live == first
    assert_runs_from(moved, first)
    assert moved.on_prod("cat", f"{APP}/.env").count("EXCHANGE_API_KEY=s3cret") == 1

    # One that is never ready, and one whose page ends, go back: both units together.
    for fault in ("never_ready", "web_exit", "fork"):
        bad = released(moved, fault)
        waited = "ready_s: 20" if fault == "never_ready" else "ready_s: 60"  # it takes all of it
        inventory.write_text(re.sub("ready_s: [0-9]+", waited, inventory.read_text()))
        assert "reverted" in moved.invoke("deploy", "--yes", code=4)
        assert moved.live == first != bad
        assert_runs_from(moved, first)

    # A power cut: both come back by themselves.
    moved.hosts.prod.machine.reboot()
    until(lambda: moved.health().get("status") == "ok")
    assert_runs_from(moved, first)

    second = released(moved)
    moved.invoke("deploy", "--yes")
    assert_runs_from(moved, second)
    moved.invoke("doctor")

    # Judged by its own lines, let decide, watched.
    until(lambda: moved.health().get("bars", 0) > 25)
    moved.invoke("shadow-gate")
    assert moved.health()["stacking"] is False
    moved.invoke("enable-stacking", "--yes")
    until(lambda: moved.health().get("stacking") is True)
    moved.invoke("monitor", "--once")
    moved.invoke("disable-stacking", "--yes")
    until(lambda: moved.health().get("stacking") is False)

    moved.invoke("rollback", "--yes")
    assert_runs_from(moved, first)

    # And all of it given back.
    moved.invoke("provision", "--undo", "--yes")
    assert moved.by_hand() == before
    until(lambda: moved.health().get("status") == "ok")
    assert moved.works_in(UNITS[0]) == APP


def assert_runs_from(moved: Moved, release: str) -> None:
    """Each unit's process: of this release, as their account, and unable to write elsewhere."""
    source = f"{APP}/releases/{release}/source"
    for unit in UNITS:
        until(lambda unit=unit: moved.works_in(unit) == source)  # type: ignore[misc]
        pid = moved.pid(unit)
        environment = moved.on_prod("cat", f"/proc/{pid}/environ")
        assert f"MACD_RELEASE={release}" in environment
        assert moved.on_prod("stat", "-c", "%U", f"/proc/{pid}") == "trader"
    assert moved.health()["status"] == "ok"
    today = moved.on_prod("sh", "-c", f"ls {APP}/logs/live/*.jsonl | tail -1")
    assert '"SIGNAL"' in moved.on_prod("tail", "-n", "1", today)
