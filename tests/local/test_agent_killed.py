"""The agent behind the SSH channel killed (SIGKILL) at calls: as they are taken, as they are done.

After each kill: the client ended knowing how it went, or with 5 and one message; the host ends what
had begun, the old or the new release is whole and serves, and the next deploy works.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from macd.lab import LabState
from tests.local.test_client_killed import host_of, next_release, own_host_of
from tests.support.kills.agent_kills import EVERY, Point, sweep
from tests.support.lab_project import Project
from tests.support.sweeps import at_points

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def host(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return with_release(host_of(lab, tmp_path_factory.mktemp("agent") / "p", "agent"))


def with_release(bench: Project) -> Project:
    """A release is live on it."""
    next_release(bench)
    bench.invoke("deploy", "--yes")
    return bench


@at_points([("stage", "taken"), ("activate", "done"), ("confirm", "done")], EVERY)
def test_deploys(host: Project, points: Sequence[Point]) -> None:
    deploys(host, points)


@at_points([("activate", "taken")], EVERY)
def test_deploys_of_an_own_application(
    lab: LabState, tmp_path: Path, points: Sequence[Point]
) -> None:
    deploys(with_release(own_host_of(lab, tmp_path / "p", f"agent-own-{len(points)}")), points)


def deploys(bench: Project, points: Sequence[Point]) -> None:
    def trial() -> tuple[Sequence[str], str | None, str]:
        return ("deploy", "--yes"), bench.live, next_release(bench)

    def after(new: str) -> None:
        wanted = new if bench.live != new else next_release(bench)
        bench.invoke("deploy", "--yes")
        assert bench.live == wanted

    sweep(bench, "deploy, its agent", points, trial, after)


@at_points([("lock", "done"), ("activate", "taken"), ("confirm", "taken")], EVERY)
def test_rollbacks(host: Project, points: Sequence[Point]) -> None:
    bench = host
    goes_back_to: list[str] = []

    def deploy() -> None:
        goes_back_to.append(str(bench.live))
        wanted = next_release(bench)
        bench.invoke("deploy", "--yes")
        assert bench.live == wanted

    def trial() -> tuple[Sequence[str], str | None, str]:
        return ("rollback", "--yes"), bench.live, goes_back_to[-1]

    deploy()
    sweep(bench, "rollback, its agent", points, trial, lambda _: deploy())
