"""What a release carries to notice drift: how features and predictions lay in its training rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from macd.app.market.splits import Fold
from macd.app.predict.reference import FORMAT, QUANTILES, Reference, summary
from macd.app.train.dataset import Dataset
from macd.app.train.fitdata import Floats
from macd.app.train.training import Training
from macd.heads import MEAN
from macd.host.judge.drift import BLOCK


def measure(training: Training, frame: pl.DataFrame, head: str) -> dict[str, Any]:
    """The content of models/features_TF.json: quantiles and blocks, by asset; predictions.

    Over the rows that the shipped base models are trained on, all bars of them, moves or not; of a
    panel's other assets, the bars of the same time. Of the predictions, blocks of out-of-fold ones:
    the mean of the models at `head`, by which the service decides.
    """
    plan = training.plan
    fold = plan.everything if training.settings.refit else plan.holdout
    assets: dict[str, Any] = {}
    for symbol, data, X in _assets(training, fold):
        reference = Reference.of(X, data.features)
        assets[symbol] = {
            "rows": len(X),
            "features": reference.as_json(),
            "blocks": {**reference.blocks(X), "features": len(data.features)},
        }
    until = int(training.data.times_ms[fold.train[-1]])
    return {
        "format": FORMAT,
        "tf": training.settings.tf,
        "quantiles": list(QUANTILES),
        "block": BLOCK,
        "until": datetime.fromtimestamp(until / 1000, UTC).isoformat(),
        "assets": assets,
        "predictions": _predictions(frame, head),
    }


def _predictions(frame: pl.DataFrame, head: str) -> dict[str, Any] | None:
    """Of blocks of all bars (with a move or without), the mean prediction and its spread."""
    column = f"p_{MEAN}_{head}"
    if column not in frame.columns:
        return None  # with one model there is no mean
    p = frame.sort("row")[column].drop_nulls().drop_nans().to_numpy().astype(np.float64)
    count = len(p) // BLOCK
    parts = p[: count * BLOCK].reshape(count, BLOCK)
    moments = {"mean": parts.mean(axis=1), "spread": parts.std(axis=1)}
    return {"head": head, "count": count, **{n: summary(v) for n, v in moments.items()}}


def short(document: dict[str, Any]) -> dict[str, Any]:
    """metrics["drift"]: what a block of bars is judged by, without the quantiles."""
    return {
        "block": document["block"],
        "assets": {symbol: made["blocks"] for symbol, made in document["assets"].items()},
        "predictions": document["predictions"],
    }


def _assets(training: Training, fold: Fold) -> Iterator[tuple[str, Dataset, Floats]]:
    """Each asset with its rows of that time; an asset without any is left out."""
    times = training.data.times_ms
    yield training.bars.symbol, training.data, training.data.X[fold.train]
    since, until = times[fold.train[0]], times[fold.train[-1]]
    for symbol, data in training.others.items():
        rows = (data.times_ms >= since) & (data.times_ms <= until)
        rows[: data.first] = False
        if rows.any():
            yield symbol, data, data.X[rows]
