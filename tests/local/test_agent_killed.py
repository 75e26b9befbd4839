"""The agent behind the SSH channel killed (SIGKILL) at every call: as it is taken, as it is done.

After each kill: the client ended knowing how it went, or with 5 and one message; the host ends what
had begun, the old or the new release is whole and serves, and the next deploy works.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from macd.lab import LabState
from tests.local.test_client_killed import host_of
from tests.support.kills.agent_kills import sweep
from tests.support.lab_project import Project

pytestmark = pytest.mark.timeout(1200)
# Prime to the two kills a call has: both kinds come up. All of them in `make test-full`.
EVERY = pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.full)])


def ready(lab: LabState, root: Path, name: str) -> tuple[Project, itertools.count[int]]:
    bench = host_of(lab, root, name)
    serials = itertools.count(1)
    bench.release(next(serials))
    bench.invoke("deploy", "--yes")
    return bench, serials


@EVERY
def test_deploys(lab: LabState, tmp_path: Path, step: int) -> None:
    bench, serials = ready(lab, tmp_path / "p", f"agent-next-{step}")

    def trial(_: int) -> tuple[Sequence[str], str | None, str]:
        return ("deploy", "--yes"), bench.live, bench.release(next(serials))

    def after(new: str) -> None:
        wanted = new if bench.live != new else bench.release(next(serials))
        bench.invoke("deploy", "--yes")
        assert bench.live == wanted

    sweep(bench, "deploy, its agent", step, 1, trial, after)


@EVERY
def test_rollbacks(lab: LabState, tmp_path: Path, step: int) -> None:
    bench, serials = ready(lab, tmp_path / "p", f"agent-back-{step}")

    def trial(_: int) -> tuple[Sequence[str], str | None, str]:
        old = str(bench.live)
        new = bench.release(next(serials))
        bench.invoke("deploy", "--yes")
        return ("rollback", "--yes"), new, old

    def after(_: str) -> None:
        wanted = bench.release(next(serials))
        bench.invoke("deploy", "--yes")
        assert bench.live == wanted

    sweep(bench, "rollback, its agent", step, 0, trial, after)
