"""One training on two real hosts: checked first, brought up, hurt, and ended with the run.

h800 lies behind the jump host and leads; the second one, prod, is reached directly. A cable of
their own joins them. The tests are one story: each goes on where the last stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from macd.app.market.bars import read_bars, write_bars
from tests.support import commands
from tests.support.hosts import network
from tests.support.hosts.end_to_end import TRAINING, TRAINING_PYTHON
from tests.support.hosts.fleet import Hosts, TestHost
from tests.support.job_fakes import soon
from tests.support.training_run import ROOT, SAMPLE

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

OTHER = "/usr/local/bin/other-python"  # it finds another lightgbm first
INVENTORY = """\
ssh_config: {ssh_config}
known_hosts: {known_hosts}
hosts:
  jump: {{role: jump, ssh: jumphost}}
  h800: {{role: train, ssh: h800, work_dir: ~/{work}, python: {training}, address: ib0}}
  h801: {{role: train, ssh: prod, work_dir: ~/{work}, python: {python}, address: 10.77.0.2}}
train:
  symbol: BTCUSD
  data_dir: ../bars
  profile: demo
  require_gpu: false
  min_free_gb: 0.1
  hosts: [h800, h801]
"""
SETTINGS: dict[str, Any] = {
    "folds": 6,
    "initial": 0.25,
    "surrogates": 2,
    "device": "cpu",
    "params": {"lgbm": {"rounds": 600}},
}
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

    def invoke(self, *words: str, code: int = 0) -> Any:
        began = time.monotonic()
        done = commands.run(self.root, *words, "--inventory", "team", "--json", env=self.env)
        print(f"{time.monotonic() - began:5.1f} s  invoke {' '.join(words)}")  # shown by pytest -s
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout else done.stderr

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "MACD_ROOT": str(self.root), "OMP_NUM_THREADS": "1"}

    def use(self, python: str, work: str = "team") -> None:
        """The Python of the second host, and where both work below the home directory."""
        text = INVENTORY.format(
            ssh_config=self.hosts.ssh_config,
            known_hosts=self.hosts.known_hosts,
            training=TRAINING,
            python=python,
            work=work,
        )
        (self.root / "inventory/team.yml").write_text(text)

    def start(self) -> str:
        """Train as the others of this file do, and go away."""
        return str(self.train("--detach")["run"])

    def train(self, *words: str, code: int = 0) -> Any:
        return self.invoke("train", "--settings", "small.json", "--mode", "lgbm", *words, code=code)

    def fits(self, run: str) -> int:
        """How many fits of a run are done, by its own events."""
        path = f"/home/quant/*/runs/{run}/events.jsonl"
        text = self.hosts.h800.exec("sh", "-c", f"cat {path} 2>/dev/null || true")
        return text.count('"event": "fit_done"')

    def rayless(self) -> bool:
        """On no host anything of Ray runs or lies."""
        return all(
            "raylet" not in host.exec("ps", "-eo", "args")
            and not host.exec("sh", "-c", f"ls -d {HOMES[host.name]}/again/ray /tmp/*ray* || true")
            for host in (self.hosts.h800, self.second)
        )

    def models(self, run: str) -> dict[str, bytes]:
        top = self.root / "runs" / run / MODELS
        return {path.name: path.read_bytes() for path in sorted(top.iterdir())}


@pytest.fixture(scope="module")
def team(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    root = tmp_path_factory.mktemp("team")
    (root / "inventory").mkdir()
    (root / "tasks.py").write_text((ROOT / "tasks.py").read_text())
    (root / "small.json").write_text(json.dumps(SETTINGS))
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
    env = {**team.env, "PYTHONPATH": str(ROOT)}
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


def test_a_worker_killed_in_mid_fit_and_nobody_there(team: Team, alone: dict[str, bytes]) -> None:
    run = team.start()
    soon(lambda: "raylet" in team.second.exec("ps", "-eo", "args"))
    for host in (team.hosts.h800, team.second):
        token = host.exec("cat", f"{HOMES[host.name]}/team/runs/{run}/token")
        assert len(token) == 64
        assert token not in host.exec("ps", "-eo", "args")
    stranger = "import ray; ray.init(address='10.77.0.1:6400')"
    ask = ("sh", "-c", f'{TRAINING} -c "{stranger}" 2>&1 || true')
    with ThreadPoolExecutor(1) as beside:  # the fits don't wait for it
        told = beside.submit(team.second.exec, *ask)
        soon(lambda: team.fits(run) >= 1)
        team.second.exec("systemctl", "kill", "--signal=KILL", f"macd-job-{run.lower()}")
    assert "InvalidAuthToken" in told.result()
    shown = team.invoke("train.status", "--run", run, code=3)
    assert [(w["host"], w["state"]) for w in shown["workers"]] == [("h801", "FAILED")]
    done = team.invoke("train.attach", "--run", run)
    assert done["state"] == "DONE"
    assert team.models(run) == alone
    assert "raylet" not in team.second.exec("ps", "-eo", "args")


def test_the_head_loses_power_and_the_same_command_goes_on(
    team: Team, alone: dict[str, bytes]
) -> None:
    team.use(TRAINING, "again")  # nothing is cached there
    run = team.start()
    soon(lambda: team.fits(run) >= 2)  # the first one is in the cache then
    team.hosts.h800.machine.power_cut()
    team.hosts.h800.machine.start()
    team.hosts.h800.machine.wait()
    assert "lost power" in team.invoke("train.status", "--run", run, code=1)["reason"]
    done = team.train()
    assert done["state"] == "DONE"
    events = (team.root / "runs" / done["run"] / "events.jsonl").read_text()
    assert '"cached": true' in events
    assert team.models(done["run"]) == alone
    soon(team.rayless)  # the worker's end comes a little later, by itself


def test_one_command_ends_the_whole_cluster(team: Team) -> None:
    run = team.start()
    told = team.invoke("train.cancel", "--run", run, "--yes")
    assert told["state"] == "CANCELLED"
    assert [(w["host"], w["state"]) for w in told["workers"]] == [("h801", "CANCELLED")]
    assert team.rayless()
