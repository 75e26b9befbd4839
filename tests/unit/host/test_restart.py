"""Which process proves a release: the one that the restart started, and no other."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from macd.host.deploy.health import Prover
from macd.host.systemd.supervisor import Process

BEFORE = Process("active", "running", 10, "a", 0, "success", "", "")


class Systemd:
    """Starts what crashed by itself, and then does the restart that it was asked for."""

    def __init__(self) -> None:
        by_itself = replace(BEFORE, pid=11, invocation="b")
        self.to_show = [BEFORE, by_itself, by_itself, replace(BEFORE, pid=12, invocation="c")]

    def show(self, unit: str) -> Process:
        return self.to_show.pop(0)

    def restart(self, unit: str, sockets: list[str]) -> Any:
        return SimpleNamespace(poll=lambda: None if len(self.to_show) > 1 else 0)


class Well(Prover):
    def asked(self, *_: object) -> tuple[str, bool]:
        return "", True


def test_a_process_that_the_restart_ends_proves_nothing() -> None:
    systemd: Any = Systemd()
    restart = Well(systemd, "x.service").begin("r", "0", [])
    assert restart.proved() is None
    assert "has not ended the restart" in str(restart.late(30))
    assert restart.proved() is None  # it ends in this very moment, after it was shown
    proved = restart.proved()
    assert proved is not None
    assert proved.pid == 12
