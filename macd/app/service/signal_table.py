"""Signal lines as tables for people's own tools: one parquet file for each host and log.

A file is made of its log alone and replaced whole, so a second run adds what is new and repeats
nothing. Fields that are known have a column of their type each; what else stands on a line is kept
as JSON in the column `more`. Lines that can't be read are counted and named, and have no row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macd.host import untrusted
from macd.host.durable import replace_file
from macd.host.judge.parse import Bad, parse
from macd.host.judge.reading import Source, raw_lines

_TIME = pl.Datetime("ms", "UTC")
_BAR = ("open", "high", "low", "volume")  # the close is a field of its own
_NUMBERS = (
    *("buy_score", "sell_score", "close", "macd", "macd_signal", "macd_hist", "macd_buy_score"),
    *("macd_sell_score", "ml_bull_prob", "ml_avg_prob", "ml_lgb_prob", "ml_lstm_prob"),
    *("ml_tft_prob", "ml_stacking_prob", "ml_stacking_weight", "ml_latency_ms"),
    *("ml_features_outside", "long", "short"),
)
_TEXTS = (
    *("policy", "ml_direction", "ml_horizon", "ml_stacking_mode", "ml_stacking_skipped_reason"),
    *("ml_error", "ml_feature_worst", "history_until", "event", "detail"),
)
SCHEMA: Mapping[str, Any] = {
    "host": pl.String,
    "log": pl.String,
    "line": pl.UInt32,
    "time": _TIME,
    "level": pl.String,
    "seq": pl.Int64,
    "release": pl.String,
    "symbol": pl.String,
    "tf": pl.String,
    "bar_time": _TIME,
    "action": pl.String,
    "position_side": pl.String,
    "position_size": pl.Float64,
    "position_bars_left": pl.Int64,
    **dict.fromkeys(_BAR, pl.Float64),
    **dict.fromkeys(_NUMBERS, pl.Float64),
    **dict.fromkeys(_TEXTS, pl.String),
    "more": pl.String,
}


@dataclass(frozen=True)
class Written:
    """A file and its rows. damaged: (line, why) of each line of its log that could not be read."""

    path: Path
    rows: int
    damaged: tuple[tuple[int, str], ...]


def write(host: str, log: Path, directory: Path) -> Written:
    """Write the table of one log to `directory`; the file is whole, or as it was.

    Raises OSError as the disk has it.
    """
    damaged: list[tuple[int, str]] = []
    rows: list[dict[str, Any]] = []
    source = Source(log, log.stat().st_size)
    for number, raw in enumerate(raw_lines(source.path, 0, source.size), start=1):
        if not raw.strip():
            continue
        line = parse(raw)
        if isinstance(line, Bad):
            damaged.append((number, line.why))
            continue
        times = {"time": line.time, "bar_time": line.bar}
        place = {"host": host, "log": log.name, "line": number}
        rows.append({**place, **times, **_fields(json.loads(raw))})
    buffer = io.BytesIO()
    _frame(rows).write_parquet(buffer, compression="zstd")
    path = directory / f"signals_{host}_{log.stem.partition('_')[2]}.parquet"
    replace_file(path, buffer.getvalue(), parents=True)
    return Written(path, len(rows), tuple(damaged))


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA}
    made = {}
    for name, kind in SCHEMA.items():
        values = columns[name]
        if kind == _TIME:
            made[name] = pl.Series(name, values, pl.Int64).cast(_TIME)
        else:
            made[name] = pl.Series(name, values, kind)
    return pl.DataFrame(made)


def _fields(document: dict[str, Any]) -> dict[str, Any]:
    """The columns of a line, wherever its layout has them; the innermost place wins."""
    data = document.get("data", document)
    left = {**document, **data, **data.get("components", {})}
    for name in ("timestamp", "bar_time", "data", "components"):
        left.pop(name, None)
    made = dict(_taken(left))
    made["more"] = _json(left) if left else None
    return made


def _json(left: dict[str, Any]) -> str:
    try:
        return json.dumps(left, separators=(",", ":"), allow_nan=False)
    except ValueError:  # JSON has no form for NaN: a word stands for it
        return json.dumps(untrusted.document(left), separators=(",", ":"))


def _taken(left: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Take out of `left` what fits its column; what doesn't stays there."""
    for name in ("level", "release", "symbol", "tf", *_TEXTS):
        if _is_text(left.get(name)):
            yield name, left.pop(name)
    if _is_text(left.get("action_taken")):
        yield "action", left.pop("action_taken")
    if _is_whole(left.get("seq")):
        yield "seq", left.pop("seq")
    for name in _NUMBERS:
        if _is_number(left.get(name)):
            yield name, float(left.pop(name))
    bar = left.get("bar")
    if (
        isinstance(bar, dict)
        and bar.keys() == {*_BAR, "close"}
        and all(map(_is_number, bar.values()))
    ):
        del left["bar"]
        yield from ((name, float(bar[name])) for name in _BAR)
    position = left.get("position")
    if isinstance(position, dict) and position.keys() <= {"side", "size", "bars_left"}:
        yield from _position(left.pop("position"))
    for name in [name for name, value in left.items() if value is None]:
        del left[name]


def _position(position: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    side, size, bars = (position.get(name) for name in ("side", "size", "bars_left"))
    yield "position_side", side if _is_text(side) else None
    yield "position_size", size if _is_number(size) else None
    yield "position_bars_left", bars if _is_whole(bars) else None


def _is_text(value: Any) -> bool:
    """JSON's half of a pair, such as \\ud800, is no character that a column can hold."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63
