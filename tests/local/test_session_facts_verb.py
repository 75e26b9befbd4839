"""`invoke facts` as it is typed, against the lab."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from macd.inventory import project_root
from macd.lab import LabState

TASKS = """
from invoke import Collection
from macd.cli import facts, usage
usage.install()
namespace = Collection(facts.facts)
"""


@pytest.fixture
def project(lab: LabState, tmp_path: Path) -> Path:
    """A project whose inventory is the shipped one, read for the session's lab."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "inventory").mkdir()
    shutil.copy(project_root() / "inventory" / "lab.yml", tmp_path / "inventory")
    (tmp_path / ".lab").symlink_to(lab.root / ".lab")
    return tmp_path


def facts(project: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("invoke")), "facts", *argv],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_host_behind_the_jump_host_is_shown(project: Path, lab: LabState) -> None:
    done = facts(project, "--host", "h800")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["host"].endswith(str(lab.hosts["h800"].home))
    assert "ms against here" in lines["clock"]
    assert "(not there yet)" in done.stdout  # its work directory


def test_json_carries_everything(project: Path) -> None:
    done = facts(project, "--host", "prod", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["host"] == "prod"
    assert told["systemd"]["scope"] == "user"
    assert abs(told["clock"]["offset"]) <= told["clock"]["error"]


def test_a_name_that_is_not_in_the_inventory_ends_with_2(project: Path) -> None:
    done = facts(project, "--host", "nowhere")
    assert done.returncode == 2
    assert "jump, h800, prod" in done.stderr
