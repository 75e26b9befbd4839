"""Which process proves a release: the one that the restart started, and no other."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from macd.host.deploy.health import Prover, UnhealthyError
from macd.host.systemd.supervisor import Counts, Process

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


class Fails(Systemd):
    """What the restart starts fails; lines: of which life, how long after the restart, words."""

    def __init__(self, *said: tuple[str, float, str]) -> None:
        super().__init__()
        self.to_show = [BEFORE, replace(BEFORE, pid=0, active="failed", invocation="c")]
        self.said = said

    def restart(self, unit: str, sockets: list[str]) -> Any:
        return SimpleNamespace(poll=lambda: 1)

    def log(self, unit: str, lines: int, counts: Counts) -> list[str]:
        return [line for life, age, line in self.said if counts(life, time.time() + age)]

    def last_line(self, unit: str, counts: Counts) -> str:
        return "".join(self.log(unit, 1, counts)[-1:])


OLD = ("a", -9, "I was before"), ("a", 9, "SIGTERM"), ("z", -99, "long ago"), ("", -9, "who?")


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ([], "it has not answered yet"),
        ([("b", 9, "no models"), ("c", 9.1, "not one")], "its last words: not one"),
        ([("b", 9, "no models")], "its last words: no models"),  # too short a life to be seen
        ([("", 9, "no models")], "its last words: no models"),
        ([("z", -9, "Failed at step NAMESPACE spawning x: no")], "it has not answered yet"),
    ],
)
def test_what_an_earlier_life_said_is_no_reason(
    new: list[tuple[str, float, str]], why: str
) -> None:
    systemd: Any = Fails(*OLD, *new)
    with pytest.raises(UnhealthyError) as caught:
        Well(systemd, "x.service").begin("r", "0", []).proved()
    assert str(caught.value) == f"it does not start: {why}"
