"""The equal-weight mean of the base models, one for training, evaluation and service.

Probabilities are averaged as log-odds (a logarithmic opinion pool, Genest & Zidek 1986): a model
that is sure counts for more than one that shrugs, and calibration by a slope stays one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

CLIP = 1e-4  # how far a probability is kept from 0 and 1, whose log-odds are infinite


def mean_of_logits(
    probabilities: Iterable[npt.ArrayLike], *, clip: float = CLIP
) -> npt.NDArray[np.float64]:
    """The probability of "up" whose log-odds are the mean of the models' log-odds, as float64.

    probabilities: one entry a model, all numbers (`float()` the result) or all arrays of one shape.
    A model speaks where its value lies in [0, 1]; NaN is silence. NaN where no model speaks.
    """
    p = np.asarray(list(probabilities), dtype=np.float64)
    speaks = (p >= 0.0) & (p <= 1.0)
    kept = np.clip(p, clip, 1.0 - clip)
    logits = np.where(speaks, np.log(kept) - np.log1p(-kept), 0.0)
    count = speaks.sum(axis=0)
    mean = logits.sum(axis=0) / np.where(count > 0, count, np.nan)
    return np.asarray(1.0 / (1.0 + np.exp(-mean)))
