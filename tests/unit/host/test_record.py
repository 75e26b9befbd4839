"""The host's journal is the operator's format, and heals a torn tail in the open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from macd.host.layout import Layout
from macd.host.record import SET_ASIDE, TORN_MOVED, append, newest
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
