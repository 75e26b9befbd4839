"""Logs that instances write side by side are read as one, and each keeps its own count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from macd.gate import evidence
from macd.gate.logs import Pulled, newest_lines, notes
from macd.host import logname
from macd.host.judge import reading
from macd.host.judge.analyse import Window
from macd.host.judge.by_symbol import BySymbol, symbols_at_end
from macd.host.judge.parse import Bad, Line
from tests.support import signal_lines
from tests.support.signal_lines import RELEASE

END = datetime(2026, 3, 2, 12, tzinfo=UTC)
SYMBOLS = ("BTCUSD", "ETHUSD")


def lines(symbol: str, n: int = 40, **more: Any) -> Iterator[dict[str, Any]]:
    at = END + timedelta(seconds=SYMBOLS.index(symbol))
    for line in signal_lines.lines(n, end=at, every=timedelta(hours=1), **more):
        yield {**line, "symbol": symbol}


def write(directory: Path, symbol: str, made: Iterator[dict[str, Any]]) -> None:
    for line in made:
        day = line["timestamp"][:10].replace("-", "")
        with (directory / logname.name_of(day, symbol)).open("a") as log:
            log.write(json.dumps(line) + "\n")


def copy(directory: Path) -> Pulled:
    return Pulled(directory, 0, tuple(sorted(path.name for path in directory.iterdir())))


def read(directory: Path) -> BySymbol:
    end = round(END.timestamp() * 1000)
    analysis = BySymbol(Window(end - 48 * 3_600_000, end + 10_000, RELEASE), SYMBOLS)
    reading.analyse(reading.ordered(directory), analysis)
    return analysis


def doubts(directory: Path, **more: Any) -> list[str]:
    return evidence.problems(read(directory).whole, now=END, **more)


def test_lines_come_by_their_times_and_have_the_numbers_of_their_files(tmp_path: Path) -> None:
    for symbol in SYMBOLS:
        write(tmp_path, symbol, lines(symbol))
    came: list[tuple[int, str, int]] = []

    class Kept:
        def add(self, line: Line | Bad, file: str, number: int) -> None:
            assert isinstance(line, Line)
            came.append((line.time, file, number))

        def finish(self) -> None:
            pass

    reading.analyse(reading.ordered(tmp_path), Kept())
    assert len(came) == 80
    assert all(a[0] <= b[0] for a, b in pairwise(came))
    for name in {file for _, file, _ in came}:
        numbers = [number for _, file, number in came if file == name]
        assert numbers == list(range(1, len(numbers) + 1))


def test_each_symbol_is_judged_and_nothing_is_missing(tmp_path: Path) -> None:
    for symbol in SYMBOLS:
        write(tmp_path, symbol, lines(symbol))
    assert doubts(tmp_path, heads={"BTCUSD": 40, "ETHUSD": 40}) == []
    assert [part.bar_count for part in read(tmp_path).parts.values()] == [40, 40]
    assert symbols_at_end(reading.ordered(tmp_path)) == SYMBOLS
    newest = reading.newest_signal(tmp_path)
    assert newest is not None and newest.symbol == "ETHUSD"


def test_a_gap_in_one_log_is_found_and_named_by_its_file(tmp_path: Path) -> None:
    write(tmp_path, "BTCUSD", lines("BTCUSD"))
    write(tmp_path, "ETHUSD", (line for line in lines("ETHUSD") if line["seq"] != 30))
    assert doubts(tmp_path)[0].startswith("gap: seq 30 to 30 are missing (trades_20260302_ETHUSD")
    assert "gap: seq 30 to 30 are missing" in notes(copy(tmp_path))
    said = doubts(tmp_path, heads={"BTCUSD": 41})
    assert "lines of BTCUSD up to seq 41 were written, the logs end with 40" in said


def test_what_an_instance_wrote_before_its_switch_is_no_intruder(tmp_path: Path) -> None:
    """Instances are switched one after another; one that goes back to an older release is named."""
    write(tmp_path, "BTCUSD", lines("BTCUSD"))
    old = (
        {**line, "release": "20260201T000100Z-0011aabb" if line["seq"] < 20 else RELEASE}
        for line in lines("ETHUSD")
    )
    write(tmp_path, "ETHUSD", old)
    assert doubts(tmp_path) == []
    (late,) = [{**line, "release": "20260201T000100Z-0011aabb"} for line in lines("ETHUSD", 1)]
    with (tmp_path / "trades_20260302_ETHUSD.jsonl").open("a") as log:
        log.write(json.dumps({**late, "seq": 41}) + "\n")
        log.write(json.dumps(next(iter(lines("ETHUSD", 1, first_seq=42)))) + "\n")
    assert any("stands between lines of the live" in why for why in doubts(tmp_path))


def test_the_end_of_each_log_is_chosen_and_shown(tmp_path: Path) -> None:
    for symbol in SYMBOLS:
        write(tmp_path, symbol, lines(symbol, 72))
    chosen = evidence.choose(copy(tmp_path), END)
    names = [source.name for source in chosen]
    assert names == [f"trades_2026022{8}_{s}.jsonl" for s in SYMBOLS] + [
        f"trades_2026030{day}_{s}.jsonl" for day in (1, 2) for s in SYMBOLS
    ]
    shown = [json.loads(raw)["timestamp"] for raw in newest_lines(copy(tmp_path))]
    assert shown == sorted(shown) and len({raw for raw in shown}) == len(shown)
