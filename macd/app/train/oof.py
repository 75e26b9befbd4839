"""The out-of-fold table: what each model said about each bar before it could have known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from macd.app.market.labels import HORIZONS
from macd.app.train.cache import Entry
from macd.app.train.dataset import Dataset, Plan, trailing_volatility
from macd.app.train.fitdata import Floats
from macd.heads import head_names, in_order
from macd.host.durable import replace_file

HOLDOUT = -1  # the `fold` of rows that no walk-forward fold tests


def table(data: Dataset, plan: Plan) -> pl.DataFrame:
    """One row per judged bar, oldest first: row, bar_time, fold, y_* (sign of any move), ret_*.

    y and ret are null where the future is not known yet. Rows of the holdout have fold -1; their
    predictions come from models fitted on everything before it.
    """
    folds = [*plan.folds, plan.holdout]
    rows = np.concatenate([fold.test for fold in folds])
    labels = np.concatenate([np.full(len(f.test), f.index, np.int32) for f in folds])
    columns: dict[str, pl.Series] = {
        "row": pl.Series(rows),
        "bar_time": pl.Series(data.times_ms[rows]).cast(pl.Datetime("ms", "UTC")),
        "fold": pl.Series(labels),
    }
    heads = head_names(data.tf)
    for k, head in enumerate(heads):
        columns[f"y_{head}"] = pl.Series(data.y_all[rows, k]).fill_nan(None)
    for k, head in enumerate(heads):
        columns[f"ret_{head}"] = pl.Series(data.returns[rows, k]).fill_nan(None)
    return pl.DataFrame(columns)


def with_model(frame: pl.DataFrame, model: str, p: Floats) -> pl.DataFrame:
    """The table with p_<model>_<head> beside it; p is (rows, 3), NaN where nothing was said."""
    return frame.with_columns(
        pl.Series(f"p_{model}_{head}", p[:, k].astype(np.float32)).fill_nan(None)
        for k, head in enumerate(heads_in(frame))
    )


def from_entries(frame: pl.DataFrame, entries: Sequence[Entry]) -> Floats:
    """Predictions of fits, laid out along the table's rows; NaN where no fit judged a row."""
    rows = frame["row"].to_numpy()
    p = np.full((len(rows), len(HORIZONS)), np.nan, dtype=np.float32)
    for entry in entries:
        at = np.searchsorted(rows, entry.arrays["rows"])
        p[at] = entry.arrays["p"]
    return p


def volatility_baseline(data: Dataset, plan: Plan, frame: pl.DataFrame) -> Floats:
    """What trailing volatility alone says: one-feature logistic regression, fold by fold.

    No report stands without it: a model that only sees volatility gets this far.
    """
    level = np.log(trailing_volatility(data.close) + 1e-8)
    rows = frame["row"].to_numpy()
    p = np.full((len(rows), len(HORIZONS)), np.nan, dtype=np.float32)
    for fold in (*plan.folds, plan.holdout):
        at = np.searchsorted(rows, fold.test)
        for k in range(len(HORIZONS)):
            p[at, k] = _one_feature(level, data.y[:, k], fold.train, fold.test)
    return p


def write(frame: pl.DataFrame, path: Path) -> Path:
    """Write the table as parquet, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    frame.drop("row").write_parquet(temporary)
    replace_file(path, temporary.read_bytes(), parents=True)
    temporary.unlink()
    return path


def columns(frame: pl.DataFrame, prefix: str) -> NDArray[np.float64]:
    """The columns <prefix>_<head> of every head as (rows, 3), null as NaN."""
    names = [f"{prefix}_{head}" for head in heads_in(frame)]
    return frame.select(pl.col(names).cast(pl.Float64).fill_null(np.nan)).to_numpy()


def heads_in(frame: pl.DataFrame) -> list[str]:
    """The heads the table has columns of, the nearest first."""
    return in_order(name.removeprefix("ret_") for name in frame.columns)


def models_in(frame: pl.DataFrame, known: Sequence[str]) -> list[str]:
    """Which of the known models the table holds predictions of."""
    nearest = heads_in(frame)[0]
    return [name for name in known if f"p_{name}_{nearest}" in frame.columns]


def best_head(aucs: Mapping[str, float]) -> str:
    """The head with the highest validation AUC; the earlier one on a tie."""
    known = {head: value for head, value in aucs.items() if np.isfinite(value)}
    return max(known or aucs, key=lambda head: aucs[head] if known else 0.0)


def _one_feature(
    x: NDArray[np.float64], y: Floats, train: NDArray[np.int64], test: NDArray[np.int64]
) -> Floats:
    known = train[np.isfinite(y[train]) & np.isfinite(x[train])]
    if len(np.unique(y[known])) < 2:
        return np.full(len(test), np.nan, dtype=np.float32)
    center, spread = x[known].mean(), x[known].std() or 1.0
    model = LogisticRegression().fit(((x[known] - center) / spread)[:, None], y[known])
    return np.asarray(
        model.predict_proba(((x[test] - center) / spread)[:, None])[:, 1], dtype=np.float32
    )
