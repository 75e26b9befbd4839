"""Ctrl-C in a terminal at several moments of a command: one line, 130, and the next one works."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from macd.inventory import project_root
from macd.lab import LabState
from tests.support import signal_lines, their_app
from tests.support.kills.kill_cases import CLIENT
from tests.support.lab_project import Project, project
from tests.support.training_run import SMALLEST

pytestmark = pytest.mark.timeout(900)
INIT = "--prod lab-prod --yes --name later --ssh-config {ssh} --keys {root}/keys --source {root}/x"
# What is typed, where Ctrl-C is pressed (after a call, by name or number, or at a
# question), and the exit code of the next try.
CASES = {
    "provision": ("--yes", ["deploy_facts", "provision"], 0),
    "doctor": ("", ["deploy_facts", "checkup"], 0),
    "logs": ("", ["log_files", "log_hashes"], 0),
    "shadow-gate": ("", ["log_files", "gate_note"], 0),
    "enable-stacking": ("--yes", ["deploy_facts", "gate_newest"], 0),
    "audit": ("", ["deploy_facts"], 3),  # the release here can't be asked
    "train.schedule": ("--settings tiny.json", ["1", "2", "3"], 0),
    "init": (INIT, ["1"], 0),
    "host.trust": ("prod --inventory fresh", ["pin this key?"], 1),  # nobody there to say yes
}


@pytest.fixture(scope="module")
def place(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a release that is live, lines that pass the gate, and a schedule."""
    made = project(lab, tmp_path_factory.mktemp("ctrl-c") / "p", "ctrl-c")
    shutil.copy(project_root() / "tasks.py", made.root / "tasks.py")
    (made.root / "data").symlink_to(project_root() / "data")
    (made.root / "tiny.json").write_text(json.dumps(SMALLEST))
    their_app.repository(made.root / "x", models=True)
    path = made.root / "inventory/lab.yml"
    schedule = 'train:\n  schedule: "Sun 03:00"\n  schedule_bars: ~/new\n'
    text = path.read_text().replace("\ntrain:\n", f"\n{schedule}", 1)
    path.write_text(text)
    fresh = text.replace("../.lab/known_hosts", "fresh_known_hosts")
    path.with_name("fresh.yml").write_text(fresh)
    made.invoke("provision", "--yes")
    made.release(1)
    made.invoke("deploy", "--yes")
    lines = signal_lines.lines(30, release=made.live, end=datetime.now(UTC))
    signal_lines.write(made.app / "data/live", lines)
    made.invoke("shadow-gate")  # enable-stacking takes it for evidence
    return made


def pressed(place: Project, words: Sequence[str], at: str) -> None:
    """Type it in a terminal, and press Ctrl-C there after a call or at a question."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "MACD_ROOT": str(place.root), "CTRL_C_AT": at}
    with subprocess.Popen(
        ["setsid", "--ctty", sys.executable, str(CLIENT), *words],
        cwd=place.root,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as typed:
        os.close(theirs)
        try:
            said = _until_its_end(ours, at)
            code = typed.wait(60)
        finally:
            typed.kill()
    os.close(ours)
    assert code == 130, said
    assert said.count("\ninterrupted: ") == 1, said
    assert "Traceback" not in said
    assert "✗" not in said


def _until_its_end(terminal: int, at: str) -> str:
    said = ""
    while chunk := _read(terminal, said):
        said += chunk.decode().replace("\r", "")
        if "?" in at and at in said:
            os.write(terminal, b"\x03")
            at = "asked"
    return said


def _read(terminal: int, said: str) -> bytes:
    if not select.select([terminal], [], [], 120)[0]:
        pytest.fail(f"it goes on without a word after {said!r}")
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("verb", CASES)
def test_a_command_ends_at_once_and_the_next_one_works(place: Project, verb: str) -> None:
    options, points, code = CASES[verb]
    words = [verb, *options.format(ssh=place.lab.ssh_config, root=place.root).split()]
    for at in points:
        pressed(place, words, at)
    place.invoke(*words, code=code)
