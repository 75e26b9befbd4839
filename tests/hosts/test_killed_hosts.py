"""Either end of a deploy killed (SIGKILL) at its calls, against a real systemd and a real sshd.

The sweeps of tests/local, on the machine that production is like: after each kill the host ends by
itself what had begun, old or new is whole and serves, and the next deploy works.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from macd.inventory import Inventory, load
from tests.hosts.test_deploy_hosts import APP, MORE, Bench, bench
from tests.support import small_releases
from tests.support.kills.agent_kills import EVERY, Point, sweep
from tests.support.kills.kill_cases import KillCases, client_killed_at
from tests.support.sweeps import at_points

__all__ = ["bench"]
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1800)]
SHORT = MORE.replace("soak_s: 1, confirm_s: 120", "soak_s: 0.2, confirm_s: 15")
NAME = "killed"


@dataclass(frozen=True)
class Prod:
    """The real prod, as tests/kills asks of a bench; `release` makes the next one."""

    bench: Bench
    inventory: Inventory
    serials: itertools.count[int] = field(default_factory=lambda: itertools.count(301))

    @property
    def root(self) -> Path:
        return self.bench.hosts.root

    @property
    def live(self) -> str | None:
        told = self.bench.on_prod("sh", "-c", f"readlink {APP}/current || true")
        return told.removeprefix("releases/") or None

    def release(self) -> str:
        return small_releases.make(self.inventory, next(self.serials))

    def deploy(self) -> None:
        self.bench.invoke("deploy", "--yes", inventory=NAME)


@pytest.fixture(scope="module")
def prod(bench: Bench) -> Prod:
    text = (bench.inventory.root / "inventory" / f"{bench.inventory.name}.yml").read_text()
    assert MORE in text
    (bench.inventory.root / "inventory" / f"{NAME}.yml").write_text(text.replace(MORE, SHORT))
    made = Prod(bench, load(NAME, root=bench.inventory.root))
    bench.invoke("provision", "--yes", inventory=NAME)
    made.release()
    made.deploy()
    return made


@at_points(["activate", "confirm"], range(1, 1000))
def test_the_client(prod: Prod, points: Sequence[int | str]) -> None:
    trials = KillCases()
    for point in points:
        old, new = prod.live, prod.release()
        calls = client_killed_at(prod, point, "deploy", "--yes")
        if calls is None:
            break
        trials.check(prod, calls[-1], old, new)
        prod.deploy()
        assert prod.live == new
    trials.tell("deploy, its client, real systemd", min(len(points), 8))


@at_points([("activate", "taken"), ("confirm", "done")], EVERY)
def test_the_agent(prod: Prod, points: Sequence[Point]) -> None:
    def trial() -> tuple[Sequence[str], str | None, str]:
        return ("deploy", "--yes"), prod.live, prod.release()

    def after(new: str) -> None:
        wanted = new if prod.live != new else prod.release()
        prod.deploy()
        assert prod.live == wanted

    sweep(prod, "deploy, its agent, real systemd", points, trial, after)
