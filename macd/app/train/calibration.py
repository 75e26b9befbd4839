"""How far a model's log-odds are to be believed: one slope a head, learnt out of fold on all bars.

Models are trained on moves and meet all bars, and they are too sure: untouched, the nets lose to
the base rate in Brier score. p = sigmoid(slope * logit) mends that (temperature scaling, Guo et al.
2017, "On calibration of modern neural networks") and keeps each model's order of bars.

The slope is a posterior mode: the likelihood, with overlapping labels counted once (`effective_n`),
and a normal prior. Without a prior a fold's slope at 24 bars rests on about a hundred independent
labels, runs to zero, and a slope that jumps from fold to fold reorders bars across folds (pooled
AUC of an LSTM .538 to .527). Later folds were trained on more bars and are closer to what ships, so
a fold counts half as much as the one after it. The prior, .3 +- .1, was chosen after looking at the
validation bars of BTC, ETH, SOL and BNB (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.labels import HORIZONS
from macd.app.market.splits import purge
from macd.app.predict.combine import calibrated, log_odds
from macd.app.train import oof
from macd.app.train.metrics import effective_n

Doubles = NDArray[np.float64]
Lines = NDArray[np.bool_]

LEAST, MOST = 0.02, 5.0  # never zero or below: no model is silenced or turned round


@dataclass(frozen=True)
class Prior:
    """What is believed of a slope before any evidence: a normal distribution."""

    mean: float
    spread: float


BASE = Prior(0.3, 0.1)
MEAN = Prior(1.2, 0.3)  # of the mean of calibrated models, which is too timid


@dataclass(frozen=True)
class Scores:
    """Out-of-fold log-odds of one head, a line per bar, oldest first; NaN where there are none.

    y: whether the market rose, 1 or 0, NaN where it is not known or not counted.
    """

    z: Doubles
    y: Doubles
    rows: NDArray[np.int64]
    fold: NDArray[np.integer[Any]]
    horizon: int

    def slope(self, prior: Prior, use: Lines | None = None) -> float:
        """The slope learnt from the lines of `use`; the prior's mean where there are none."""
        from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to import

        known = np.isfinite(self.z) & np.isfinite(self.y)
        known = known if use is None else known & use
        if not known.any():
            return prior.mean
        z, y, fold = self.z[known], self.y[known], self.fold[known]
        newest = int(fold.max())
        weight = 0.5 ** (newest - fold)
        evidence = sum(
            0.5 ** (newest - int(each)) * effective_n(self.rows[known][fold == each], self.horizon)
            for each in np.unique(fold)
        )
        weight *= evidence / weight.sum()

        def loss(slope: float) -> float:
            likelihood = weight @ (np.logaddexp(0.0, slope * z) - y * slope * z)
            return float(likelihood + (slope - prior.mean) ** 2 / (2 * prior.spread**2))

        fitted = minimize_scalar(
            loss, bounds=(LEAST, MOST), method="bounded", options={"xatol": 1e-5}
        )
        return float(fitted.x)

    def before(self, fold: int, embargo: int) -> Lines:
        """The lines whose labels were known when this fold began, less the embargo."""
        first = int(self.rows[self.fold == fold].min())
        return np.isin(self.rows, purge(self.rows, before=first, embargo=embargo))


def forward_chained(scores: Scores, prior: Prior, embargo: int) -> Doubles:
    """A slope a line: that of a fold is learnt from earlier folds only."""
    slopes = np.full(len(scores.z), np.nan)
    for fold in np.unique(scores.fold):
        slopes[scores.fold == fold] = scores.slope(prior, scores.before(int(fold), embargo))
    return slopes


def calibrate(
    frame: pl.DataFrame, model: str, embargo: int, prior: Prior = BASE
) -> tuple[pl.DataFrame, dict[str, float]]:
    """The out-of-fold table with a model's probabilities calibrated, and what ships: a slope
    a head, from all validation bars. Validation is calibrated as `forward_chained` says, the
    holdout, which no slope is learnt from, by what ships.
    """
    p, y = oof.columns(frame, f"p_{model}"), oof.columns(frame, "y")
    rows, fold = frame["row"].to_numpy(), frame["fold"].to_numpy()
    validation = fold != oof.HOLDOUT
    slopes = np.full(p.shape, np.nan)
    shipped = {}
    for k, head in enumerate(oof.heads_in(frame)):
        scores = Scores(
            z=log_odds(p[validation, k]),
            y=y[validation, k],
            rows=rows[validation],
            fold=fold[validation],
            horizon=HORIZONS[k],
        )
        shipped[head] = scores.slope(prior)
        slopes[validation, k] = forward_chained(scores, prior, embargo)
        slopes[~validation, k] = shipped[head]
    return oof.with_model(frame, model, calibrated(p, slopes)), shipped
