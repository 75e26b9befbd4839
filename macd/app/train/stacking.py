"""Stacking: how much to believe each model, learnt only from predictions made out of fold.

Per horizon the log-odds are scale * (weighted mean of the models' calibrated log-odds) + the hour's
part. Scale, weights and hour are a posterior mode under normal priors, whose centre is the plain
mean of the models: where nothing speaks for other weights, a head ships the mean. The likelihood
counts overlapping labels once (`effective_n`). The weights were shrunk to zero before, and lost to
the mean (docs/LOG.md, which also says that the priors were chosen after looking).
It is forward-chained: the meta-model that predicts a fold saw only earlier folds, and of those only
rows whose labels were known before the fold began; the first fold only trains. Scoring it on its
own training rows would flatter it by .013 to .041. No model gets a negative weight (Breiman 1996,
"Stacked regressions"): one that lost in the folds so far is left out, not believed to be wrong on
principle. Moves teach the weights; a last slope is learnt on all bars, which production meets.
What production computes is macd/app/predict/stacking.py, from the JSON written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from macd.app.market.labels import HORIZONS
from macd.app.market.splits import EMBARGO
from macd.app.predict.combine import CLIP, log_odds, sigmoid
from macd.app.predict.stacking import FORMAT, Head, StackingModel
from macd.app.train.calibration import Prior, Scores, forward_chained
from macd.app.train.fitdata import Facts, Floats, Rows
from macd.app.train.metrics import auc, effective_n
from macd.app.train.modelfiles import write_whole
from macd.criteria import MIN_SAMPLES
from macd.errors import RefusedError, UsageError
from macd.heads import GUIDE, head_names

CONTEXT = ("hour_sin", "hour_cos")  # volatility regimes were tried and cost (docs/LOG.md)
LIMIT = 8.0  # of an input's log-odds

_SCALES = (0.05, 5.0)  # above zero: stacking turns no model round

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Params:
    """Priors. weights: spread of M times a model's weight around 1, of M models. hour: spread of
    the weights of the context features around 0. scale: of the whole; above 1, as the mean of
    calibrated models is too timid. slope: of the last slope, learnt on all bars.
    """

    weights: float = 0.25
    hour: float = 0.05
    scale: Prior = field(default=Prior(1.2, 0.3))
    slope: Prior = field(default=Prior(1.0, 0.3))
    min_samples: int = 1_000
    embargo: int = EMBARGO


@dataclass(frozen=True)
class StackData:
    """Out-of-fold predictions, one line per bar of the reported folds, oldest first.

    rows: (M,) the bars' rows. fold: (M,). base: model -> (M, 3) probabilities, NaN where it has
    none. y: (M, 3) whether a move went up: 1, 0, NaN. y_all: the same of every bar, however small
    its move. context: feature -> (M,). heads: names of the three columns.
    """

    rows: Rows
    fold: npt.NDArray[np.integer[Any]]
    base: Mapping[str, Floats]
    y: Floats
    y_all: Floats
    context: Mapping[str, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    heads: tuple[str, ...] = head_names(GUIDE)


@dataclass(frozen=True)
class Stack:
    """The final meta-model and what its forward chain reached.

    oof: float32 (M, 3) calibrated forward-chained probabilities, NaN in the first fold.
    document: the JSON's content but for what `save` adds.
    """

    oof: Floats
    document: dict[str, Any]

    def model(self, headline: str = "") -> StackingModel:
        """The model as production will read it; without a name the nearest head is on top."""
        named = headline or next(iter(self.document["heads"]))
        return StackingModel.from_json(_encode(self._headed(named)))

    def _headed(self, headline: str) -> dict[str, Any]:
        """The document with one head's figures on top, where the guide looks for them."""
        if headline not in self.document["heads"]:
            raise UsageError(
                f"no head {headline!r}", hint=f"one of {', '.join(self.document['heads'])}"
            )
        head = self.document["heads"][headline]
        weights = dict(zip(head["inputs"], head["meta_coefficients"], strict=True))
        on_top = {name: head[name] for name in ("intercept", "n_oof_samples", "oof_meta_auc")}
        return {**self.document, "headline": headline, "meta_coefficients": weights, **on_top}


