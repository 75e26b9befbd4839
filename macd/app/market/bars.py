"""One canonical form of bars on disk and in memory, so every reader means the same by "a bar".

A frame of bars has the columns of `COLUMNS`: `timestamp` is the bar's OPEN, Datetime("ms", "UTC"),
strictly increasing; prices and volume are Float64. One parquet file holds one symbol and timeframe.
This module stores and names bars; whether they are good is asked in checks.py, and foreign formats
are read in importing.py.
"""

from __future__ import annotations

import hashlib
import io
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from macd.errors import MacdError, UsageError, first_line
from macd.host.durable import replace_file
from macd.symbols import symbol_name

COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
SCHEMA = pl.Schema(
    {"timestamp": pl.Datetime("ms", "UTC"), **{name: pl.Float64() for name in COLUMNS[1:]}}
)

_UNITS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_MONDAY = 345_600_000  # the epoch was a Thursday; weekly bars open on Monday


def step_ms(tf: str) -> int:
    """Milliseconds from one bar's open to the next: "15m", "1h", "4h", "1d", "1w".

    Raises UsageError for anything else; a month has no fixed length and is not supported.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})([mhdw])", tf)
    if not match:
        raise UsageError(
            f"timeframe {tf!r} is not understood",
            why="a timeframe is a number and one of m, h, d, w (a month has no fixed length)",
            hint="--tf 1h",
        )
    return int(match[1]) * _UNITS[match[2]]


def grid_origin(step: int) -> int:
    """Epoch milliseconds of one bar open, from which all others are whole steps away."""
    return _MONDAY if step % _UNITS["w"] == 0 else 0


def bars_path(data_dir: Path, symbol: str, tf: str) -> Path:
    """Where the bars of this symbol and timeframe are, or would be written.

    `SYMBOL_TF.parquet`; where that does not exist, the one file named
    `SYMBOL_TF_<anything>.parquet` (the sample carries its years in its name). Raises UsageError
    when several files could be meant.
    """
    name = symbol_name(symbol)
    step_ms(tf)
    exact = data_dir / f"{name}_{tf}.parquet"
    if exact.exists():
        return exact
    others = sorted(data_dir.glob(f"{name}_{tf}_*.parquet"))
    if len(others) > 1:
        raise UsageError(
            f"several files could hold {name} {tf}",
            why=", ".join(path.name for path in others),
            hint=f"rename the one to use to {exact.name}, or import them into one: "
            f"invoke data.import {others[0]} --symbol {name} --tf {tf}",
        )
    return others[0] if others else exact


def existing(data_dir: Path, symbols: Iterable[str], tf: str) -> dict[str, Path]:
    """The files of these symbols' bars, by symbol. Raises MacdError naming all that are missing."""
    paths = {name: bars_path(data_dir, name, tf) for name in map(symbol_name, symbols)}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise no_bars(*missing)
    return paths


def no_bars(path: Path, *more: Path) -> MacdError:
    """What to say of files of bars that aren't there; the commands named put one just there."""
    symbol, _, tf = path.stem.partition("_")
    where = f"--tf {tf or '1h'} --data {shlex.quote(str(path.parent))}"
    others = f", and {len(more)} more" if more else ""
    why = "the file does not exist"
    if more:
        why = "\n".join(f"{each.name} does not exist" for each in (path, *more))
    return MacdError(
        f"no bars at {path}{others}",
        why=why,
        hint=f"invoke data.import FILE --symbol {symbol} {where}\n"
        f"or from an exchange: invoke data.fetch --symbol {_pair(symbol)} {where}",
    )


def _pair(symbol: str) -> str:
    """As exchanges write it, where its end is a usual currency: `ETH/USDT` of ETHUSDT."""
    for quote in ("USDT", "USDC", "USD", "EUR", "BTC"):
        if base := symbol.removesuffix(quote) if symbol.endswith(quote) else "":
            return f"{base}/{quote}"
    return "BASE/QUOTE"


def read_rows(path: Path) -> pl.DataFrame:
    """The rows of a canonical file as they stand, in file order, duplicates included.

    Column order and time unit may differ (nanosecond files are common); values may not.
    For the checks; to compute with bars, use `read_bars`.
    """
    try:
        df = pl.read_parquet(path)
    except FileNotFoundError as error:
        raise no_bars(path) from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise MacdError(
            f"{path} can't be read as parquet",
            why=first_line(error),
            hint=f"invoke data.import {path} reads foreign files",
        ) from error
    return canonical(df, source=str(path))


