"""Put the families side by side into the one table that training and the service share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from macd.app.market.bars import step_ms
from macd.app.market.features import calendar, higher_tf, momentum, price, volatility, volume
from macd.app.market.features import cross as cross_asset
from macd.app.market.features.candles import Array, Candles, candles

FEATURE_VERSION = 1  # raise it when a formula changes under a name that stays
WARMUP = 480  # bars; outlasts every window, and leaves 1e-13 of an average's first bar


def compute(
    bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame] | None = None, *, tf: str = "1h"
) -> pl.DataFrame:
    """Features of every bar: `timestamp`, then one Float64 column per name, one row per bar.

    `bars` and the frames of `cross` (by symbol) are canonical: UTC bar-open timestamps, oldest
    first. Windows count bars, whatever the gaps; the clock and longer timeframes go by timestamps.
    The first WARMUP - 1 rows are NaN; from there the value at t is the same whether computed from
    the beginning of history or from the last WARMUP bars. Later NaN only in cross columns, where
    the other asset has no bar. Never infinite.

    Raises MacdError for bars no feature can be computed from, UsageError for an unknown `tf`.
    """
    own = candles(bars)
    others = {name: candles(frame, whose=name) for name, frame in (cross or {}).items()}
    columns = _columns(own, others, step_ms(tf))
    for values in columns.values():
        values[: WARMUP - 1] = np.nan
    return pl.DataFrame({"timestamp": bars["timestamp"], **columns})


def feature_names(cross_symbols: Iterable[str] = ()) -> tuple[str, ...]:
    """Names in column order, with other assets' in alphabetical order of their symbols."""
    none = Candles(np.empty(0, np.int64), *(np.empty(0) for _ in range(5)))
    return tuple(_columns(none, dict.fromkeys(cross_symbols, none), step_ms("1h")))


def schema_hash(names: Sequence[str]) -> str:
    """SHA-256 (hex) of the names in order and the version of their formulas."""
    text = json.dumps([FEATURE_VERSION, *names], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _columns(own: Candles, others: Mapping[str, Candles], step: int) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for family in (price, momentum, volume, volatility, calendar):
        out |= family.features(own)
    out |= higher_tf.features(own, step)
    for symbol in sorted(others):
        out |= cross_asset.features(own, others[symbol], symbol)
    return out
