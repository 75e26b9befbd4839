"""Stacking: how much to believe each model, learnt only from predictions made out of fold.

A regularised logistic regression per horizon on the models' probabilities in logit space and a few
context features, calibrated by temperature. It is forward-chained: the meta-model that predicts a
fold saw only earlier folds, and of those only rows whose labels were known before the fold began;
the first fold only trains. Scoring it on its own training rows would flatter it by .013 to .041.
No model gets a negative weight (Breiman 1996, "Stacked regressions"): one that lost in the folds so
far is left out, not believed to be wrong on principle.
What production computes is macd/app/predict/stacking.py, from the JSON written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from macd.app.market.splits import EMBARGO, purge
from macd.app.predict.stacking import FORMAT, Head, StackingModel
from macd.app.train.fitdata import Facts, Floats, Rows
from macd.app.train.metrics import auc
from macd.app.train.modelfiles import write_whole
from macd.criteria import MIN_SAMPLES
from macd.errors import RefusedError, UsageError
from macd.heads import GUIDE, head_names

if TYPE_CHECKING:  # only fitting needs them, and they are slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

CONTEXT = ("hour_sin", "hour_cos")  # volatility regimes were tried and cost (docs/LOG.md)
LIMIT = 8.0  # standard deviations

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Params:
    """C: inverse strength of the penalty at 1,000 samples; with n samples C * 1000 / n is used.

    A plain C would shrink the early, short folds more than the late ones, and calibration learnt on
    the early folds' scores would then be wrong for the late ones.
    clip: base probabilities stay this far from 0 and 1.
    """

    C: float = 0.001
    clip: float = 1e-4
    min_samples: int = 1_000
    embargo: int = EMBARGO


@dataclass(frozen=True)
class StackData:
    """Out-of-fold predictions, one line per bar of the reported folds, oldest first.

    rows: (M,) the bars' rows. fold: (M,). base: model -> (M, 3) probabilities, NaN where it has
    none. y: (M, 3) 1, 0, NaN. context: feature -> (M,). heads: names of the three columns.
    """

    rows: Rows
    fold: npt.NDArray[np.integer[Any]]
    base: Mapping[str, Floats]
    y: Floats
    context: Mapping[str, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    heads: tuple[str, ...] = head_names(GUIDE)


@dataclass(frozen=True)
class Stack:
    """The final meta-model and what its forward chain reached.

    oof: float32 (M, 3) calibrated forward-chained probabilities, NaN in the first fold.
    pipelines: the sklearn models behind the heads (uncalibrated). document: the JSON's content
    but for what `save` adds.
    """

    oof: Floats
    pipelines: dict[str, Pipeline]
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
    heads, pipelines = {}, {}
    for k, name in enumerate(data.heads):
        head = _OneHead(data, params, k)
        head.require(params.min_samples)
        oof[:, k] = head.chain(folds)
        pipelines[name], heads[name] = head.final(oof[:, k])
    document = {
        "format": FORMAT,
        "heads": heads,
        "bases": [f"{model}_{head}" for head in data.heads for model in data.base],
        "context": list(data.context),
        "clip": params.clip,
        "min_samples": params.min_samples,
    }
    return Stack(oof, pipelines, document)


def save(
    stack: Stack, directory: Path, tf: str, *, headline: str, facts: Facts | None = None
) -> list[Path]:
    """Write stacking_meta_{tf}.json."""
    document = {**stack._headed(headline), "tf": tf, **(facts or {})}
    data = _encode(document)
    StackingModel.from_json(data)  # what we ship, we can read
    return [write_whole(directory / f"stacking_meta_{tf}.json", data)]


class _OneHead:
    """The stacking of one horizon: `chain` through the folds, then the `final` model."""

    def __init__(self, data: StackData, params: Params, k: int) -> None:
        self.data, self.params, self.name = data, params, data.heads[k]
        self.y = data.y[:, k].astype(np.float64)
        bases = [_logit(p[:, k], params.clip) for p in data.base.values()]
        self.Z: Doubles = np.column_stack([*bases, *data.context.values()]).astype(np.float64)
        self.inputs = [f"{model}_{self.name}" for model in data.base] + list(data.context)
        self.complete = np.isfinite(self.Z).all(axis=1)
        self.usable = self.complete & ~np.isnan(self.y)
        self.raw = np.full(len(self.y), np.nan)  # forward-chained scores before calibration

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
        from scipy.special import expit  # noqa: PLC0415 - slow to import

        out = np.full(len(self.y), np.nan)
        for fold in folds[1:]:
            now = (self.data.fold == fold) & self.complete
            if not now.any():
                continue
            before = self._labelled_before(int(self.data.rows[self.data.fold == fold].min()))
            pipeline = self._fit(before & self.usable)
            slope = _temperature(self.raw[before], self.y[before])
            self.raw[now] = pipeline.decision_function(self.Z[now])
            out[now] = expit(slope * self.raw[now])
        return out.astype(np.float32)

    def final(self, oof: Floats) -> tuple[Pipeline, dict[str, Any]]:
        """The meta-model on all out-of-fold rows, and its part of the JSON."""
        pipeline = self._fit(self.usable)
        scored = ~np.isnan(oof) & self.usable
        reached = auc(self.y[scored], oof[scored])
        if np.isnan(reached):
            raise RefusedError(
                f"stacking can't be judged at {self.name}",
                why=f"{int(scored.sum())} forward-chained samples, not both up and down",
                hint="train with more folds, or on more bars",
            )
        scaler, regression = pipeline["scale"], pipeline["regress"]
        head = Head(
            inputs=tuple(self.inputs),
            mean=tuple(scaler.mean_.tolist()),
            scale=tuple(scaler.scale_.tolist()),
            weights=tuple(regression.coef_[0].tolist()),
            intercept=float(regression.intercept_[0]),
            slope=_temperature(self.raw, self.y),
            limit=LIMIT,
        )
        fields = {**vars(head), "meta_coefficients": head.weights}
        del fields["weights"]
        return pipeline, {
            **fields,
            "n_oof_samples": int(self.usable.sum()),
            "n_oof_scored": int(scored.sum()),
            "oof_meta_auc": reached,
        }

    def _labelled_before(self, row: int) -> npt.NDArray[np.bool_]:
        """Rows whose labels were all known before bar `row`, less the embargo."""
        rows = purge(self.data.rows, before=row, embargo=self.params.embargo)
        return np.isin(self.data.rows, rows)

    def _fit(self, lines: npt.NDArray[np.bool_]) -> Pipeline:
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow to import
        from sklearn.pipeline import Pipeline  # noqa: PLC0415
        from sklearn.preprocessing import FunctionTransformer, StandardScaler  # noqa: PLC0415

        y = self.y[lines]
        if len(np.unique(y)) < 2:
            raise RefusedError(
                f"stacking has too little to learn from at {self.name}",
                why=f"{len(y)} samples in the folds before one of them, not both up and down",
                hint="train with fewer, longer folds, or on more bars",
            )
        strength = self.params.C * 1_000 / len(y)
        # Balanced: how often the market rose in earlier folds is no forecast for this one.
        regress = LogisticRegression(C=strength, class_weight="balanced", max_iter=1_000, tol=1e-8)
        clip = FunctionTransformer(np.clip, kw_args={"a_min": -LIMIT, "a_max": LIMIT})
        prepare = Pipeline([("scale", StandardScaler()), ("clip", clip)])
        Z = prepare.fit_transform(self.Z[lines])
        _fit_without_negative(regress, Z, y, models=len(self.data.base))
        return Pipeline([*prepare.steps, ("regress", regress)])


def _fit_without_negative(
    regress: LogisticRegression, Z: Doubles, y: Doubles, *, models: int
) -> None:
    """Fit; while one of the first `models` columns gets a negative weight, leave it out."""
    included = np.ones(Z.shape[1])
    while True:
        regress.fit(Z * included, y)  # a column of zeros gets weight zero: the penalty sees to it
        negative = np.flatnonzero(regress.coef_[0, :models] < 0.0)
        if len(negative) == 0:
            return
        included[negative] = 0.0


def _logit(p: Floats, clip: float) -> Doubles:
    clipped = np.clip(p.astype(np.float64), clip, 1.0 - clip)
    return np.log(clipped) - np.log1p(-clipped)


def _temperature(score: Doubles, y: Doubles, *, least: int = 200) -> float:
    """The slope in [0.1, 20] that makes sigmoid(slope * score) the likeliest (Guo et al. 2017).

    1 with fewer than `least` scores. Never at or below zero: that would turn a model round that
    happened to lose. No offset: it would only learn how often the market rose (docs/LOG.md).
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to import

    labelled = ~np.isnan(score) & ~np.isnan(y)
    if labelled.sum() < least:
        return 1.0
    s, t = score[labelled], y[labelled]

    def loss(log_slope: float) -> float:
        z = np.exp(log_slope) * s
        return float(np.mean(np.logaddexp(0.0, z) - t * z))

    fitted = minimize_scalar(loss, bounds=(np.log(0.1), np.log(20.0)), method="bounded")
    return float(np.exp(fitted.x))


def _encode(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
