"""How features lay in training, to see bars that the models never met: quantiles, and blocks.

One bar outside the quantiles means little: features persist, so bars outside come in runs. A bar is
only counted here. Blocks of bars are judged, against the spread of the training's own blocks
(macd/host/judge/drift.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from macd.host.judge.drift import BLOCK

FORMAT = "macd-features/1"
QUANTILES = (0.005, 0.995)
_LONGEST = 48  # bars of a window: a value that stays longer is looked at no further
_SIDES = 2

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Outside:
    """Of one bar: how many features lie outside, and which one furthest; None where none does."""

    count: int
    worst: str | None


@dataclass(frozen=True)
class Reference:
    """The features of one asset's training rows; arrays have one number per name.

    low, high: the quantiles of QUANTILES, values that occurred; NaN for a feature without any.
    longest: for how many bars in a row a feature had one value, _LONGEST at most.
    """

    names: tuple[str, ...]
    low: Floats
    high: Floats
    longest: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Floats, names: Sequence[str]) -> Reference:
        """Of rows (N, F) in the order of time; N must be 1 at least."""
        low = np.full(rows.shape[1], np.nan)
        high = low.copy()
        some = np.isfinite(rows).any(axis=0)
        low[some] = np.nanquantile(rows[:, some], QUANTILES[0], axis=0, method="lower")
        high[some] = np.nanquantile(rows[:, some], QUANTILES[1], axis=0, method="higher")
        return cls(tuple(names), low, high, _longest_runs(rows))

    def distances(self, rows: Floats) -> Floats:
        """How far each value (N, F) lies outside, in widths between the quantiles; 0 inside.

        A missing value is infinitely far out.
        """
        width = self.high - self.low
        width = np.where(width > 0, width, 1.0)
        out = np.maximum(np.maximum(self.low - rows, rows - self.high) / width, 0.0)
        return np.where(np.isfinite(rows), np.where(np.isfinite(out), out, 0.0), np.inf)

    def outside(self, window: Floats) -> Outside:
        """Of the last row of a window (n, F).

        Missing values count, as furthest out. So does a feature with one value all through a window
        of _LONGEST rows, where in training none stayed that long.
        """
        distance = self.distances(window[-1:])[0]
        if len(window) >= _LONGEST:
            still = (window[-_LONGEST:] == window[-1]).all(axis=0)
            distance[still & (self.longest < _LONGEST)] = np.inf
        count = int((distance > 0).sum())
        return Outside(count, self.names[int(distance.argmax())] if count else None)

    def blocks(self, rows: Floats) -> dict[str, Any]:
        """The statistics that a block of bars is judged by, over the whole blocks of rows (N, F).

        Returns count, and of two shares the mean and the spread (standard deviation) over the
        blocks; None where there are too few. outside: of all values, those outside. worst: of the
        bars, those at which the most frequent worst feature is the worst one.
        """
        shares = self.shares(rows)
        made: dict[str, Any] = {"count": len(shares)}
        for name, values in zip(("outside", "worst"), shares.T, strict=True):
            made[name] = summary(values)
        return made

    def shares(self, rows: Floats) -> Floats:
        """Of each whole block of rows (N, F) the two shares that `blocks` sums up: (blocks, 2)."""
        count = len(rows) // BLOCK
        shares = np.zeros((count, _SIDES))
        for at in range(count):
            distance = self.distances(rows[at * BLOCK : (at + 1) * BLOCK])
            some = (distance > 0).any(axis=1)
            worst = np.bincount(distance.argmax(axis=1)[some], minlength=1)
            shares[at] = (distance > 0).mean(), worst.max() / BLOCK
        return shares

    def as_json(self) -> dict[str, Any]:
        """By feature: low, high (null for a feature without values) and longest."""
        each = zip(self.names, self.low, self.high, self.longest, strict=True)
        return {n: [_or_none(low), _or_none(high), int(longest)] for n, low, high, longest in each}

    @classmethod
    def from_json(cls, features: Mapping[str, Any]) -> Reference:
        """As `as_json` wrote it; raises ValueError for anything else."""
        try:
            given = [*features.values()]
            numbers = np.array(
                [[math.nan if v is None else float(v) for v in each] for each in given], np.float64
            ).reshape(len(given), 3)
            longest = np.array([int(each[2]) for each in given], np.int64)
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"no quantiles of the features: {error!r:.200}") from error
        return cls(tuple(features), numbers[:, 0], numbers[:, 1], longest)


def parse(data: bytes, symbol: str) -> Reference:
    """What a training wrote (macd/app/train/reference.py) of one asset; raises ValueError."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        features = document["assets"][symbol]["features"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no feature quantiles of {symbol}: {error!r:.200}") from error
    return Reference.from_json(features)


def summary(values: Floats) -> dict[str, float | None]:
    """Mean and spread (standard deviation) of one number a block; None where there are too few."""
    if len(values) < _SIDES:
        return {"mean": None, "spread": None}
    return {"mean": float(values.mean()), "spread": float(values.std(ddof=1))}


def _longest_runs(rows: Floats) -> npt.NDArray[np.int64]:
    """By column, for how many rows in a row the value was the same, _LONGEST at most."""
    same = rows[1:] == rows[:-1]
    run = np.ones(rows.shape[1], np.int64)
    longest = run.copy()
    for row in same:
        run = np.where(row, run + 1, 1)
        np.maximum(longest, run, out=longest)
    return np.minimum(longest, _LONGEST)


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
