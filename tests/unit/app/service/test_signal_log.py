"""Whole lines, numbered without end, over restarts, midnights, torn tails and full disks."""

from __future__ import annotations

import errno
import json
import os
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.service.signal_log import SignalLog, bar_time
from macd.errors import RefusedError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def lines(directory: Path) -> list[dict[str, Any]]:
    files = sorted(directory.glob("trades_*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


def signal(number: int) -> dict[str, Any]:
    return {"bar_time": bar_time(number * 3_600_000), "data": {"n": number}}


def test_seq_goes_on_over_restarts_and_days(tmp_path: Path) -> None:
    clock = Clock()
    for day in range(3):
        log = SignalLog(tmp_path, clock=clock)
        for number in range(2):
            log.write("SIGNAL", signal(day * 2 + number))
        log.close()
        clock.now += timedelta(days=1)
    assert [line["seq"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in sorted(tmp_path.glob("*.jsonl"))] == [
        "trades_20260301.jsonl",
        "trades_20260302.jsonl",
        "trades_20260303.jsonl",
    ]
    log = SignalLog(tmp_path, clock=clock)
    assert (log.seq, log.last_bar_ms) == (6, 5 * 3_600_000)


def test_a_line_is_on_the_disk_before_its_number_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SignalLog(tmp_path, clock=Clock())
    log.write("SIGNAL", signal(0))  # creates the file
    path = next(tmp_path.glob("trades_*.jsonl"))
    fsync, synced = os.fsync, []

    def syncing(descriptor: int) -> None:
        synced.append((os.path.samestat(os.fstat(descriptor), path.stat()), len(lines(tmp_path))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    for number in (1, 2):
        log.write("SIGNAL", signal(number))
    assert synced == [(True, 2), (True, 3)]

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        log.write("SIGNAL", signal(3))
    assert (log.seq, len(lines(tmp_path))) == (3, 3)
    monkeypatch.setattr(os, "fsync", fsync)
    assert log.write("SIGNAL", signal(3)) == 4
    assert [line["seq"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_midnight_comes_between_two_lines(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = datetime(2026, 3, 1, 23, 59, 59, 999_000, tzinfo=UTC)
    log = SignalLog(tmp_path, clock=clock)
    log.write("SIGNAL", signal(1))
    clock.now += timedelta(milliseconds=1)
    log.write("SIGNAL", signal(2))
    written = lines(tmp_path)
    assert [line["timestamp"][:10] for line in written] == ["2026-03-01", "2026-03-02"]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_clock_set_back_writes_into_no_older_file(tmp_path: Path) -> None:
    clock = Clock()
    log = SignalLog(tmp_path, clock=clock)
    log.write("SIGNAL", signal(1))
    clock.now -= timedelta(days=3)
    log.write("SIGNAL", signal(2))
    log.close()
    log = SignalLog(tmp_path, clock=clock)
    log.write("SIGNAL", signal(3))
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["trades_20260301.jsonl"]
    assert [line["seq"] for line in lines(tmp_path)] == [1, 2, 3]


@hypothesis.settings(deadline=None)  # a busy machine is no defect
@given(cut=st.integers(min_value=0, max_value=400))
def test_cut_anywhere_the_next_life_ends_the_torn_line_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = SignalLog(directory, clock=Clock())
    for number in range(4):
        log.write("SIGNAL", signal(number))
    log.close()
    path = directory / "trades_20260301.jsonl"
    whole = path.read_bytes()
    left = whole[: max(0, len(whole) - cut)]
    path.write_bytes(left)
    log = SignalLog(directory, clock=Clock())
    kept = left.count(b"\n")
    torn = len(left) - (left.rfind(b"\n") + 1)
    if 0 < torn == len(whole.splitlines()[kept]):  # only the newline was missing
        kept += 1
    assert bool(log.torn) == bool(torn)
    assert log.seq == kept
    assert log.write("SIGNAL", signal(9)) == kept + 1
    after = path.read_bytes()
    assert after.startswith(left)
    assert json.loads(after.splitlines()[-1])["seq"] == kept + 1


def test_garbage_at_the_end_is_stepped_over(tmp_path: Path) -> None:
    log = SignalLog(tmp_path, clock=Clock())
    log.write("SIGNAL", signal(1))
    log.close()
    with (tmp_path / "trades_20260301.jsonl").open("ab") as file:
        file.write(b'[1]\n{"seq": "7"}\n\xff\xfe\n{"seq": true}\n' + b"x" * 200_000 + b"\n")
    (tmp_path / "trades_20260302.jsonl").write_bytes(b"")
    (tmp_path / "trades_2026-03-09.jsonl").write_bytes(b'{"seq": 99}\n')
    assert SignalLog(tmp_path, clock=Clock()).seq == 1


def test_a_number_or_a_time_that_no_reader_takes_is_stepped_over(tmp_path: Path) -> None:
    """The gate reads numbers below 2^53: behind a larger one no line would count any more."""
    log = SignalLog(tmp_path, clock=Clock())
    log.write("SIGNAL", signal(1))
    log.close()
    with (tmp_path / "trades_20260301.jsonl").open("ab") as file:
        file.write(b'{"seq": -3}\n{"seq": 0}\n{"seq": 9007199254740992}\n{"seq": 1' + b"0" * 40)
        file.write(b'}\n{"level": "SIGNAL", "bar_time": "0001-01-01T00:00:00+14:00"}\n')
    again = SignalLog(tmp_path, clock=Clock())
    assert again.seq == 1
    assert again.last_signal["seq"] == 1


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = SignalLog(tmp_path)
    with pytest.raises(RefusedError, match="another process"):
        SignalLog(tmp_path)
    first.close()
    SignalLog(tmp_path).close()


def test_what_json_cannot_hold_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    log = SignalLog(tmp_path, clock=Clock())
    with pytest.raises(ValueError, match="JSON"):
        log.write("SIGNAL", {"p": float("nan")})
    assert log.write("SIGNAL", signal(1)) == 1
    assert len(lines(tmp_path)) == 1


def test_a_line_that_does_not_fit_leaves_no_half_and_comes_later(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is a full disk that needs no root: only part of a line can be written."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = SignalLog(tmp_path, clock=Clock())
            log.write("SIGNAL", signal(1))
            size = (tmp_path / "trades_20260301.jsonl").stat().st_size
            import signal as signals  # noqa: PLC0415

            signals.signal(signals.SIGXFSZ, signals.SIG_IGN)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
            try:
                log.write("SIGNAL", signal(2))
            except OSError:
                whole = (tmp_path / "trades_20260301.jsonl").stat().st_size == size
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                code = 0 if whole and log.write("SIGNAL", signal(2)) == 2 else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [line["seq"] for line in lines(tmp_path)] == [1, 2]


def test_each_instance_has_a_log_a_number_and_a_lock_of_its_own(tmp_path: Path) -> None:
    both = [SignalLog(tmp_path, clock=Clock(), writer=name, symbols=(name,)) for name in "AB"]
    for log in both:
        log.write("SIGNAL", {**signal(1), "symbol": "A"})
    assert [log.seq for log in both] == [1, 1]
    names = [path.name for path in sorted(tmp_path.glob("*.jsonl"))]
    assert names == ["trades_20260301_A.jsonl", "trades_20260301_B.jsonl"]
    with pytest.raises(RefusedError) as refused:
        SignalLog(tmp_path, clock=Clock(), writer="A")
    assert "systemctl status macd-analysis@A" in refused.value.hint


def test_an_instance_goes_on_where_the_one_process_ended_and_back(tmp_path: Path) -> None:
    clock = Clock()

    def written(writer: str, symbol: str, *numbers: int) -> None:
        log = SignalLog(tmp_path, clock=clock, writer=writer)
        for number in numbers:
            log.write("SIGNAL", {**signal(number), "symbol": symbol})
            clock.now += timedelta(minutes=1)
        log.close()

    written("", "A", 1, 2)
    written("", "B", 1)
    log = SignalLog(tmp_path, clock=clock, writer="A", symbols=("A",))
    assert (log.seq, log.last_bar_ms) == (0, 2 * 3_600_000)
    assert log.last_signal["data"] == {"n": 2}
    log.close()
    written("A", "A", 3, 4)
    written("B", "B", 2)
    log = SignalLog(tmp_path, clock=clock, symbols=("A", "B"))
    assert log.seq == 3
    assert {name: last.bar_ms // 3_600_000 for name, last in log.last.items()} == {"A": 4, "B": 2}
