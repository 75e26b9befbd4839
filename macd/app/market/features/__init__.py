"""What a model sees of the market: about 80 numbers a bar, one code for training and live.

Every value at row t uses bars up to and including t and nothing later; no value carries a price
or volume level (all prices times 1000, or all volumes, give the same features).
Formulas and their sources: docs/features.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from macd.app.market.bars import step_ms
from macd.app.market.features import families
from macd.app.market.features.windows import Array, Candles, candles
from macd.errors import MacdError, UsageError

FEATURE_VERSION = 1  # raise it when a formula changes under a name that stays
SETS = ("all", "own", "path")
_PATH = ("ret_", "lag_", "path_", "yesterday_", "hour_", "half_day_", "week_")
OTHERS = "Other assets"
WARMUP = 480  # bars; outlasts every window, and leaves 1e-13 of an average's first bar


def compute(
    bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame] | None = None, *, tf: str = "1h"
) -> pl.DataFrame:
    """Features of every bar.

    Windows count bars, whatever the gaps; the clock and longer timeframes go by timestamps.

    Args:
        bars: N canonical bars (`bars.SCHEMA`): UTC bar-open timestamps, oldest first.
        cross: the same of other assets, by symbol.
        tf: timeframe of the bars, as "1h".

    Returns:
        N rows: `timestamp` (UTC, milliseconds), then one Float64 column per name of
        `feature_names`, without unit. The first WARMUP - 1 rows are NaN; from there the value at t
        is the same whether computed from the beginning of history or from the last WARMUP bars.
        Later NaN only in cross columns, where the other asset has no bar. Never infinite.

    Raises:
        MacdError: timestamps do not rise, a price is not positive, or a volume is negative.
        UsageError: `tf` is no timeframe.
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


def subset(names: Sequence[str], which: str) -> tuple[str, ...]:
    """The features of a set of SETS among `names`, in their order.

    all: every one. own: without the columns of other assets. path: the own returns and the clock.
    Raises UsageError for a set that does not exist.
    """
    if which not in SETS:
        raise UsageError(
            f"features: {which!r} is no set of features", why=f"known: {', '.join(SETS)}"
        )
    if which == "all":
        return tuple(names)
    own = set(feature_names())
    if which == "path":
        own = {name for name in own if name.startswith(_PATH)}
    return tuple(name for name in names if name in own)


def asset_column(symbol: str) -> str:
    """The column that tells a model of a panel whose bars these are: 1 on this asset's, else 0."""
    return f"asset_{symbol}"


def cross_prefix(symbol: str) -> str:
    """How the columns that another asset gives begin."""
    return f"x_{symbol.lower()}_"


def rows_without(table: pl.DataFrame, symbol: str) -> int:
    """How many of the newest rows in a row have no one-bar return of this other asset.

    table: as `compute` gives it, with the asset among `cross`.
    """
    there = table[f"{cross_prefix(symbol)}ret_1"].is_finite().reverse()
    first = there.arg_max() if there.any() else None
    return len(there) if first is None else int(first)


def schema_hash(names: Sequence[str]) -> str:
    """SHA-256 (hex) of the names in order and the version of their formulas."""
    text = json.dumps([FEATURE_VERSION, *names], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def family_of(name: str) -> str:
    """The family of a feature, for people; the headings of docs/features.md."""
    none = Candles(np.empty(0, np.int64), *(np.empty(0) for _ in range(5)))
    made = _by_family(none, {}, step_ms("1h"))
    return next((family for family, columns in made.items() if name in columns), OTHERS)


def _columns(own: Candles, others: Mapping[str, Candles], step: int) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for columns in _by_family(own, others, step).values():
        out |= columns
    return out


def _by_family(
    own: Candles, others: Mapping[str, Candles], step: int
) -> dict[str, dict[str, Array]]:
    crossed: dict[str, Array] = {}
    for symbol in sorted(others):
        crossed |= families.cross_asset(own, others[symbol], symbol)
    return {
        "Path of the price": families.price(own),
        "Indicators": families.momentum(own),
        "Volume": families.volume(own),
        "Volatility": families.volatility(own),
        "Clock": families.calendar(own),
        "Longer timeframes": families.higher_timeframes(own, step),
        OTHERS: crossed,
    }


def bars_needed(rows: int = 1) -> int:
    """How many closed bars `latest` needs for this many rows."""
    return WARMUP - 1 + rows


def latest(
    bars: pl.DataFrame,
    cross: Mapping[str, pl.DataFrame] | None = None,
    *,
    tf: str = "1h",
    rows: int = 1,
) -> pl.DataFrame:
    """Features of the newest bars from a short memory: what the live service needs at each close.

    Computes from the last `bars_needed(rows)` bars only, with the code of training. The values are
    those that the whole history would give (to 1e-9; test_features_causality.py).

    Args:
        bars: closed canonical bars, UTC bar-open timestamps, oldest first.
        cross: the same of other assets, by symbol.
        tf: timeframe of the bars.
        rows: how many of the newest bars to compute.

    Returns:
        As `compute`: `timestamp` and one Float64 column per feature, `rows` rows.

    Raises:
        MacdError: there are fewer than `bars_needed(rows)` bars, or one can't be computed with.
    """
    need = bars_needed(rows)
    if rows < 1 or len(bars) < need:
        raise MacdError(
            f"{len(bars)} bars are too few for the features of {rows} bars",
            why=f"{need} closed bars are needed until every value has settled",
            hint="keep a longer history in the feed",
        )
    window = bars.tail(need)
    since = window["timestamp"][0]
    others = {name: f.filter(pl.col("timestamp") >= since) for name, f in (cross or {}).items()}
    return compute(window, others, tf=tf).tail(rows)
