"""Bars become what models are trained on: checked bars, features, labels, folds.

The features, labels and folds of real bars and of sign-randomised bars come from the same code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market import bars as market_bars
from macd.app.market import features, splits
from macd.app.market.checks import Finding, Limits, check_beside, check_each
from macd.app.market.findings import how_to_accept, judged
from macd.app.market.labels import HORIZONS, direction, forward_returns
from macd.app.train.fitdata import SEQ, Floats
from macd.app.train.settings import Settings
from macd.criteria import MIN_SAMPLES
from macd.errors import MacdError, RefusedError, UsageError
from macd.heads import GUIDE
from macd.host.durable import replace_file
from macd.run_directory import FILES
from macd.symbols import symbol_name

LEAST_EACH = 10  # ups, and downs, in every train and test part; fewer give no figure
_SHOWN = 10
_SHOW_ALL = (
    "invoke data.verify --symbol {symbols} --tf {s.tf} --data {s.data} shows all of them and how "
    "to correct each; nothing is repaired silently"
)


@dataclass(frozen=True)
class Bars:
    """The bars of a training: the symbol's own, and those of other assets beside it.

    cross: assets whose bars become features. panel: assets that global models are trained on too.
    """

    symbol: str
    tf: str
    main: pl.DataFrame
    cross: Mapping[str, pl.DataFrame]
    panel: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    def digest(self) -> str:
        """One sha256 for all of the data that goes in."""
        return market_bars.digest_of_all(self.symbol, self.tf, self.main, self.cross, self.panel)

    def alone(self) -> dict[str, Bars]:
        """The panel's other assets by symbol, each as if it were trained on by itself."""
        return {name: Bars(name, self.tf, frame, {}) for name, frame in self.panel.items()}


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

    def columns(self, which: str) -> Dataset:
        """The same with the features of one set (macd/app/market/features `subset`)."""
        names = features.subset(self.features, which)
        if names == self.features:
            return self
        X = self.X[:, [self.features.index(name) for name in names]]
        return replace(self, X=np.ascontiguousarray(X), features=names)

    def seen_by(self, params: Any) -> Dataset:
        """The same with the columns that a model of these parameters is trained on."""
        return self.columns(getattr(params, "features", "all"))


@dataclass(frozen=True)
class Plan:
    """The train/test split: the walk-forward folds, and the holdout after them."""

    folds: tuple[splits.Fold, ...]
    holdout: splits.Fold
    embargo: int

    @property
    def everything(self) -> splits.Fold:
        """What the shipped models are fitted on where a refit is asked for."""
        return splits.everything(self.holdout, self.embargo)


def findings(
    settings: Settings, frames: Mapping[str, pl.DataFrame], now: datetime
) -> dict[str, list[Finding]]:
    """By symbol of the training all findings about its bars; each asset is checked once.

    frames: rows of all `settings.assets`. What the settings accept is no error any more.
    """
    limits, tf = Limits().changed(settings.limits), settings.tf
    each = check_each(frames, tf=tf, now=now, limits=limits, market=settings.market)
    by_symbol: dict[str, list[Finding]] = {}
    for one in settings.each:
        main, *beside = mine = one.assets
        panel = set(beside) - {symbol_name(name) for name in one.cross}
        rows = {name: frames[name] for name in mine}
        together = check_beside(rows, main=main, tf=tf, limits=limits, panel=panel)
        alone = [finding for finding in each if finding.symbol in mine]
        by_symbol[main] = judged(alone + together, settings.accept)
    return by_symbol


def verify(settings: Settings, now: datetime) -> dict[str, list[Finding]]:
    """The findings about the bars of each symbol, written into its directory; no bar is changed.

    Raises MacdError when one of them is an error that the settings don't accept.
    """
    paths = market_bars.existing(settings.data, settings.assets, settings.tf)
    frames = {symbol: market_bars.read_rows(path) for symbol, path in paths.items()}
    by_symbol = findings(settings, frames, now)
    for one, mine in zip(settings.each, by_symbol.values(), strict=True):
        document = [_plain(finding) for finding in mine]
        path = one.out / FILES.bars
        replace_file(path, (json.dumps(document, indent=1) + "\n").encode(), parents=True)
    every = dict.fromkeys(finding for mine in by_symbol.values() for finding in mine)
    errors = [finding for finding in every if finding.level == "error"]
    if errors:
        more = f"\nand {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        show_all = _SHOW_ALL.format(symbols=",".join(settings.assets), s=settings)
        raise MacdError(
            f"the bars have {len(errors)} error{'s' if len(errors) > 1 else ''}",
            why="\n".join(f"{finding.symbol} {finding}" for finding in errors[:_SHOWN]) + more,
            hint=f"{show_all}\n{how_to_accept(errors)}".rstrip(),
        )
    return by_symbol


