"""`invoke data.*`: import bars from a file or an exchange, and check them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, UsageError
from macd.host import untrusted
from macd.train_options import MARKETS, Market

if TYPE_CHECKING:
    import polars as pl

    from macd.app.market.findings import Accepted, Finding
    from macd.app.market.importing import Merged
    from macd.inventory import Inventory

_BARS = {
    "symbol": "the market, as BTCUSD or BTC/USD",
    "tf": "timeframe: 1m, 5m, 15m, 1h, 4h, 1d ...",
    "dry-run": "show what would be done, write nothing",
    "replace": "replace bars that are stored already with other values",
    "data": "directory of canonical files (default: data/bars)",
}
_MARKS = {"error": "✗", "warn": "!", "accepted": "·"}
SHOWN = 10  # findings of each kind; --all shows every one


@verb(
    positional=["file"],
    help=_BARS
    | {
        "file": "CSV (also .gz, .zip), JSON, parquet, feather or Excel workbook",
        "columns": 'names of the columns, as "time=Date+Clock,open=Open"; numbers if nameless; '
        "volume=none if there is none",
        "volume-is": "what the volume counts: base, quote, ticks or none; base=0.01 are contracts "
        "of 0.01, quote=100 contracts worth 100",
        "member": "file of a zip of several, if they are no series: a name, or BTCUSDT*",
        "sheet": "name of the sheet of a workbook, if several can hold bars",
        "skip-lines": "lines at the beginning of the file that are no part of the table",
        "timezone": "time zone of the file, if not UTC: +02:00, or America/New_York",
        "time-is": "open or close: which moment of a bar its time is (default: open, unless the "
        "file's source is known to write the close)",
        "dates": "order of day, month and year: dmy or mdy (03/04/2020), ymd (20/04/03)",
        "decimal": "decimal sign, . or , if 1,234 could be either",
        "since": "only bars that open at this time or later (UTC)",
        "until": "only bars that open before this time (UTC)",
        "factor": "multiply prices by this, and divide volume: bars of an old denomination",
        "exchange": "where the file is from, if that leaves out candles without a trade: kraken",
        "resample": "store bars of this longer timeframe, made of the file's: 1h",
        "overwrite": "replace the whole stored file, instead of adding to it",
    },
)
def import_(
    _: object,
    file: str,
    symbol: str = "",
    tf: str = "",
    data: str = "",
    columns: str = "",
    timezone: str = "",
    time_is: str = "",
    dates: str = "",
    decimal: str = "",
    volume_is: str = "",
    skip_lines: int = 0,
    sheet: str = "",
    member: str = "",
    since: str = "",
    until: str = "",
    factor: float = 1.0,
    exchange: str = "",
    resample: str = "",
    replace: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Import bars from a file into the canonical form; asks where it is ambiguous."""
    from macd.app.market.bars import bars_path, digest, read_bars, write_bars
    from macd.app.market.columns import parse_mapping
    from macd.app.market.importing import (
        Answers,
        between,
        closed,
        filled,
        merge,
        read_file,
        scaled,
        to_timeframe,
    )
    from macd.app.market.volumes import parse_unit

    answers = Answers(
        symbol=symbol,
        tf=tf,
        columns=parse_mapping(columns),
        timezone=timezone,
        time_is=_one_of("time-is", time_is, "", "open", "close"),
        dates=_one_of("dates", dates, "", "dmy", "mdy", "ymd"),
        decimal=_one_of("decimal", decimal, "", ".", ","),
        volume_is=parse_unit(volume_is),
        skip_lines=skip_lines,
        sheet=sheet,
        member=member,
    )
    imported = between(read_file(Path(file), answers), _time("since", since), _time("until", until))
    exchange = exchange or imported.exchange
    imported = closed(filled(scaled(imported, _factor(factor)), exchange), datetime.now(UTC))
    imported = to_timeframe(imported, resample)
    path = bars_path(_directory(data), imported.symbol, imported.tf)
    there = read_bars(path) if path.exists() and not overwrite else None
    merged = merge(there, imported.bars, replace=replace)
    if not dry_run and (there is None or merged.added or merged.replaced):
        source = f"import {Path(file).name}"
        known = {"symbol": imported.symbol, "tf": imported.tf, "source": source}
        known |= {"exchange": exchange} if exchange else {}
        write_bars(merged.bars, path, metadata=known)
    fields = {
        "path": str(path),
        "symbol": imported.symbol,
        "tf": imported.tf,
        "dialect": imported.dialect,
        "columns": imported.columns,
        "volume": imported.volume,
        "notes": imported.notes,
        "rows": imported.bars.height,
        "added": merged.added,
        "same": merged.same,
        "replaced": merged.replaced,
        "bars": merged.bars.height,
        "digest": digest(merged.bars),
        "dry_run": dry_run,
    }
    if json:
        emit(fields)
        return
    print(f"{imported.symbol} {imported.tf} from {file}: {span(imported.bars)}")
    dialect = f"{imported.dialect}: " if imported.dialect else ""
    print(f"  read as: {dialect}{untrusted.line(imported.columns)}")  # the file's own names
    for note in imported.notes:
        print(f"  ! {untrusted.line(note)}")
    _show_stored(merged, path, imported.symbol, imported.tf, dry_run=dry_run)


