"""`invoke ... | head`: whoever reads may leave early, and nobody sees a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import commands

PROJECT = Path(__file__).parents[3]


def unread(*words: str, tmp: Path, unbuffered: str, both: bool = False) -> tuple[int, str]:
    """Status and stderr of a command whose output nobody reads: a real pipe, closed before."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = commands.run(
            PROJECT,
            *words,
            stdout=writing,
            stderr=writing if both else subprocess.PIPE,
            env=os.environ | {"MACD_ROOT": str(tmp), "PYTHONUNBUFFERED": unbuffered},
            real=words == ("--list",),  # one is the script itself
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [("--list",), ("--help", "deploy"), ("history",), ("history", "--json")],
    ids=" ".join,
)
def test_a_reader_that_left_is_no_failure(
    tmp_path: Path, words: tuple[str, ...], unbuffered: str
) -> None:
    (tmp_path / "inventory").mkdir()
    shutil.copy(PROJECT / "inventory" / "lab.yml", tmp_path / "inventory")
    assert unread(*words, tmp=tmp_path, unbuffered=unbuffered) == (0, "")


def test_a_failure_keeps_its_status(tmp_path: Path) -> None:
    for both in (False, True):  # there is no inventory
        status, _ = unread("facts", "--host", "x", tmp=tmp_path, unbuffered="1", both=both)
        assert status == 2


def test_head_gets_its_line(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{commands.INVOKE} --list | head -1"],
        cwd=PROJECT,
        capture_output=True,
        env=os.environ | {"MACD_ROOT": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        text=True,
        timeout=120,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("Available tasks:\n", "")