class Reader:
    """Canonical bars and what is made of them, for several symbols of a training each once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._frames: dict[str, pl.DataFrame] = {}
        self._built: dict[tuple[str, ...], Dataset] = {}

    def bars(self, settings: Settings) -> Bars:
        """The bars of one symbol's training; MacdError where one is missing."""
        symbol, tf = symbol_name(settings.symbol), settings.tf
        cross = {n: self._frame(n) for n in map(symbol_name, settings.cross)}
        panel = {name: self._frame(name) for name in settings.panel_others}
        return Bars(symbol, tf, self._frame(symbol), cross, panel)

    def dataset(self, bars: Bars) -> Dataset:
        """`build` of these bars, which this reader gave."""
        key = (bars.symbol, *bars.cross)
        if key not in self._built:
            self._built[key] = build(bars, self._settings.min_move)
        return self._built[key]

    def _frame(self, symbol: str) -> pl.DataFrame:
        if symbol not in self._frames:
            path = market_bars.bars_path(self._settings.data, symbol, self._settings.tf)
            self._frames[symbol] = market_bars.read_bars(path)
        return self._frames[symbol]


def read(settings: Settings) -> Bars:
    """The canonical bars of one symbol's training; MacdError where one is missing."""
    return Reader(settings).bars(settings)


def origins(settings: Settings) -> dict[str, dict[str, str]]:
    """By symbol what the files of bars say of where they came from (bars.origin)."""
    return {
        symbol: market_bars.origin(market_bars.bars_path(settings.data, symbol, settings.tf))
        for symbol in settings.assets
    }


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
            hint="bring a few thousand more bars: invoke data.fetch or data.import",
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
    splits.assert_walk_forward(made, embargo=embargo)  # again, whatever made them
    splits.assert_purged(behind, embargo=embargo)
    return Plan(tuple(made), behind, embargo)


def require_moves(data: Dataset, plan: Plan, min_move: float, *, stacking: int) -> None:
    """Raise unless enough bars move more than min_move, before anything is fitted.

    UsageError names a min_move that works. RefusedError: only stacking lacks samples, whatever
    min_move is.
    stacking: how many out-of-fold moves the meta-model asks for; 0 where none is trained.
    """
    lacking = _lacking(data.returns, plan, min_move, stacking)
    if not lacking:
        return
    bars, why = lacking
    moves = np.abs(data.returns[data.first :, HORIZONS.index(bars)])
    finite = moves[np.isfinite(moves)]
    count, median = int((finite > min_move).sum()), float(np.median(finite)) if len(finite) else 0.0
    what = (
        f"only {count:,} of {len(finite):,} bars moved more than min_move {100 * min_move:g} % "
        f"within {bars} bars (median move {100 * median:.2g} %)"
    )
    working = _working(data.returns, plan, min(min_move, median), stacking)
    if working is not None:
        raise UsageError(
            what, why=why, hint=f"--min-move {_typed(working)} (train.min_move in an inventory)"
        )
    _, least = _lacking(data.returns, plan, 0.0, stacking) or (bars, why)
    enough = not _lacking(data.returns, plan, min_move, 0)
    alone = min_move if enough else _working(data.returns, plan, min(min_move, median), 0)
    if alone is not None:
        most = min(
            _test_moves(direction(data.returns, alone), plan, k) for k in range(len(HORIZONS))
        )
        fewer = f"set {MIN_SAMPLES} to at most {most}"
        if not enough:
            hint = f"--min-move {_typed(alone)}, and {fewer} or bring more bars"
            raise UsageError(what, why=f"with --min-move 0: {least}", hint=hint)
        raise RefusedError(
            f"stacking needs {stacking} out-of-fold samples, and these bars don't hold as many",
            why=f"{what}\nwith all moves, which is --min-move 0: {least}",
            hint=f"train on more bars, or {fewer}",
        )
    raise UsageError(
        f"{len(data) - data.first:,} bars are too few to train on, or their prices hardly move",
        why=f"{what}\nwith all moves, which is --min-move 0: {least}",
        hint="bring more bars: invoke data.import, or invoke data.fetch",
    )


