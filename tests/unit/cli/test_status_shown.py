"""What `invoke status` says of a host at work and of one that somebody left in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from macd.cli import status
from macd.deploy.state import HostState

BASE = json.loads((Path(__file__).parents[2] / "cases" / "plan" / "base.json").read_text())
CHANGE = {"wanted": "1", "was": "0", "who": "ben@desk", "started": 1772450000.0, "state": "begun"}
LOCK = {"who": "ben@desk", "doing": "enable-stacking", "pid": 7, "since": 1772450000.0, "age_s": 42}


def pairs(**facts: Any) -> list[tuple[str, str]]:
    process = {"active": "active", "sub": "running", "pid": 7, "restarts": 0}
    return list(status._lines(HostState(**{**BASE["facts"], "process": process, **facts}), [], {}))


def lines(**facts: Any) -> dict[str, str]:
    return dict(pairs(**facts))


@pytest.mark.parametrize(("lock", "end"), [(None, "INTERRUPTED"), (LOCK, "at work")])
def test_a_change_of_the_flag_is_told_until_it_has_ended(lock: Any, end: str) -> None:
    line = lines(flag_change=CHANGE, lock=lock)["flag"]
    assert "from shadow to 100 %, started 2026-03-02 11:13:20Z by ben@desk: begun" in line
    assert end in line
    assert ("enable-stacking or disable-stacking ends it" in line) is (lock is None)
    assert "flag" not in lines(lock=lock)


def test_the_lock_is_told_with_its_holder_and_age() -> None:
    assert lines(lock=LOCK)["lock"] == "ben@desk, enable-stacking, for 42 s"
    assert "lock" not in lines()


SEEN = {
    "installed": True, "runs": True, "late": False, "checked": "2026-03-02T11:13:00+00:00",
    "age_s": 130.0, "open": [], "unsent": 0, "sending": "", "beating": "",
}  # fmt: skip
SILENT = {
    "name": "silent", "since": "2026-03-02T09:00:00+00:00", "text": "no bar", "hint": "invoke logs"
}  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ({}, "none; the last look: 2 minutes ago"),
        ({"age_s": None, "late": True}, "none; the last look: not looked yet"),
        ({"open": [SILENT]}, "✗ silent, since 2026-03-02T09:00:00+00:00: no bar; do: invoke logs"),
        ({"late": True, "age_s": 10800.0}, "the last look was 3 hours ago; invoke provision"),
        ({"runs": False}, "✗ nobody looks for alarms here: the last look was 2 minutes ago"),
        ({"installed": False, "age_s": None}, "✗ nobody looks for alarms here; invoke provision"),
        (
            {"unsent": 1, "sending": "the address answered 404"},
            "sent yet: the address answered 404",
        ),
    ],
)
def test_alarms_are_told_and_whether_anybody_looks(seen: dict[str, Any], message: str) -> None:
    said = [text for label, text in pairs(alerts={**SEEN, **seen}) if label == "alerts"]
    assert len(said) == 1 or seen.get("unsent")
    assert message in said[0]


def test_a_change_of_the_weight_is_told_with_both() -> None:
    change = {**CHANGE, "was": "1", "weight": 50, "was_weight": 25}
    assert "from 25 % to 50 %, started" in lines(flag_change=change)["flag"]
    assert (
        "from shadow to 25 %"
        in lines(flag_change={**CHANGE, "weight": 25, "was_weight": 0})["flag"]
    )

    change = {**CHANGE, "was": "1", "wanted": "0", "was_weight": 25}
    assert "from 25 % to shadow, started" in lines(flag_change=change)["flag"]


def test_a_service_that_does_not_answer_is_told_in_words() -> None:
    process = {"active": "active", "sub": "running", "pid": 7, "restarts": 0}
    asked = {"live": "r", "process": process}
    assert lines(**asked, health={"unreachable": "there is no socket"})["health"] == (
        "✗ it does not answer: there is no socket"
    )
    loading = {"release": "r", "status": "starting"}
    assert lines(**asked, health=loading)["health"] == "✗ it is still loading r"
    stopped = {**process, "active": "inactive"}
    assert lines(live="r", process=stopped)["health"] == "✗ the service is inactive"


def test_how_much_stacking_decides_is_told() -> None:
    weight = {"running": 50, "steps": [100], "waits": "", "raised": []}
    stacking = {"running": "1", "weight": weight}
    assert lines(stacking=stacking)["stacking"] == "decides with 50 %; next 100 %"
    weight |= {
        "raised": [{"at": 1772450000.0, "from": 25, "to": 50}],
        "waits": "3 of at least 20 bars were judged",
    }
    assert lines(stacking=stacking)["stacking"] == (
        "decides with 50 %, raised by the guard from 25 % at 2026-03-02 11:13:20Z; next 100 %; "
        "it waits: 3 of at least 20 bars were judged"
    )
    assert "stacking" not in lines(stacking={**stacking, "running": "0"})
    weight["failed"] = {"at": 1772450000.0, "why": "ETHUSD: ML coverage 11.1 %"}
    assert lines(stacking={**stacking, "running": "0"})["stacking"] == (
        "in shadow: the guard disabled it at 2026-03-02 11:13:20Z: ETHUSD: ML coverage 11.1 %"
    )
    assert lines(stacking=stacking)["stacking"].startswith("decides with 50 %")  # and again since
    assert "stacking" not in lines()


def test_each_symbol_has_a_row_those_in_trouble_first() -> None:
    symbols = {
        "BTCUSD": {"ok": True, "stacking": "shadow", "last_bar": "2026-03-02T11:00:00Z"},
        "ETHUSD": {"ok": False, "stacking": "off", "golden": {"detail": "lgbm is off by 1"}},
        "LTCUSD": {"ok": True, "stopped": True, "last_bar": "2026-03-01T11:00:00Z"},
    }
    health = {**BASE["facts"].get("health", {}), "symbols": symbols}
    assert [text for label, text in pairs(health=health) if label == "symbol"] == [
        "✗ ETHUSD: last bar none yet, stacking off; lgbm is off by 1",
        "✗ LTCUSD: last bar 2026-03-01T11:00:00Z; its bars have stopped",
        "✓ BTCUSD: last bar 2026-03-02T11:00:00Z, stacking shadow",
    ]
    assert "symbol" not in lines()
