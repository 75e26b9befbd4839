"""`data.import`: a file somebody else wrote becomes canonical bars, and joins those already there.

Reports everything it did and assumed. What is not certain it asks, with an example.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import polars as pl

from macd.app.market import dialects, empty
from macd.app.market.bars import COLUMNS, canonical, step_ms
from macd.app.market.columns import PRICES, Mapped, map_columns, read_numbers
from macd.app.market.dialects import Dialect, recognise
from macd.app.market.resampling import resample
from macd.app.market.table import BROKEN, Table, listed, members, read_table, shortened
from macd.app.market.times import read_times
from macd.app.market.volumes import Said, read_volume
from macd.errors import RefusedError, UsageError, first_line
from macd.symbols import symbol_name

TIMEFRAMES = tuple("1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w".split())  # noqa: SIM905
_VALUES = COLUMNS[1:]
_NO_PRICE = ("", "nan", "null", "none", "n/a", "-")
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
    time_is: str = ""  # open or close; "": as the file's source does, else open
    dates: str = ""
    decimal: str = ""
    volume_is: Said | None = None
    skip_lines: int = 0
    sheet: str = ""
    member: str = ""


@dataclass(frozen=True)
class Imported:
    """Canonical bars of one symbol and timeframe, how the file was read, and what was assumed.

    dialect: the layout by its name, "" for none that is known. exchange: where it is known to leave
    out bars without a trade. volume: False where the file has none, and 0 stands for it.
    """

    bars: pl.DataFrame
    symbol: str
    tf: str
    columns: str
    notes: tuple[str, ...]
    dialect: str = ""
    exchange: str = ""
    volume: bool = True


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
        with _no_panic_shown():
            return _read_file(path, answers or Answers())
    except (*BROKEN, OverflowError, RecursionError, ValueError) as error:  # no check foresaw it
        raise UsageError(
            f"{path}: this file can't be made sense of",
            why=first_line(error)[:500],
            hint="open it, and keep only the lines and columns of the bars; then import it again",
        ) from error


@contextlib.contextmanager
def _no_panic_shown() -> Iterator[None]:
    """polars' core writes a stack trace to descriptor 2 before its panic becomes an exception."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _read_file(path: Path, answers: Answers) -> Imported:
    if len(several := members(path)) > 1:
        names = _chosen(path, list(several), answers)
        return _joined(path, names, max(names, key=several.__getitem__), answers)
    return _read_one(path, answers)


def _chosen(path: Path, names: list[str], answers: Answers) -> list[str]:
    """The files of a zip that belong to one market, by what the user said and by their names."""
    wanted = answers.member
    chosen = [name for name in names if not wanted or fnmatch(PurePosixPath(name).name, wanted)]
    markets: dict[str, list[str]] = {}
    for name in chosen:
        markets.setdefault(_symbol_in_name(PurePosixPath(name).name), []).append(name)
    symbol = symbol_name(answers.symbol) if answers.symbol else ""
    if symbol in markets:
        return markets[symbol]
    if not chosen:
        raise _which_member(path, f"no file in {path} is named {wanted}", names)
    if len(markets) > 1:
        what = f"which of the {len(chosen):,} files in {path}?"
        raise _which_member(path, what, [*map(min, markets.values())])
    return chosen


def _which_member(path: Path, what: str, names: list[str], why: str = "") -> UsageError:
    shown = ", ".join(shortened(name) for name in names[:10]) + (", ..." if names[10:] else "")
    example = glob.escape(PurePosixPath(names[0]).name)
    return UsageError(
        what,
        why=why or f"in it are {shown}",
        hint=f"invoke data.import {shlex.quote(str(path))} --member {shlex.quote(example)}"
        "    (* and ? stand for any letters; files of one market are put together)",
    )


