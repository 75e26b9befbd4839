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


def lines(**facts: Any) -> dict[str, str]:
    process = {"active": "active", "sub": "running", "pid": 7, "restarts": 0}
    return dict(status._lines(HostState(**{**BASE["facts"], "process": process, **facts}), []))


@pytest.mark.parametrize(("lock", "end"), [(None, "INTERRUPTED"), (LOCK, "at work")])
def test_a_change_of_the_flag_is_told_until_it_has_ended(lock: Any, end: str) -> None:
    told = lines(flag_change=CHANGE, lock=lock)["flag"]
    assert "from 0 to 1, started 2026-03-02 11:13:20Z by ben@desk: begun" in told
    assert end in told
    assert ("enable-stacking or disable-stacking ends it" in told) is (lock is None)
    assert "flag" not in lines(lock=lock)


def test_the_lock_is_told_with_its_holder_and_age() -> None:
    assert lines(lock=LOCK)["lock"] == "ben@desk, enable-stacking, for 42 s"
    assert "lock" not in lines()