@verb(
    help=_BARS
    | {
        "tf": "the longer timeframe to make: 1h",
        "of": "timeframe of the stored bars to make it of (default: the shortest that fits)",
        "overwrite": "replace the whole stored file, instead of adding to it",
    }
)
def resample(
    _: object,
    symbol: str = "",
    tf: str = "",
    of: str = "",
    data: str = "",
    replace: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Make longer bars of stored ones: minutes to hours, hours to days."""
    from macd.app.market.bars import bars_path, digest, origin, read_bars, write_bars
    from macd.app.market.importing import merge
    from macd.app.market.resampling import resample as made_of
    from macd.symbols import symbol_name

    if not symbol or not tf:
        raise UsageError("which bars?", hint="invoke data.resample --symbol BTCUSD --tf 1h --of 1m")
    directory, name = _directory(data), symbol_name(symbol)
    of = of or _shortest(directory, name, tf)
    source = bars_path(directory, name, of)
    made = made_of(read_bars(source), of, tf)
    path = directory / f"{name}_{tf}.parquet"
    there = read_bars(path) if path.exists() and not overwrite else None
    merged = merge(there, made.bars, replace=replace)
    if not dry_run and (there is None or merged.added or merged.replaced):
        known = origin(source)
        known["source"] = known.get("source") or f"resampled {source.name}"
        write_bars(merged.bars, path, metadata={"symbol": name, "tf": tf, **known})
    notes = made.notes(of, tf)
    if json:
        counts = {"added": merged.added, "same": merged.same, "replaced": merged.replaced}
        fields = {"path": str(path), "of": str(source), "notes": notes, "dry_run": dry_run}
        emit(fields | counts | {"bars": merged.bars.height, "digest": digest(merged.bars)})
        return
    print(f"{name} {tf} from {short(source)}: {span(made.bars)}")
    for note in notes:
        print(f"  ! {note}")
    _show_stored(merged, path, name, tf, dry_run=dry_run)


def _show_stored(merged: Merged, path: Path, symbol: str, tf: str, *, dry_run: bool) -> None:
    print(
        f"{'would be' if dry_run else 'now'} in {short(path)}: {merged.bars.height:,} bars "
        f"({merged.added:,} new, {merged.same:,} there already, {merged.replaced:,} replaced)"
    )
    if not dry_run:
        next_step(path.parent, symbol, tf)


def _shortest(directory: Path, symbol: str, tf: str) -> str:
    """The shortest stored timeframe that `tf` is a multiple of."""
    from macd.app.market.bars import step_ms

    pattern = re.compile(rf"{re.escape(symbol)}_([1-9]\d{{0,3}}[mhdw])(_.*)?\.parquet")
    there = {
        match[1] for path in directory.glob("*.parquet") if (match := pattern.fullmatch(path.name))
    }
    fitting = [
        one for one in there if step_ms(one) < step_ms(tf) and not step_ms(tf) % step_ms(one)
    ]
    if not fitting:
        raise UsageError(
            f"no bars of {symbol} in {short(directory)} can be made {tf} bars",
            why=f"there is {', '.join(sorted(there)) or 'nothing of it'}",
            hint=f"invoke data.import FILE --symbol {symbol}",
        )
    return min(fitting, key=step_ms)


@verb(
    help=_BARS
    | {
        "symbol": "the market as the exchange calls it: BTC/USDT; BTC/USDT:USDT is the future",
        "exchange": "name of the exchange in ccxt (default: binance)",
        "since": "first time to fetch (UTC; default: after the last stored bar)",
        "until": "last time to fetch (UTC; default: now)",
        "api-url": "another server with the exchange's API: a mirror or a proxy",
    }
)
def fetch(
    _: object,
    symbol: str = "",
    tf: str = "1h",
    exchange: str = "binance",
    since: str = "",
    until: str = "",
    data: str = "",
    api_url: str = "",
    replace: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Fetch missing bars from an exchange, page by page; can be interrupted."""
    import sys
    import time

    from macd.app.market.bars import bars_path, digest
    from macd.app.market.exchange import open_exchange
    from macd.app.market.fetch import FetchRequest, fetch_bars, lacking
    from macd.app.market.findings import moment
    from macd.symbols import symbol_name

    if not symbol:
        raise UsageError("which market?", hint="--symbol BTC/USDT --since 2023-01-01")
    path = bars_path(_directory(data), symbol, tf)
    wanted = FetchRequest(
        symbol, tf, since=_time("since", since), until=_time("until", until), now=datetime.now(UTC)
    )
    if dry_run:
        ranges = [(moment(first), moment(last)) for first, last in lacking(wanted, path)]
        if json:
            emit({"path": str(path), "lacking": ranges, "dry_run": True})
            return
        print(f"would ask {exchange} for {symbol} {tf}, into {short(path)}:")
        for first, last in ranges:
            print(f"  {first:%Y-%m-%d %H:%M} .. {last:%Y-%m-%d %H:%M} UTC")
        if not ranges:
            print("  nothing: all closed bars are there")
        return

    def report(line: str) -> None:
        print(f"  {line}", file=sys.stderr)

    opened = open_exchange(exchange, symbol=symbol, api_url=api_url)
    fetched = fetch_bars(opened, wanted, path, sleep=time.sleep, report=report, replace=replace)
    if json:
        emit(
            {
                "path": str(path),
                "added": fetched.added,
                "bars": fetched.bars.height,
                "requests": fetched.requests,
                "digest": digest(fetched.bars),
            }
        )
        return
    print(f"{symbol} {tf} from {exchange}: {fetched.added:,} new bars")
    if fetched.bars.height:
        print(f"now in {short(path)}: {span(fetched.bars)}")
        next_step(path.parent, symbol_name(symbol), tf)


@verb(
    iterable=["accept"],
    help={
        "symbol": "one or more, BTCUSD,ETHUSD: the others are compared with the first "
        "(default: those that the inventory trains on)",
        "tf": "timeframe (default: the inventory's)",
        "data": "directory of canonical files (default: the inventory's train.data_dir)",
        "market": "when bars must be there: crypto (always), fx (weekdays), stocks (sessions of "
        "New York) or an exchange such as XHKG; default: the inventory's train.market",
        "limits": "other thresholds, as frozen_warn=12,spike_z=20, over the inventory's "
        "train.limits; a wrong name lists them all",
        "accept": "accept a finding that is the market itself, in addition to the inventory's "
        "train.accept: check=spike,symbol=BTCUSDT,from=TIME,to=TIME,reason=WHY; may be repeated",
        "now": "check as if it were this time (UTC; default: now)",
        "all": f"show every finding, not the first {SHOWN} of a kind",
    },
)
def verify(
    _: object,
    symbol: str = "",
    tf: str = "",
    data: str = "",
    market: str = "",
    limits: str = "",
    accept: list[str] | None = None,
    now: str = "",
    all: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Name gaps, duplicates, impossible or suspicious bars; exit 1 on errors.

    Repairs nothing.
    """
    from macd.app.market.bars import bars_path, digest, read_rows
    from macd.app.market.checks import Limits, check_all
    from macd.app.market.findings import judged, unused
    from macd.inventory import load
    from macd.symbols import symbol_name

    inv = load(inventory)
    directory = Path(data) if data else inv.train.data_dir
    tf = tf or inv.train.tf
    symbols = [symbol_name(name) for name in symbol.split(",") if name.strip()]
    symbols = symbols or _trained(inv, directory, tf, given=bool(data))
    frames = {name: read_rows(bars_path(directory, name, tf)) for name in symbols}
    usual = {str(name): value for name, value in inv.train.limits.items()}
    agreed = _accepted(inv, accept or [])
    findings = check_all(
        frames,
        main=symbols[0],
        tf=tf,
        now=_time("now", now) or datetime.now(UTC),
        limits=Limits().changed(usual).changed(limits),
        panel=_panel_only(inv),
        market=_market(market) or inv.train.market,
    )
    findings = judged(findings, agreed)
    absent = [entry for entry in unused(findings, agreed) if entry.symbol in frames]
    errors, warnings = (sum(f.level == level for f in findings) for level in ("error", "warn"))
    if json:
        emit(
            {
                "data": str(directory),
                "tf": tf,
                "errors": errors,
                "warnings": warnings,
                "accepted": len(findings) - errors - warnings,
                "accepted_and_not_there": [entry.as_json() for entry in absent],
                "symbols": {
                    name: {"bars": rows.height, "digest": digest(rows)}
                    for name, rows in frames.items()
                },
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        show_findings(frames, findings, absent, directory=directory, tf=tf, every=all)
    return ExitCode.FAILED if errors else None


def _accepted(settings: Inventory, typed: list[str]) -> list[Accepted]:
    """What the inventory accepts, and what was typed beside it."""
    from macd.app.market.findings import EXAMPLE, parse

    try:
        given = [entry.as_json() for entry in settings.train.accept]
        return [parse(entry) for entry in (*given, *typed)]
    except ValueError as error:
        raise UsageError("--accept is not understood", why=str(error), hint=EXAMPLE) from error


def _market(typed: str) -> Market | None:
    _one_of("market", typed, "", *MARKETS)
    return next((market for market in MARKETS if market == typed), None)


def _panel_only(inventory: Inventory) -> set[str]:
    """Symbols of the inventory that are no features of another; they may cover other times."""
    from macd.symbols import symbol_name

    train = inventory.train
    beside = {symbol_name(name) for name in (train.symbol, *train.cross)}
    return {symbol_name(name) for name in (*train.panel, *train.symbols)} - beside


def _trained(settings: Inventory, directory: Path, tf: str, *, given: bool) -> list[str]:
    """The inventory's symbols; for another directory, the symbols it has bars of."""
    from macd.symbols import symbol_name

    train = settings.train
    named = (train.symbol, *train.symbols, *train.cross, *train.panel)
    wanted = list(dict.fromkeys(symbol_name(name) for name in named))
    if not given:
        return wanted
    pattern = re.compile(rf"([A-Z0-9.]+)_{re.escape(tf)}(_.*)?\.parquet")
    names = sorted(path.name for path in directory.glob("*.parquet"))
    there = sorted({match[1] for name in names if (match := pattern.fullmatch(name))})
    if not there:
        raise MacdError(
            f"no {tf} bars in {directory}",
            why=f"there is {', '.join(names[:10])}" if names else "no parquet file is in it",
            hint=f"invoke data.import FILE --data {directory}",
        )
    return [name for name in wanted if name in there] or there[:1]


def _directory(data: str) -> Path:
    from macd.inventory import project_root

    return Path(data) if data else project_root() / "data" / "bars"


def _time(option: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"--{option} {text!r} is not a time", hint=f"--{option} 2024-01-31, or 2024-01-31T13:00"
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _factor(factor: float) -> float:
    if not 1e-12 <= factor <= 1e12:
        raise UsageError(f"--factor {factor:g} is no factor of prices", hint="--factor 1000")
    return factor


def _one_of(option: str, value: str, *allowed: str) -> str:
    if value not in allowed:
        raise UsageError(
            f"--{option} {value!r} is not known",
            hint=f"--{option} takes one of {', '.join(filter(None, allowed))}",
        )
    return value


def show_findings(
    frames: Mapping[str, pl.DataFrame],
    findings: list[Finding],
    absent: list[Accepted],
    *,
    directory: Path,
    tf: str,
    every: bool,
) -> None:
    """Print the findings of each asset, then their counts and what to do.

    absent: what was accepted beforehand and isn't there.
    """
    from macd.app.market.bars import digest

    where = short(directory)
    for symbol, rows in frames.items():
        print(f"{symbol} {tf} in {where}: {span(rows)}, digest {digest(rows)[:12]}")
        _show([finding for finding in findings if finding.symbol == symbol], every=every)
    for entry in absent:
        print(f"  ! accepted, and not found in these bars: {entry}")
    _judge(findings, f"--data {shlex.quote(where)} --tf {tf}")


def span(rows: pl.DataFrame) -> str:
    if rows.is_empty():
        return "0 bars"
    ordered = rows["timestamp"].sort()
    first, last = ordered[0], ordered[-1]
    return f"{rows.height:,} bars, {first:%Y-%m-%d %H:%M} .. {last:%Y-%m-%d %H:%M} UTC"


def next_step(directory: Path, symbol: str, tf: str) -> None:
    """The command that checks what was just written."""
    where = f"--data {short(directory)} --symbol {symbol} --tf {tf}"
    print(f"  next: invoke data.verify {where}")


def short(path: Path) -> str:
    """Relative to where the user stands, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _show(findings: list[Finding], *, every: bool) -> None:
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.check), []).append(finding)
    for (level, check), several in sorted(kinds.items()):
        for finding in several if every else several[:SHOWN]:
            print(f"  {_MARKS[level]} {finding}")
        if not every and len(several) > SHOWN:
            print(f"    and {len(several) - SHOWN:,} more {check}; --all shows them")


def _judge(findings: list[Finding], bars: str) -> None:
    from macd.app.market.findings import REMEDIES, how_to_accept

    errors, warnings = (sum(f.level == level for f in findings) for level in ("error", "warn"))
    accepted = len(findings) - errors - warnings
    counts = f"{warnings} warning{'s' * (warnings != 1)}"
    counts += f", {accepted:,} accepted" if accepted else ""
    if not errors:
        print(f"✓ no errors, {counts}" + (": odd, but markets do such things" if warnings else ""))
        return
    print(f"✗ {errors:,} error{'s' * (errors != 1)}, {counts}; nothing was changed")
    wrong = [finding for finding in findings if finding.level == "error"]
    for check in sorted({finding.check for finding in wrong}):
        several = [finding for finding in wrong if finding.check == check]
        general = REMEDIES.get(check, "look at the row; correct or cut the file, import it")
        remedies = [
            f.remedy.format(bars=f"{bars} --symbol {f.symbol}") if f.remedy else general
            for f in several
        ]
        print(
            f"  {check}: " + "\n".join([*dict.fromkeys(remedies)][:SHOWN]).replace("\n", "\n    ")
        )
    for line in how_to_accept(wrong).splitlines():
        print(f"  {line}")
