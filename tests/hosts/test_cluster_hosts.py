"""One training on two real hosts: checked first, brought up, hurt, and ended with the run.

h800 lies behind the jump host and leads; the second one, prod, is reached directly. A cable of
their own joins them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from macd.app.market.bars import read_bars, write_bars
from tests.support import commands
from tests.support.hosts import network
from tests.support.hosts.end_to_end import TRAINING, TRAINING_PYTHON
from tests.support.hosts.fleet import Hosts, TestHost
from tests.support.openssh import eventually
from tests.support.training_run import ROOT, SAMPLE

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

soon = functools.partial(eventually, within=300, every=0.3)  # a look starts a process
OTHER = "/usr/local/bin/other-python"  # it finds another lightgbm first
INVENTORY = """\
ssh_config: {ssh_config}
known_hosts: {known_hosts}
hosts:
  jump: {{role: jump, ssh: jumphost}}
  h800: {{role: train, ssh: h800, work_dir: ~/team, python: {training}, address: ib0}}
  h801: {{role: train, ssh: prod, work_dir: ~/team, python: {python}, address: 10.77.0.2}}
train:
  symbol: BTCUSD
  data_dir: ../bars
  profile: demo
  require_gpu: false
  min_free_gb: 0.1
  hosts: [h800, h801]
