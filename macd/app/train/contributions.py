"""What the features gave to LightGBM's signals: how far each moves the log-odds of "up".

Of the model that the holdout tests, head by head: the mean size on the holdout, and what stood
behind the newest bars, with its sign. A contribution says what the model used. It doesn't say that
it was right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macd.app.market.features import family_of
from macd.app.predict.combine import sigmoid
from macd.app.train import lgbm
from macd.app.train.dataset import Dataset, Plan
from macd.heads import head_names

LATEST = 6  # bars
ROWS = 400  # of the holdout, evenly spread: the mean needs no more, and each costs 8 ms

Sizes = NDArray[np.float64]


def measure(models: Path, data: Dataset, plan: Plan) -> dict[str, Any]:
    """metrics["contributions"], in log-odds; {} where `models` holds no LightGBM.

    rows: how many of the holdout. by_feature, by_family: head -> name -> mean size, the largest
    first; of a family, the size of its features' sum. latest: by bar its open time (UTC), and
    by head p, base (what no feature gives), by_family and the three largest features, signed.
    """
    if not (models / f"lgbm_{data.tf}_meta.json").is_file():
        return {}
    model = lgbm.load(models, data.tf)
    X = data.X[:, [data.features.index(name) for name in model.features]]
    held_out = plan.holdout.test
    some = held_out[np.linspace(0, len(held_out) - 1, min(ROWS, len(held_out))).astype(int)]
    newest = np.arange(len(data) - LATEST, len(data), dtype=np.int64)
    families = [family_of(name) for name in model.features]
    made: dict[str, Any] = {
        "rows": len(some),
        "by_feature": {},
        "by_family": {},
        "latest": [
            {"time": datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat(), "heads": {}}
            for ms in data.times_ms[newest]
        ],
    }
    for head in head_names(data.tf):
        given = lgbm.contributions(model, head, X, some)[:, :-1]
        made["by_feature"][head] = _ranked(model.features, np.abs(given).mean(axis=0))
        summed = _summed(given, families)
        made["by_family"][head] = _ranked(
            tuple(summed), [np.abs(v).mean() for v in summed.values()]
        )
        for bar, row in zip(
            made["latest"], lgbm.contributions(model, head, X, newest), strict=True
        ):
            bar["heads"][head] = _explained(row, model.features, families)
    return made


def _explained(row: Sizes, names: Sequence[str], families: Sequence[str]) -> dict[str, Any]:
    largest = np.argsort(-np.abs(row[:-1]), kind="stable")[:3]
    return {
        "p": round(float(sigmoid(row.sum())), 6),
        "base": round(float(row[-1]), 6),
        "by_family": {
            k: round(float(v[0]), 6) for k, v in _summed(row[None, :-1], families).items()
        },
        "largest": {names[k]: round(float(row[k]), 6) for k in largest},
    }


def _summed(given: Sizes, families: Sequence[str]) -> dict[str, Sizes]:
    """(rows, features) as one array of rows by family."""
    sums: dict[str, Sizes] = {}
    for k, family in enumerate(families):
        sums[family] = sums.get(family, np.zeros(len(given))) + given[:, k]
    return sums


def _ranked(names: Sequence[str], sizes: Sequence[float] | Sizes) -> Mapping[str, float]:
    pairs = sorted(zip(names, sizes, strict=True), key=lambda pair: -pair[1])
    return {name: round(float(size), 6) for name, size in pairs}
