"""`data.fetch`: bars from an exchange through ccxt into the canonical file, page by page.

Also run as `python -m macd.app.market.fetch` by a schedule on a training host: JSON in and out.

Every page is on disk before the next is asked for, and only what the file lacks is asked for: run
again after any interruption, it goes on. The bar still open is never stored.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from macd.app.market.bars import SCHEMA, bars_path, grid_origin, read_bars, step_ms, write_bars
from macd.app.market.exchange import Asking, Exchange, no_market, open_exchange
from macd.app.market.findings import moment
from macd.app.market.importing import merge
from macd.errors import MacdError, RefusedError, UsageError, failure
from macd.symbols import symbol_name

_SKIP = 100  # bars to move on where an exchange answers with nothing; the smallest page there is


@dataclass(frozen=True)
class Fetched:
    """What is in the file now, and what this run added."""

    path: Path
    bars: pl.DataFrame
    added: int
    requests: int


@dataclass(frozen=True)
class FetchRequest:
    """What to bring: `since` may be None where the file has bars already; `now` bounds `until`."""

    symbol: str
    tf: str
    since: datetime | None
    until: datetime | None
    now: datetime


def fetch_bars(
    exchange: Exchange,
    wanted: FetchRequest,
    path: Path,
    *,
    sleep: Callable[[float], None],
    report: Callable[[str], None],
    replace: bool = False,
) -> Fetched:
    """Bring what `path` lacks between since and until; returns when the file has it all.

    sleep(seconds) waits between tries; report(line) reports progress and trouble. A bar that is in
    the file with other values is refused, or replaced. Raises MacdError when the exchange can't be
    reached after several tries: what came until then is in the file.
    """
    ask = Asking(exchange, sleep=sleep, report=report)
    ask.require(wanted.symbol, wanted.tf)
    source = f"{exchange.id} {wanted.symbol}"
    stored = _stored(path, source)
    step = step_ms(wanted.tf)
    first, last = _bounds(wanted, stored, step, path, now=ask.clock(wanted.now))
    before = stored.height
    meta = {"symbol": symbol_name(wanted.symbol), "tf": wanted.tf, "source": f"fetch {source}"}
    unsaved: list[pl.DataFrame] = []
    try:
        for page in _pages(ask, wanted, _stretches(stored, first, last, step), step):
            unsaved.append(page)
            # To rewrite a large file for each page would take longer than asking: from 50,000 bars
            # on, up to 2 % of them wait for the next write and are asked for again after a crash.
            if sum(frame.height for frame in unsaved) >= max(1, stored.height // 50):
                stored = _save(stored, unsaved, path, meta, replace=replace)
            report(f"{page['timestamp'][-1]:%Y-%m-%d %H:%M}, {stored.height:,} bars on disk")
    finally:
        stored = _save(stored, unsaved, path, meta, replace=replace)
    return Fetched(path, stored, added=stored.height - before, requests=ask.requests)


def fetch_final(
    name: str,
    api_url: str,
    symbols: Sequence[str],
    tf: str,
    since: datetime,
    directory: Path,
    *,
    report: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """The bars of a service's feed as the exchange gives them now, from `since` on.

    symbols: as the service names them, its own first; a file for each in `directory`, which has
    none of them yet. Others that the exchange doesn't have are left out, as the service does.
    Raises MacdError as `fetch_bars`, and where the first has no market.
    """
    exchange = open_exchange(name, api_url=api_url)
    markets = Asking(exchange, sleep=sleep, report=report).markets(symbols)
    if symbols[0] not in markets:
        raise no_market(exchange, symbols[:1])
    for symbol, market in markets.items():
        wanted = FetchRequest(market, tf, since=since, until=None, now=datetime.now(UTC))
        path = bars_path(directory, symbol, tf)
        fetch_bars(exchange, wanted, path, sleep=sleep, report=report)


def refresh(question: Mapping[str, Any]) -> dict[str, Any]:
    """Bring files that are there up to now. In: exchange, api_url, tf, symbols, directory.

    Out: bars {symbol: how many were added}; an error is an answer. Every symbol must have a market.
    """
    directory, symbols = Path(question["directory"]), question["symbols"]
    trouble: list[str] = []
    try:
        exchange = open_exchange(question["exchange"], api_url=question["api_url"])
        markets = Asking(exchange, sleep=time.sleep, report=trouble.append).markets(symbols)
        if lost := [symbol for symbol in symbols if symbol not in markets]:
            raise no_market(exchange, lost)
        added = {}
        for symbol, market in markets.items():
            path = bars_path(directory, symbol, question["tf"])
            wanted = FetchRequest(market, question["tf"], None, None, now=datetime.now(UTC))
            # The last bar of a file is asked for again; an exchange may have corrected it.
            made = fetch_bars(
                exchange, wanted, path, sleep=time.sleep, report=trouble.append, replace=True
            )
            added[symbol] = made.added
        return {"bars": added}
    except MacdError as error:
        return failure(error)


def lacking(wanted: FetchRequest, path: Path) -> list[tuple[int, int]]:
    """What `fetch_bars` would ask for: inclusive ranges of bar opens, epoch milliseconds."""
    stored = read_bars(path) if path.exists() else pl.DataFrame(schema=SCHEMA)
    step = step_ms(wanted.tf)
    first, last = _bounds(wanted, stored, step, path, now=wanted.now)
    return missing(stored["timestamp"].to_physical().to_list(), first, last, step)


def missing(stamps: Sequence[int], first: int, last: int, step: int) -> list[tuple[int, int]]:
    """Inclusive ranges of bar opens between first and last that `stamps` (sorted) doesn't have."""
    inside = [first - step, *(ms for ms in stamps if first <= ms <= last), last + step]
    return [(a + step, b - step) for a, b in pairwise(inside) if b - a > step]


