"""Journals become periods and moments, whoever's machine did it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.dashboard import events
from macd.dashboard.events import Event, Period
from macd.host import record
from macd.host.record import Record
from macd.journal import Journal

T0 = datetime(2026, 3, 1, tzinfo=UTC)


def at(hours: float) -> float:
    return (T0 + timedelta(hours=hours)).timestamp()


def commit(hours: float, release: str, kind: str = "deploy") -> dict[str, Any]:
    return {"release": release, "at": at(hours), "kind": kind, "who": "ana"}


def own(path: Path, *rows: tuple[float, str, dict[str, Any]]) -> list[Record]:
    for hours, kind, fields in rows:
        record.append(str(path), kind, fields, now=T0 + timedelta(hours=hours))
    return record.parse(path.read_bytes())[0]


def flag(wanted: str, was: str = "") -> dict[str, Any]:
    return {"flag": "ML_ENABLE_STACKING", "wanted": wanted, "was": was or "0", "who": "ana"}


def test_releases_are_live_until_the_next_and_the_last_one_still_is() -> None:
    history = [commit(0, "one"), commit(5, "two"), commit(7, "one", "rollback")]
    host_events = events.events("prod", "prod", history, (), ())
    assert events.live_periods(host_events) == [
        Period(at(0), at(5), "one"),
        Period(at(5), at(7), "two"),
        Period(at(7), None, "one"),
    ]
    assert [event.kind for event in host_events] == ["deploy", "deploy", "rollback"]
    assert events.live_periods([]) == []


def test_a_release_that_was_deployed_again_serves_since_the_first_time() -> None:
    history = [commit(0, "one"), commit(5, "two"), commit(7, "two"), commit(8, "two")]
    host_events = events.events("prod", "prod", history, (), ())
    assert events.live_since(host_events, "two") == T0 + timedelta(hours=5)
    assert events.live_since(host_events, "one") is None
    assert events.live_since([], "one") is None


def test_stacking_decides_from_its_flag_to_what_ends_it(tmp_path: Path) -> None:
    records = own(
        tmp_path / "journal.jsonl",
        (1, "flag.set", flag("1")),
        (2, "flag.set", flag("1")),
        (4, "flag.set", flag("0", "1")),
        (5, "flag.set", flag("1")),
        (8, "flag.set", flag("1")),
        (9, "flag.reverted", {**flag("1"), "reason": "no new process"}),
        (10, "flag.set", flag("1")),
    )
    history = [commit(0, "one"), commit(6, "two")]  # a deploy begins in shadow
    host_events = events.events("prod", "prod", history, records, ())
    periods = events.stacking_periods(host_events)
    assert [(p.start, p.end) for p in periods] == [
        (at(1), at(4)),
        (at(5), at(6)),
        (at(8), at(9)),
        (at(10), None),
    ]


def test_the_weight_of_stacking_in_steps(tmp_path: Path) -> None:
    records = own(
        tmp_path / "journal.jsonl",
        (1, "flag.set", {**flag("1"), "weight": 25, "was_weight": 0}),
        (3, "flag.set", {**flag("1", "1"), "weight": 50, "was_weight": 25}),
        (4, "flag.reverted", {**flag("1", "1"), "weight": 100, "was_weight": 50, "reason": "x"}),
        (5, "flag.set", {**flag("1", "1"), "weight": 100, "was_weight": 50}),
        (6, "flag.set", {**flag("0", "1"), "weight": 0, "was_weight": 100}),
    )
    host_events = events.events("prod", "prod", [commit(0, "one")], records, ())
    assert events.stacking_periods(host_events) == [
        Period(at(1), at(3), "stacking decides at 25 %"),
        Period(at(3), at(5), "stacking decides at 50 %"),
        Period(at(5), at(6), "stacking decides"),
    ]
    assert "ML_ENABLE_STACKING=1 at 25 % by ana" in host_events[1].text


def test_a_raise_that_failed_ends_no_period_of_stacking(tmp_path: Path) -> None:
    raised = {**flag("1", "1"), "weight": 50, "was_weight": 25}
    records = own(
        tmp_path / "journal.jsonl",
        (1, "flag.set", {**flag("1"), "weight": 25, "was_weight": 0}),
        (2, "flag.reverted", {**raised, "reason": "golden"}),
        (3, "flag.set", flag("0", "1")),
    )
    host_events = events.events("prod", "prod", (), records, ())
    assert [(p.start, p.end) for p in events.stacking_periods(host_events)] == [(at(1), at(3))]
    assert host_events[0].text == "ML_ENABLE_STACKING=1 at 25 % by ana"
    assert host_events[1].text == "ML_ENABLE_STACKING put back to 1 at 25 %: golden"


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        (
            {"said": {"1": "on", "0": "off"}},
            ["USE_STACK=on by ana", "USE_STACK put back to off: x"],
        ),
        ({}, ["USE_STACK lets the models decide by ana", "USE_STACK in shadow: x"]),  # earlier ones
    ],
)
def test_a_flag_of_ones_own_has_words_of_its_own(
    tmp_path: Path, said: dict[str, Any], texts: list[str]
) -> None:
    fields = {**flag("1"), "flag": "USE_STACK", "weighed": False, **said}
    rows = ((1, "flag.set", fields), (2, "flag.reverted", {**fields, "reason": "x"}))
    host_events = events.events("prod", "prod", (), own(tmp_path / "journal.jsonl", *rows), ())
    assert [event.text for event in host_events] == texts


def test_what_each_journal_tells(tmp_path: Path) -> None:
    records = own(
        tmp_path / "host.jsonl",
        (1, "switched", {"release": "two"}),
        (2, "reverted", {"release": "two", "reason": "it crashed"}),
        (3, "guard.judged", {"release": "one", "verdict": "FAIL"}),
        (4, "guard.unjudged", {"release": "one", "why": "no logs"}),
    )
    journal = Journal(tmp_path / "here.jsonl")
    for hours, kind, fields in (
        (0.5, "release.made", {"release": "two", "env": "prod", "run": "r"}),
        (0.6, "release.made", {"release": "other", "env": "staging", "run": "r"}),
        (5, "gate.judged", {"host": "prod", "release": "one", "verdict": "PASS"}),
        (5.1, "gate.judged", {"host": "elsewhere", "release": "one", "verdict": "FAIL"}),
        (6, "deploy.ended", {"host": "prod", "result": "failed", "why": "the link was lost"}),
        (7, "deploy.ended", {"host": "prod", "result": "committed", "release": "two"}),
    ):
        journal.append(kind, fields, now=T0 + timedelta(hours=hours))
    host_events = events.events("prod", "prod", (), records, journal.records())
    assert [(event.kind, event.outcome) for event in host_events] == [
        ("made", ""),
        ("reverted", ""),
        ("guard", "FAIL"),
        ("guard", "?"),
        ("gate", "PASS"),
        ("failed", ""),
    ]
    assert "it crashed" in host_events[1].text
    assert isinstance(host_events[0], Event)
    assert host_events[0].at == at(0.5)
