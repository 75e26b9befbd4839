"""`invoke train` of an application of the team's own, on the lab's h800: theirs, and small ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from macd import lab as lab_room
from macd.lab import LabState
from tests.support import commands, their_app
from tests.support.job_fakes import TASKS, invoke, records, soon
from tests.support.lab_project import Project


@pytest.fixture(scope="module")
def theirs(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = their_app.project(lab, tmp_path_factory.mktemp("own") / "project", "own-train")
    (project.root / "tasks.py").write_text(TASKS)
    return project


def there(project: Project, run: str = "") -> Path:
    """The runs on the lab's h800, seen from outside."""
    work = project.inventory.host("h800").work_dir.removeprefix("~/")
    return project.lab.hosts["h800"].home / work / "runs" / run


def test_their_training_comes_home(theirs: Project) -> None:
    dry = invoke(theirs.root, "train", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "would run  lstm: python3 train_gpu.py --mode lstm --tf 1h" in dry.stdout
    made = invoke(theirs.root, "train", "--host", "h800")
    assert made.returncode == 0, made.stderr + made.stdout
    for said in ("✓ source ", "✓ data ", "✓ stages ", "✓ sync ", "lstm_val_auc >= 0.55"):
        assert said in made.stdout
    assert "ml-signals has none: a page of figures" in made.stdout
    run = re.findall(r"started +run (\S+)", made.stdout)[0]
    folder = theirs.root / "runs" / run
    result = json.loads((folder / "result.json").read_text())
    assert result["complete"]
    names = {path.name for path in (folder / "artefacts/data/ml_models").iterdir()}
    assert {"lstm_1h.onnx", "lstm_1h_meta.json", "lgb_1h.txt"} <= names
    assert "val_auc=" in (folder / "logs/lstm.log").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())["own"]
    assert 0.5 < metrics["lstm_val_auc"] < 1
    [began] = [f for f in records(theirs.root, "train.started") if f["run"] == run]
    [ended] = [f for f in records(theirs.root, "train.finished") if f["run"] == run]
    assert (began["own"], began["symbol"], len(began["commit"])) == ("ml-signals", "ETHUSDT", 40)
    assert ended["metrics"] == metrics
    again = json.loads(invoke(theirs.root, "train", "--dry-run", "--json").stdout)
    assert again["bytes_to_send"] == 0
    one = invoke(theirs.root, "train", "--mode", "verify", "--json")
    assert json.loads(one.stdout)["result"]["complete"] is False, one.stderr


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("--profile", "demo"), "--profile means nothing to ml-signals"),
        (("--seed", "3", "--panel", "A"), "--panel, --seed means nothing"),
        (("--mode", "tft"), "one of train.stages: verify, lgb, lstm"),
        (("--symbol", "eth/usdt"), "no symbol"),
    ],
)
def test_options_of_the_other_application_are_refused(
    theirs: Project, argv: tuple[str, ...], word: str
) -> None:
    refused = invoke(theirs.root, "train", *argv)
    assert refused.returncode == 2
    assert word in refused.stderr


@pytest.fixture
def small(theirs: Project, clean_links: LabState) -> Project:
    """The same project with one script and one artefact."""
    return theirs


def configured(project: Project, script: str, **train: Any) -> None:
    """Make one stage, go.py, of the project's application; it leaves models/m.json."""
    source = project.root / "small"
    if not source.exists():
        source.mkdir()
        their_app.git(source, "init", "-q", "-b", "main")
    (source / "go.py").write_text(script)
    their_app.git(source, "add", "-A")
    path = project.inventory.path
    document = yaml.safe_load(path.read_text())
    document["app"]["source"] = "../small"
    document["app"]["train"] = {
        "stages": {"go": "python3 go.py"},
        "artefacts": ["models/*.json"],
        "metrics": {"auc": "models/m.json#/auc"},
        **train,
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))


WAITS = """
import json, os, time
for n in range(5):
    print("epoch", n, flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
json.dump({"auc": 0.61}, open("models/m.json", "w"))
"""


def test_a_lost_link_is_news_and_attach_brings_the_rest(small: Project) -> None:
    configured(small, WAITS)
    with commands.start(
        small.root,
        "train",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "epoch 4" in line:  # what a stage prints is seen here
                lab_room.kill_host(small.lab.root, "jump")
            if "LOST CONTACT" in line:
                process.send_signal(signal.SIGKILL)
    lab_room.revive_host(small.lab.root, "jump")
    run = re.findall(r"started +run (\S+)", said)[0]
    (there(small, run) / "source/go").touch()
    attached = invoke(small.root, "train.attach", "--run", run)
    assert attached.returncode == 0, attached.stderr
    assert "auc: 0.61" in attached.stdout
    assert (small.root / "runs" / run / "artefacts/models/m.json").exists()


def test_a_failed_stage_is_shown_with_its_last_lines(small: Project) -> None:
    configured(small, "print('loading klines'); import no_such_module_of_theirs")
    failed = invoke(small.root, "train")
    assert failed.returncode == 1
    assert "FAILED in stage go: stage go failed: exit code 1" in failed.stderr
    assert "loading klines" in failed.stderr
    assert "lacks no_such_module_of_theirs" in failed.stderr
    configured(small, "print('forgot to save')")
    failed = invoke(small.root, "train")
    assert "left no artefact models/*.json" in failed.stderr
    assert "forgot to save" in failed.stderr
    [folder] = (small.root / "runs").glob(re.findall(r"run (\S+);", failed.stderr)[0] + ".failed")
    assert "forgot to save" in (folder / "logs/go.log").read_text()


def test_cancel_ends_all_and_a_killed_runner_is_named(small: Project) -> None:
    configured(small, WAITS)
    first = json.loads(invoke(small.root, "train", "--detach", "--json").stdout)["run"]
    soon((there(small, first) / "logs/go.log").exists)
    second = invoke(small.root, "train")
    assert second.returncode == 6
    assert first in second.stderr
    cancelled = invoke(small.root, "train.cancel", "--run", first, "--yes")
    assert cancelled.stdout.startswith("CANCELLED")
    third = json.loads(invoke(small.root, "train", "--detach", "--json").stdout)["run"]
    runner = json.loads((there(small, third) / "process.json").read_text())["runner"]["pid"]
    os.kill(runner, signal.SIGKILL)
    over = invoke(small.root, "train.attach", "--run", third)
    assert over.returncode == 1
    assert "its runner was killed" in over.stderr
    assert "from its first stage" in over.stderr


def test_what_cannot_work_is_refused_before_anything_is_sent(small: Project) -> None:
    configured(small, WAITS, data=["data/klines"], setup="gpu.txt")
    source = small.root / "small"
    (source / "gpu.txt").write_text("-e .\n")
    refused = invoke(small.root, "train")
    assert refused.returncode == 1
    assert "nothing is at data/klines" in refused.stderr
    assert "gpu.txt is not among the files that are sent" in refused.stderr
    their_app.git(source, "add", "gpu.txt")
    their_app.git(source, "rm", "-q", "--cached", "go.py")
    refused = invoke(small.root, "train")
    assert "gpu.txt: -e ." in refused.stderr
    assert "go runs go.py: git doesn't track it" in refused.stderr
    assert "nothing was sent or started" in refused.stderr


def test_secrets_among_variables_are_not_printed(small: Project) -> None:
    configured(small, WAITS, env={"API_TOKEN": "s3cr3t"})
    shown = invoke(small.root, "train", "--dry-run", "--json")
    assert json.loads(shown.stdout)["request"]["env"].keys() == {"API_TOKEN"}
    assert "s3cr3t" not in shown.stdout + shown.stderr