"""
SETTINGS: dict[str, Any] = {
    "folds": 12,  # many small fits: there is time to hurt it between the second and the last
    "initial": 0.25,
    "surrogates": 2,
    "device": "cpu",
    "params": {"lgbm": {"rounds": 300}},
}
ENDLESS = {**SETTINGS, "params": {"lgbm": {"rounds": 1_000_000}}}
HOMES = {"h800": "/home/quant", "prod": "/root"}
MODELS = "data/ml_models"


@dataclass(frozen=True)
class Team:
    """The project, and the two hosts of its cluster."""

    hosts: Hosts
    root: Path

    @property
    def second(self) -> TestHost:
        return self.hosts.prod

    @property
    def both(self) -> tuple[TestHost, TestHost]:
        return self.hosts.h800, self.second

    def invoke(self, *words: str, code: int = 0) -> Any:
        began = time.monotonic()
        done = commands.run(self.root, *words, "--inventory", "team", "--json", env=self.env)
        print(f"{time.monotonic() - began:5.1f} s  invoke {' '.join(words)}")  # shown by pytest -s
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout else done.stderr

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "MACD_ROOT": str(self.root), "OMP_NUM_THREADS": "1"}

    def use(self, python: str) -> None:
        """The Python of the second host."""
        text = INVENTORY.format(
            ssh_config=self.hosts.ssh_config,
            known_hosts=self.hosts.known_hosts,
            training=TRAINING,
            python=python,
        )
        (self.root / "inventory/team.yml").write_text(text)

    def start(self, settings: str = "small.json") -> str:
        """Train, and go away."""
        return str(self.train("--detach", settings=settings)["run"])

    def train(self, *words: str, code: int = 0, settings: str = "small.json") -> Any:
        return self.invoke("train", "--settings", settings, "--mode", "lgbm", *words, code=code)

    def fits(self, run: str) -> int:
        """How many fits of a run are done, by its own events."""
        path = f"/home/quant/team/runs/{run}/events.jsonl"
        text = self.hosts.h800.exec("sh", "-c", f"cat {path} 2>/dev/null || true")
        return text.count('"event": "fit_done"')

    def raylets(self) -> bool:
        """Whether a node of Ray runs on one of the hosts."""
        return any("raylet" in host.exec("ps", "-eo", "args") for host in self.both)

    def rayless(self) -> bool:
        """On no host anything of Ray runs or lies."""
        lies = [
            host.exec("sh", "-c", f"ls -d {HOMES[host.name]}/team/ray /tmp/*ray* || true")
            for host in self.both
        ]
        return not self.raylets() and not any(lies)

    def models(self, run: str) -> dict[str, bytes]:
        top = self.root / "runs" / run / MODELS
        return {path.name: path.read_bytes() for path in sorted(top.iterdir())}


@pytest.fixture(scope="module")
def team(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    root = tmp_path_factory.mktemp("team")
    (root / "inventory").mkdir()
    (root / "tasks.py").write_text((ROOT / "tasks.py").read_text())
    (root / "small.json").write_text(json.dumps(SETTINGS))
    (root / "endless.json").write_text(json.dumps(ENDLESS))
    write_bars(read_bars(SAMPLE)[:4000], root / "bars/BTCUSD_1h.parquet")
    metadata = "Metadata-Version: 2.1\nName: lightgbm\nVersion: 0.0.1\n"
    for host in (hosts.h800, hosts.prod):
        host.exec("sh", "-c", f"cat > {TRAINING}; chmod 755 {TRAINING}", input=TRAINING_PYTHON)
    other = TRAINING_PYTHON.replace('PYTHONPATH="', 'PYTHONPATH="/srv/other:')
    hosts.prod.exec("sh", "-c", f"cat > {OTHER}; chmod 755 {OTHER}", input=other)
    folder = "/srv/other/lightgbm-0.0.1.dist-info"
    hosts.prod.exec("sh", "-c", f"mkdir -p {folder}; cat > {folder}/METADATA", input=metadata)
    wire(hosts)
    made = Team(hosts, root)
    made.use(TRAINING)
    yield made
    subprocess.run(["ip", "-n", hosts.h800.machine.name, "link", "del", "ib0"], check=False)


def wire(hosts: Hosts) -> None:
    one, other = hosts.h800.machine.name, hosts.prod.machine.name
    add = ["link", "add", "ib0", "netns", one, "type", "veth"]
    subprocess.run(["ip", *add, "peer", "name", "ib0", "netns", other], check=True)
    for name, address in ((one, "10.77.0.1/24"), (other, "10.77.0.2/24")):
        subprocess.run(["ip", "-n", name, "address", "add", address, "dev", "ib0"], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "ib0", "up"], check=True)


@pytest.fixture(scope="module")
def alone(team: Team) -> dict[str, bytes]:
    """The models of the same training on one machine, without a cluster."""
    out = team.root / "alone"
    argv = [sys.executable, "-m", "macd.app.train", "--mode", "lgbm", "--settings", "small.json"]
    argv += ["--data", "bars", "--out", str(out), "--symbol", "BTCUSD"]
    # Nothing else of this machine: OpenBLAS reads in the environment which kernels sum, and how.
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=team.root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_bytes() for path in sorted((out / MODELS).iterdir())}


def test_hosts_that_do_not_fit_together_are_refused_before_anything_is_sent(team: Team) -> None:
    team.use(OTHER)
    network.cut(team.second.machine.name, "ib0")
    try:
        told = team.train(code=1)
    finally:
        network.mend(team.second.machine.name, "ib0")
        team.use(TRAINING)
    assert "h801: lightgbm 0.0.1 (h800 " in told["error"]["why"]
    assert "h801 can't reach h800 (10.77.0.1)" in told["error"]["why"]
    assert "open TCP 6400-6999" in told["error"]["hint"]
    assert told["error"]["live"] == "nothing was sent or started"
    assert "trees" not in team.second.exec("sh", "-c", "ls ~/team 2>/dev/null || true").split()


def test_after_a_power_cut_and_a_killed_worker_the_models_are_those_of_one_machine(
    team: Team, alone: dict[str, bytes]
) -> None:
    run = team.start()
    soon(lambda: team.fits(run) >= 2)  # the first one is in the cache then
    team.hosts.h800.machine.power_cut()
    team.hosts.h800.machine.start()
    team.hosts.h800.machine.wait()
    assert "lost power" in team.invoke("train.status", "--run", run, code=1)["reason"]

    again = team.start()  # the same command
    soon(lambda: "ray::_on_node" in team.second.exec("ps", "-eo", "args"))  # it works on a fit
    team.second.exec("systemctl", "kill", "--signal=KILL", f"macd-job-{again.lower()}")
    shown = team.invoke("train.status", "--run", again, code=3)
    assert [(w["host"], w["state"]) for w in shown["workers"]] == [("h801", "FAILED")]
    assert team.invoke("train.attach", "--run", again)["state"] == "DONE"
    events = (team.root / "runs" / again / "events.jsonl").read_text()
    assert '"cached": true' in events
    assert team.models(again) == alone
    soon(lambda: not team.raylets())  # its files go with the next run's start


def test_a_stranger_is_refused_and_one_command_ends_the_whole_cluster(team: Team) -> None:
    run = team.start("endless.json")
    probe = "import socket; socket.create_connection(('10.77.0.1', 6400)); print('open')"
    soon(lambda: "open" in team.second.exec("python3", "-c", probe, check=False))
    for host in team.both:
        token = host.exec("cat", f"{HOMES[host.name]}/team/runs/{run}/token")
        assert len(token) == 64
        assert token not in host.exec("ps", "-eo", "args")
    stranger = "import ray; ray.init(address='10.77.0.1:6400')"
    said = team.second.exec("sh", "-c", f'{TRAINING} -c "{stranger}" 2>&1 || true')
    assert "InvalidAuthToken" in said
    soon(lambda: "raylet" in team.second.exec("ps", "-eo", "args"))
    told = team.invoke("train.cancel", "--run", run, "--yes")
    assert told["state"] == "CANCELLED"
    assert [(w["host"], w["state"]) for w in told["workers"]] == [("h801", "CANCELLED")]
    assert team.rayless()
