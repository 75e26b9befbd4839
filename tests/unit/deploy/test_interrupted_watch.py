"""Ctrl-C while an activation is watched: one message with exit code 5."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from macd.deploy import apply, follow
from macd.errors import ContactLostError, MacdError
from macd.inventory import load
from macd.ssh.session import Session

STARTED = follow.PendingActivation("prod", 7, "t0ken", "20260301T000000Z-0123abcd", None)


class SaysWaiting:
    """A session whose host says that it has soaked: the word on which the confirming is started."""

    def call(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {
            "live": None,
            "events": [{"state": "awaiting confirmation"}],
            "over": False,
            "runner": True,
        }

    def close(self) -> None:
        pass


def test_ctrl_c_while_the_confirming_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    inventory = load("lab", root=Path(__file__).parents[3])
    monkeypatch.setattr(threading.Thread, "start", begin)
    with pytest.raises(MacdError) as caught:
        session = cast("Session", SaysWaiting())
        follow.follow(session, inventory.hosts["prod"], inventory, STARTED, lambda *_: None)
    assert caught.value.exit_code == 5
    assert "activation 7" in caught.value.what
    assert "invoke deploy --attach" in caught.value.hint


@pytest.mark.parametrize(
    ("inventory", "env", "options"),
    [("lab", "prod", ""), ("eu", "staging", " --env staging --inventory eu")],
)
def test_the_next_command_leads_to_the_same_host(inventory: str, env: str, options: str) -> None:
    known = load("lab", root=Path(__file__).parents[3])
    known = known.model_copy(update={"name": inventory})
    host = known.hosts["prod"].model_copy(update={"env": env})
    run = follow._Follower(host, known, STARTED, lambda *_: None)
    assert f"invoke deploy --attach{options} follows" in run.interrupted().hint
    with pytest.raises(ContactLostError) as lost, apply._host_may_switch(host, known):
        raise ContactLostError("gone")
    assert f"invoke deploy --attach{options} follows" in lost.value.hint


@pytest.mark.parametrize(
    ("origin", "token", "said"),
    [
        (None, "t", "NEW or what ran before (nothing of macd's was live)"),
        (None, "", "NEW or what was live before"),
        ("OLD", "t", "NEW or OLD"),
        ("NEW", "t", "NEW, as it would be now or as it was before"),
    ],
)
def test_what_may_be_live_is_named_once(origin: str | None, token: str, said: str) -> None:
    known = load("lab", root=Path(__file__).parents[3])
    started = follow.PendingActivation("prod", 7, token, "NEW", origin)
    run = follow._Follower(known.hosts["prod"], known, started, lambda *_: None)
    run._live = "NEW"  # the host has switched by now
    error = run.interrupted()
    assert error.live == f"being decided on prod: {said}"
    assert error.exit_code == 5


class Asked:
    """A session to a host whose newest activation is one of a release, under way or over."""

    def __init__(self, release: str, *, over: bool) -> None:
        self.release, self.over = release, over
        self.confirmed: list[tuple[int, str]] = []

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def call(self, op: str, **args: Any) -> dict[str, Any]:
        if op == "confirm":
            self.confirmed.append((args["number"], args["token"]))
            return {"confirmed": True}
        end = bool(self.over or self.confirmed)
        state = "committed" if end else "awaiting confirmation"
        events = [{"state": "verified", "release": self.release}, {"state": state}]
        status = {"number": 7, "live": self.release, "over": end, "runner": True}
        return {**status, "events": events[args.get("seen", 0) :]}


@pytest.mark.parametrize(
    ("started", "over", "ended", "confirmed"),
    [
        pytest.param(STARTED, False, True, [(7, "t0ken")], id="from here"),
        pytest.param(
            replace(STARTED, number=0), False, True, [(7, "t0ken")], id="number never heard"
        ),
        pytest.param(replace(STARTED, number=6), False, True, [], id="an older one from here"),
        pytest.param(None, False, False, [], id="from elsewhere"),
        pytest.param(STARTED, True, False, [], id="from here, over"),
    ],
)
def test_attach_confirms_what_was_begun_here(
    monkeypatch: pytest.MonkeyPatch,
    started: follow.PendingActivation | None,
    over: bool,
    ended: bool,
    confirmed: list[tuple[int, str]],
) -> None:
    inventory = load("lab", root=Path(__file__).parents[3])
    session = Asked(STARTED.release, over=over)
    if not confirmed and not over:  # somebody else confirms it
        session.over = True
        monkeypatch.setattr(session, "call", first_under_way(session.call))
    monkeypatch.setattr(follow, "open_session", lambda *_, **__: session)
    outcome = follow.attach(
        inventory.hosts["prod"], inventory, started, lambda *_: None, ended=ended
    )
    assert outcome is not None
    assert (outcome.number, outcome.result) == (7, "committed")
    assert session.confirmed == confirmed


def first_under_way(call: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    asked: list[str] = []

    def once(op: str, **args: Any) -> dict[str, Any]:
        status = call(op, **args)
        status["over"] = bool(asked)
        asked.append(op)
        return status

    return once


@pytest.mark.parametrize("started", [None, replace(STARTED, number=6)])
def test_of_several_hosts_what_others_ended_is_no_news(
    monkeypatch: pytest.MonkeyPatch, started: follow.PendingActivation | None
) -> None:
    inventory = load("lab", root=Path(__file__).parents[3])
    session = Asked(STARTED.release, over=True)
    monkeypatch.setattr(follow, "open_session", lambda *_, **__: session)
    host = inventory.hosts["prod"]
    assert follow.attach(host, inventory, started, lambda *_: None, ended=False) is None
    assert follow.attach(host, inventory, started, lambda *_: None) is not None
