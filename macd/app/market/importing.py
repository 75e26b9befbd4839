"""`data.import`: a file somebody else wrote becomes canonical bars, and joins those already there.

Reports everything it did and assumed. What is not certain it asks, with an example.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import polars as pl

from macd.app.market.bars import COLUMNS, canonical, step_ms, symbol_name
from macd.app.market.columns import map_columns, read_numbers
from macd.app.market.table import BROKEN, Table, read_table
from macd.app.market.times import read_times
from macd.errors import RefusedError, UsageError, first_line

TIMEFRAMES = tuple("1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w".split())  # noqa: SIM905
_VALUES = COLUMNS[1:]
# USD first: in BTC_USDT_... the asset priced is BTC, though BTC prices other assets too.
_QUOTES = ("USDT|USDC|BUSD|FDUSD|TUSD|USD|EUR|GBP|JPY|KRW|TRY|BRL|AUD", "BTC|ETH|BNB")
_KNOWN_BASES = "BTC|ETH|SOL|BNB|XRP|ADA|DOGE|LTC|BCH|DOT|LINK|AVAX|TRX|MATIC|XLM|ETC|EOS|ATOM|XMR"


@dataclass(frozen=True)
class Answers:
    """What the user says about the file; what is left empty is worked out from it, or asked."""

    symbol: str = ""
    tf: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    timezone: str = ""
    time_is: Literal["open", "close"] = "open"
    dates: str = ""
    decimal: str = ""


@dataclass(frozen=True)
class Imported:
    """Canonical bars of one symbol and timeframe, how the file was read, and what was assumed."""

    bars: pl.DataFrame
    symbol: str
    tf: str
    columns: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """The union of old and new bars; counts of rows added, already there, and replaced."""

    bars: pl.DataFrame
    added: int
    same: int
    replaced: int


def read_file(path: Path, answers: Answers | None = None) -> Imported:
    """Read a file of bars; UsageError asks what the file leaves open."""
    try:
        return _read_file(path, answers or Answers())
    except (*BROKEN, OverflowError, RecursionError, UnicodeError) as error:  # no check foresaw it
        raise UsageError(
            f"{path}: this file can't be made sense of",
            why=first_line(error)[:500],
            hint="open it, and keep only the lines and columns of the bars; then import it again",
        ) from error


def _read_file(path: Path, answers: Answers) -> Imported:
    table = read_table(path)
    if table.frame.is_empty():
        raise UsageError(
            f"{path} has no rows",
            why=f"only a header: {', '.join(table.frame.columns)}",
            hint="invoke data.import FILE, where FILE holds bars",
        )
    closes = answers.time_is == "close"
    wanted = symbol_name(answers.symbol) if answers.symbol else ""
    likely = wanted or _symbol_in_name(path)
    mapped = map_columns(table, given=answers.columns, symbol=likely, closes=closes)
    table, symbol = _one_symbol(table, mapped.symbol, wanted)
    times = read_times(
        table, mapped.time, clock=mapped.clock, zone=answers.timezone, dates=answers.dates
    )
    numbers = read_numbers(
        table, {**mapped.prices, "volume": mapped.volume}, decimal=answers.decimal
    )
    bars = canonical(numbers.insert_column(0, times.stamps.alias("timestamp")), source=str(path))
    ordered, notes = _in_order(table, bars)
    tf = _timeframe(table, ordered, answers.tf)
    if closes:
        ordered = _opens(ordered, step_ms(tf))
        notes += (f"times were those of bar closes: moved back by {tf}",)
    return Imported(ordered, symbol, tf, str(mapped), times.notes + notes)


def between(imported: Imported, since: datetime | None, until: datetime | None) -> Imported:
    """Only the bars that open at or after `since` and before `until`; said in the notes."""
    stamp = pl.col("timestamp")
    bars = imported.bars.filter(stamp >= since) if since else imported.bars
    bars = bars.filter(stamp < until) if until else bars
    cut = imported.bars.height - bars.height
    if bars.is_empty():
        raise UsageError(
            "no bar is between --since and --until",
            why=f"the file runs from {imported.bars['timestamp'][0]}"
            f" to {imported.bars['timestamp'][-1]}",
            hint="an earlier --since, or a later --until",
        )
    note = (f"{cut:,} bars outside --since and --until: left out",) if cut else ()
    return dataclasses.replace(imported, bars=bars, notes=imported.notes + note)


def scaled(imported: Imported, factor: float) -> Imported:
    """Prices times `factor`, volume divided by it: bars of an old denomination in the new unit."""
    if factor == 1:
        return imported
    bars = imported.bars.with_columns(
        pl.col("open", "high", "low", "close") * factor, pl.col("volume") / factor
    )
    note = f"prices times {factor:g}, volume divided by it (--factor)"
    return dataclasses.replace(imported, bars=bars, notes=(*imported.notes, note))


def closed(imported: Imported, now: datetime) -> Imported:
    """Without a last bar that is still open (said in the notes); bars of the future are refused."""
    stamp = pl.col("timestamp")
    late = imported.bars.filter(stamp > now)
    if late.height:
        raise UsageError(
            f"{late.height:,} bars are in the future",
            why=f"the last opens at {late['timestamp'][-1]:%Y-%m-%d %H:%M}, and now it is "
            f"{now:%Y-%m-%d %H:%M} UTC: the file's clock is not UTC",
            hint="--timezone +08:00 (the zone of that clock), or --until TIME to leave them out",
        )
    bars = imported.bars.filter(stamp <= now - timedelta(milliseconds=step_ms(imported.tf)))
    if bars.height == imported.bars.height:
        return imported
    note = f"the bar of {imported.bars['timestamp'][-1]:%Y-%m-%d %H:%M} is not closed yet: left out"
    return dataclasses.replace(imported, bars=bars, notes=(*imported.notes, note))


def merge(
    existing: pl.DataFrame | None, new: pl.DataFrame, *, replace: bool = False, hint: str = ""
) -> Merged:
    """Both sets of bars as one. A bar that is in both with other values is refused, or replaced.

    Raises RefusedError naming such bars; `hint` says how to let the new ones win.
    """
    if existing is None or existing.is_empty():
        return Merged(new, added=new.height, same=0, replaced=0)
    both = new.join(existing, on="timestamp", suffix="_old", maintain_order="left")
    equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_old")) for name in _VALUES)
    other = both.filter(~equal)
    if other.height and not replace:
        raise RefusedError(
            f"{other.height:,} bars are there already with other values",
            why="\n".join(_difference(row) for row in other.head(5).iter_rows(named=True))
            + ("\n..." if other.height > 5 else ""),
            live="nothing was written",
            hint=hint or "the same command with --replace lets the new values win",
        )
    union = pl.concat([new, existing.join(new, on="timestamp", how="anti")]).sort("timestamp")
    return Merged(
        union,
        added=new.height - both.height,
        same=both.height - other.height,
        replaced=other.height,
    )


def _one_symbol(table: Table, column: str, wanted: str) -> tuple[Table, str]:
    """The rows of one symbol, and its name: as given, from its column, or from the file's name."""
    if not column:
        if symbol := wanted or _symbol_in_name(table.path):
            return table, symbol
        raise table.unclear(
            "which market are these bars of?",
            why="neither a column nor the file's name says so",
            example="--symbol BTCUSD",
        )
    cells = table.frame[column].cast(pl.String)
    there = {symbol_name(name): name for name in cells.unique().drop_nulls().sort()}
    if len(there) == 1 and (not wanted or wanted in there):
        return table, next(iter(there))
    if wanted not in there:
        raise table.unclear(
            f"the file has no {wanted}" if wanted else f"the file holds {len(there)} symbols",
            why=f"in column {column}: {', '.join(list(there)[:20])}",
            example=f"--symbol {next(iter(there), 'BTCUSD')}",
        )
    keep = table.frame.filter(cells == there[wanted])
    rows = (cells == there[wanted]).arg_true().to_list()
    lines = [table.lines[row] for row in rows] if table.lines else ()
    return Table(table.path, keep, table.header, lines), wanted


