"""Repeat bars that were served, with this release's own code: `serve.py --replay`.

A question is one JSON object, an answer is lines of them. Nothing is decided and nothing is written
here: which bars the service had, and whether two answers are equal, is for who asks
(macd/gate/replay.py).

    {"ask": "facts", "symbol"}                -> release, symbol, cross, tf, step, need, symbols
    {"ask": "bars", "from", "to", "before"}   -> bars
    {"ask": "predict", "bars", "cases"}       -> release, features, golden; then a line a case

Each may name the symbol that it is about; without one it is the service's first.

bars: {symbol: [[open_ms, open, high, low, close, volume], ...]}, oldest first. A case is {"at":
open_ms, "seen": {symbol: rows}}: rows that take the place of those in `bars`; one that holds the
time alone means that there was no such bar.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from macd.app.market.bars import SCHEMA, bars_path, read_bars
from macd.app.service import release
from macd.app.service.feed_directory import every_bar
from macd.app.service.loop import NEED
from macd.app.service.predictor import Predictor
from macd.app.service.settings import Settings, flags
from macd.errors import MacdError, UsageError

Row = Sequence[float]
Document = dict[str, Any]
_PATIENCE_S = 60.0  # nobody waits for a signal here


def answers(question: Mapping[str, Any], root: Path, directory: Path) -> Iterator[Document]:
    """The answer's lines.

    Args:
        root: the application's directory, whose settings say what is watched.
        directory: the release that answers.

    Raises:
        UsageError: it is no question that this release knows.
        MacdError: there are no bars, or no release.
    """
    settings = Settings.read(root)
    served = settings.symbols
    settings = settings.of(_asked_about(question, settings))
    match question.get("ask"):
        case "facts":
            facts = _facts(settings, release.identify(directory).id)
            yield {**facts, "symbols": list(served)} if served else facts
        case "bars":
            first, last = int(question["from"]), int(question["to"])
            yield {"bars": _bars(settings, first, last, int(question["before"]))}
        case "predict":
            yield from _predicted(question, settings, directory)
        case other:
            raise UsageError(f"no such question: {other!r}"[:200])


def _asked_about(question: Mapping[str, Any], settings: Settings) -> str:
    symbol = str(question.get("symbol") or settings.symbol)
    if symbol not in settings.served:
        known = ", ".join(settings.served)
        raise UsageError(f"the service has no symbol {symbol[:40]}", why=f"it has {known}")
    return symbol


def stored_rows(
    directory: Path, symbol: str, tf: str, first: int, last: int, before: int
) -> list[list[float]]:
    """A symbol's bars that open from `first` to `last` (epoch ms), and up to `before` bars earlier.

    From SYMBOL_TF.parquet, or a file as a directory feed has it; there the last line about a bar
    counts. Raises MacdError when there is no such file.
    """
    path = bars_path(directory, symbol, tf)
    if path.is_file():
        frame = read_bars(path)
        stamps = frame["timestamp"].dt.epoch("ms").to_list()
        start = max(0, bisect_left(stamps, first) - before)
        kept = frame[start : bisect_right(stamps, last)]
        rows = kept.with_columns(pl.col("timestamp").dt.epoch("ms")).rows()
        return [list(row) for row in rows]
    by_time = {
        bar.open_ms: [bar.open_ms, bar.open, bar.high, bar.low, bar.close, bar.volume]
        for bar in every_bar(directory, symbol, tf)
        if bar.open_ms <= last
    }
    if not by_time:
        raise MacdError(
            f"no bars of {symbol} {tf} in {directory}",
            why=f"neither {path.name} nor a .csv or .jsonl of that name holds any",
            hint="invoke audit --bars DIR names a directory here that has them",
        )
    stamps = sorted(by_time)
    return [by_time[ms] for ms in stamps[max(0, bisect_left(stamps, first) - before) :]]


def _facts(settings: Settings, identifier: str) -> Document:
    return {
        "release": identifier,
        "symbol": settings.symbol,
        "cross": list(settings.cross),
        "tf": settings.tf,
        "step": settings.step,
        "need": NEED,
    }


def _bars(settings: Settings, first: int, last: int, before: int) -> Document:
    if settings.feed.kind == "ccxt":
        raise UsageError("this service's bars are the exchange's, none are stored here")
    rows: Document = {}
    for symbol in (settings.symbol, *settings.cross):
        try:
            rows[symbol] = stored_rows(
                settings.feed_directory, symbol, settings.tf, first, last, before
            )
        except MacdError:
            if symbol == settings.symbol:
                raise
            rows[symbol] = []  # the service goes on without a cross symbol, too
    return rows


def _predicted(
    question: Mapping[str, Any], settings: Settings, directory: Path
) -> Iterator[Document]:
    identity = release.identify(directory)
    loaded = release.load(identity, settings.tf, settings.symbol)
    if loaded.scorer is None:
        raise MacdError("no model of the release answers", why=loaded.outcome.detail)
    yield {
        "release": identity.id,
        "features": list(loaded.scorer.features),
        "golden": {"ok": loaded.outcome.ok, "detail": loaded.outcome.detail},
    }
    # Whether stacking may decide is no question here: what it says is compared all the same.
    predictor = Predictor(loaded.scorer, flags({}), settings.tf, limit=_PATIENCE_S)
    bars = {name: {int(row[0]): row for row in rows} for name, rows in question["bars"].items()}
    stamps = {name: sorted(rows) for name, rows in bars.items()}
    for case in question["cases"]:
        at, seen = int(case["at"]), case.get("seen", {})
        frames = {
            name: _frame(rows, stamps[name], seen.get(name, ()), at) for name, rows in bars.items()
        }
        own = frames.pop(settings.symbol)
        if own.is_empty() or own["timestamp"].dt.epoch("ms")[-1] != at:
            yield {"at": at, "error": "there is no bar of this time"}
            continue
        yield {"at": at, "fields": dict(predictor.predict(own, frames).fields)}


def _frame(
    rows: Mapping[int, Row], stamps: Sequence[int], seen: Sequence[Row], at: int
) -> pl.DataFrame:
    """The last bars up to `at` that a service needs, as it had them."""
    until = bisect_right(stamps, at)
    taken = {ms: rows[ms] for ms in stamps[max(0, until - NEED - len(seen)) : until]}
    for row in seen:
        if len(row) > 1:
            taken[int(row[0])] = row
        else:
            taken.pop(int(row[0]), None)
    last = [[int(ms), *map(float, taken[ms][1:])] for ms in sorted(taken) if ms <= at][-NEED:]
    schema = {**SCHEMA, "timestamp": pl.Int64()}
    frame = pl.DataFrame(last, schema=schema, orient="row")
    return frame.with_columns(pl.col("timestamp").cast(SCHEMA["timestamp"]))
