"""What the live release did is counted by the gate's analysis, over its own window."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.dashboard import served
from macd.host.judge import skill
from macd.host.judge.gate import ALPHA
from macd.host.judge.skill import Scored
from tests.support import signal_lines
from tests.support.signal_lines import RELEASE

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
OTHER = "20260201T000100Z-0011aabb"
HOUR = 3_600_000
values = st.none() | st.floats() | st.floats(0, 1e3)


def did(directory: Path, hours: float = 48, end: datetime = NOW) -> served.Served | None:
    start = end - timedelta(hours=hours)
    return served.served(served.written_since(directory, start), RELEASE, start, end, cost=0.001)


def test_bars_latency_and_paper_are_the_releases_own(tmp_path: Path) -> None:
    step = timedelta(hours=1)
    end = NOW - 30 * step
    signal_lines.write(tmp_path, signal_lines.lines(20, end=end, every=step, release=OTHER))
    long = {"side": "long", "size": 1.0, "bars_left": 3}
    lines = list(signal_lines.lines(30, end=NOW, every=step, first_seq=21, ml_latency_ms=4.0))
    for line in lines:
        line["data"]["position"] = long
    signal_lines.write(tmp_path, iter(lines))
    made = did(tmp_path)
    assert made is not None
    assert made.bars == 30
    assert sum(row[1] for row in made.findings["timeline"]) == 30
    assert {(part.median, part.mean, part.most) for part in made.latency} == {(4.0, 4.0, 4.0)}
    closes = [line["data"]["components"]["close"] for line in lines]
    assert made.paper is not None
    assert made.paper.market == pytest.approx(closes[-1] / closes[0] - 1)
    assert (made.paper.trades, made.paper.exposure) == (1, 1.0)
    assert made.newest == 50 * HOUR + round(signal_lines.FIRST_BAR.timestamp() * 1000)


def test_the_window_cuts(tmp_path: Path) -> None:
    signal_lines.write(tmp_path, signal_lines.lines(48, end=NOW, every=timedelta(hours=1)))
    made = did(tmp_path, hours=10)
    assert made is not None
    assert made.bars == 11
    assert did(tmp_path, end=NOW + timedelta(days=9)) is None


def test_no_log_and_no_line_is_nothing(tmp_path: Path) -> None:
    assert did(tmp_path / "none") is None
    (tmp_path / "trades_20260302.jsonl").write_bytes(b"{\n\xff\n[]\n")
    assert did(tmp_path) is None


def test_damage_between_the_lines_counts_as_bars_without_evidence(tmp_path: Path) -> None:
    signal_lines.write(tmp_path, signal_lines.lines(10, end=NOW - timedelta(minutes=5)))
    path = tmp_path / "trades_20260302.jsonl"
    path.write_bytes(path.read_bytes() + b"{\n")
    signal_lines.write(tmp_path, signal_lines.lines(5, end=NOW, first_seq=11))
    made = did(tmp_path)
    assert made is not None
    assert made.bars == 16
    assert made.findings["malformed"]["count"] == 1


@given(st.lists(st.tuples(st.integers(0, 1 << 40), values), max_size=300))
def test_stretches_hold_every_number_once(rows: list[tuple[int, float | None]]) -> None:
    known = [v for _, v in rows if v is not None and math.isfinite(v) and v >= 0]
    made = served.stretches(rows)
    assert len(made) <= served.MOST_POINTS
    assert bool(made) == bool(known)
    if made:
        assert max(part.most for part in made) == max(known)
        slack = 1e-9 * max(known)
        assert all(p.median <= p.most and p.mean <= p.most + slack for p in made)


def bars(n: int, challenger: float | None = None) -> list[Scored]:
    rng, close = random.Random(3), 100.0
    made = []
    for at in range(n):
        close *= 1 + rng.gauss(0, 0.01)
        ours, theirs = (0.3 + 0.4 * rng.random() for _ in "ab")
        name = OTHER if challenger else ""
        bar = (at * HOUR, HOUR, close, "5h", ours, theirs, challenger, name)
        made.append(Scored("BTCUSD", "1h", *bar))
    return made


@pytest.mark.parametrize("challenger", [None, 0.5])
def test_the_last_proof_is_what_the_gate_says(challenger: float | None) -> None:
    rows = bars(120, challenger)
    *_, last = served.proofs(rows)
    judged = skill.judged(rows, skill.WORSE, ALPHA)["against"]["mean"]
    assert last.n == judged["n"]
    assert {"value": last.value, "low": last.low, "high": last.high} == pytest.approx(
        judged["log_score"]
    )


def test_proofs_are_a_few_moments_in_order() -> None:
    made = served.proofs(bars(200))
    assert len(made) == 8
    assert [part.bar for part in made] == sorted({part.bar for part in made})
    assert all(part.low <= part.value <= part.high for part in made)
    assert served.proofs(bars(4)) == []
    assert served.proofs([]) == []


def test_several_symbols_are_counted_apart(tmp_path: Path) -> None:
    each = [
        list(signal_lines.lines(20, end=NOW, every=timedelta(hours=1), seed=seed))
        for seed in (1, 2)
    ]
    long = {"side": "long", "size": 1.0, "bars_left": 3}
    made = [
        {**line, "symbol": name, "seq": 2 * at + n, "data": {**line["data"], "position": long}}
        for at, pair in enumerate(zip(*each, strict=True))
        for n, (name, line) in enumerate(zip(("BTCUSD", "ETHUSD"), pair, strict=True), start=1)
    ]
    signal_lines.write(tmp_path, iter(made))
    served = did(tmp_path)
    assert served is not None
    assert (served.bars, served.paper) == (40, None)
    assert [(row.symbol, row.bars, row.covered) for row in served.symbols] == [
        ("BTCUSD", 20, 20), ("ETHUSD", 20, 20),
    ]  # fmt: skip
    for row, lines in zip(served.symbols, each, strict=True):
        closes = [line["data"]["components"]["close"] for line in lines]
        assert row.paper is not None
        assert row.paper.market == pytest.approx(closes[-1] / closes[0] - 1)
