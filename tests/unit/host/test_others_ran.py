"""When another release than the live one ran on a host: what its own records say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from macd.host.deploy import ledger
from macd.host.deploy.ledger import EventLog, Pending
from macd.host.layout import Layout


def recorded(layout: Layout, monkeypatch: Any, number: int, release: str, *states: str) -> None:
    log = EventLog(layout, number)
    for at, state in enumerate(states):
        monkeypatch.setattr("time.time", lambda now=number * 100.0 + at: now)
        log.add(state, release=release)


def test_only_what_was_switched_to_since_the_commit_and_not_kept(
    tmp_path: Path, monkeypatch: Any
) -> None:
    layout = Layout(str(tmp_path))
    Path(layout.state("activations")).mkdir(parents=True)
    trial = ("verified", "checking", "switching", "restarting", "reverting", "reverted")
    recorded(layout, monkeypatch, 1, "B", *trial)  # before A was committed
    recorded(layout, monkeypatch, 2, "A", *trial[:4], "committed")
    ledger.save_history(layout, [{"number": 2, "release": "A", "at": 204.0}])
    recorded(layout, monkeypatch, 3, "B", *trial)
    recorded(layout, monkeypatch, 4, "A", *trial)  # a restart: its lines are its own
    recorded(layout, monkeypatch, 5, "C", "verified", "checking", "reverted")  # never switched
    recorded(layout, monkeypatch, 6, "D", *trial[:4])
    known = [{"release": "B", "since": 302.0, "until": 305.0}]
    assert ledger.others_ran(layout, "A") == [
        *known,
        {"release": "D", "since": 602.0, "until": 603.0},
    ]
    pending = Pending(6, "deploy", "D", "A", "", "me", 600.0, "restarting", "x", "user", "", 6, "")
    ledger.write_pending(layout, pending)
    assert ledger.others_ran(layout, "A")[1:] == [{"release": "D", "since": 602.0, "until": None}]