def min_samples(environment: Mapping[str, str]) -> int:
    """ML_STACKING_MIN_SAMPLES, or the default; UsageError when it is no positive whole number."""
    text = environment.get(MIN_SAMPLES, "").strip()
    if not text:
        return Params.min_samples
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"{MIN_SAMPLES} is {text!r}",
            why="it must be a whole number above zero: how many out-of-fold samples stacking needs",
            hint=f"unset {MIN_SAMPLES}, or set it to {Params.min_samples}",
        )
    return int(text)


def fit(data: StackData, params: Params) -> Stack:
    """Chain forward over the folds, then fit the final meta-model on all of them.

    Raises RefusedError when a head has fewer samples than params.min_samples or just one fold.
    """
    folds = np.unique(data.fold)
    if len(folds) < 2:
        raise RefusedError(
            "stacking needs at least two folds",
            why=f"folds given: {len(folds)}; the first only trains it",
            hint="train with more folds",
        )
    oof = np.full((len(data.rows), len(data.heads)), np.nan, dtype=np.float32)
    heads = {}
    for k, name in enumerate(data.heads):
        head = _OneHead(data, params, k)
        head.require(params.min_samples)
        oof[:, k] = head.chain(folds)
        heads[name] = head.final(oof[:, k])
    document = {
        "format": FORMAT,
        "heads": heads,
        "bases": [f"{model}_{head}" for head in data.heads for model in data.base],
        "context": list(data.context),
        "clip": CLIP,
        "min_samples": params.min_samples,
    }
    return Stack(oof, document)


def save(
    stack: Stack, directory: Path, tf: str, *, headline: str, facts: Facts | None = None
) -> list[Path]:
    """Write stacking_meta_{tf}.json."""
    document = {**stack._headed(headline), "tf": tf, **(facts or {})}
    data = _encode(document)
    StackingModel.from_json(data)  # what we ship, we can read
    return [write_whole(directory / f"stacking_meta_{tf}.json", data)]


@dataclass(frozen=True)
class _Weights:
    """What one fit learnt: log-odds = Z @ models + C @ context."""

    models: Doubles
    context: Doubles