def _symbol_in_name(path: Path) -> str:
    """The one market in a file's name, as in Binance_BTCUSDT_1h.csv; "" unless it is certain."""
    stem = path.name.partition(".")[0].upper()
    for quotes in _QUOTES:
        joined = rf"(?<![A-Z0-9])([A-Z0-9]*[A-Z][A-Z0-9]*?)({quotes})(?![A-Z0-9])"
        apart = rf"(?<![A-Z0-9])({_KNOWN_BASES})[-_ ]?({quotes})(?![A-Z0-9])"
        names = {base + quote for base, quote in re.findall(apart, stem)}
        names = names or {base + quote for base, quote in re.findall(joined, stem)}
        if len(names) == 1:
            return str(names.pop())
    return ""


def _in_order(table: Table, bars: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Oldest first, each bar once. Two different bars of one time are refused by name."""
    notes: list[str] = []
    stamps = bars["timestamp"]
    if stamps.is_sorted(descending=True) and bars.height > 1:
        notes.append("the file is newest first: turned round")
    elif not stamps.is_sorted():
        notes.append("the file is not in order of time: sorted")
    rows = bars.with_row_index("row")
    once = rows.unique(subset=list(COLUMNS), keep="first", maintain_order=True)
    twice = once.filter(pl.col("timestamp").is_duplicated()).sort("timestamp", "row")
    if twice.height:
        shown = twice.head(6).iter_rows(named=True)
        raise table.unclear(
            f"{twice['timestamp'].n_unique():,} times come twice with different values",
            why="\n".join(f"{table.where(row['row'])}: {_bar(row)}" for row in shown)
            + "\n(an hour that comes twice each autumn is local time: --timezone America/New_York)",
            example="after deleting the wrong ones",
        )
    if dropped := rows.height - once.height:
        first = rows.join(once, on="row", how="anti")["timestamp"][0]
        notes.append(
            f"{dropped:,} rows repeat a bar exactly, first {first:%Y-%m-%d %H:%M}: left out"
        )
    return once.drop("row").sort("timestamp"), tuple(notes)


def _timeframe(table: Table, ordered: pl.DataFrame, wanted: str) -> str:
    """The timeframe most neighbours are apart; what the user says must agree with it."""
    apart = ordered["timestamp"].to_physical().diff().drop_nulls()
    usual = {step_ms(tf): tf for tf in TIMEFRAMES}
    counts = apart.value_counts(sort=True)
    top = int(counts.item(0, 0)) if counts.height else 0
    seen = usual.get(top, "") if top and counts.item(0, "count") * 2 > apart.len() else ""
    if not seen and not wanted:
        raise table.unclear(
            "what timeframe are these bars?",
            why="most of them are not the same time apart" if apart.len() else "there is only one",
            example="--tf 1h",
        )
    if wanted and apart.len() and top != step_ms(wanted):
        raise table.unclear(
            f"these are not {wanted} bars",
            why=f"most of them are {seen or f'{top / 60_000:g} minutes'} apart, and nothing is "
            "resampled here",
            example=f"--tf {seen or '1h'}",
        )
    return wanted or seen


def _opens(ordered: pl.DataFrame, step: int) -> pl.DataFrame:
    """From close to open times; a close written as 09:59:59 or 09:59:59.999 means 10:00."""
    ms = pl.col("timestamp").to_physical()
    late = (ms + 1000) % step
    closed = pl.when(late < 1000).then(ms + 1000 - late).otherwise(ms)
    return ordered.with_columns((closed - step).cast(ordered.schema["timestamp"]))


def _bar(row: Mapping[str, object]) -> str:
    values = " ".join(f"{name}={row[name]:.10g}" for name in _VALUES)
    return f"{row['timestamp']:%Y-%m-%d %H:%M} {values}"


def _difference(row: Mapping[str, object]) -> str:
    changed = " ".join(
        f"{name} {row[f'{name}_old']:.10g} -> {row[name]:.10g}"
        for name in _VALUES
        if row[name] != row[f"{name}_old"]
    )
    return f"{row['timestamp']:%Y-%m-%d %H:%M}: {changed}"
