"""The lines as parquet: every field in a typed column or in `more`, nothing twice, damage named."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macd.app.service import signal_table
from tests.support import signal_lines

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def log_of(directory: Path, *raws: bytes, day: str = "20260302") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"trades_{day}.jsonl"
    path.write_bytes(b"".join(raws))
    return path


def good(n: int, **over: Any) -> list[bytes]:
    return [signal_lines.encode(line) for line in signal_lines.lines(n, end=NOW, **over)]


def read(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path)


def test_every_field_is_read_back_in_its_type(tmp_path: Path) -> None:
    bar = {"open": 1.0, "high": 4, "low": 0.5, "close": 2.0, "volume": 7.0}
    challenger = {"release": "r", "avg": 0.5}
    [raw] = good(1, ml_challenger=challenger, ml_features_outside=3, bar=bar)
    made = signal_table.write("prod", log_of(tmp_path / "logs", raw), tmp_path / "out")
    assert made.path.name == "signals_prod_20260302.parquet"
    assert (made.rows, made.damaged) == (1, ())
    frame = read(made.path)
    assert frame.schema == pl.Schema(signal_table.SCHEMA)
    row, line = frame.row(0, named=True), json.loads(raw)
    parts = line["data"]["components"]
    assert row["time"] == datetime.fromisoformat(line["timestamp"])
    assert row["bar_time"] == datetime.fromisoformat(line["bar_time"])
    for name in ("level", "seq", "release", "symbol", "tf"):
        assert row[name] == line[name]
    assert (row["host"], row["log"], row["line"]) == ("prod", "trades_20260302.jsonl", 1)
    assert (row["action"], row["buy_score"], row["sell_score"]) == ("HOLD", 20.0, 10.0)
    assert (row["position_side"], row["position_size"], row["position_bars_left"]) == ("flat", 0, 0)
    for name in ("close", "macd", "ml_bull_prob", "ml_tft_prob", "ml_stacking_mode", "policy"):
        assert row[name] == parts[name]
    assert row["ml_features_outside"] == 3.0
    assert row["ml_error"] is None
    assert [row[name] for name in ("open", "high", "low", "volume")] == [1.0, 4.0, 0.5, 7.0]
    more = json.loads(row["more"])
    assert more == {"ml_heads": parts["ml_heads"], "ml_challenger": parts["ml_challenger"]}


def test_a_second_run_replaces_and_repeats_nothing(tmp_path: Path) -> None:
    raws = good(30)
    first = signal_table.write("prod", log_of(tmp_path / "logs", *raws[:20]), tmp_path / "out")
    again = signal_table.write("prod", log_of(tmp_path / "logs", *raws), tmp_path / "out")
    assert (first.rows, again.rows) == (20, 30)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [first.path.name]
    assert read(again.path)["seq"].to_list() == list(range(1, 31))


def test_files_of_hosts_and_days_are_one_table(tmp_path: Path) -> None:
    for host in ("a", "b"):
        for day in ("20260301", "20260302"):
            log = log_of(tmp_path / host, *good(5), day=day)
            signal_table.write(host, log, tmp_path / "out")
    whole = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert whole.group_by("host").len().sort("host").rows() == [("a", 10), ("b", 10)]


def test_damaged_lines_are_named_and_have_no_row(tmp_path: Path) -> None:
    a, b = good(2)
    log = log_of(tmp_path / "logs", a, b"{\n", b"\n", b"\xff\xfe\n", b, b'{"level": "SIGNAL"}\n')
    made = signal_table.write("prod", log, tmp_path / "out")
    assert made.damaged == ((2, "not JSON"), (4, "not UTF-8"), (6, "no timestamp"))
    assert read(made.path)["line"].to_list() == [1, 5]


def test_a_log_without_a_line_has_a_table_without_a_row(tmp_path: Path) -> None:
    made = signal_table.write("prod", log_of(tmp_path / "logs"), tmp_path / "out")
    assert read(made.path).shape == (0, len(signal_table.SCHEMA))


def test_warnings_have_their_event(tmp_path: Path) -> None:
    raw = signal_lines.encode(signal_lines.warning("gap", 3, at=NOW, seq=4, extra=[1]))
    made = signal_table.write("prod", log_of(tmp_path / "logs", raw), tmp_path / "out")
    row = read(made.path).row(0, named=True)
    assert (row["level"], row["event"]) == ("WARN", "gap")
    assert row["close"] is None
    assert json.loads(row["more"]) == {"extra": [1]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", 3),
        ("macd", "high"),
        ("macd", True),
        ("macd_hist", 1 << 80),
        ("ml_direction", {"a": 1}),
        ("detail", ["x"]),
        ("position", "long"),
        ("bar", {"open": 1.0}),
        ("bar", {"open": 1.0, "high": 1, "low": 1, "close": 1, "volume": None}),
    ],
)
def test_what_does_not_fit_its_column_is_kept(tmp_path: Path, name: str, value: Any) -> None:
    [raw] = good(1, **{name: value})
    made = signal_table.write("prod", log_of(tmp_path / "logs", raw), tmp_path / "out")
    assert json.loads(read(made.path)["more"][0])[name] == value


def test_lines_of_earlier_layouts_have_the_same_columns(tmp_path: Path) -> None:
    [line] = signal_lines.lines(1, end=NOW)
    parts = line["data"].pop("components")
    flat = {k: v for k, v in line.items() if k != "data"} | line["data"] | parts
    inside = {**line, "data": {**line["data"], **parts}}
    rows = []
    for layout in (flat, inside):
        log = log_of(tmp_path / "logs", signal_lines.encode(layout))
        rows.append(read(signal_table.write("prod", log, tmp_path / "out").path).row(0))
    assert rows[0] == rows[1]
    assert rows[0][list(signal_table.SCHEMA).index("ml_bull_prob")] == parts["ml_bull_prob"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
names = st.sampled_from(["ml_error", "macd", "close", "position", "action_taken", "seq", "odd"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, values, max_size=4), st.dictionaries(names, values, max_size=4))
def test_whatever_stands_on_a_line_it_is_a_row_or_named(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, Any], parts: dict[str, Any]
) -> None:
    directory = tmp_path_factory.mktemp("any")
    [line] = signal_lines.lines(1, end=NOW)
    line["data"]["components"] |= parts
    raws = [json.dumps(line).encode() + b"\n", json.dumps({**line, **top}).encode() + b"\n"]
    raws.append(json.dumps({**line["data"], **line, "data": {}, **top}).encode() + b"\n")
    made = signal_table.write("prod", log_of(directory, *raws), directory)
    frame = read(made.path)
    assert len(frame) == made.rows == 3 - len(made.damaged)
    assert frame.schema == pl.Schema(signal_table.SCHEMA)
    for more in frame["more"].drop_nulls():
        json.loads(more, parse_constant=pytest.fail)


def test_half_a_character_is_kept_beside_the_columns(tmp_path: Path) -> None:
    [raw] = good(1)
    raw = raw.replace(b'"policy":"tilt"', b'"policy":"\\ud800"')
    made = signal_table.write("prod", log_of(tmp_path / "logs", raw), tmp_path / "out")
    assert json.loads(read(made.path)["more"][0])["policy"] == "\ud800"
