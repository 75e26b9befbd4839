"""The journal is durable, whole or reported, and never extended once it is not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.errors import MacdError
from macd.host.record import FIRST_PREV, TORN_MOVED
from macd.journal import Journal, JournalError

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from macd.journal import Journal
journal = Journal(Path(sys.argv[1]))
for n in range(int(sys.argv[3])):
    journal.append("deploy", {"writer": sys.argv[2], "n": n}, now=datetime.now(UTC))
    print(n, flush=True)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Three records."""
    made = Journal(tmp_path / "state" / "journal.jsonl")
    for n in range(3):
        made.append("deploy", {"release": f"r{n}", "note": "größer 大"}, now=NOW)
    return made


def damage(journal: Journal) -> JournalError:
    """The one error that reading AND appending must give; neither may change the file."""
    before = journal.path.read_bytes()
    with pytest.raises(JournalError) as reading:
        journal.records()
    with pytest.raises(JournalError) as appending:
        journal.append("deploy", {}, now=NOW)
    assert journal.path.read_bytes() == before
    assert str(appending.value) == str(reading.value)
    assert reading.value.hint
    return reading.value


def test_what_was_appended_is_read_back_and_chained(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "er" / "journal.jsonl")
    assert journal.records() == []
    fields = {
        "list": [1, 2.5, None, True],
        "text": "a\n\u2028\x00 größer 大 \udc80",
        "deep": {"a": {}},
    }
    first = journal.append("run", fields, now=NOW)
    second = journal.append("gate", {}, now=NOW.astimezone(timezone(timedelta(hours=8))))
    assert journal.records() == [first, second]
    assert (first.seq, first.kind, first.fields, first.prev) == (1, "run", fields, FIRST_PREV)
    assert (second.seq, second.prev, second.time) == (2, first.hash, NOW)
    lines = journal.path.read_bytes().split(b"\n")
    assert len(lines) == 3
    assert json.loads(lines[1])["time"] == "2025-03-01T12:00:00.000000Z"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)  # fmt: skip
def test_any_json_value_survives(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    journal = Journal(tmp_path_factory.mktemp("any") / "journal.jsonl")
    made = journal.append("run", {"value": value}, now=NOW)
    assert made.fields == {"value": value}
    assert journal.records() == [made]


@pytest.mark.parametrize(
    ("fields", "now"),
    [({"x": float("nan")}, NOW), ({"x": object()}, NOW), ({}, NOW.replace(tzinfo=None))],
)
def test_what_json_cannot_hold_changes_nothing(
    journal: Journal, fields: dict[str, object], now: datetime
) -> None:
    before = journal.path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        journal.append("run", fields, now=now)
    assert journal.path.read_bytes() == before


def test_the_last_record_cut_at_every_byte_is_torn_and_never_extended(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    two = journal.records()[:2]
    for end in range(start + 1, len(whole)):
        journal.path.write_bytes(whole[:end])
        error = damage(journal)
        assert (error.record, error.torn, error.intact) == (3, whole[start:end], two)
        assert "--repair-torn" in error.hint
    # Cut between two records, nothing can be seen: the chain does not know how long it was.
    journal.path.write_bytes(whole[:start])
    assert journal.records() == two


def test_every_flipped_byte_is_seen_at_its_record(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        journal.path.write_bytes(changed)
        with pytest.raises(JournalError) as caught:
            journal.records()
        assert caught.value.record == whole[:at].count(b"\n") + 1
        # Only the very last byte, the line end, can make damage look like an unfinished line.
        assert bool(caught.value.torn) == (at == len(whole) - 1)
    journal.path.write_bytes(changed)
    damage(journal)


@pytest.mark.parametrize(
    ("order", "record", "reason"),
    [
        ((0, 2), 2, "removed or reordered"),
        ((1, 2), 1, "removed or reordered"),
        ((1, 0, 2), 1, "removed or reordered"),
        ((0, 2, 1), 2, "removed or reordered"),
        ((0, 1, 1), 3, "removed or reordered"),
    ],
)
def test_moved_and_removed_records_are_seen(
    journal: Journal, order: tuple[int, ...], record: int, reason: str
) -> None:
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[n] for n in order))
    error = damage(journal)
    assert (error.record, error.torn) == (record, b"")
    assert reason in error.reason
    with pytest.raises(JournalError):
        journal.repair_torn(now=NOW)


def test_a_record_forged_with_a_fitting_hash_breaks_the_chain(
    journal: Journal, tmp_path: Path
) -> None:
    other = Journal(tmp_path / "other.jsonl")
    for n in range(3):
        other.append("deploy", {"release": f"evil{n}"}, now=NOW)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    forged = other.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + forged[1] + lines[2])
    error = damage(journal)
    assert error.record == 2
    assert "replaced" in error.reason


