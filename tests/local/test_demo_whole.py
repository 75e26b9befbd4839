"""`invoke demo` as a newcomer types it: in a fresh copy, with nobody there to answer.

Minutes long, so only in `make test-full`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from macd.cli import demo
from tests.support import commands, wheels
from tests.support.training_run import ROOT

# What git ignores, and what no user's clone needs.
NOT_IN_A_CLONE = shutil.ignore_patterns(
    ".git", ".venv", ".lab", ".macd", "runs", "releases", "__pycache__", ".*_cache", "*.egg-info"
)
LIMIT_S = 1800  # about 3 minutes where the machine is not busy with others


@pytest.mark.full
@pytest.mark.timeout(LIMIT_S + 60)
def test_the_whole_story_is_told_to_its_end(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=NOT_IN_A_CLONE)
    (clone / "releases").mkdir()
    wheels.share(clone / ".macd/lab")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    env = {**kept, "CI": "true", "PYTHONPATH": str(clone), "MACD_INVENTORY": "production",
           "ML_STACKING_MIN_SAMPLES": "1000000"}  # fmt: skip
    done = commands.run(
        clone, "demo", env=env, stderr=subprocess.STDOUT, timeout=LIMIT_S, real=True
    )
    told = done.stdout
    assert done.returncode == 0, told[-6000:]
    typed = [line.removeprefix("$ ") for line in told.splitlines() if line.startswith("$ ")]
    steps = (*demo.STORY, demo.LAST)
    assert typed == [step.script or shlex.join(["invoke", *step.argv]) for step in steps]
    _, found, last_words = told.rpartition("✓ the demo finished in ")
    assert found
    assert "minutes\n\nwhere to look\n" in last_words
    listed, _, worth = last_words.split("where to look\n")[1].partition("\n\n")
    assert worth.startswith("Stacking beside the plain mean of the models at ")
    places = dict(line.strip().rsplit(maxsplit=1) for line in listed.splitlines())
    wanted = [
        "training report",
        "card of what is live",
        "gate report",
        "journal",
        "the lab's hosts",
    ]
    assert list(places) == wanted
    assert all((clone / place).exists() for place in places.values())
    assert "Traceback" not in told
    after = commands.run(clone, "lab.status", env=env, real=True)
    assert "the lab isn't running" in after.stdout