def _joined(path: Path, names: list[str], largest: str, answers: Answers) -> Imported:
    """Several files of one market and layout, as months are published, as one series."""
    first = _read_one(path, answers, largest)
    parts = [
        first if name == largest else _read_one(path, answers, name, alone=first.tf)
        for name in names
    ]
    for name, part in zip(names, parts, strict=True):
        alike = part.dialect == first.dialect and (part.dialect or part.columns == first.columns)
        if (part.symbol, part.tf) != (first.symbol, first.tf) or not alike:
            raise _which_member(
                path,
                f"{shortened(name)} in {path} is no continuation of {shortened(largest)}",
                [largest, name],
                "\n".join(
                    f"{which}: {one.symbol} {one.tf}, {one.dialect or one.columns}"
                    for which, one in (("the one", part), ("the other", first))
                ),
            )
    rows = pl.concat([part.bars for part in parts]).unique(maintain_order=True)
    twice = rows.filter(pl.col("timestamp").is_duplicated()).sort("timestamp")
    if twice.height:
        raise UsageError(
            f"{path}: {twice['timestamp'].n_unique():,} times are in several of its files with "
            "different values",
            why="\n".join(_bar(row) for row in twice.head(6).iter_rows(named=True)),
            hint="--member NAME takes one of them: " + ", ".join(map(shortened, names[:10])),
        )
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    read = f"{len(names):,} files, {shortened(names[0])} to {shortened(names[-1])}, put together"
    joined = (*((read,) if len(names) > 1 else ()), *notes)
    return dataclasses.replace(first, bars=rows.sort("timestamp"), notes=joined)


def _read_one(path: Path, answers: Answers, member: str = "", alone: str = "") -> Imported:
    """alone: the timeframe of a bar that has no neighbour."""
    table = read_table(path, skip=answers.skip_lines, sheet=answers.sheet, member=member)
    if table.frame.is_empty():
        raise UsageError(
            f"{path} has no rows",
            why=f"only a header: {listed(table.frame.columns)}",
            hint="invoke data.import FILE, where FILE holds bars",
        )
    known = recognise(table)
    dialect = known.dialect
    closes = answers.time_is == "close" or (dialect.closes and not answers.time_is)
    wanted = symbol_name(answers.symbol) if answers.symbol else ""
    likely = wanted or _market_named(table, dialect)
    mapped = map_columns(table, known, given=answers.columns, symbol=likely, closes=closes)
    table, symbol = _one_symbol(table, mapped.symbol, wanted, likely)
    table, cut = _without_no_bars(table, known, mapped)
    times = read_times(
        table,
        mapped.time,
        clock=mapped.clock,
        zone=answers.timezone,
        usual=dialect.zone,
        dates=answers.dates,
    )
    columns = dict(mapped.prices) | ({"volume": mapped.volume} if mapped.volume else {})
    numbers = read_numbers(table, columns, decimal=answers.decimal)
    numbers, scaled_by = _of_whole_numbers(numbers, dialect)
    volume = read_volume(
        table,
        mapped,
        numbers,
        unit=_unit(dialect, table, symbol),
        said=answers.volume_is,
        decimal=answers.decimal,
    )
    numbers = numbers.with_columns(volume=volume.values)
    bars = canonical(numbers.insert_column(0, times.stamps.alias("timestamp")), source=str(path))
    ordered, notes = _in_order(table, bars)
    stated = dialects.minutes(dialect, table.name)
    wanted_tf = answers.tf or (alone if ordered.height == 1 else "")
    tf = _timeframe(table, ordered, wanted_tf, stated)
    if closes:
        ordered = _opens(ordered, step_ms(tf))
        usual = " (if they are those of the opens: --time-is open)" if dialect.closes else ""
        notes += (f"times were those of bar closes: moved back by {tf}{usual}",)
    if dialect.empty == "fill":
        ordered, flat = _flat(ordered, step_ms(tf))
        cut += flat
    read_as = str(dataclasses.replace(mapped, volume=volume.column))
    said = (dialect.note,) if dialect.note else ()
    assumed = () if dialect.note == dialects.BROKER else times.notes  # it says so itself
    if answers.timezone and said == (dialects.BROKER,):
        said = ()
    notes = (*table.notes, *assumed, *said, *scaled_by, *volume.notes, *cut, *notes)
    return Imported(
        ordered, symbol, tf, read_as, notes, dialect.name, dialect.exchange, bool(volume.column)
    )


