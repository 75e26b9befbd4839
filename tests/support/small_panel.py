"""Bars of three made-up assets that move together but trade over different times, with a gap."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from macd.app.market.bars import canonical, write_bars

START = datetime(2021, 1, 1, tzinfo=UTC)
MAIN, OTHERS = "AAAUSD", ("BBBUSD", "CCCUSD")
BARS = 2_400


def frames() -> dict[str, pl.DataFrame]:
    """AAAUSD over all hours; BBBUSD from hour 400, with 60 missing; CCCUSD until hour 1,900."""
    rng = np.random.default_rng(11)
    market = rng.normal(0.0, 0.006, BARS)
    spans = {
        MAIN: np.arange(BARS),
        "BBBUSD": np.r_[400:1500, 1560:BARS],
        "CCCUSD": np.arange(1_900),
    }
    return {name: _frame(hours, market, rng) for name, hours in spans.items()}


def write(directory: Path) -> None:
    """Each asset's bars as a file of `directory`."""
    for name, frame in frames().items():
        write_bars(frame, directory / f"{name}_1h.parquet")


def _frame(hours: np.ndarray, market: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    steps = market[hours] + rng.normal(0.0, 0.003, len(hours))
    close = 100 * np.exp(np.cumsum(steps))
    before = np.r_[100.0, close[:-1]]
    wick = 1 + np.abs(rng.normal(0.0, 0.001, (2, len(hours))))
    stamps = pl.Series(hours * 3_600_000 + int(START.timestamp() * 1000))
    return canonical(
        pl.DataFrame(
            {
                "timestamp": stamps.cast(pl.Datetime("ms", "UTC")),
                "open": before,
                "high": np.maximum(before, close) * wick[0],
                "low": np.minimum(before, close) / wick[1],
                "close": close,
                "volume": rng.lognormal(3.0, 0.5, len(hours)),
            }
        )
    )
