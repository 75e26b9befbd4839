"""The verbs over an environment of several hosts on the embedded lab, one of them away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.flag import guard_config
from macd.journal import Journal
from macd.lab import LabState
from tests.support import signal_lines
from tests.support.lab_project import Project, project

TASKS = """
from invoke import Collection
from macd.cli import deploy, doctor, flag, gate, history, logs, monitor, provision, status, usage
usage.install()
namespace = Collection(
    deploy.deploy, provision.provision, gate.shadow_gate, status.status, status.why,
    flag.enable_stacking, flag.disable_stacking, doctor.doctor, monitor.monitor,
    logs.logs, history.history,
)
"""
OTHER = "{role: serve, env: prod, ssh: lab-prod, app_dir: ~/verbs-b, unit: verbs-b, scope: user}"
LOST = "{role: serve, env: prod, ssh: 127.0.0.1, port: 1, app_dir: ~/verbs-c, unit: verbs-c}"


@pytest.fixture(scope="module")
def deployed(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """prod and prod-b serve the same release, in two directories of one host."""
    made = project(lab, tmp_path_factory.mktemp("verbs"), "verbs-a")
    (made.root / "tasks.py").write_text(TASKS)
    path = made.root / "inventory" / "lab.yml"
    text = path.read_text()
    path.write_text(text.replace("  prod:\n", f"  prod-b: {OTHER}\n  prod:\n"))
    made.invoke("provision", "--yes")
    made.release(1)
    made.invoke("deploy", "--yes")
    return made


@pytest.fixture
def both(deployed: Project) -> Project:
    """Two hosts with stacking in shadow, no logs and no reports."""
    deployed.invoke("disable-stacking", "--yes")
    for app in apps(deployed).values():
        shutil.rmtree(app / "data/live", ignore_errors=True)
    for kept in ("logs", "gate"):
        shutil.rmtree(deployed.inventory.state_dir / kept, ignore_errors=True)
    return deployed


@contextlib.contextmanager
def lost_host(place: Project) -> Iterator[None]:
    """A third host is in the inventory that nobody can reach."""
    path = place.root / "inventory" / "lab.yml"
    text = path.read_text()
    path.write_text(text.replace("  prod:\n", f"  prod-c: {LOST}\n  prod:\n"))
    yield
    path.write_text(text)


@pytest.fixture
def three(both: Project) -> Iterator[Project]:
    with lost_host(both):
        yield both


def apps(place: Project) -> dict[str, Path]:
    return {"prod-b": place.app.with_name("verbs-b"), "prod": place.app}


def fill(place: Project, host: str, n: int = 30, **more: Any) -> None:
    more.setdefault("end", datetime.now(UTC))
    made = signal_lines.lines(n, release=place.live, **more)
    signal_lines.write(apps(place)[host] / "data/live", made)


def flags(place: Project) -> dict[str, str]:
    told = place.json("status", code=0)["hosts"]
    return {one["host"]: one["flags"]["ML_ENABLE_STACKING"] for one in told}


def names(told: dict[str, Any]) -> tuple[list[str], list[str]]:
    return [one["host"] for one in told["hosts"]], list(told["away"])


def test_who_is_away_hides_nobody(three: Project) -> None:
    for name in ("prod-b", "prod"):
        fill(three, name)
    for words in (("status",), ("why",), ("doctor",), ("history", "--env", "prod"), ("logs",)):
        told = three.json(*words, code=5)
        assert names(told) == (["prod-b", "prod"], ["prod-c"]), words
        assert "refused the connection" in told["away"]["prod-c"]["error"]["what"]
        said = three.invoke(*words, code=5)
        assert re.search(r"^✗ prod-c \(.*\) refused the connection", said, re.MULTILINE), said
        assert re.search(r"^prod\b", said, re.MULTILINE), said
        assert re.search(r"^prod-b\b", said, re.MULTILINE), said


def test_the_gate_judges_each_host_on_its_own_evidence(three: Project) -> None:
    fill(three, "prod")
    fill(three, "prod-b", ml_error="tft: broken")
    told = three.json("shadow-gate", code=1)
    assert told["verdict"] == "FAIL"
    assert names(told) == (["prod-b", "prod"], ["prod-c"])
    assert [one["verdict"] for one in told["hosts"]] == ["FAIL", "PASS"]
    for one in told["hosts"]:
        assert f"/gate/{one['host']}/" in one["path"]
        assert Path(one["path"]).is_file()
        assert one["host"] in Path(one["page"]).read_text()
        assert one["warnings"] == []
        noted = json.loads((apps(three)[one["host"]] / "state/gate/newest").read_text())
        assert noted["verdict"] == one["verdict"]
    records = Journal(three.inventory.state_dir / "journal.jsonl").records()
    assert {(one.kind, one.fields["host"]) for one in records[-2:]} == {
        ("gate.judged", "prod"),
        ("gate.judged", "prod-b"),
    }

    said = three.invoke("shadow-gate", code=1)
    assert "✗ FAIL  prod-b, env prod" in said
    assert "✓ PASS  prod, env prod" in said
    assert "✗ FAIL  env prod: prod-b FAIL, prod PASS, prod-c not judged" in said
    # What one host proves is worth nothing for another, and nothing for an environment.
    told = three.json("enable-stacking", "--yes", code=6)
    assert [one["result"] for one in told["hosts"]] == ["would"]
    assert list(told["away"]) == ["prod-b", "prod-c"]


def test_all_must_pass_and_one_that_is_away_never_does(three: Project) -> None:
    for name in ("prod-b", "prod"):
        fill(three, name)
    told = three.json("shadow-gate", code=3)
    assert told["verdict"] == "INCONCLUSIVE"
    assert [one["verdict"] for one in told["hosts"]] == ["PASS", "PASS"]
    assert three.json("shadow-gate", "--host", "prod")["verdict"] == "PASS"
    said = three.invoke("shadow-gate", "--host", "prod-c", code=1)
    assert "refused the connection" in said


def test_stacking_is_enabled_on_all_or_none_and_disabled_wherever_it_can_be(both: Project) -> None:
    for name in ("prod-b", "prod"):
        fill(both, name)
    assert both.json("shadow-gate")["verdict"] == "PASS"
    fill(both, "prod-b", first_seq=31, ml_error="tft: broken")
    both.json("shadow-gate", "--host", "prod-b", code=1)

    said = both.invoke("enable-stacking", "--yes", code=6)
    assert "stacking was enabled on no host, because of prod-b" in said
    assert "its verdict is FAIL" in said
    assert "invoke enable-stacking --host prod" in said
    assert flags(both) == {"prod-b": "0", "prod": "0"}

    assert both.json("enable-stacking", "--yes", "--host", "prod")["result"] == "set"
    assert flags(both) == {"prod-b": "0", "prod": "1"}
    shutil.rmtree(apps(both)["prod-b"] / "data/live")
    shutil.rmtree(both.inventory.state_dir / "logs/prod-b")
    fill(both, "prod-b")
    both.json("shadow-gate", "--host", "prod-b")
    told = both.json("enable-stacking", "--yes")
    assert [(one["host"], one["result"], one["value"]) for one in told["hosts"]] == [
        ("prod-b", "set", "1"),
        ("prod", "already", "1"),
    ]
    assert told["away"] == {}

    told = both.json("monitor")
    assert names(told) == (["prod-b", "prod"], [])
    assert [one["state"] for one in told["hosts"]] == ["watching", "watching"]
    guard = json.loads((apps(both)["prod-b"] / "state/guard.lock").read_text())["pid"]
    os.kill(guard, signal.SIGKILL)
    order = json.loads((apps(both)["prod-b"] / "state/guard.json").read_text())
    # A guard that young may only be starting: nobody calls it dead yet.
    time.sleep(max(0.0, order["since"] + guard_config._STARTS_S - time.time()))
    said = both.invoke("monitor", "--once", code=1)
    assert "prod   | prod: stacking decides" in said
    assert "prod-b |   ✗ the guard is dead" in said
    assert "prod-b |     do: invoke disable-stacking --host prod-b\n" in said

    with lost_host(both):
        said = both.invoke("enable-stacking", "--yes", code=6)
        assert "prod-c (127.0.0.1:1) refused the connection" in said
        said = both.invoke("disable-stacking", "--yes", code=5)
        assert "✓ prod: stacking is in shadow" in said
        assert "✓ prod-b: stacking is in shadow" in said
        assert "✗ prod-c" in said
        told = both.json("disable-stacking", "--dry-run", code=5)
        assert [one["result"] for one in told["hosts"]] == ["already", "already"]
        assert names(told) == (["prod-b", "prod"], ["prod-c"])


def test_lines_of_all_hosts_are_merged_and_followed(three: Project) -> None:
    end, second = datetime.now(UTC), timedelta(seconds=1)
    fill(three, "prod", 3, end=end, every=2 * second)
    fill(three, "prod-b", 3, end=end - second, every=2 * second)
    said = three.invoke("logs", "--lines", "2", code=5).splitlines()
    shown = [line.partition(" | ")[0].strip() for line in said if " | " in line]
    assert shown == ["prod-b", "prod", "prod-b", "prod"]
    told = three.json("logs", "--lines", "2", code=5)["hosts"]
    assert [[json.loads(line)["seq"] for line in one["lines"]] for one in told] == [[2, 3], [2, 3]]

    with three.start("logs", "--follow", "--lines", "1") as typed:
        assert typed.stdout is not None and typed.stderr is not None
        begin = {typed.stdout.readline().partition(" ")[0] for _ in range(2)}
        assert begin == {"prod", "prod-b"}
        for first in (4, 5):
            for name in ("prod-b", "prod"):
                fill(three, name, 1, first_seq=first)
                head, _, line = typed.stdout.readline().partition(" | ")
                assert (head.strip(), json.loads(line)["seq"]) == (name, first)
        typed.send_signal(signal.SIGINT)
        out, err = typed.communicate(timeout=240)
    assert (out, typed.returncode) == ("", 5)  # as long as it ran, prod-c was away
    assert "✗ prod-c" in err
    assert "interrupted" not in err

    with three.start("logs", "--follow", "--lines", "1", "--json") as typed:
        assert typed.stdout is not None
        begin = {json.loads(typed.stdout.readline())["host"] for _ in range(2)}
        assert begin == {"prod", "prod-b"}
        fill(three, "prod", 1, first_seq=6)
        told = json.loads(typed.stdout.readline())
        assert (told["host"], json.loads(told["line"])["seq"]) == ("prod", 6)
        typed.stdout.close()  # as `| head` does: the next line finds nobody
        fill(three, "prod-b", 1, first_seq=6)
        assert typed.wait(240) == 0
