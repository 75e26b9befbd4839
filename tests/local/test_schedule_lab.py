"""`invoke train.schedule` of the built-in application: its bars, its checks, its comparison.

The lab's hosts have no systemd, so what cron would start is started here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.inventory import load, project_root
from macd.journal import Journal
from macd.lab import LabState
from tests.support import small_releases
from tests.support.job_fakes import SAMPLE, inventory_of, invoke, lay_out, records
from tests.support.openssh import eventually
from tests.support.training_run import SMALLEST, trained_run

LIVE = "20260101T000000Z-live"


@pytest.fixture
def project(lab: LabState, tmp_path: Path) -> Path:
    """A project whose live release came of the tests' shared training."""
    root = lay_out(lab, tmp_path / "project", bars=4000)
    shutil.copy(project_root() / "tasks.py", root / "tasks.py")
    (root / "templates").symlink_to(project_root() / "templates")
    inventory_of(root, "by-itself")
    path = root / "inventory/lab.yml"
    schedule = 'train:\n  schedule: "Sun 03:00"\n  schedule_bars: ~/synced\n'
    path.write_text(path.read_text().replace("\ntrain:\n", f"\n{schedule}", 1))
    (root / "tiny.json").write_text(json.dumps(SMALLEST))
    shutil.copytree(trained_run(), root / "runs" / LIVE)
    inventory = load("lab", root=root)
    small_releases.make_keys(inventory)
    release = small_releases.make(inventory, 1, details={"run": LIVE})
    fields = {"host": "prod", "env": "prod", "release": release, "live": release}
    journal = Journal(inventory.state_dir / "journal.jsonl")
    journal.append("deploy.ended", {**fields, "result": "committed"}, now=datetime.now(UTC))
    return root


@pytest.mark.full
def test_new_bars_are_trained_on_and_compared_with_what_is_live(
    lab: LabState, project: Path
) -> None:
    home = lab.hosts["h800"].home
    (home / "synced").mkdir()
    write_bars(read_bars(project_root() / SAMPLE)[:4100], home / "synced/BTCUSD_1h.parquet")
    put = invoke(
        project, "train.schedule", "--settings", "tiny.json", ML_STACKING_MIN_SAMPLES="100"
    )
    assert put.returncode == 0, put.stderr
    assert "this host has no systemd; as the user that trains: crontab -e, and add" in put.stdout
    assert f"beside   run {LIVE} (release " in put.stdout
    begins, reports = shown(project)["cron"]
    assert begins.startswith("0 3 * * 0 cd ")
    by_cron(home, begins)
    (run,) = shown(project)["runs"]
    ended = home / "by-itself/runs" / run["run"] / "exit.json"
    eventually(ended.exists, within=240)
    assert (
        "by itself: Sun 03:00, next as its crontab says" in invoke(project, "train.status").stdout
    )
    told = records(project, "train.scheduled")[-1]
    assert (told["host"], told["on"], told["beside"]) == ("h800", "Sun 03:00", LIVE)
    by_cron(home, reports)
    (message,) = shown(project)["messages"]
    text = message["text"]
    assert "is DONE" in text, text
    assert "checks passed" in text, text
    assert f"beside {LIVE} (release " in text
    assert "bars the challenger" in text, text
    # Its bars come with it: here they are not known, and its models are proved on them.
    fetched = invoke(project, "train.fetch", "--run", run["run"])
    assert fetched.returncode == 0, fetched.stderr
    checked = invoke(project, "health", "--run", run["run"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert read_bars(project / "runs" / run["run"] / "bars/BTCUSD_1h.parquet").height == 4100


def shown(project: Path) -> dict[str, Any]:
    said = invoke(project, "train.schedule", "--show", "--json").stdout
    return dict(json.loads(said)["schedule"])


def by_cron(home: Path, line: str) -> None:
    """What cron does with a line: five words say when, `\\%` is `%`, a shell gets the rest."""
    command = line.split(None, 5)[5].replace("\\%", "%")
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
