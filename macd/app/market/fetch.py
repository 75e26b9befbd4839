"""`data.fetch`: bars from an exchange through ccxt into the canonical file, page by page.

Every page is on disk before the next is asked for, and only what the file lacks is asked for: run
again after any interruption, it goes on. The bar still open is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import polars as pl

from macd.app.market.bars import SCHEMA, grid_origin, read_bars, step_ms, symbol_name, write_bars
from macd.app.market.exchange import Asking, Exchange
from macd.app.market.findings import moment
from macd.app.market.importing import merge
from macd.errors import MacdError, RefusedError, UsageError

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
    for first, last in stretches:
        cursor = first
        while cursor <= last:
            page = ask.page(wanted.symbol, wanted.tf, cursor)
            skip = max(skip, page.height)
            ms = pl.col("timestamp").to_physical()
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
