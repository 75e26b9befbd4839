"""One verdict from several hosts, and their lines in one order."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from macd.gate.logs import merged
from macd.gate.report import together
from tests.support import signal_lines

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["PASS", "PASS"], "PASS"),
        (["PASS", "INCONCLUSIVE"], "INCONCLUSIVE"),
        (["PASS", ""], "INCONCLUSIVE"),
        (["PASS", "INCONCLUSIVE", "FAIL"], "FAIL"),
        (["FAIL", ""], "FAIL"),
        (["", ""], "INCONCLUSIVE"),
        ([], "INCONCLUSIVE"),
    ],
)
def test_pass_only_if_all_pass_and_fail_if_any_fails(verdicts: list[str], verdict: str) -> None:
    assert together(verdicts) == together(reversed(verdicts)) == verdict


def raw(*seqs: int, of: int, every: int = 1) -> list[bytes]:
    """Lines written `of` seconds behind noon, and then every so many."""
    return [
        json.dumps(line).encode()
        for at, seq in enumerate(seqs)
        for line in signal_lines.lines(
            1, end=NOON + timedelta(seconds=of + at * every), first_seq=seq
        )
    ]


def test_lines_of_hosts_are_merged_by_time_and_none_is_lost_or_moved_within_its_host() -> None:
    first = [*raw(1, 2, of=0, every=10), b"torn", *raw(3, of=30)]
    second = [b"torn before any", *raw(1, 2, of=5, every=10)]
    # The clock of the third was set back: its lines stay in the order in which they were written.
    third = [*raw(1, of=20), *raw(2, of=1)]

    lines_by_host = merged({"one": first, "two": second, "three": third, "none": []})

    assert [host for host, _ in lines_by_host] == [
        *("two", "one", "two", "one", "one", "two", "three", "three", "one"),
    ]
    for host, lines in (("one", first), ("two", second), ("three", third)):
        assert [line for name, line in lines_by_host if name == host] == lines
    assert merged({}) == []
