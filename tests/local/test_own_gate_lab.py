"""Gate, flag, guard and logs of an application of a team's own, as typed on the lab."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from macd.inventory import load
from macd.journal import Journal
from macd.lab import LabState
from tests.support import commands, their_app
from tests.support.lab_project import Project

NAME = "own-gate"


@pytest.fixture(scope="module")
def theirs(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Their engine is live, and writes a bar a second; a few bars are evidence enough."""
    project = their_app.project(lab, tmp_path_factory.mktemp("own") / "project", NAME)
    edited(project, gate={"min_bars": 6}, guard={"every_hours": 0.0003, "for_hours": 1})
    project = Project(project.root, lab, load("lab", root=project.root))
    their_app.release(project.inventory, 1)
    done(project, "provision", "--yes")
    done(project, "deploy", "--yes")
    yield project
    commands.run(project.root, "disable-stacking", "--env", "prod", "--yes")
    systemctl = ["systemctl", "--user", "disable", "--now", f"{NAME}.service"]
    subprocess.run(["ssh", "-F", lab.ssh_config, "lab-prod", " ".join(systemctl)], check=False)


def edited(project: Project, **sections: Any) -> None:
    path = project.root / "inventory/lab.yml"
    document = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        document[name] = {**(document.get(name) or {}), **values}
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def typed(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    env = () if "audit" in words or "--env" in words else ("--env", "prod")
    return commands.run(project.root, *words, *env)


def done(project: Project, *words: str, code: int = 0) -> str:
    ended = typed(project, *words)
    if ended.returncode != code:
        pytest.fail(f"{words} ended with {ended.returncode}: {ended.stdout}{ended.stderr}")
    return ended.stdout + ended.stderr


def soon(look: Callable[[], Any], seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


def live(project: Project) -> Path:
    return project.lab.hosts["prod"].home / NAME


def test_logs_are_readable_and_followed(theirs: Project) -> None:
    soon(lambda: list((live(theirs) / "logs/live").glob("trade_*.jsonl")))
    said = soon(lambda: done(theirs, "logs", "--lines", "1").strip())
    assert re.match(r"20\d\d-\S+ \S+Z SIGNAL ETHUSDT bar \S+ \S+ .*coverage=0\.\d+", said), said
    raw = json.loads(done(theirs, "logs", "--lines", "1", "--json"))["lines"]
    assert json.loads(raw[0])["level"] == "SIGNAL"
    words = ("logs", "--env", "prod", "--follow", "--lines", "0")
    with commands.start(
        theirs.root, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as followed:
        assert followed.stdout is not None
        assert "SIGNAL" in followed.stdout.readline()
        followed.send_signal(signal.SIGINT)
        followed.communicate(timeout=240)
    assert followed.returncode == 0
    journal = done(theirs, "logs", "--unit", "all")
    assert f"{NAME}: first signal" in journal
    assert "--unit nothing" in done(theirs, "logs", "--unit", "nothing", code=2)


def test_gate_flag_and_guard(theirs: Project) -> None:
    def passed() -> dict[str, Any] | None:
        ended = typed(theirs, "shadow-gate", "--json")
        document: dict[str, Any] = json.loads(ended.stdout)
        assert document["verdict"] != "FAIL", document["reasons"]
        return document if ended.returncode == 0 else None

    document = soon(passed)
    assert document["blockers"] == []
    assert document["flags"] == {"ML_ENABLE_STACKING": "0"}
    names = [row["name"] for row in document["criteria"]]
    assert names == [
        "ml_coverage", "stacking_activation", "tft_normal", "lstm_normal", "lgb_normal",
    ]  # fmt: skip
    assert "golden predictions" in document["meaning"]
    assert document["logs"][0]["name"].startswith("logs/live/trade_")
    assert "not judged" in Path(document["page"]).read_text().lower()
    shown = done(theirs, "shadow-gate")
    assert "not judged: golden predictions" in " ".join(shown.split())
    assert done(theirs, "shadow-gate", "--skill", "worse", code=2)

    assert "knows no weights" in done(theirs, "enable-stacking", "--weight", "25", "--yes", code=6)
    assert "the models decide;" in done(theirs, "enable-stacking", "--yes")
    assert (live(theirs) / ".env").read_text().count("ML_ENABLE_STACKING=1") == 1
    assert "no gate report" not in done(theirs, "status")
    order = soon(lambda: json.loads(done(theirs, "monitor", "--json"))["reports"])
    assert order[0]["verdict"] in ("PASS", "INCONCLUSIVE")
    told = done(theirs, "monitor", "--once")
    assert "watching" in told and "the models decide" in told

    # A failure of the models is found by the guard, and the operator is told.
    log = max((live(theirs) / "logs/live").glob("trade_*.jsonl"))
    text = {"timestamp": time.time(), "level": "CRITICAL", "message": "models: none loads"}
    with log.open("a") as file:
        file.write(json.dumps(text) + "\n")
    state = soon(lambda: json.loads(typed(theirs, "monitor", "--json").stdout)["state"] == "failed")
    assert state
    said = done(theirs, "monitor", "--once", code=4)
    assert "severe error: models: none loads" in said
    assert "ML_ENABLE_STACKING=0" in (live(theirs) / ".env").read_text()
    assert "already" in done(theirs, "disable-stacking", "--yes")
    kinds = [
        record.kind for record in Journal(theirs.inventory.state_dir / "journal.jsonl").records()
    ]
    assert {"gate.judged", "flag.enable", "guard.ended"} <= set(kinds)


def test_files_are_judged_too_and_allow_nothing(theirs: Project) -> None:
    copy = theirs.inventory.state_dir / "logs/prod/own/logs/live"
    soon(lambda: list(copy.glob("trade_*.jsonl")) if done(theirs, "logs") else None)
    ended = typed(theirs, "shadow-gate", "--logs", str(copy), "--json")
    document = json.loads(ended.stdout)
    assert document["source"] == "files"
    assert "local files were analysed" in document["blockers"][0]


def test_what_does_not_exist_is_refused_in_words(theirs: Project) -> None:
    assert "there is no audit of ml-signals" in done(theirs, "audit", code=6)
    assert "built-in application" in done(theirs, "logs", "--parquet", "x", code=2)


def test_without_signals_and_flag_each_verb_says_so(theirs: Project) -> None:
    path = theirs.root / "inventory/lab.yml"
    text = path.read_text()
    document = yaml.safe_load(text)
    del document["app"]["signals"], document["app"]["flag"]
    path.write_text(yaml.safe_dump(document))
    try:
        assert "app.signals is not set" in done(theirs, "shadow-gate", code=2)
        for verb in ("enable-stacking", "disable-stacking"):
            assert "has no flag" in done(theirs, verb, "--yes", code=6)
        assert f"{NAME}: " in done(theirs, "logs", "--lines", "3")
    finally:
        path.write_text(text)
