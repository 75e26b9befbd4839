"""The out-of-fold table, each model's prediction of bars it was not trained on, and its figures.

Headline: direction of moves above min_move. Beside it always the sign on ALL bars, because nobody
can select live bars by a return of the future. Validation is pooled over the walk-forward folds,
test is the holdout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.labels import HORIZONS, direction
from macd.app.predict.combine import calibrated, mean_of_logits
from macd.app.train.cache import Entry
from macd.app.train.dataset import Dataset, Plan, trailing_volatility
from macd.app.train.fitdata import Floats
from macd.app.train.metrics import (
    Auc,
    auc_by_head,
    by_confidence,
    finite_or_none,
    luck_of_the_best,
    reliability,
    roc,
    score,
)
from macd.heads import BASES, MEAN, head_names, in_order
from macd.host.durable import replace_file

_PAST = 48  # one-bar returns that the ridge baseline sees
HOLDOUT = -1  # the `fold` of rows that no walk-forward fold tests


def table(data: Dataset, plan: Plan) -> pl.DataFrame:
    """One row per test bar, oldest first: row, bar_time, fold, y_* (sign of any move), ret_*.

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


def with_model(frame: pl.DataFrame, model: str, p: NDArray[np.floating[Any]]) -> pl.DataFrame:
    """The table with p_<model>_<head> beside it; p is (rows, 3), NaN where it has no prediction."""
    return frame.with_columns(
        pl.Series(f"p_{model}_{head}", p[:, k].astype(np.float32)).fill_nan(None)
        for k, head in enumerate(heads_in(frame))
    )


def with_mean(frame: pl.DataFrame, slopes: Mapping[str, float] | None = None) -> pl.DataFrame:
    """The table with the mean of its base models beside them, on rows where all of them speak.

    slopes: that calibrate the mean, by head.
    """
    base = [columns(frame, f"p_{name}") for name in models_in(frame, BASES)]
    if len(base) < 2:
        return frame
    silent = np.isnan(base).any(axis=0)
    mean = mean_of_logits(base)
    if slopes:
        mean = calibrated(mean, [slopes[head] for head in heads_in(frame)])
    return with_model(frame, MEAN, np.where(silent, np.nan, mean))


def from_entries(frame: pl.DataFrame, entries: Sequence[Entry]) -> Floats:
    """Predictions of fits, laid out along the table's rows; NaN where no fit predicted a row."""
    rows = frame["row"].to_numpy()
    p = np.full((len(rows), len(HORIZONS)), np.nan, dtype=np.float32)
    for entry in entries:
        at = np.searchsorted(rows, entry.arrays["rows"])
        p[at] = entry.arrays["p"]
    return p


def volatility_baseline(data: Dataset, plan: Plan, frame: pl.DataFrame) -> Floats:
    """What trailing volatility alone predicts: one-feature logistic regression, fold by fold.

    Every report shows it: a model that only knows volatility gets this far.
    """
    level = np.log(trailing_volatility(data.close) + 1e-8)
    return _logistic_by_fold(level[:, np.newaxis], data, plan, frame, strength=1.0)


def ridge_baseline(data: Dataset, plan: Plan, frame: pl.DataFrame) -> Floats:
    """What the last 48 one-bar returns say to a linear model: logistic ridge, fold by fold.

    Returns are in trailing standard deviations (168 bars), within +-5. A model that doesn't beat it
    has learnt nothing that takes trees or a net. The penalty is fixed: nothing chose it.
    """
    steps = np.diff(np.log(data.close), prepend=np.nan)
    scaled = np.clip(steps / np.maximum(trailing_volatility(data.close, 168), 1e-12), -5, 5)
    past = np.full((len(steps), _PAST), np.nan)
    for ago in range(_PAST):
        past[ago:, ago] = scaled[: len(scaled) - ago]
    return _logistic_by_fold(past, data, plan, frame, strength=0.001)


def _logistic_by_fold(
    x: NDArray[np.float64], data: Dataset, plan: Plan, frame: pl.DataFrame, *, strength: float
) -> Floats:
    """Logistic regression on x (bars, inputs), trained and tested on the rows of every model.

    strength: scikit-learn's C, the inverse of the ridge penalty.
    """
    rows = frame["row"].to_numpy()
    p = np.full((len(rows), len(HORIZONS)), np.nan, dtype=np.float32)
    for fold in (*plan.folds, plan.holdout):
        at = np.searchsorted(rows, fold.test)
        for k in range(len(HORIZONS)):
            p[at, k] = _logistic(x, data.y[:, k], fold.train, fold.test, strength)
    return p


