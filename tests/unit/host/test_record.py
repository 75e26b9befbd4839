"""The host's journal is the operator's format, and heals a torn tail in the open."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.layout import Layout
from macd.host.record import FIRST_PREV, SET_ASIDE, TORN_MOVED, append, canonical, newest
from macd.journal import Journal

NOW = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)


def test_the_operators_reader_accepts_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for number in range(3):
        append(str(path), "switched", {"release": f"r{number}", "note": "稳"}, now=NOW)
    records = Journal(path).records()
    assert [(r.seq, r.kind, r.fields["release"]) for r in records] == [
        (1, "switched", "r0"),
        (2, "switched", "r1"),
        (3, "switched", "r2"),
    ]
    assert records[0].time == NOW


def test_a_torn_tail_is_moved_aside_and_told_at_every_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    append(str(whole), "a", {"n": 1}, now=NOW)
    first = whole.read_bytes()
    append(str(whole), "b", {"n": 2}, now=NOW)
    second = whole.read_bytes()[len(first) :]
    for cut in range(1, len(second)):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(first + second[:cut])
        append(str(path), "c", {"n": 3}, now=NOW)
        records = Journal(path).records()
        assert [r.kind for r in records] == ["a", TORN_MOVED, "c"]
        aside = path.with_name(records[1].fields["moved_to"])
        assert aside.read_bytes() == second[:cut]


def test_an_edited_record_is_never_extended_and_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append(str(path), "a", {"n": 1}, now=NOW)
    edited = path.read_bytes().replace(b'"n":1', b'"n":2')
    path.write_bytes(edited)
    append(str(path), "b", {}, now=NOW)  # what it records, a rollback say, must not wait
    records = Journal(path).records()
    assert [r.kind for r in records] == [SET_ASIDE, "b"]
    assert path.with_name(records[0].fields["moved_to"]).read_bytes() == edited


def test_the_newest_record_of_a_kind_since_a_moment(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    path = tmp_path / "state/journal.jsonl"
    assert newest(layout, "a", since=NOW.timestamp()) is None
    path.parent.mkdir()
    for hours, kind in enumerate(("a", "a", "b")):
        append(str(path), kind, {"n": hours}, now=NOW + timedelta(hours=hours))
    assert newest(layout, "a", since=NOW.timestamp()) == {"n": 1}
    assert newest(layout, "a", since=NOW.timestamp() + 3601) is None
    with path.open("a") as file:
        file.write('{"kind": "a", "torn')
    assert newest(layout, "a", since=NOW.timestamp()) == {"n": 1}


BIG = 300_000  # bytes; the tail that is read at once has far fewer


def big_record(path: Path) -> None:
    """As earlier versions wrote what a service said of itself, of whatever length."""
    body = {
        "seq": 1,
        "time": "2026-03-01T12:00:00.000005Z",
        "kind": "reverted",
        "fields": {"serving": "x" * BIG},
        "prev": FIRST_PREV,
    }
    record = {**body, "hash": hashlib.sha256(canonical(body)).hexdigest()}
    path.write_bytes(canonical(record) + b"\n")


def test_a_journal_with_a_larger_record_is_read_and_extended(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    big_record(path)
    append(str(path), "a", {}, now=NOW)
    assert [r.kind for r in Journal(path).records()] == ["reverted", "a"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_larger_line_that_is_torn_is_moved_aside_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    big_record(path)
    whole = path.read_bytes()
    torn = b'{"fields":{"serving":"' + b"y" * BIG
    path.write_bytes(whole + torn)
    append(str(path), "a", {}, now=NOW)
    records = Journal(path).records()
    assert [r.kind for r in records] == ["reverted", TORN_MOVED, "a"]
    assert path.with_name(records[1].fields["moved_to"]).read_bytes() == torn


def test_a_larger_record_that_was_edited_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    big_record(path)
    path.write_bytes(path.read_bytes().replace(b"x" * 9, b"y" * 9, 1))
    append(str(path), "a", {}, now=NOW)
    assert [r.kind for r in Journal(path).records()] == [SET_ASIDE, "a"]


DEEP: list[object] = []
for _ in range(2000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": "\u7a33" * BIG},
        {"names": [f"{n:032}" for n in range(20_000)]},
        {f"{n:0200}": "x" * 900 for n in range(2000)},
        {"wrong": math.nan},
        {"wrong": DEEP},
        {"wrong": {1, 2}},
        {"wrong": "\ud800"},
    ],
    ids=["long", "many", "many long", "not a number", "deep", "no json", "surrogate"],
)
def test_nothing_is_too_long_or_too_strange_to_be_recorded(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    path = tmp_path / "journal.jsonl"
    append(str(path), "a", {"n": 1}, now=NOW)
    append(str(path), "strange", fields, now=NOW)
    append(str(path), "b", {"n": 2}, now=NOW)
    assert [r.kind for r in Journal(path).records()] == ["a", "strange", "b"]
    assert max(map(len, path.read_bytes().splitlines())) < 64 * 1024


def test_what_was_cut_off_a_record_is_told_in_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append(str(path), "a", {"reason": "x" * BIG, "release": "r1"}, now=NOW)
    fields = Journal(path).records()[0].fields
    assert fields["release"] == "r1"
    assert fields["reason"].startswith("x" * 1000)
    assert "more characters]" in fields["reason"]
