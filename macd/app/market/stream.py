"""Features of the newest bars from a short memory: what the live service needs at each close.

The same code as in training on the last WARMUP bars gives what the whole history would give (to
1e-9; test_features_causality.py), so nothing has to be kept between bars.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from macd.app.market.features import WARMUP, compute
from macd.errors import MacdError


def bars_needed(rows: int = 1) -> int:
    """How many closed bars `latest` wants for this many rows."""
    return WARMUP - 1 + rows


def latest(
    bars: pl.DataFrame,
    cross: Mapping[str, pl.DataFrame] | None = None,
    *,
    tf: str = "1h",
    rows: int = 1,
) -> pl.DataFrame:
    """`timestamp` and features of the last `rows` bars; `bars` are closed bars, oldest first.

    Looks at the last `bars_needed(rows)` bars only. Raises MacdError when there are fewer, or when
    a bar is not fit to compute with.
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
