"""Bars become what the fits see: features, labels, folds; the same for real and surrogate bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market import bars as market_bars
from macd.app.market import features, splits
from macd.app.market.labels import direction, forward_returns
from macd.app.train.fitdata import Floats
from macd.app.train.nets import SEQ
from macd.app.train.settings import Settings
from macd.errors import MacdError
from macd.heads import GUIDE


@dataclass(frozen=True)
class Bars:
    """The bars of a training: the symbol's own, and those of other assets beside it."""

    symbol: str
    tf: str
    main: pl.DataFrame
    cross: Mapping[str, pl.DataFrame]

    def digest(self) -> str:
        """One sha256 for all of the data that goes in."""
        return market_bars.digest_of_all(self.symbol, self.tf, self.main, self.cross)


@dataclass(frozen=True)
class Dataset:
    """Features and labels by bar; all arrays have one row per bar of the symbol.

    X: float32 (N, F), NaN in warm-up. returns: (N, 3). y: direction of moves above min_move, NaN
    where smaller or unknown; y_all: sign of every return. first: the first row with a full window.
    """

    times_ms: NDArray[np.int64]
    close: NDArray[np.float64]
    X: Floats
    features: tuple[str, ...]
    returns: NDArray[np.float64]
    y: Floats
    y_all: Floats
    first: int
    tf: str = GUIDE

    def __len__(self) -> int:
        return len(self.times_ms)


@dataclass(frozen=True)
class Plan:
    """Which rows teach and which judge: the folds, and the holdout behind them."""

    folds: tuple[splits.Fold, ...]
    holdout: splits.Fold
    embargo: int


def read(settings: Settings) -> Bars:
    """The canonical bars named by the settings; MacdError where one is missing."""

    def bars_of(symbol: str) -> pl.DataFrame:
        return market_bars.read_bars(market_bars.bars_path(settings.data, symbol, settings.tf))

    symbol = market_bars.symbol_name(settings.symbol)
    names = [market_bars.symbol_name(name) for name in settings.cross]
    return Bars(symbol, settings.tf, bars_of(symbol), {name: bars_of(name) for name in names})


def build(bars: Bars, min_move: float) -> Dataset:
    """Features and labels; also for surrogate bars, so that the audit runs the same code."""
    table = features.compute(bars.main, dict(bars.cross), tf=bars.tf)
    names = tuple(name for name in table.columns if name != "timestamp")
    X = table.select(pl.col(names).cast(pl.Float32).fill_null(np.nan)).to_numpy()
    close = bars.main["close"].to_numpy().astype(np.float64)
    returns = forward_returns(close)
    first = features.WARMUP + SEQ - 1
    if len(close) <= first:
        raise MacdError(
            f"{len(close)} bars of {bars.symbol} are too few to train on",
            why=f"the first {first} bars only warm the features up",
            hint="bring more bars: invoke data.fetch or data.import",
        )
    return Dataset(
        times_ms=bars.main["timestamp"].dt.epoch("ms").to_numpy().astype(np.int64),
        close=close,
        X=np.ascontiguousarray(X, dtype=np.float32),
        features=names,
        returns=returns,
        y=direction(returns, min_move).astype(np.float32),
        y_all=direction(returns, 0.0).astype(np.float32),
        first=first,
        tf=bars.tf,
    )


def plan(dataset: Dataset, settings: Settings) -> Plan:
    """Walk-forward folds after the initial part, and the holdout; checked for leaks at once."""
    return plan_rows(
        len(dataset),
        dataset.first,
        folds=settings.fold_count,
        initial=settings.initial,
        holdout=settings.holdout,
        embargo=settings.embargo,
    )


def plan_rows(
    n: int, first: int, *, folds: int, initial: float, holdout: float, embargo: int
) -> Plan:
    """The plan for n bars of which the first `first` only warm up; raises LeakError if leaky."""
    made = splits.walk_forward(
        n, folds=folds, initial=initial, holdout=holdout, embargo=embargo, first=first
    )
    behind = splits.holdout_rows(n, holdout, embargo, first=first)
    splits.assert_walk_forward(made, embargo=embargo)
    splits.assert_purged(behind, embargo=embargo)
    return Plan(tuple(made), behind, embargo)


def trailing_volatility(close: NDArray[np.float64], span: int = 24) -> NDArray[np.float64]:
    """Standard deviation of the last `span` log returns, bar t included; NaN before that."""
    steps = np.diff(np.log(close), prepend=np.nan)
    out = pl.Series(steps).fill_nan(None).rolling_std(span).to_numpy()
    return np.asarray(out, dtype=np.float64)
