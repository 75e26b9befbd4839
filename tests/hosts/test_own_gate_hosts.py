"""Gate, flag in a drop-in and guard of a team's own application, on a real systemd."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from macd.host.store.signature import GATE_NAMESPACE
from macd.inventory import load
from tests.hosts.test_deploy_hosts import MORE, Bench
from tests.support import small_releases, their_app
from tests.support.hosts.fleet import Hosts
from tests.support.signed_files import make_key

pytestmark = pytest.mark.hosts

NAME = "trial-gate"
APP, UNIT = f"/opt/{NAME}", f"{NAME}.service"
DROPIN = f"/etc/systemd/system/{UNIT}.d/macd-flag.conf"
TASKS = """
from invoke import Collection
from macd.cli import deploy, flag, gate, logs, monitor, provision, status, usage
usage.install()
namespace = Collection(deploy.deploy, provision.provision, status.status, gate.shadow_gate)
for task in (flag.enable_stacking, flag.disable_stacking, monitor.monitor, logs.logs):
    namespace.add_task(task)
"""


@pytest.fixture(scope="module")
def bench(hosts: Hosts) -> Bench:
    """Their engine is live and writes a bar a second; its guard looks every two seconds."""
    (hosts.root / "tasks.py").write_text(TASKS)
    base = yaml.safe_load((hosts.root / "inventory" / f"{hosts.inventory}.yml").read_text())
    document = {**base, **yaml.safe_load(MORE)}
    document["hosts"]["prod"] |= {"app_dir": APP, "unit": NAME}
    flag = {"name": "ML_ENABLE_STACKING", "where": "dropin"}
    document["app"] = their_app.app_section(their_app.Ports(18082, 18083), flag=flag)
    document["service"] = {"socket": False}
    document["soak"]["ready_s"] = 30
    document["gate"], document["guard"] = {"min_bars": 6}, {"every_hours": 0.0006, "for_hours": 1}
    names = {"gate_key": "../keys/own-gate", "allowed_signers": "../keys/own-signers"}
    document["release"] |= names
    (hosts.root / "inventory" / "deploying.yml").write_text(yaml.safe_dump(document))
    inventory = load("deploying", root=hosts.root)
    small_releases.make_keys(inventory)
    keys, signers = hosts.root / "keys", inventory.release.allowed_signers
    assert signers is not None
    public = make_key(keys, "own-gate").with_suffix(".pub").read_text().strip()
    with signers.open("a") as file:
        file.write(f'{inventory.release.identity} namespaces="{GATE_NAMESPACE}" {public}\n')
    made = Bench(hosts, inventory)
    their_app.release(inventory, 1)
    made.invoke("provision", "--yes")
    made.invoke("deploy", "--yes")
    return made


def soon(look: Callable[[], Any], seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


def running(bench: Bench) -> str:
    pid = bench.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    environ = bench.on_prod("cat", f"/proc/{pid}/environ")
    return str(re.findall(r"ML_ENABLE_STACKING=(\w*)", environ)[-1])


def test_the_guard_takes_a_flag_in_a_drop_in_back(bench: Bench) -> None:
    assert "SIGNAL ETHUSDT" in soon(lambda: bench.invoke("logs", "--lines", "1").stdout)
    journal = bench.invoke("logs", "--unit", "all", "--grep", "first signal").stdout
    assert re.search(rf"^20\S+ \S+Z {NAME}: first signal", journal, re.MULTILINE), journal

    soon(lambda: bench.typed("shadow-gate").returncode == 0)
    bench.invoke("enable-stacking", "--yes")
    assert running(bench) == "1"
    text = bench.on_prod("cat", DROPIN)
    assert text.startswith("# Written by macd")
    assert text.endswith("\n[Service]\nEnvironment=ML_ENABLE_STACKING=1")
    timer = bench.on_prod("systemctl", "cat", f"{NAME}-guard.service")
    assert f"ReadWritePaths=-{DROPIN.rpartition('/')[0]}" in timer
    # The guard reads what the service's account wrote.
    soon(lambda: [one for one in bench.json("monitor")["reports"] if one["bars"]])

    line = json.dumps({"timestamp": time.time(), "level": "FATAL", "message": "no model loads"})
    command = f"echo '{line}' >> $(ls {APP}/logs/live/*.jsonl | tail -1)"
    bench.on_prod("sh", "-c", command)
    soon(lambda: bench.json("monitor", code=4) if over(bench) else None)
    assert running(bench) == "0"
    assert bench.on_prod("cat", DROPIN).endswith("\nEnvironment=ML_ENABLE_STACKING=0")
    assert "no model loads" in bench.invoke("monitor", "--once", code=4).stdout
    said = bench.invoke("disable-stacking", "--yes").stdout
    assert "already" in said


def over(bench: Bench) -> bool:
    done = bench.typed("monitor", "--json")
    return bool(json.loads(done.stdout)["state"] == "failed")


def test_a_hand_made_drop_in_is_rewritten_and_nothing_else_of_it(bench: Bench) -> None:
    override = f"{DROPIN.rpartition('/')[0]}/override.conf"
    text = '[Service]\\nEnvironment="NOTE=a b" ML_ENABLE_STACKING=1 X=%%y\\nNice=3\\n'
    bench.on_prod("sh", "-c", f"rm {DROPIN}; printf '{text}' > {override}")
    bench.on_prod("systemctl", "daemon-reload")
    bench.on_prod("systemctl", "restart", UNIT)
    assert running(bench) == "1"
    assert "without evidence" in bench.invoke("status", code=0).stdout
    bench.invoke("disable-stacking", "--yes")
    assert running(bench) == "0"
    said = bench.on_prod("cat", override).splitlines()
    assert said[1] == 'Environment="NOTE=a b" ML_ENABLE_STACKING=0 X=%y'
    assert said[2] == "Nice=3"
