"""Probabilities in log-odds: calibrated by a slope, and averaged. One place for all that predict.

The equal-weight mean is the same in training, evaluation and service. It is a mean of log-odds (a
logarithmic opinion pool, Genest & Zidek 1986): a model that is sure counts for more than one that
shrugs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

CLIP = 1e-4  # how far a probability is kept from 0 and 1, whose log-odds are infinite
SUREST = 30.0  # log-odds; of 37 and more the probability would be rounded to 1

Doubles = npt.NDArray[np.float64]


def log_odds(p: npt.ArrayLike, clip: float = CLIP) -> Doubles:
    """log(p / (1 - p)) as float64, p kept `clip` away from 0 and 1; NaN stays NaN."""
    kept = np.clip(np.asarray(p, dtype=np.float64), clip, 1.0 - clip)
    return np.asarray(np.log(kept) - np.log1p(-kept))


def calibrated(p: npt.ArrayLike, slope: npt.ArrayLike) -> Doubles:
    """sigmoid(slope * log-odds of p), as float64; p and slope are numbers or arrays that fit."""
    return sigmoid(np.asarray(slope) * log_odds(p))


def mean_of_logits(
    probabilities: Iterable[npt.ArrayLike], *, slope: float = 1.0, clip: float = CLIP
) -> Doubles:
    """The probability of "up" whose log-odds are the mean of the models' log-odds, as float64.

    probabilities: one entry a model, all numbers (`float()` the result) or all arrays of one shape.
    A model speaks where its value lies in [0, 1]; NaN is silence. NaN where no model speaks.
    slope: calibrates the mean. Models that are right about themselves have too timid a mean.
    """
    p = np.asarray(list(probabilities), dtype=np.float64)
    speaks = (p >= 0.0) & (p <= 1.0)
    count = speaks.sum(axis=0)
    total = np.where(speaks, log_odds(p, clip), 0.0).sum(axis=0)
    return sigmoid(slope * total / np.where(count > 0, count, np.nan))


def weighted(stacked: float, mean: float, weight: int) -> float:
    """What decides where stacking counts for `weight` percent: w * stacked + (1 - w) * mean.

    A linear opinion pool of two probabilities (Stone 1961), so that exposure is the weight itself:
    the decision moves by w of what stacking moves it by. At 100 it is exactly `stacked`, at 0
    exactly `mean`, NaN or not.
    """
    if weight in (0, 100):
        return stacked if weight else mean
    return (weight * stacked + (100 - weight) * mean) / 100


def sigmoid(z: npt.ArrayLike) -> Doubles:
    """The probability of these log-odds, as float64, never 0 or 1: no model is as sure as that."""
    kept = np.clip(np.asarray(z, dtype=np.float64), -SUREST, SUREST)
    return np.asarray(1.0 / (1.0 + np.exp(-kept)))
