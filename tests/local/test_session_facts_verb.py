"""`invoke facts` as it is typed, against the lab."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from macd.inventory import project_root
from macd.lab import LabState
from tests.support import commands

TASKS = """
from invoke import Collection
from macd.cli import host, usage
usage.install()
namespace = Collection(host.facts)
"""


@pytest.fixture
def project(lab: LabState, tmp_path: Path) -> Path:
    """A project with the shipped inventory but for a directory, read for the test's lab."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "inventory").mkdir()
    shipped = (project_root() / "inventory" / "lab.yml").read_text()
    text = shipped.replace("work_dir: ~/work/", "work_dir: ~/work/never-used-")
    assert text != shipped  # tests of other files train on this lab
    (tmp_path / "inventory/lab.yml").write_text(text)
    (tmp_path / ".lab").symlink_to(lab.root / ".lab")
    return tmp_path


def facts(
    project: Path, *argv: str, before: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    return commands.run(project, *before, "facts", *argv, env=os.environ | env)


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


CALL = re.compile(r"\S+Z prod \S+: host \d+\.\d+ s, link \d+\.\d+ s, sent \d+ B, received \d+ B")


def test_debug_tells_each_call_on_stderr(project: Path) -> None:
    done = facts(project, "--host", "prod", "--json", before=("--debug",))
    assert json.loads(done.stdout)["host"] == "prod"
    calls = [line for line in done.stderr.splitlines() if CALL.fullmatch(line)]
    assert [line.split()[2] for line in calls] == ["(agent):", "facts:", "ping:"]


def test_a_file_named_by_macd_debug_gets_a_line_for_each_call(project: Path) -> None:
    log = project / "calls.log"
    for _ in range(2):
        done = facts(project, "--host", "prod", MACD_DEBUG=str(log))
        assert (done.returncode, done.stderr) == (0, "")
    lines = log.read_text().splitlines()
    assert len(lines) == 6 and all(map(CALL.fullmatch, lines))


def test_a_file_that_cannot_be_written_is_told(project: Path) -> None:
    done = facts(project, "--host", "prod", MACD_DEBUG=str(project / "none" / "calls.log"))
    assert done.returncode == 2
    assert "MACD_DEBUG names a file that can't be written" in done.stderr
    assert "Traceback" not in done.stderr
