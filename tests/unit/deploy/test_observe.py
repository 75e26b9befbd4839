"""Several hosts are looked at at once; where none can be reached, the error names them all."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from macd.deploy import state
from macd.errors import ContactLostError, MacdError, RefusedError
from macd.inventory import Host

HOSTS = [
    Host(name=name, role="serve", env="prod", ssh=name, app_dir="/opt/macd")
    for name in ("one", "two", "three")
]


def looking(monkeypatch: Any, ends: dict[str, Any]) -> None:
    """Each look waits until all hosts are being looked at, then ends so."""
    inside = threading.Barrier(len(HOSTS), timeout=60)

    def look(host: Host, _: Any) -> Any:
        inside.wait()
        if isinstance(ends[host.name], MacdError):
            raise ends[host.name]
        return ends[host.name]

    monkeypatch.setattr(state, "observe", look)


def test_who_is_away_is_told_beside_who_answers(monkeypatch: Any) -> None:
    lost = ContactLostError("contact with two was lost")
    looking(monkeypatch, {"one": "state 1", "two": lost, "three": "state 3"})

    looked, away = state.observe_each(HOSTS, None)  # type: ignore[arg-type]

    assert looked == [("one", "state 1"), ("three", "state 3")]
    assert away == {"two": lost}


def test_where_none_can_be_reached_all_are_named(monkeypatch: Any) -> None:
    looking(
        monkeypatch,
        {h.name: ContactLostError(f"contact with {h.name} was lost", hint="again") for h in HOSTS},
    )

    with pytest.raises(MacdError, match="none of one, two, three can be reached") as ended:
        state.observe_each(HOSTS, None)  # type: ignore[arg-type]

    assert ended.value.exit_code == 5
    assert ended.value.why.splitlines()[1] == "two: contact with two was lost"
    assert ended.value.hint == "again"


def test_a_host_that_refuses_is_not_passed_by(monkeypatch: Any) -> None:
    refused = RefusedError("the host key of two has changed")
    looking(monkeypatch, {"one": "state 1", "two": refused, "three": "state 3"})

    with pytest.raises(RefusedError, match="host key of two"):
        state.observe_each(HOSTS, None)  # type: ignore[arg-type]
