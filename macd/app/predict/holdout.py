"""What the shipped models say here against what they said in the training, on bars held out there.

The training judged the very models it ships on the last bars and stored what they said in its
out-of-fold table. That was computed by the training's own libraries from all of its bars, so it is
a witness that golden predictions, made here by the code that checks them, can't be. Pure but for
reading the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from macd.app.predict.scoring import FAMILIES
from macd.heads import in_order

HOLDOUT = -1  # the `fold` of rows that the shipped models judged
# LightGBM computes the same everywhere. Nets are fitted and judged on a GPU, in its precision, and
# stacking takes their word; another model than the trained one is off by more than either.
TOLERANCES = {"lgbm": 1e-4, "lstm": 0.02, "tft": 0.02, "stacking": 0.02}


@dataclass(frozen=True)
class Comparison:
    """How many stored predictions were found for the bars asked, and where models say otherwise.

    worst: the largest difference there is. off: output -> its median difference, where too large.
    """

    bars: int
    values: int
    worst: float
    families: tuple[str, ...]
    off: Mapping[str, float]


def compare(
    table: Path, inputs: Mapping[str, Any], found: Mapping[str, Sequence[float]]
) -> Comparison:
    """Hold `found` (output -> value for each of the rows asked) to the stored predictions.

    An output is off by its median over the bars: a feature that rounds otherwise may turn one
    split of one tree, another model differs nearly everywhere.

    Raises whatever is wrong with the table.
    """
    stored = pl.read_parquet(table).filter(pl.col("fold") == HOLDOUT)
    times = [int(inputs["bars"][row][0]) for row in inputs["rows"]]
    place = {ms: n for n, ms in enumerate(stored["bar_time"].dt.epoch("ms").to_list())}
    known = [(n, place[ms]) for n, ms in enumerate(times) if ms in place]
    off, worst, count = {}, 0.0, 0
    families: dict[str, None] = {}
    for family in (*FAMILIES, "stacking"):
        for head in in_order(name.removeprefix(f"{family}_") for name in found):
            name, column = f"{family}_{head}", f"p_{family}_{head}"
            if name not in found or column not in stored.columns:
                continue
            then = stored[column].to_list()
            pairs = [(found[name][n], then[at]) for n, at in known if then[at] is not None]
            if not pairs:
                continue
            apart = np.array([abs(now - before) for now, before in pairs])
            apart[~np.isfinite(apart)] = np.inf
            families[family], count = None, count + len(pairs)
            worst = max(worst, float(apart.max()))
            if float(np.median(apart)) > TOLERANCES[family]:
                off[name] = float(np.median(apart))
    return Comparison(len(known), count, worst, tuple(families), off)