def canonical(df: pl.DataFrame, *, source: str = "the frame") -> pl.DataFrame:
    """Bring column order and types to `SCHEMA`: lossless, or MacdError. No row moves."""
    missing = [name for name in COLUMNS if name not in df.columns]
    if missing:
        raise _not_canonical(
            source, f"no column {', '.join(missing)} among {', '.join(df.columns)}"
        )
    stamp = df.schema["timestamp"]
    if not isinstance(stamp, pl.Datetime) or stamp.time_zone is None:
        raise _not_canonical(source, f"timestamp is {stamp}, not a datetime with a time zone")
    if df["timestamp"].null_count():
        raise _not_canonical(source, f"{df['timestamp'].null_count()} rows have no timestamp")
    text = [name for name in COLUMNS[1:] if not df.schema[name].is_numeric()]
    if text:
        raise _not_canonical(source, f"{', '.join(text)} are not numbers")
    out = df.select(
        pl.col("timestamp").dt.convert_time_zone("UTC").dt.cast_time_unit("ms"),
        *(pl.col(name).cast(pl.Float64) for name in COLUMNS[1:]),
    )
    if stamp.time_unit != "ms":
        back = out["timestamp"].dt.cast_time_unit(stamp.time_unit)
        if (back.to_physical() != df["timestamp"].to_physical()).any():
            raise _not_canonical(source, "timestamps finer than a millisecond")
    return out


def read_bars(path: Path) -> pl.DataFrame:
    """Bars ready to compute with: canonical, strictly increasing in time, else MacdError."""
    df = read_rows(path)
    _require_increasing(df, str(path))
    return df


def write_bars(df: pl.DataFrame, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write bars so that readers see the old file or the new one, never half of it.

    The same bars and metadata give the same bytes: no clock goes in. Raises MacdError if `df`
    isn't canonical.
    """
    df = canonical(df)
    _require_increasing(df, "the frame")
    written = io.BytesIO()
    df.write_parquet(written, compression="zstd", metadata=dict(metadata or {}))
    replace_file(path, written.getbuffer(), parents=True)


def origin(path: Path) -> dict[str, str]:
    """Where the bars of a file came from, as far as it says: {} where nothing is known.

    source: as data.fetch or data.import wrote it. exchange: its name in ccxt. market: the
    exchange's own name of it. type: spot, swap (a perpetual), or future (one with an end).
    """
    try:
        stored = pl.read_parquet_metadata(path)
    except (pl.exceptions.PolarsError, OSError):
        return {}
    fields = {name: stored[name] for name in ("source", "exchange") if stored.get(name)}
    word, _, named = fields.get("source", "").partition(" ")
    exchange, _, market = named.partition(" ")
    if word == "fetch" and exchange and market:
        fields |= {"exchange": exchange, "market": market, "type": market_type(market)}
    return fields


def market_type(market: str) -> str:
    """By ccxt's name of a market: BTC/USDT spot, BTC/USDT:USDT swap, BTC/USDT:USDT-261225 future.

    What else follows the name after a dash is an option.
    """
    _, colon, settled = market.partition(":")
    if not colon:
        return "spot"
    _, dash, rest = settled.partition("-")
    return "swap" if not dash else "option" if "-" in rest else "future"


def digest(df: pl.DataFrame) -> str:
    """SHA-256 of the bars themselves: independent of parquet encoding, file name and library.

    Layout: b"macd-bars-1\\n", row count as uint64, timestamps as int64 milliseconds, then open,
    high, low, close, volume as float64, each column whole; all little-endian; null and NaN are the
    one quiet NaN, -0.0 is 0.0.
    """
    df = canonical(df)
    total = hashlib.sha256(b"macd-bars-1\n")
    total.update(df.height.to_bytes(8, "little"))
    total.update(df["timestamp"].to_physical().to_numpy().astype("<i8").tobytes())
    for name in COLUMNS[1:]:
        values = df[name].fill_null(np.nan).to_numpy().astype("<f8") + 0.0
        total.update(np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes())
    return total.hexdigest()


def digest_of_all(
    symbol: str,
    tf: str,
    main: pl.DataFrame,
    cross: Mapping[str, pl.DataFrame],
    panel: Mapping[str, pl.DataFrame] | None = None,
) -> str:
    """One SHA-256 for all bars of a training: its symbol's, and those of other assets by name."""
    total = hashlib.sha256(f"{symbol} {tf}".encode())
    others = {**cross, **(panel or {})}
    for name, frame in {symbol: main, **dict(sorted(others.items()))}.items():
        total.update(f"\n{name} {digest(frame)}".encode())
    return total.hexdigest()


def _require_increasing(df: pl.DataFrame, source: str) -> None:
    stamps = df["timestamp"].to_physical().to_numpy()
    bad = np.flatnonzero(np.diff(stamps) <= 0)
    if len(bad):
        row = int(bad[0]) + 1
        raise MacdError(
            f"{source}: the bars are not in order, or one appears twice",
            why=f"row {row} ({df['timestamp'][row]}) does not come after the row before it",
            hint="invoke data.verify names every such row",
        )


def _not_canonical(source: str, why: str) -> MacdError:
    return MacdError(
        f"{source} does not hold bars in the canonical form",
        why=why,
        hint="invoke data.import FILE brings bars into that form",
    )
