"""Remember who looked at the holdout: a second look makes its figure a choice among several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from macd.app.train.cache import key_of
from macd.app.train.events import append_line, read_events


def open_holdout(
    ledger: Path, data_digest: str, judged: Mapping[str, NDArray[np.float64]], now: float
) -> int:
    """Note that these predictions are now held against the holdout of these bars.

    `judged`: each model's predictions of the holdout, the meta-model's too; other predictions are
    another recipe. Returns the most recipes of one model that have been judged on these bars so
    far; above 1 the report has to say so. The ledger lies with the cache: runs that share a cache
    share it, and a fresh cache remembers nothing.
    """
    written = read_events(ledger)
    most = 0
    for model, p in judged.items():
        recipe = key_of({"p": p})
        seen = {
            line["recipe"]
            for line in written
            if (line["data"], line["model"]) == (data_digest, model)
        }
        if recipe not in seen:
            line = {"t": now, "data": data_digest, "model": model, "recipe": recipe}
            ledger.parent.mkdir(parents=True, exist_ok=True)
            append_line(ledger, json.dumps(line))
        most = max(most, len(seen | {recipe}))
    return most