@pytest.mark.parametrize("said_otherwise", [b'{ "fields"', b'{"kind":"other","fields"'])
def test_the_same_content_in_other_bytes_is_a_change(
    journal: Journal, said_otherwise: bytes
) -> None:
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'{"fields"', said_otherwise)
    journal.path.write_bytes(b"".join(lines))
    assert damage(journal).record == 2


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"{}", b"\x00" * 80, b"\xff", b"[" * 5000, b'{"seq":1}', b'{"seq":NaN}'],
)
def test_foreign_lines_are_damage_not_a_torn_tail(journal: Journal, line: bytes) -> None:
    journal.path.write_bytes(journal.path.read_bytes() + line + b"\n")
    error = damage(journal)
    assert (error.record, error.torn) == (4, b"")


def test_repair_moves_the_torn_tail_aside_and_says_so(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"fields":{"half')
    aside = journal.repair_torn(now=NOW)
    assert aside is not None
    assert aside.read_bytes() == b'{"fields":{"half'
    assert journal.path.read_bytes().startswith(whole)
    record = journal.records()[-1]
    assert (record.seq, record.kind, record.fields["moved_to"]) == (4, TORN_MOVED, aside.name)
    assert journal.repair_torn(now=NOW) is None
    assert journal.append("deploy", {}, now=NOW).seq == 5


def test_repair_never_touches_tampering_even_with_a_torn_tail_behind_it(journal: Journal) -> None:
    data = journal.path.read_bytes().replace(b'"r1"', b'"rX"') + b'{"half'
    journal.path.write_bytes(data)
    with pytest.raises(JournalError) as caught:
        journal.repair_torn(now=NOW)
    assert (caught.value.record, caught.value.torn) == (2, b"")
    assert journal.path.read_bytes() == data
    assert [p.name for p in journal.path.parent.iterdir()] == [journal.path.name]


def test_two_processes_interleave_into_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, "40"], stdout=subprocess.DEVNULL
        )
        for name in "ab"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    records = Journal(path).records()
    for name in "ab":
        mine = [r.fields["n"] for r in records if r.fields["writer"] == name]
        assert mine == list(range(40))


@pytest.mark.parametrize("acknowledged", [0, 1, 7, 20])
def test_killed_while_appending_keeps_all_that_was_acknowledged(
    tmp_path: Path, acknowledged: int
) -> None:
    path = tmp_path / "journal.jsonl"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "a", "100000"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    with writer.stdout:
        for _ in range(acknowledged):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        last = acknowledged - 1 + len(writer.stdout.readlines())
    writer.wait()
    journal = Journal(path)
    try:
        records = journal.records()
    except JournalError as error:
        assert error.torn
        journal.repair_torn(now=NOW)
        records = error.intact
    assert [r.fields["n"] for r in records[: last + 1]] == list(range(last + 1))
    assert len(records) - (last + 1) in (0, 1)  # at most one was written and not yet reported
    journal.append("deploy", {}, now=NOW)


def test_the_file_and_its_directories_are_synced_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    journal = Journal(tmp_path / "a" / "b" / "journal.jsonl")
    journal.append("run", {}, now=NOW)
    assert synced == [
        str(path) for path in (tmp_path, tmp_path / "a", journal.path, journal.path.parent)
    ]


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_disk_that_refuses_leaves_the_journal_as_it_was(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = journal.path.read_bytes()
    real_write = os.write

    def full(descriptor: int, data: bytes) -> int:
        return real_write(descriptor, data[: len(data) // 2])

    calls = []

    def broken(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, broken if failing == "fsync" else full)
        with pytest.raises(MacdError, match="could not be written"):
            journal.append("run", {}, now=NOW)
    assert journal.path.read_bytes() == before
    assert journal.append("run", {}, now=NOW).seq == 4


def test_a_journal_that_may_not_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MacdError, match="can't be opened"):
        Journal(tmp_path / "file" / "journal.jsonl").append("run", {}, now=NOW)
