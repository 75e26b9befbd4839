"""The client killed (SIGKILL) after calls it sends: two deploys and a rollback.

After each: the host ends by itself what had begun, the old or the new release is whole and serves,
the lock is free, and the next command works. Each test prints how many trials of how many held.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from macd.lab import LabState
from tests.support import their_app
from tests.support.kills.kill_cases import KillCases, client_killed_at, short_wait
from tests.support.lab_project import Project, project
from tests.support.sweeps import at_points

pytestmark = pytest.mark.timeout(1200)  # some fifty kills, each followed by what ends it
LEAST = 8  # lock, recover, facts, activate, follow ..., confirm
EVERY = range(1, 1000)  # a trial takes a quarter of a minute
TIMES = (
    ("soak_s: 1", "soak_s: 0.3"),
    ("confirm_s: 30", "confirm_s: 60"),
)


def host_of(lab: LabState, root: Path, name: str) -> Project:
    """A provisioned host with a short soak; who kills what confirms says so by `short_wait`."""
    return hasty(project(lab, root, name))


def own_host_of(lab: LabState, root: Path, name: str) -> Project:
    """The same of an application of a team's own."""
    return hasty(their_app.project(lab, root, name, **their_app.alone(name)))


def hasty(made: Project) -> Project:
    path = made.root / "inventory" / "lab.yml"
    text = path.read_text()
    for old, new in TIMES:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    made.invoke("provision", "--yes")
    return made


@pytest.fixture(scope="module")
def host(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return host_of(lab, tmp_path_factory.mktemp("killed") / "p", "killed")


@pytest.fixture(scope="module")
def own_host(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return own_host_of(lab, tmp_path_factory.mktemp("killed") / "own", "killed-own")


def next_release(bench: Project) -> str:
    return bench.release(1 + len(list((bench.root / "releases").glob("*/manifest.json"))))


def deployed(bench: Project) -> str:
    """What is live, after a deploy if nothing is."""
    if bench.live is None:
        next_release(bench)
        bench.invoke("deploy", "--yes")
    return str(bench.live)


@at_points(["activate"], EVERY)
def test_the_first_deploy(
    lab: LabState, host: Project, tmp_path: Path, points: Sequence[int | str]
) -> None:
    trials = KillCases()
    bench = host if host.live is None else host_of(lab, tmp_path / "0", "killed-0")
    for at in points:
        new = next_release(bench)
        with short_wait(bench, at):
            calls = client_killed_at(bench, at, "deploy", "--yes")
        if calls is None:
            assert bench.live == new
            break
        trials.check(bench, calls[-1], None, new)
        if bench.live is not None:  # the next deploy is the next trial's, or the one here
            bench.invoke("deploy", "--yes")
            bench = host_of(lab, tmp_path / str(at), f"killed-{at}")
    trials.tell("first deploy", min(len(points), LEAST))


@at_points(["recover", "activate", "confirm"], EVERY)
def test_an_incremental_deploy(host: Project, points: Sequence[int | str]) -> None:
    incremental(host, points)


@at_points(["activate"], EVERY)
def test_an_incremental_deploy_of_an_own_application(
    own_host: Project, points: Sequence[int | str]
) -> None:
    incremental(own_host, points)


def incremental(bench: Project, points: Sequence[int | str]) -> None:
    deployed(bench)
    trials = KillCases()
    for at in points:
        old, new = bench.live, next_release(bench)
        with short_wait(bench, at):
            calls = client_killed_at(bench, at, "deploy", "--yes")
        if calls is None:
            break
        trials.check(bench, calls[-1], old, new)
        bench.invoke("deploy", "--yes")
        assert bench.live == new
    trials.tell("incremental deploy", min(len(points), LEAST))


@at_points(["activate"], EVERY)
def test_a_rollback(host: Project, points: Sequence[int | str]) -> None:
    bench, other = host, deployed(host)
    next_release(bench)
    bench.invoke("deploy", "--yes")
    trials = KillCases()
    for at in points:
        old = str(bench.live)
        with short_wait(bench, at):
            calls = client_killed_at(bench, at, "rollback", "--yes", "--to", other)
        if calls is None:
            break
        trials.check(bench, calls[-1], old, other)
        if bench.live == old:
            bench.invoke("rollback", "--yes", "--to", other)
        assert bench.live == other
        other = old
    trials.tell("rollback", min(len(points), LEAST))
    next_release(bench)
    bench.invoke("deploy", "--yes")
