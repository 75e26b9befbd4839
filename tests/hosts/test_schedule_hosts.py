"""A training host that trains by itself, on a real systemd: its timers, a reboot, its message."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from macd.inventory import project_root
from tests.hosts.test_alerts_hosts import TAKER
from tests.support import commands
from tests.support.hosts.fleet import Hosts

pytestmark = pytest.mark.hosts

OFTEN, NEVER = "*:*:0/20", "2099-01-01"
WORK, ROOTS = "~/by-itself", "/srv/by-itself"
KLINES = "data/klines/ETHUSDT_1h.csv"
TRAINS = f"""
import json, os
os.makedirs("models", exist_ok=True)
read = open("{KLINES}").read()
json.dump({{"auc": 0.5, "read": read}}, open("models/m.json", "w"))
"""


class Project:
    """The team's own application, and h800 told to train it."""

    def __init__(self, hosts: Hosts, root: Path) -> None:
        self.hosts, self.root = hosts, root
        (root / "inventory").mkdir(parents=True)
        (root / "tasks.py").write_text((project_root() / "tasks.py").read_text())
        self.there = root.parent / "theirs"
        (self.there / KLINES).parent.mkdir(parents=True)
        (self.there / "go.py").write_text(TRAINS)
        (self.there / KLINES).write_text("v0")
        self.document = yaml.safe_load(
            hosts.root.joinpath("inventory/systemd-test.yml").read_text()
        )
        self.document["app"] = {
            "name": "theirs",
            "source": str(self.there),
            "files": ["*.py"],
            "train": {
                "stages": {"go": "python3 go.py"},
                "data": ["data/klines"],
                "artefacts": ["models/*"],
                "metrics": {"auc": "models/m.json#/auc"},
            },
            "serve": {"command": "python3 go.py"},
        }
        self.document["hosts"]["h800"]["work_dir"] = WORK
        self.document["train"]["schedule_bars"] = "~/synced"
        self.document["alerts"] = {"notify_url": "http://127.0.0.1:8765/t0ken"}
        self.when(OFTEN)

    def when(self, schedule: str) -> None:
        self.document["train"] |= {"schedule": schedule, "schedule_keep": 1}
        text = yaml.safe_dump(self.document, sort_keys=False)
        (self.root / "inventory/ours.yml").write_text(text)

    def invoke(self, *words: str, code: int = 0) -> str:
        environment = {**os.environ, "MACD_ROOT": str(self.root), "MACD_INVENTORY": "ours"}
        done = commands.run(self.root, *words, env=environment, timeout=300)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def scheduled(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.invoke("train.schedule", "--show", "--json"))
        return dict(answer["schedule"])

    def on_host(self, command: str) -> str:
        done = self.hosts.h800.ssh(command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def bring(self, bars: str) -> None:
        """Somebody's sync of bars brings a newer file."""
        script = f"mkdir -p synced/data/klines && cat > synced/{KLINES}.new && "
        script += f"mv synced/{KLINES}.new synced/{KLINES}"
        self.hosts.h800.exec(
            *("runuser", "-u", "quant", "--", "sh", "-c", f"cd && {script}"), input=bars
        )

    def messages(self) -> list[str]:
        said = self.hosts.h800.exec("sh", "-c", "cat /run/took 2>/dev/null", check=False)
        return [json.loads(json.loads(line)[1])["text"] for line in said.splitlines()]


def until(what: Any, project: Project) -> None:
    deadline = time.monotonic() + 400
    while not what():
        assert time.monotonic() < deadline, project.invoke("train.schedule", "--show")
        time.sleep(1)


@pytest.fixture
def project(hosts: Hosts, tmp_path: Path) -> Iterator[Project]:
    made = Project(hosts, tmp_path / "project")
    assert hosts.h800.ssh("loginctl enable-linger quant", user="root").returncode == 0
    hosts.h800.exec("rm", "-f", "/run/took")
    receive(hosts)
    yield made
    made.invoke("train.schedule", "--remove")
    hosts.h800.exec("systemctl", "stop", "taker", check=False)


def receive(hosts: Hosts) -> None:
    hosts.h800.exec("systemd-run", "--quiet", "--unit=taker", "python3", "-c", TAKER)


def test_its_timer_trains_on_new_bars_also_after_a_reboot(hosts: Hosts, project: Project) -> None:
    project.bring("v1")
    shown = project.invoke("train.schedule")
    assert "timer    next" in shown
    assert "bars     read from ~/synced there" in shown
    until(lambda: any("is DONE" in text for text in project.messages()), project)
    done = next(text for text in project.messages() if "is DONE" in text)
    (first,) = project.scheduled()["runs"]
    assert f"invoke release --run {first['run']} --host h800 --inventory ours" in done
    assert "t0ken" not in project.invoke("train.schedule", "--show")
    # The next times find no new bars: they say so and train nothing.
    until(lambda: any("there are no new bars" in text for text in project.messages()), project)
    assert len(project.scheduled()["runs"]) == 1
    # The host alone goes on: nobody logs in between its boot and the next run.
    hosts.h800.machine.reboot()
    receive(hosts)
    project.bring("v2")
    until(lambda: any("is DONE" in text for text in project.messages()), project)
    (second,) = project.scheduled()["runs"]  # one is kept
    assert second["run"] != first["run"]
    assert first["run"] not in project.on_host("ls by-itself/runs")
    assert "by itself: *:*:0/20, next " in project.invoke("train.status", code=0)
    # What it made is released by whoever has the keys: its files come here.
    assert f"run {second['run']}" in project.invoke("train.fetch", "--run", second["run"])
    made = project.root / "runs" / second["run"] / "artefacts/models/m.json"
    assert json.loads(made.read_text())["read"] == "v2"


def test_of_root_its_timers_are_the_systems(hosts: Hosts, project: Project) -> None:
    project.document["hosts"]["h800"] |= {"user": "root", "work_dir": ROOTS, "scope": "system"}
    project.document["train"]["schedule_bars"] = "/srv/synced"
    project.when(OFTEN)
    hosts.h800.exec("sh", "-c", f"mkdir -p /srv/synced/data/klines; echo v1 > /srv/synced/{KLINES}")
    assert "timer    next" in project.invoke("train.schedule")
    timer = project.scheduled()["timer"]
    assert (timer["scope"], timer["runs"]) == ("system", True)
    listed = hosts.h800.exec("systemctl", "list-timers", "--all", "--plain", "--no-legend")
    assert timer["unit"] in listed
    until(lambda: any("is DONE" in text for text in project.messages()), project)
    (run,) = project.scheduled()["runs"]
    assert run["run"] in hosts.h800.exec("ls", f"{ROOTS}/runs")
    assert "took the schedule" in project.invoke("train.schedule", "--remove")
    assert "macd-train" not in hosts.h800.exec("systemctl", "list-unit-files", "--plain")
    hosts.h800.exec("rm", "-r", ROOTS, "/srv/synced")


def test_by_hand_and_gone(hosts: Hosts, project: Project) -> None:
    project.when("Sun 25:00")
    assert "no time that this host's systemd takes" in project.invoke("train.schedule", code=1)
    assert project.scheduled() == {}
    project.when(NEVER)
    project.bring("v1")
    project.invoke("train.schedule")
    project.invoke("train.schedule", "--now")
    # Its second timer reports: what it wakes is started here in its place.
    until(lambda: project.scheduled()["runs"], project)
    unit = project.scheduled()["timer"]["unit"].replace(".timer", "-report")
    until(
        lambda: "DONE" in project.on_host("cat by-itself/runs/*/result.json | tr a-z A-Z"), project
    )
    project.on_host(f"systemctl --user start {unit}.service")
    assert any("is DONE" in text for text in project.messages())
    assert "took the schedule" in project.invoke("train.schedule", "--remove")
    assert "macd-train" not in project.on_host("systemctl --user list-unit-files --all")
    assert "nothing is scheduled" in project.invoke("train.schedule", "--show")
    assert project.on_host("ls by-itself/runs").split()