def write(frame: pl.DataFrame, path: Path) -> Path:
    """Write the table as parquet, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    frame.drop("row", strict=False).write_parquet(temporary)
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


def models_in(frame: pl.DataFrame, models: Sequence[str]) -> list[str]:
    """Which of these models the table holds predictions of."""
    nearest = heads_in(frame)[0]
    return [name for name in models if f"p_{name}_{nearest}" in frame.columns]


def best_head(aucs: Mapping[str, float]) -> str:
    """The head with the highest validation AUC; the earlier one on a tie."""
    finite = {head: value for head, value in aucs.items() if np.isfinite(value)}
    return max(finite or aucs, key=lambda head: aucs[head] if finite else 0.0)


def parts(
    tested: NDArray[np.bool_], returns: NDArray[np.float64], min_move: float
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """What a model is judged on, by name: rows, and labels of all rows (shape of `returns`).

    val, val_all: validation, on moves above min_move and on all bars. test, test_all: the holdout.
    tested: which rows are the holdout's.
    """
    moves, signs = direction(returns, min_move), direction(returns, 0.0)
    return {
        "val": (~tested, moves),
        "val_all": (~tested, signs),
        "test": (tested, moves),
        "test_all": (tested, signs),
    }


def figures(frame: pl.DataFrame, model: str, min_move: float, seed: int) -> dict[str, Any]:
    """By head: val, val_all, test, test_all (see `Auc`), folds, and on all bars the reliability and
    the roc of the validation, and confidence of validation and test (`by_confidence`).
    """
    p, times = columns(frame, f"p_{model}"), frame["bar_time"].dt.epoch("ms").to_numpy()
    rows, fold = frame["row"].to_numpy(), frame["fold"].to_numpy()
    judged = parts(fold == HOLDOUT, columns(frame, "ret"), min_move)
    (validation, moves), (test, signs) = judged["val"], judged["test_all"]
    by_head: dict[str, Any] = {}
    for k, head in enumerate(heads_in(frame)):

        def on(
            part: NDArray[np.bool_], y: NDArray[np.float64], k: int = k
        ) -> dict[str, float | None]:
            return _plain(
                score(y[part, k], p[part, k], times[part], rows[part], HORIZONS[k], seed=seed)
            )

        by_head[head] = {
            **{name: on(lines, labels) for name, (lines, labels) in judged.items()},
            "folds": [
                {"fold": int(index), **on(fold == index, moves)}
                for index in np.unique(fold[validation])
            ],
            "reliability": reliability(signs[validation, k], p[validation, k]),
            "roc": roc(signs[validation, k], p[validation, k]),
            "confidence": {
                name: by_confidence(signs[part, k], p[part, k], times[part], seed=seed)
                for name, part in (("val", validation), ("test", test))
            },
        }
    return by_head


def validation_aucs(frame: pl.DataFrame, model: str, min_move: float) -> dict[str, float]:
    """Pooled validation AUC by head; the holdout is not used, so heads can be chosen by it."""
    before = frame.filter(pl.col("fold") != HOLDOUT)
    p, moves = columns(before, f"p_{model}"), direction(columns(before, "ret"), min_move)
    return auc_by_head(moves, p, heads_in(frame))


def best_head_luck(frame: pl.DataFrame, model: str, min_move: float, seed: int) -> float:
    """By how much the validation AUC of a model's best head is flattered by having been chosen."""
    before = frame.filter(pl.col("fold") != HOLDOUT)
    p, moves = columns(before, f"p_{model}"), direction(columns(before, "ret"), min_move)
    times = before["bar_time"].dt.epoch("ms").to_numpy()
    return luck_of_the_best(moves, p, times, seed=seed)


def _logistic(
    x: NDArray[np.float64],
    y: Floats,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    strength: float,
) -> Floats:
    usable = train[np.isfinite(y[train]) & np.isfinite(x[train]).all(axis=1)]
    if len(np.unique(y[usable])) < 2:
        return np.full(len(test), np.nan, dtype=np.float32)
    center, spread = x[usable].mean(axis=0), x[usable].std(axis=0)
    spread[spread == 0.0] = 1.0
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow to import

    model = LogisticRegression(C=strength).fit((x[usable] - center) / spread, y[usable])
    return np.asarray(model.predict_proba((x[test] - center) / spread)[:, 1], dtype=np.float32)


def _plain(made: Auc) -> dict[str, float | None]:
    """An Auc as JSON: NaN is null."""
    return {name: finite_or_none(v) for name, v in dataclasses.asdict(made).items()}
