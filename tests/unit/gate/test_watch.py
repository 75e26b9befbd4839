"""What the guard did while nobody was there comes into the journal here, once and in its order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macd.cli.monitor import _catch_up, _ending, _exit, _fields, _head
from macd.errors import ExitCode
from macd.gate import flag
from macd.gate.flag import Seen
from macd.inventory import load
from macd.journal import Journal


def seen(state: str, n: int, ended: float | None) -> Seen:
    order: dict[str, Any] = {"state": state, "release": f"release-{n}", "reason": f"watch {n}"}
    return Seen("prod", {**order, "ended": ended}, f"release-{n}", "0", (), 0.0, loop=False)


def test_several_watches_are_caught_up_with_each_once_and_in_order(tmp_path: Path) -> None:
    inventory = load("lab").model_copy(update={"root": tmp_path})
    host = inventory.host("prod")
    ends = [("failed", 1, 100.0), ("over", 2, 200.0), ("ended", 2, 300.0), ("failed", 3, 400.0)]
    for state, n, ended in ends:
        assert not flag.catch_up(seen("watching", n, None), host, inventory)
        assert not flag.catch_up(seen("failing", n, ended), host, inventory)
        assert flag.catch_up(seen(state, n, ended), host, inventory)
        assert not flag.catch_up(seen(state, n, ended), host, inventory)
    assert not flag.catch_up(seen(*ends[0]), host, inventory)  # an old look that came late
    records = [one.fields for one in Journal(inventory.state_dir / "journal.jsonl").records()]
    assert [(one["result"], one["reason"]) for one in records] == [
        ("failed", "watch 1"), ("over", "watch 2"), ("ended", "watch 2"), ("failed", "watch 3"),
    ]  # fmt: skip
    assert [one["ended"][:19] for one in records] == [
        f"1970-01-01T00:0{n}:{s}" for n, s in ((1, 40), (3, 20), (5, "00"), (6, 40))
    ]


def test_a_damaged_journal_here_does_not_hide_how_a_watch_ended(tmp_path: Path) -> None:
    inventory = load("lab").model_copy(update={"root": tmp_path})
    inventory.state_dir.mkdir(parents=True)
    (inventory.state_dir / "journal.jsonl").write_text("{}\n")
    failed = seen("failed", 1, 100.0)
    note = _catch_up(failed, inventory.host("prod"), inventory)
    assert note.startswith("not recorded here: the journal is damaged at record 1")
    first, *_, last = _ending(failed, note, "")
    assert first == "  the guard disabled stacking: watch 1"
    assert note in last


@pytest.mark.parametrize(
    ("flag", "running", "idle"),
    [
        ("1", "1", False),
        ("1", None, False),
        ("0", "0", True),
        ("0", None, True),
        ("0", "1", False),  # by hand: the process that runs still has it
        ("", "1", False),  # systemd takes nothing from .env from now on
        ("", None, False),
        ("?", "0", True),
    ],
)
def test_a_watch_is_idle_only_where_the_guard_would_end_it(
    flag: str, running: str | None, *, idle: bool
) -> None:
    order = {"state": "watching", "release": "r"}
    watched = Seen("prod", order, "r", flag, (), 0.0, loop=False, stacking={"running": running})
    assert watched.idle is idle
    assert Seen("prod", order, "other", flag, (), 0.0, loop=False).idle
    # A guard that was killed is missed only where it has something to watch.
    dead = replace(watched, dead=True, stacking={"running": running, "changing": True})
    assert ("the guard is dead" in "\n".join(_ending(dead, "", ""))) is not idle
    assert _exit(dead) == (None if idle else ExitCode.FAILED)


def test_each_raise_comes_into_the_journal_here_once(tmp_path: Path) -> None:
    inventory = load("lab").model_copy(update={"root": tmp_path})
    host = inventory.host("prod")

    def look(*raised: tuple[int, int]) -> list[tuple[int, int]]:
        steps = [
            {"at": 100.0 * to, "from": was, "to": to, "verdict": "PASS", "rates": {}, "told": True}
            for was, to in raised
        ]
        order = {"state": "watching", "release": "r", "reason": "", "raised": steps}
        watched = Seen("prod", order, "r", "1", (), 0.0, loop=True)
        return [
            (one["was_weight"], one["weight"]) for one in flag.new_raises(watched, host, inventory)
        ]

    assert look() == []
    assert look((25, 50)) == [(25, 50)]
    assert look((25, 50)) == []
    assert look((25, 50), (50, 100)) == [(50, 100)]
    assert flag.new_raises(Seen("prod", None, "r", "0", (), 0.0, loop=False), host, inventory) == []
    records = [one.fields for one in Journal(inventory.state_dir / "journal.jsonl").records()]
    assert [(one["weight"], one["verdict"], one["at"][:19]) for one in records] == [
        (50, "PASS", "1970-01-01T01:23:20"), (100, "PASS", "1970-01-01T02:46:40"),
    ]  # fmt: skip


def test_who_decides_is_said_without_a_weight_where_there_is_none() -> None:
    def head(**more: Any) -> str:
        stacking = {"running": "1", "weight": {"running": 100, "steps": ()}}
        seen = Seen("prod", None, None, "1", (), 0.0, loop=True, stacking=stacking, **more)
        return next(_head(seen))

    assert head() == "prod: stacking decides with 100 %, nothing is live"
    assert head(weighed=False) == "prod: the models decide, nothing is live"


def test_the_watch_has_its_old_name_in_json_too() -> None:
    seen = Seen("prod", {"state": "watching", "release": "r"}, "r", "1", (), 0.0, loop=True)
    made = _fields(seen)
    assert made["watch"] == made["order"] == seen.watch
