"""An application of a team's own on two hosts: waves, a host that fails, back, judged together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from macd.lab import LabState
from tests.support import their_app
from tests.support.lab_project import Project

NAME = "own-wave"
# What is wrong with a host, its .env says: the serial that it can't run.
ENGINE = b"""
import os, runpy, sys
if os.environ.get("BREAKS") == open("SERIAL").read():
    sys.exit("no such GPU on this host")
sys.argv = ["live_runner.py"]
runpy.run_path("live_runner.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Two:
    """Hosts b (first) and prod. homes: their application directories."""

    made: Project
    homes: dict[str, Path]

    def release(self, serial: int) -> str:
        more = {"source/engine.py": ENGINE}
        return their_app.release(self.made.inventory, serial, more=more)

    def set(self, **serials: str) -> None:
        """BREAKS of each host, by its name: which one it can't run."""
        for host, home in self.homes.items():
            ports = "HEALTH_PORT=0\nWEB_PORT=0\nML_ENABLE_STACKING=0\n"  # any that is free
            (home / ".env").write_text(f"{ports}BREAKS={serials.get(host, '')}\n")

    @property
    def live(self) -> list[str | None]:
        return [host["live"] for host in self.made.json("status")["hosts"]]


@pytest.fixture(scope="module")
def two(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    root = tmp_path_factory.mktemp("own") / "macd"
    ready = {"log": "first signal"}
    page = {"command": "python3 web.py of-own-wave", "ready": {"running": 0.2}}
    change = {"serve__command": "python3 engine.py", "serve__ready": ready}
    made = their_app.project(lab, root, NAME, **change, serve__more={"page": page})
    path = root / "inventory/lab.yml"
    document = yaml.safe_load(path.read_text())
    document["app"]["serve"]["env"] = {}
    prod = document["hosts"].pop("prod")
    document["hosts"]["b"] = {**prod, "app_dir": f"~/{NAME}-b", "unit": f"{NAME}-b"}
    document["hosts"]["prod"] = prod
    document["gate"] = {**document.get("gate", {}), "min_bars": 3}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    home = lab.hosts["prod"].home
    yield Two(made, {"b": home / f"{NAME}-b", "prod": home / NAME})
    for unit in (home / ".config/systemd/user").glob(f"{NAME}*.service"):
        unit.unlink()


def test_waves_a_host_that_fails_and_back(two: Two) -> None:
    made = two.made
    made.invoke("provision", "--yes")
    two.set()
    first = two.release(1)
    said = made.invoke("deploy", "--yes", "--wave", "1,100%")
    assert f"✓ b: {first} is live" in said
    assert f"✓ prod: {first} is live" in said
    assert made.invoke("status").count("✓ from this release, and ready") == 4

    # The first host fails: the other one is not touched.
    two.set(b="2")
    two.release(2)
    said = made.invoke("deploy", "--yes", "--wave", "1,100%", code=4)
    assert "no such GPU on this host" in said
    assert "prod: untouched" in said
    assert two.live == [first, first]

    # The last one fails: it goes back by itself, the first one keeps what it proved.
    two.set(prod="3")
    third = two.release(3)
    told = made.json("deploy", "--yes", "--wave", "1,100%", code=4)
    assert [(one["host"], one["live"]) for one in told["outcomes"]] == [
        ("b", third),
        ("prod", first),
    ]
    assert two.live == [third, first]
    told = made.json("rollback", "--yes")
    assert [one["host"] for one in told["outcomes"]] == ["b"]
    assert told["untouched"] == ["prod"]  # nobody brought it anything since
    assert two.live == [first, first]
    assert made.invoke("status").count("✓ from this release, and ready") == 4


def test_they_are_judged_together(two: Two) -> None:
    """PASS needs both; one whose lines are gone says nothing."""
    made, until = two.made, time.monotonic() + 180
    while True:
        with made.start("shadow-gate", "--json") as typed:
            document = json.loads(typed.communicate(timeout=240)[0])
        assert document["verdict"] != "FAIL", document
        if document["verdict"] == "PASS" or time.monotonic() > until:
            break
    assert document["verdict"] == "PASS", document
    assert [host["verdict"] for host in document["hosts"]] == ["PASS", "PASS"]
    for log in (two.homes["b"] / "logs/live").glob("trade_*.jsonl"):
        log.unlink()
    document = made.json("shadow-gate", code=3)
    assert [host["verdict"] for host in document["hosts"]] == ["INCONCLUSIVE", "PASS"]