class _OneHead:
    """The stacking of one horizon: `chain` through the folds, then the `final` model."""

    def __init__(self, data: StackData, params: Params, k: int) -> None:
        self.data, self.params, self.name, self.horizon = data, params, data.heads[k], HORIZONS[k]
        self.y = data.y[:, k].astype(np.float64)
        odds = np.column_stack([log_odds(p[:, k]) for p in data.base.values()])
        self.Z: Doubles = np.clip(odds, -LIMIT, LIMIT)
        self.C = np.reshape(
            [np.clip(v, -LIMIT, LIMIT) for v in data.context.values()], (-1, len(self.y))
        ).T.astype(np.float64)
        self.inputs = [f"{model}_{self.name}" for model in data.base] + list(data.context)
        self.complete = np.isfinite(self.Z).all(axis=1) & np.isfinite(self.C).all(axis=1)
        self.usable = self.complete & ~np.isnan(self.y)
        self.scores = Scores(  # forward-chained, before the last slope
            z=np.full(len(self.y), np.nan),
            y=data.y_all[:, k].astype(np.float64),
            rows=data.rows,
            fold=data.fold,
            horizon=self.horizon,
        )

    def require(self, least: int) -> None:
        count = int(self.usable.sum())
        if count < least:
            raise RefusedError(
                f"stacking needs {least} out-of-fold samples at {self.name}, there are {count}",
                why=f"{MIN_SAMPLES} is {least}; fewer make weights of chance",
                hint=f"train on more bars, or set {MIN_SAMPLES} to at most {count}",
            )

    def chain(self, folds: npt.NDArray[Any]) -> Floats:
        """Calibrated probabilities of every fold but the first, each from earlier folds only."""
        scores, embargo = self.scores, self.params.embargo
        for fold in folds[1:]:
            now = (self.data.fold == fold) & self.complete
            if now.any():
                fitted = self._fit(scores.before(int(fold), embargo) & self.usable)
                scores.z[now] = self.Z[now] @ fitted.models + self.C[now] @ fitted.context
        slopes = forward_chained(scores, self.params.slope, embargo)
        return np.where(np.isnan(scores.z), np.nan, sigmoid(slopes * scores.z)).astype(np.float32)

    def final(self, oof: Floats) -> dict[str, Any]:
        """The meta-model on all out-of-fold rows: its part of the JSON."""
        fitted = self._fit(self.usable)
        scored = ~np.isnan(oof) & self.usable
        reached = auc(self.y[scored], oof[scored])
        if np.isnan(reached):
            raise RefusedError(
                f"stacking can't be judged at {self.name}",
                why=f"{int(scored.sum())} forward-chained samples, not both up and down",
                hint="train with more folds, or on more bars",
            )
        head = Head(
            inputs=tuple(self.inputs),
            mean=(0.0,) * len(self.inputs),
            scale=(1.0,) * len(self.inputs),
            weights=(*fitted.models.tolist(), *fitted.context.tolist()),
            intercept=0.0,
            slope=self.scores.slope(self.params.slope),
            limit=LIMIT,
        )
        fields = {**vars(head), "meta_coefficients": head.weights}
        del fields["weights"]
        return {
            **fields,
            "n_oof_samples": int(self.usable.sum()),
            "n_oof_scored": int(scored.sum()),
            "oof_meta_auc": reached,
        }

    def _fit(self, lines: npt.NDArray[np.bool_]) -> _Weights:
        y = self.y[lines]
        if len(np.unique(y)) < 2:
            raise RefusedError(
                f"stacking has too little to learn from at {self.name}",
                why=f"{len(y)} samples in the folds before one of them, not both up and down",
                hint="train with fewer, longer folds, or on more bars",
            )
        evidence = effective_n(self.data.rows[lines], self.horizon)
        Z, C = self.Z[lines], self.C[lines]
        included = np.ones(Z.shape[1], dtype=bool)
        while True:  # at most once a model: the weights sum to one, so one of them is above zero
            models, context = _posterior_mode(Z[:, included], C, y, evidence, self.params)
            if (models >= 0.0).all():
                spread = np.zeros(Z.shape[1])
                spread[included] = models
                return _Weights(spread, context)
            included[np.flatnonzero(included)[models < 0.0]] = False


def _posterior_mode(
    Z: Doubles, C: Doubles, y: Doubles, evidence: float, params: Params
) -> tuple[Doubles, Doubles]:
    """The likeliest scale * weights of the models' log-odds Z (n, M) and weights of C (n, q).

    weights = (1 + d) / M with sum(d) = 0; d is given in an orthonormal basis of that space, which
    leaves its prior as it is. evidence: how many independent labels the n are worth.
    """
    from scipy.linalg import helmert  # noqa: PLC0415 - slow to import
    from scipy.optimize import minimize  # noqa: PLC0415

    count = Z.shape[1]
    basis = helmert(count).T  # (M, M - 1)
    per_label = evidence / len(y)
    scale = params.scale
    spreads = np.concatenate([np.full(count - 1, params.weights), np.full(C.shape[1], params.hour)])

    def loss(v: Doubles) -> tuple[float, Doubles]:
        weights = (1.0 + basis @ v[1:count]) / count
        mixed = Z @ weights
        z = v[0] * mixed + C @ v[count:]
        value = per_label * np.sum(np.logaddexp(0.0, z) - y * z)
        value += (v[0] - scale.mean) ** 2 / (2 * scale.spread**2)
        value += np.sum(v[1:] ** 2 / (2 * spreads**2))
        wrong = per_label * (sigmoid(z) - y)
        slopes = np.concatenate([v[0] * (basis.T @ (Z.T @ wrong)) / count, C.T @ wrong])
        by_scale = wrong @ mixed + (v[0] - scale.mean) / scale.spread**2
        return float(value), np.concatenate([[by_scale], slopes + v[1:] / spreads**2])

    start = np.zeros(count + C.shape[1])
    start[0] = scale.mean
    bounds = [_SCALES, *[(None, None)] * (len(start) - 1)]
    optimum = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    return optimum[0] * (1.0 + basis @ optimum[1:count]) / count, optimum[count:]


def _encode(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
