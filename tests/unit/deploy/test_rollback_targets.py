"""A plain rollback undoes the last deploy, on the hosts where that went live and on no other."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from macd.deploy.records import may_be_live
from macd.deploy.rollback import targets
from macd.deploy.state import HostState
from macd.host.record import Record

SERIALS = {"r1": 1, "r2": 2, "r3": 3}


def host_state(live: str | None, to: str | None) -> HostState:
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
        (f"prod{n}", host_state(live, f"r{int(live[1]) - 1}" if live else None))
        for n, live in enumerate(lives)
    ]
    ways = targets(looked)
    assert [None if way.stays else way.to for way in ways] == going
    assert ["stays at" in str(way) for way in ways] == [way.stays for way in ways]


def test_what_may_be_live_on_a_host_that_is_away_counts() -> None:
    looked = [("b", host_state("r2", "r1"))]
    assert [way.stays for way in targets(looked, unseen=3)] == [True]
    assert [way.stays for way in targets(looked, unseen=2)] == [False]
    assert [way.to for way in targets(looked, "r1", unseen=3)] == ["r1"]


def test_a_named_release_is_for_all_and_said_where_it_is_live_already() -> None:
    ways = targets([("a", host_state("r3", "r2")), ("b", host_state("r2", "r1"))], "r2")
    assert [str(way).splitlines()[0] for way in ways] == ["back to r2", "r2 is live already"]


def test_what_is_put_back_and_what_stays_is_named() -> None:
    changes = {"files": ["m.service", "service.json"], "edited": ["m.service"], "keys": ["ML_X"]}
    dropin = {"path": "/etc/systemd/system/m.service.d/override.conf", "sets": ["Environment"]}
    host = replace(host_state("r3", "r2"), returns={"r2": changes}, dropins={"m.service": [dropin]})
    [way] = targets([("a", host)])
    assert way.changes == {**changes, "dropins": [dropin["path"]]}
    said = str(way)
    assert "puts back as they were with r2: m.service, service.json" in said
    assert "m.service.before-rollback-NUMBER" in said
    assert "service.json.before" not in said  # nobody has touched it
    assert "sets in .env as they were with r2: ML_X" in said
    assert f"leaves alone: everything else in .env, {dropin['path']}" in said


def test_a_host_that_stays_or_is_there_already_names_no_changes() -> None:
    changes = {"r2": {"files": ["m.service"], "edited": [], "keys": []}}
    stays = replace(host_state("r2", "r1"), returns=changes)
    for way in (*targets([("b", stays)], unseen=3), *targets([("b", stays)], "r2")):
        assert not any(way.changes.values())
        assert "leaves alone" not in str(way)


def began(serial: int, host: str = "a") -> dict[str, Any]:
    return {"kind": "deploy.began", "host": host, "release": f"r{serial}", "serial": serial}


def ended(result: str, live: str | None, kind: str = "deploy", **more: Any) -> dict[str, Any]:
    return {"kind": f"{kind}.ended", "host": "a", "result": result, "live": live, **more}


def failed(kind: str = "deploy", **more: Any) -> dict[str, Any]:
    return {"kind": f"{kind}.ended", "host": "a", "result": "failed", "why": "gone", **more}


BACK: dict[str, Any] = {"kind": "rollback.began", "host": "a", "to": ""}
LIVE_1 = [began(1), ended("committed", "r1")]
LIVE_2 = [*LIVE_1, began(2), ended("committed", "r2")]
NEVER = failed(unreachable=True)


@pytest.mark.parametrize(
    ("history", "serial"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param(LIVE_2, 2, id="committed"),
        pytest.param([*LIVE_1, began(2), ended("reverted", "r1")], 1, id="reverted"),
        pytest.param([began(1), ended("reverted", None)], 0, id="reverted to nothing"),
        pytest.param([*LIVE_2, began(2), ended("nothing", "r2")], 2, id="nothing to do"),
        # The deploy of which nobody heard the end may have gone live.
        pytest.param([*LIVE_1, began(2), failed()], 2, id="contact lost"),
        pytest.param([*LIVE_1, began(2), failed(result="left to the host")], 2, id="left"),
        pytest.param([*LIVE_1, began(2), failed(result="refused")], 2, id="refused"),
        pytest.param([*LIVE_1, began(2)], 2, id="operator killed"),
        pytest.param([*LIVE_1, began(3), failed(), began(2), failed()], 3, id="lost twice"),
        pytest.param([began(3), failed(), *LIVE_1], 1, id="lost, then the host told"),
        pytest.param([*LIVE_1, began(2), NEVER], 1, id="never reached"),
        pytest.param([*LIVE_1, began(2), failed(), began(2), NEVER], 2, id="lost, then away"),
        pytest.param(
            [*LIVE_1, began(2), failed(), ended("reverted", "r1", attached=True)], 1, id="attached"
        ),
        pytest.param([*LIVE_1, began(2), ended("committed", "r2", attached=True)], 2, id="late"),
        # A rollback tells by what is live then.
        pytest.param([*LIVE_2, BACK, ended("committed", "r1", "rollback")], 1, id="rolled back"),
        pytest.param([*LIVE_2, BACK, ended("reverted", "r2", "rollback")], 2, id="not rolled back"),
        pytest.param([*LIVE_2, BACK, failed("rollback")], 2, id="rollback lost"),
        pytest.param([*LIVE_2, BACK], 2, id="rollback killed"),
        pytest.param(
            [*LIVE_2, BACK, ended("committed", "r1", "rollback"), {**BACK, "to": "r2"}],
            2,
            id="killed on the way forward again",
        ),
        # Of what else ends, or is done, nothing follows about what is live.
        pytest.param(
            [*LIVE_2, {"kind": "guard.ended", "host": "a", "release": "r2", "result": "over"}],
            2,
            id="guard ended",
        ),
        pytest.param(
            [*LIVE_2, {"kind": "flag.enable", "host": "a", "release": "r2", "result": "set"}],
            2,
            id="flag set",
        ),
        pytest.param(
            [*LIVE_2, {"kind": "provision.done", "host": "a", "changes": 3}], 2, id="provisioned"
        ),
        pytest.param(
            [*LIVE_1, began(2), {"kind": "guard.ended", "host": "a", "result": "over"}],
            2,
            id="killed, then the guard ended",
        ),
        # Other hosts say nothing about this one but which serial a release has.
        pytest.param([*LIVE_1, began(2, host="b")], 1, id="another host's deploy"),
        pytest.param(
            [began(2, host="b"), ended("committed", "r2", "rollback")], 2, id="known from b"
        ),
        pytest.param(
            [{"kind": "release.made", "release": "r7", "serial": 7}, ended("committed", "r7")],
            7,
            id="known from its making",
        ),
        # A release from another machine: its serial is not recorded here.
        pytest.param([*LIVE_2, BACK, ended("committed", "rx", "rollback")], 2, id="not known"),
        pytest.param([*LIVE_1, began(3), ended("reverted", "rx")], 1, id="not known, reverted"),
    ],
)
def test_the_highest_serial_that_may_be_live(history: list[dict[str, Any]], serial: int) -> None:
    records = [
        Record(number, datetime(2026, 3, 1, tzinfo=UTC), fields["kind"], fields, "", "")
        for number, fields in enumerate(history, start=1)
    ]
    assert may_be_live(records, "a") == serial


def test_a_release_that_was_never_live_there_is_not_promised() -> None:
    host = replace(host_state("r3", "r2"), returns={"r2": {}, "r1": {}})
    [way] = targets([("a", host)], "nope")
    assert str(way) == "nope was never live there; it can go back to: r2, r1"
    assert not way.goes


@pytest.mark.parametrize("decides", [True, False])
@pytest.mark.parametrize("where", ["dropin", "env"])
def test_a_flag_in_a_dropin_that_goes_to_shadow_is_named(where: str, *, decides: bool) -> None:
    flag = {"name": "THEIR_FLAG", "live": "1", "shadow": "0", "where": where}
    own = {"name": "theirs", "units": [["m.service", {}]], "writes": [], "flag": flag}
    stacking = {"next": "1" if decides else "0", "running": "0"}
    host = replace(
        host_state("r3", "r2"), service_settings=json.dumps({"own": own}), stacking=stacking
    )
    [way] = targets([("a", host)])
    assert ("sets THEIR_FLAG to shadow" in str(way)) == (decides and where == "dropin")
