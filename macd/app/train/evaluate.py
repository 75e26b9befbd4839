"""Turn the out-of-fold table into the figures of a report: per model and head, honest ones.

Headline: direction of moves above min_move. Beside it always the sign on ALL bars, because nobody
can select live bars by a return of the future. Validation is pooled over the walk-forward folds,
test is the holdout.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.labels import HORIZONS, direction
from macd.app.train.metrics import Auc, auc, reliability, score
from macd.app.train.oof import HOLDOUT, columns, heads_in


def figures(frame: pl.DataFrame, model: str, min_move: float, seed: int) -> dict[str, Any]:
    """By head: val, val_all, test, test_all (see `Auc`), folds, reliability of the validation."""
    p, returns = columns(frame, f"p_{model}"), columns(frame, "ret")
    moves, signs = direction(returns, min_move), direction(returns, 0.0)
    times = frame["bar_time"].dt.epoch("ms").to_numpy()
    rows, fold = frame["row"].to_numpy(), frame["fold"].to_numpy()
    validation, test = fold != HOLDOUT, fold == HOLDOUT
    told: dict[str, Any] = {}
    for k, head in enumerate(heads_in(frame)):

        def on(
            part: NDArray[np.bool_], y: NDArray[np.float64], k: int = k
        ) -> dict[str, float | None]:
            made = score(y[part, k], p[part, k], times[part], rows[part], HORIZONS[k], seed=seed)
            return plain(made)

        told[head] = {
            "val": on(validation, moves),
            "val_all": on(validation, signs),
            "test": on(test, moves),
            "test_all": on(test, signs),
            "folds": [
                {"fold": int(index), **on(fold == index, moves)}
                for index in np.unique(fold[validation])
            ],
            "reliability": reliability(moves[validation, k], p[validation, k]),
        }
    return told


def validation_aucs(frame: pl.DataFrame, model: str, min_move: float) -> dict[str, float]:
    """Pooled validation AUC by head; the holdout is not looked at, so heads can be chosen by it."""
    before = frame.filter(pl.col("fold") != HOLDOUT)
    p, moves = columns(before, f"p_{model}"), direction(columns(before, "ret"), min_move)
    values = {}
    for k, head in enumerate(heads_in(frame)):
        known = np.isfinite(p[:, k]) & np.isfinite(moves[:, k])
        values[head] = auc(moves[known, k], p[known, k])
    return values


def plain(made: Auc) -> dict[str, float | None]:
    """An Auc as JSON: NaN is null."""
    values = dataclasses.asdict(made)
    return {
        name: (None if isinstance(v, float) and not math.isfinite(v) else v)
        for name, v in values.items()
    }
