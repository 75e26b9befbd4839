"""A plain rollback undoes the last deploy, on the hosts where that went live and on no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from macd.deploy.back import ways
from macd.deploy.state import HostState

SERIALS = {"r1": 1, "r2": 2, "r3": 3}


def found(live: str | None, to: str | None) -> HostState:
    history: list[dict[str, Any]] = [{"release": r, "serial": n} for r, n in SERIALS.items()]
    return HostState(
        app="/a", exists=True, python={}, endpoint="", live=live, history=history,
        rollback={"release": to},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lives", "going"),
    [
        (["r3", "r3"], ["r2", "r2"]),
        (["r3", "r2"], ["r2", None]),  # the second wave was never reached
        (["r2", "r3"], [None, "r2"]),  # a rollback that got no further than the first
        (["r2", "r2"], ["r1", "r1"]),
        ([None, "r1"], [None, "r0"]),
    ],
)
def test_only_the_newest_live_release_is_undone(
    lives: list[str | None], going: list[str | None]
) -> None:
    looked = [
        (f"prod{n}", found(live, f"r{int(live[1]) - 1}" if live else None))
        for n, live in enumerate(lives)
    ]
    told = ways(looked)
    assert [None if way.stays else way.to for way in told] == going
    assert ["stays at" in str(way) for way in told] == [way.stays for way in told]


def test_what_may_be_live_on_a_host_that_is_away_counts() -> None:
    looked = [("b", found("r2", "r1"))]
    assert [way.stays for way in ways(looked, unseen=3)] == [True]
    assert [way.stays for way in ways(looked, unseen=2)] == [False]
    assert [way.to for way in ways(looked, "r1", unseen=3)] == ["r1"]


def test_a_named_release_is_for_all_and_said_where_it_is_live_already() -> None:
    told = ways([("a", found("r3", "r2")), ("b", found("r2", "r1"))], "r2")
    assert [str(way).splitlines()[0] for way in told] == ["back to r2", "r2 is live already"]


def test_what_is_put_back_and_what_stays_is_named() -> None:
    told = {"files": ["m.service", "service.json"], "edited": ["m.service"], "keys": ["ML_X"]}
    dropin = {"path": "/etc/systemd/system/m.service.d/override.conf", "sets": ["Environment"]}
    host = replace(found("r3", "r2"), returns={"r2": told}, dropins={"m.service": [dropin]})
    [way] = ways([("a", host)])
    assert way.changes == {**told, "dropins": [dropin["path"]]}
    said = str(way)
    assert "puts back as they were with r2: m.service, service.json" in said
    assert "m.service.before-rollback-NUMBER" in said
    assert "service.json.before" not in said  # nobody has touched it
    assert "sets in .env as they were with r2: ML_X" in said
    assert f"leaves alone: everything else in .env, {dropin['path']}" in said


def test_a_host_that_stays_or_is_there_already_names_no_changes() -> None:
    told = {"r2": {"files": ["m.service"], "edited": [], "keys": []}}
    stays = replace(found("r2", "r1"), returns=told)
    for way in (*ways([("b", stays)], unseen=3), *ways([("b", stays)], "r2")):
        assert not any(way.changes.values())
        assert "leaves alone" not in str(way)