def _without_no_bars(
    table: Table, known: dialects.Recognised, mapped: Mapped
) -> tuple[Table, tuple[str, ...]]:
    """Without rows that the source marks as no bar, or that have no price because nobody traded."""
    dialect, frame, notes = known.dialect, table.frame, []
    keep = pl.repeat(True, frame.height, eager=True)
    if dialect.left_out and (column := known.column(dialect.left_out[0])):
        shut = ~frame[column].cast(pl.String).str.strip_chars().is_in(dialect.left_out[1])
        if count := int((~shut).sum()):
            notes.append(f"rows that are still open by column {column}: {count:,} left out")
        keep &= shut.fill_null(value=True)
    if dialect.empty:
        blank = frame.select(
            pl.all_horizontal(
                pl.col(name)
                .cast(pl.String)
                .str.to_lowercase()
                .is_in(_NO_PRICE)
                .fill_null(value=True)
                for name in mapped.prices.values()
            )
        ).to_series()
        if count := int(blank.sum()):
            notes.append(f"rows without a price, for nobody traded: {count:,} left out")
        keep &= ~blank
    if keep.all():
        return table, ()
    rows = keep.arg_true().to_list()
    lines = [table.lines[row] for row in rows] if table.lines else ()
    kept = dataclasses.replace(table, frame=frame.filter(keep), lines=lines)
    if kept.frame.is_empty():
        raise table.unclear("not one row is a bar", why="; ".join(notes), example="another file")
    return kept, tuple(notes)