def too_few_samples(
    returns: NDArray[np.float64], plan: Plan, min_move: float, wanted: float
) -> str:
    """Why the criterion n_oof can't be met by these bars, and what would do; "" where it can."""
    tested = np.concatenate([fold.test for fold in plan.folds])
    y = direction(returns, min_move)
    most = max(_test_moves(y, plan, k) for k in range(len(HORIZONS)))
    if most >= wanted:
        return ""
    need = math.ceil(len(returns) * wanted / max(most, 1) / 100) * 100
    more = f"about {need:,} bars would do" if most else "no number of bars like these would do"
    whole = direction(returns, 0.0)
    fewer = f"--min-move 0 gives {max(_test_moves(whole, plan, k) for k in range(len(HORIZONS))):,}"
    return (
        f"criterion n_oof asks for {wanted:,.0f} out-of-fold samples, and these {len(returns):,} "
        f"bars give at most {most:,} of {len(tested):,} tested; {more}, {fewer}, or set "
        f"train.criteria.n_oof.threshold to at most {most:,}"
    )


def _lacking(
    returns: NDArray[np.float64], plan: Plan, min_move: float, stacking: int
) -> tuple[int, str] | None:
    """The horizon in bars that has too little at this min_move, and what is too little; or None."""
    y = direction(returns, min_move)
    parts = [(f"fold {fold.index}", fold) for fold in plan.folds] + [("the holdout", plan.holdout)]
    for k, bars in enumerate(HORIZONS):
        for name, fold in parts:
            for doing, rows in (("trains on", fold.train), ("is tested on", fold.test)):
                ups, downs = (int((y[rows, k] == label).sum()) for label in (1.0, 0.0))
                if min(ups, downs) < LEAST_EACH:
                    text = (
                        f"{name} {doing} {ups:,} ups and {downs:,} downs, and {LEAST_EACH} of each"
                    )
                    return bars, f"{text} are the least"
        tested = _test_moves(y, plan, k)
        if tested < stacking:
            return bars, f"stacking asks for {stacking:,} out-of-fold moves, there are {tested:,}"
    return None


def _test_moves(y: NDArray[np.float64], plan: Plan, k: int) -> int:
    """Out-of-fold moves of one head: those that stacking is fitted on."""
    return sum(int(np.isfinite(y[fold.test, k]).sum()) for fold in plan.folds)


def _working(returns: NDArray[np.float64], plan: Plan, start: float, stacking: int) -> float | None:
    """The largest round number, from `start` down, that is enough; 0 is tried last."""
    size = 10.0 ** math.floor(math.log10(start)) if start > 0 else 0.0
    tried = [round(step * size / scale, 12) for scale in (1, 10, 100) for step in range(9, 0, -1)]
    for value in [*(value for value in tried if 0 < value <= start), 0.0]:
        if not _lacking(returns, plan, value, stacking):
            return value
    return None


def _typed(value: float) -> str:
    """As people type it: without an exponent."""
    return f"{value:.12f}".rstrip("0").rstrip(".") or "0"


def trailing_volatility(close: NDArray[np.float64], span: int = 24) -> NDArray[np.float64]:
    """Standard deviation of the last `span` log returns, bar t included; NaN before that."""
    steps = np.diff(np.log(close), prepend=np.nan)
    out = pl.Series(steps).fill_nan(None).rolling_std(span).to_numpy()
    return np.asarray(out, dtype=np.float64)


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "symbol": finding.symbol,
        "check": finding.check,
        "level": finding.level,
        "row": finding.row,
        "time": finding.time.isoformat() if finding.time else None,
        "detail": finding.detail,
        **({"reason": finding.reason} if finding.reason else {}),
    }
