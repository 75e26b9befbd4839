"""`invoke logs --follow` over a line that is really cut: each line once, in order, none lost."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from macd import lab as lab_room
from macd.lab import Fault, LabState
from tests.support import signal_lines
from tests.support.lab_project import Project, project

TASKS = """
from invoke import Collection
from macd.cli import logs, provision, usage
usage.install()
namespace = Collection(provision.provision, logs.logs)
"""
RELEASE = "20260301T000000Z-0123abcd"


@pytest.fixture
def place(lab: LabState, tmp_path: Path) -> Project:
    made = project(lab, tmp_path, "reconnect")
    (made.root / "tasks.py").write_text(TASKS)
    made.invoke("provision", "--yes")
    return made


def write(place: Project, first: int, count: int) -> None:
    lines = signal_lines.lines(count, release=RELEASE, end=datetime.now(UTC), first_seq=first)
    signal_lines.write(place.app / "data/live", lines)


def test_a_cut_line_loses_and_repeats_nothing(place: Project, clean_links: LabState) -> None:
    root = clean_links.root
    write(place, 1, 5)
    with place.start("logs", "--follow", "--lines", "1") as typed:
        assert typed.stdout is not None and typed.stderr is not None
        seen = [json.loads(typed.stdout.readline())["seq"]]
        # A cut between lines, one in the middle of an answer, and one that also hits the next try.
        for first, fault in (
            (6, Fault(cut_after=0, cut_on="present")),
            (16, Fault(cut_after=3000, cut_on="present")),
            (26, Fault(cut_after=0, cut_on="present")),
        ):
            lab_room.set_fault(root, "prod", fault)
            if first == 26:
                lab_room.set_fault(root, "prod", Fault(cut_after=2000, cut_on="next"))
            write(place, first, 10)
            for _ in range(10):
                line = typed.stdout.readline()
                assert line, typed.stderr.read()
                seen.append(json.loads(line)["seq"])
        typed.send_signal(signal.SIGINT)
        out, said = typed.communicate(timeout=180)
    assert out == ""
    assert typed.returncode == 0  # Ctrl-C is how it is left
    assert seen == list(range(5, 36))
    assert said.count("trying again") >= 3, said
    assert "interrupted" not in said