def _pages(
    ask: Asking, wanted: FetchRequest, stretches: list[tuple[int, int]], step: int
) -> Iterator[pl.DataFrame]:
    """Frames of closed bars, oldest first within each stretch."""
    skip = _SKIP
    known = step if ask.leaves_out else 0  # the bar before a hole that the page's first bar ends
    for first, last in stretches:
        cursor = first
        while cursor <= last:
            ms = pl.col("timestamp").to_physical()
            page = ask.page(wanted.symbol, wanted.tf, cursor - known)
            if known:
                page = page.filter(ms != cursor - known)
            skip = max(skip, page.height)
            inside = page.filter(ms.is_between(cursor, last)).unique("timestamp").sort("timestamp")
            if inside.height:
                cursor = int(inside["timestamp"].to_physical()[-1]) + step
                yield inside
            if page.filter(ms > last).height:
                break  # whatever this stretch still lacks, the exchange doesn't have
            if page.is_empty():
                cursor += skip * step
            elif inside.is_empty():
                raise MacdError(
                    f"{ask.exchange.id} doesn't give bars from a time on",
                    why=f"asked from {moment(cursor)} it answered with earlier ones",
                    hint="another --exchange, or import a dump: invoke data.import FILE",
                )


def _stored(path: Path, source: str) -> pl.DataFrame:
    """The bars there already; refused if they came from another market."""
    if not path.exists():
        return pl.DataFrame(schema=SCHEMA)
    stored = read_bars(path)
    other = pl.read_parquet_metadata(path).get("source", "")
    if other.startswith("fetch ") and other != f"fetch {source}":
        raise RefusedError(
            f"{path.name} holds bars of another market",
            why=f"they came from {other.removeprefix('fetch ')}, these would come from {source}",
            live="nothing was asked for, nothing was written",
            hint="--data OTHER-DIRECTORY keeps the two apart",
        )
    return stored


def _bounds(
    wanted: FetchRequest, stored: pl.DataFrame, step: int, path: Path, *, now: datetime
) -> tuple[int, int]:
    """First and last bar open to have, in epoch milliseconds: on the grid, and closed by now."""
    if wanted.since is None and stored.is_empty():
        raise UsageError(
            "from when on?",
            why=f"there are no bars at {path} to go on from",
            hint="--since 2023-01-01",
        )
    origin = grid_origin(step)
    stored_first = int(stored["timestamp"].to_physical()[0]) if stored.height else 0
    since = int(wanted.since.timestamp() * 1000) if wanted.since else stored_first
    clock = int(now.timestamp() * 1000)
    until = min(int(wanted.until.timestamp() * 1000), clock) if wanted.until else clock
    first = -((origin - since) // step) * step + origin
    last = (min(until, clock - step) - origin) // step * step + origin
    if last < first:
        raise UsageError(
            "there is no closed bar between since and until",
            why=f"since {moment(since):%Y-%m-%d %H:%M}, until {moment(until):%Y-%m-%d %H:%M}, "
            f"a bar takes {wanted.tf}",
            hint="an earlier --since",
        )
    return first, last


def _stretches(stored: pl.DataFrame, first: int, last: int, step: int) -> list[tuple[int, int]]:
    """What is missing, each stretch with the bar before it where there is one.

    That bar is asked for again and compared: a bar stored too early, or another market's, shows.
    """
    stamps = stored["timestamp"].to_physical().to_list()
    present = set(stamps)
    return [
        (a - step if a - step in present else a, b) for a, b in missing(stamps, first, last, step)
    ]


def _save(
    stored: pl.DataFrame,
    unsaved: list[pl.DataFrame],
    path: Path,
    metadata: dict[str, str],
    *,
    replace: bool,
) -> pl.DataFrame:
    if not unsaved:
        return stored
    new = pl.concat(unsaved).unique("timestamp").sort("timestamp")
    unsaved.clear()
    merged = merge(stored, new, replace=replace)
    if merged.added or merged.replaced:
        write_bars(merged.bars, path, metadata=metadata)
    return merged.bars


if __name__ == "__main__":
    answer = refresh(json.load(sys.stdin)["question"])
    sys.stdout.write(json.dumps(answer))
