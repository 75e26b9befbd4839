"""The client killed (SIGKILL) after calls it sends, up to every one: two deploys and a rollback.

After each: the host ends by itself what had begun, the old or the new release is whole and serves,
the lock is free, and the next command works. Each test prints how many trials of how many held.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.lab import LabState
from tests.support.kills.kill_cases import KillCases, client_killed_at
from tests.support.lab_project import Project, project

pytestmark = pytest.mark.timeout(1200)  # some fifty kills, each followed by what ends it
# A trial takes a quarter of a minute: every fourth call each time, every call in `make test-full`.
EVERY = pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.full)])
LEAST = 8  # lock, recover, facts, activate, follow ..., confirm
TIMES = (
    ("ready_s: 60", "ready_s: 40"),  # only a trial that fails takes as long
    ("soak_s: 1", "soak_s: 0.3"),
    ("confirm_s: 30", "confirm_s: 5"),
)


def host_of(lab: LabState, root: Path, name: str) -> Project:
    """A provisioned host whose windows to confirm are so short that trials are too."""
    made = project(lab, root, name)
    path = made.root / "inventory" / "lab.yml"
    text = path.read_text()
    for old, new in TIMES:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    made.invoke("provision", "--yes")
    return made


@EVERY
def test_the_first_deploy(lab: LabState, tmp_path: Path, step: int) -> None:
    trials = KillCases()
    number, bench = 1, host_of(lab, tmp_path / "0", f"killed-first-{step}-0")
    while True:
        new = bench.release(1)
        calls = client_killed_at(bench, number, "deploy", "--yes")
        if calls is None:
            break
        trials.check(bench, calls[-1], None, new)
        if bench.live is not None:  # the next deploy is the next trial's, or the one here
            bench.invoke("deploy", "--yes")
            bench = host_of(lab, tmp_path / str(number), f"killed-first-{step}-{number}")
        number += step
    assert bench.live == new
    trials.tell("first deploy", LEAST // step)


@EVERY
def test_an_incremental_deploy(lab: LabState, tmp_path: Path, step: int) -> None:
    bench = host_of(lab, tmp_path / "p", f"killed-next-{step}")
    bench.release(1)
    bench.invoke("deploy", "--yes")
    trials = KillCases()
    number = 1
    while True:
        old, new = bench.live, bench.release(number + 1)
        calls = client_killed_at(bench, number, "deploy", "--yes")
        if calls is None:
            break
        trials.check(bench, calls[-1], old, new)
        bench.invoke("deploy", "--yes")
        assert bench.live == new
        number += step
    trials.tell("incremental deploy", LEAST // step)


@EVERY
def test_a_rollback(lab: LabState, tmp_path: Path, step: int) -> None:
    bench = host_of(lab, tmp_path / "p", f"killed-back-{step}")
    other = bench.release(1)
    bench.invoke("deploy", "--yes")
    bench.release(2)
    bench.invoke("deploy", "--yes")
    trials = KillCases()
    number = 1
    while True:
        old = str(bench.live)
        calls = client_killed_at(bench, number, "rollback", "--yes", "--to", other)
        if calls is None:
            break
        trials.check(bench, calls[-1], old, other)
        if bench.live == old:
            bench.invoke("rollback", "--yes", "--to", other)
        assert bench.live == other
        other = old
        number += step
    trials.tell("rollback", LEAST // step)
    bench.release(3)
    bench.invoke("deploy", "--yes")