def _of_whole_numbers(
    numbers: pl.DataFrame, dialect: Dialect
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Prices that are written in whole parts, as Databento's billionths."""
    whole = (pl.all().round() == pl.all()).all()
    if dialect.scale == 1 or not all(numbers.select(PRICES).select(whole).row(0)):
        return numbers, ()
    note = f"prices are whole numbers of {dialect.scale:g}: multiplied by it"
    return numbers.with_columns(pl.col(PRICES) * dialect.scale), (note,)


def _unit(dialect: Dialect, table: Table, symbol: str) -> dialects.Unit:
    """What the source counts; for one that counts coins and shares in different ways, by symbol."""
    if not dialect.of_coins:
        return dialect.volume
    quotes = "|".join(_QUOTES)
    ticker = f"{_above(table, dialect)} {table.name.upper()}"
    if re.fullmatch(rf"({_KNOWN_BASES})({quotes})", symbol) or re.search(
        rf"[A-Z0-9]-({quotes})(?![A-Z0-9])", ticker
    ):
        return dialect.of_coins
    return "ask" if re.search(rf".({quotes})$", symbol) else dialect.volume


def _flat(ordered: pl.DataFrame, step: int) -> tuple[pl.DataFrame, tuple[str, ...]]:
    full = empty.fill(ordered, step)
    count = full.height - ordered.height
    note = (f"where nobody traded: {count:,} flat bars put in",) if count else ()
    return full, note


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


def to_timeframe(imported: Imported, tf: str) -> Imported:
    """As bars of a longer timeframe; "" changes nothing. Said in the notes."""
    if not tf or tf == imported.tf:
        return imported
    made = resample(imported.bars, imported.tf, tf)
    notes = (*imported.notes, *made.notes(imported.tf, tf))
    return dataclasses.replace(imported, bars=made.bars, tf=tf, notes=notes)


def scaled(imported: Imported, factor: float) -> Imported:
    """Prices times `factor`, volume divided by it: bars of an old denomination in the new unit."""
    if factor == 1:
        return imported
    bars = imported.bars.with_columns(
        pl.col("open", "high", "low", "close") * factor, pl.col("volume") / factor
    )
    note = f"prices times {factor:g}, volume divided by it (--factor)"
    return dataclasses.replace(imported, bars=bars, notes=(*imported.notes, note))


def filled(imported: Imported, exchange: str) -> Imported:
    """With a flat bar for each candle that this exchange left out for want of a trade.

    Raises UsageError unless the exchange documents that it does so. "" changes nothing.
    """
    if not exchange:
        return imported
    empty.require_known(exchange)
    bars = empty.fill(imported.bars, step_ms(imported.tf))
    count = bars.height - imported.bars.height
    if not count:
        return imported
    note = f"{count:,} flat bars put in where {exchange} had no trade"
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


def _one_symbol(table: Table, column: str, wanted: str, likely: str) -> tuple[Table, str]:
    """The rows of one symbol, and its name: as given, from its column, or from the file's name."""
    if not column:
        if symbol := wanted or likely:
            return table, symbol
        raise table.unclear(
            "which market are these bars of?",
            why="neither a column nor the file's name says so",
            example="--symbol BTCUSD",
        )
    cells = table.frame[column].cast(pl.String)
    there = {_market(name): name for name in cells.unique().drop_nulls().sort()}
    if len(there) == 1 and (not wanted or wanted in there):
        return table, next(iter(there))
    if wanted not in there:
        raise table.unclear(
            f"the file has no {wanted}" if wanted else f"the file holds {len(there)} symbols",
            why=f"in column {column}: {listed(list(there))}",
            example=f"--symbol {next(iter(there), 'BTCUSD')}",
        )
    keep = table.frame.filter(cells == there[wanted])
    rows = (cells == there[wanted]).arg_true().to_list()
    lines = [table.lines[row] for row in rows] if table.lines else ()
    return dataclasses.replace(table, frame=keep, lines=lines), wanted


def _market(text: str) -> str:
    """The name of a market in a cell: also X:BTCUSD, BTC-USDT-SWAP, EURUSD=X and BTCUSD_PERP."""
    text = re.sub(r"^[A-Z]:|[-_]?(SWAP|PERP)$|=X$", "", text.strip(), flags=re.IGNORECASE)
    return symbol_name(text)


def _above(table: Table, dialect: Dialect) -> str:
    """What stands in the lines before the bars where the source names the market; "" for none."""
    matches = (re.search(dialect.symbol, line) for line in table.above if dialect.symbol)
    return next((match[1].strip().upper() for match in matches if match), "")


def _market_named(table: Table, dialect: Dialect) -> str:
    """The market by the lines before the bars, or by the file's name; "" unless it is certain."""
    if above := _above(table, dialect):
        return _market(above)
    named = _symbol_in_name(table.name) or _symbol_in_name(table.path.name)
    return dialects.renamed(dialect, named)


def _symbol_in_name(name: str) -> str:
    """The one market in a file's name, as in Binance_BTCUSDT_1h.csv; "" unless it is certain."""
    stem = name.partition(".")[0].upper()
    for quotes in _QUOTES:
        end = r"(?:1|5|15|30|60|240|1440|10080)?(?![A-Z0-9])"  # MetaTrader: BTCUSD60.csv
        joined = rf"(?<![A-Z0-9])([A-Z0-9]*[A-Z][A-Z0-9]*?)({quotes}){end}"
        apart = rf"(?<![A-Z0-9])({_KNOWN_BASES})[-_ ]?({quotes}){end}"
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


def _timeframe(table: Table, ordered: pl.DataFrame, wanted: str, stated: int) -> str:
    """The timeframe most neighbours are apart; what the user says must agree with it.

    stated: minutes by the file's name, where a source has no row without a trade; 0: none.
    """
    apart = ordered["timestamp"].to_physical().diff().drop_nulls()
    usual = {step_ms(tf): tf for tf in TIMEFRAMES}
    counts = apart.value_counts(sort=True)
    top = int(counts.item(0, 0)) if counts.height else 0
    alike = bool(top) and counts.item(0, "count") * 2 > apart.len()
    seen = usual.get(top, "") if alike else ""
    if seen and (apart % top != 0).sum() * 10 > apart.len():
        seen = ""  # bars are missing all over, and what is usual is no bar's length
    if stated and (apart % (stated * 60_000) == 0).all():  # the usual distance may be two bars
        seen, top = usual.get(stated * 60_000, ""), stated * 60_000
    if not seen and not wanted:
        raise _which_timeframe(table, top if alike else 0, several=apart.len() > 0)
    if wanted and apart.len() and top != step_ms(wanted):
        raise table.unclear(
            f"these are not {wanted} bars",
            why=f"most of them are {seen or f'{top / 60_000:g} minutes'} apart",
            example=f"--resample {wanted}    (or as they are: --tf {seen})"
            if seen and 0 < top < step_ms(wanted)
            else f"--tf {seen or '1h'}",
        )
    return wanted or seen


def _which_timeframe(table: Table, step: int, *, several: bool) -> UsageError:
    """step: milliseconds that most bars are apart; 0 where they are not alike."""
    if step and step not in map(step_ms, TIMEFRAMES):
        return UsageError(
            f"bars of {_length(step)} are of no timeframe that is known",
            why=f"known are {', '.join(TIMEFRAMES)}",
            hint="get bars of one of these from the same source; shorter ones make longer ones: "
            "invoke data.import FILE --resample 1h",
        )
    why = "most of them are not the same time apart" if several else "there is only one"
    return table.unclear("what timeframe are these bars?", why=why, example="--tf 1h")


def _length(step: int) -> str:
    units = ((86_400_000, "days"), (3_600_000, "hours"), (60_000, "minutes"), (1_000, "seconds"))
    size, name = next(((ms, unit) for ms, unit in units if step % ms == 0), (1, "milliseconds"))
    count = step // size
    return f"{count} {name.removesuffix('s') if count == 1 else name}"


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
