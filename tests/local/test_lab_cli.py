"""`invoke lab.*` as a newcomer types them: what is printed, what machines get, how errors look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macd import lab as lab_room

PROGRAM = """
from invoke import Collection, Program
from macd.cli import lab
tasks = Collection(lab=Collection(lab.up, lab.down, lab.status, lab.fault))
Program(namespace=tasks, name="invoke").run()
"""
Invoke = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def invoke(tmp_path: Path) -> Iterator[Invoke]:
    """Types an invoke command in a clone of its own."""
    (tmp_path / "tasks.py").write_text("")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *words],
            env={**os.environ, "MACD_ROOT": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    yield run
    lab_room.down(tmp_path)


def test_a_newcomers_walk_through(invoke: Invoke, tmp_path: Path) -> None:
    assert "invoke lab.up" in invoke("lab.status").stdout
    came_up = invoke("lab.up")
    assert came_up.returncode == 0, came_up.stderr
    for word in ("the lab is up", "quant", "only through jump", "ssh -F .lab/ssh_config lab-h800"):
        assert word in came_up.stdout
    assert "running already" in invoke("lab.up").stdout
    state = json.loads(invoke("lab.status", "--json").stdout)
    assert state["running"]
    assert state["hosts"]["h800"]["port"] is None
    spoilt = invoke("lab.fault", "--host", "h800", "--rtt-ms", "20", "--mbit", "100")
    assert "+20 ms, 100 Mbit/s" in spoilt.stdout
    assert lab_room.status(tmp_path).hosts["h800"].fault == lab_room.Fault(rtt_ms=20, mbit=100)
    assert invoke("lab.fault", "--host", "h800", "--clear").returncode == 0
    assert lab_room.status(tmp_path).hosts["h800"].fault == lab_room.Fault()
    assert "would end: the lab" in invoke("lab.down", "--dry-run").stdout
    assert lab_room.status(tmp_path).running
    went = invoke("lab.down", "--wipe")
    assert "the lab is down" in went.stdout
    assert not (tmp_path / ".lab").exists()
    assert "wasn't running" in invoke("lab.down").stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("lab.fault", "--rtt-ms", "20"), 1, "do: invoke lab.up"),
        (("lab.fault",), 2, "say which fault, or --clear"),
        (("lab.fault", "--clear", "--stall"), 2, "say which fault, or --clear"),
        (("lab.fault", "--host", "h8000", "--stall"), 2, "its hosts are jump, h800, prod"),
        (("lab.fault", "--rtt-ms", "-5"), 2, "rtt_ms is -5.0"),
    ],
)
def test_mistakes_are_one_message(
    invoke: Invoke, words: tuple[str, ...], code: int, told: str
) -> None:
    done = invoke(*words)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
