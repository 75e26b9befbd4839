"""LightGBM: small trees on the features of one bar, one booster per horizon."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightgbm
import numpy as np
from numpy.typing import NDArray

from macd.app.train.fitdata import Facts, FitData, Floats, Report, Rows, silent
from macd.app.train.modelfiles import meta_json, write_whole
from macd.errors import MacdError
from macd.heads import head_names


@dataclass(frozen=True)
class Params:
    """Small on purpose: with so little signal larger trees learn the noise (docs/LOG.md).

    features: the set that the trees see (macd/app/market/features `subset`).
    """

    family: ClassVar[str] = "lgbm"
    leaves: int = 15
    rate: float = 0.03
    rounds: int = 200
    feature_fraction: float = 0.4
    min_child: int = 200
    features: str = "all"

    @classmethod
    def demo(cls) -> Params:
        return cls()

    @classmethod
    def full(cls) -> Params:
        return cls()


@dataclass(frozen=True)
class Model:
    """One booster per head, as LightGBM's own text, which is also what is saved and shipped."""

    texts: dict[str, str]
    params: Params
    features: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def fit(
    data: FitData,
    params: Params,
    *,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    report: Report = silent,
) -> Model:
    """Fixed rounds on data.rows. Always on the CPU and never resumed: a fit takes about a second.

    `device` and `checkpoint` are there so that all families are called alike.
    """
    texts = {}
    for k, head in enumerate(head_names(data.tf)):
        rows = data.rows[~np.isnan(data.y[data.rows, k])]
        y = data.y[rows, k]
        if len(np.unique(y)) < 2:
            raise MacdError(
                f"{params.family}: the {head} head has nothing to learn from",
                why=f"its {len(rows)} labelled training rows hold fewer than two classes",
                hint="give it more bars: invoke data.fetch, or data.import",
            )
        weight = data.class_weights(rows)[:, k]
        rows_in = lightgbm.Dataset(
            data.X[rows], y, weight=weight, feature_name=list(data.features) or "auto"
        )
        booster = lightgbm.train(_settings(params, seed), rows_in, params.rounds)
        texts[head] = booster.model_to_string()
        counts = {"rows": len(rows), "rounds": params.rounds}
        report({"event": "fitted", "model": params.family, "head": head, **counts})
    facts = {"seed": seed, "training_digest": data.digest()}
    return Model(texts, params, data.features, facts)


def _settings(params: Params, seed: int) -> dict[str, Any]:
    return {
        "objective": "binary",
        "num_leaves": params.leaves,
        "learning_rate": params.rate,
        "feature_fraction": params.feature_fraction,
        "min_child_samples": params.min_child,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }


def predict(model: Model, X: Floats, rows: Rows) -> Floats:
    """float32 (len(rows), 3) in (0, 1); the trees take NaN as it is."""
    out = np.empty((len(rows), len(model.texts)), dtype=np.float32)
    for k, text in enumerate(model.texts.values()):
        booster = lightgbm.Booster(model_str=text)
        out[:, k] = booster.predict(X[rows], num_threads=1)
    return out


def contributions(model: Model, head: str, X: Floats, rows: Rows) -> NDArray[np.float64]:
    """What each feature adds to the log-odds of "up", (rows, features + 1), the base rate last.

    A row's sum is the log-odds that `predict` gives. SHAP values of trees, as LightGBM computes
    them (Lundberg, Erion, Lee, "Consistent individualized feature attribution for tree ensembles",
    2018).
    """
    booster = lightgbm.Booster(model_str=model.texts[head])
    return np.asarray(booster.predict(X[rows], pred_contrib=True, num_threads=1), np.float64)


def importance(model: Model) -> dict[str, float]:
    """Share of the total gain by feature, mean over the heads, largest first."""
    total: dict[str, float] = {}
    for text in model.texts.values():
        booster = lightgbm.Booster(model_str=text)
        gain = booster.feature_importance("gain")
        for name, share in zip(booster.feature_name(), gain / max(gain.sum(), 1e-12), strict=True):
            total[name] = total.get(name, 0.0) + float(share) / len(model.texts)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def save(model: Model, directory: Path, tf: str, *, facts: Facts | None = None) -> list[Path]:
    """Write FAMILY_{tf}_{head}.txt for each head and FAMILY_{tf}_meta.json."""
    name = f"{model.params.family}_{tf}"
    written = [
        write_whole(directory / f"{name}_{head}.txt", text.encode())
        for head, text in model.texts.items()
    ]
    facts = {**model.facts, **(facts or {})}
    meta = meta_json(model.params.family, tf, model.params, model.features, facts)
    return [*written, write_whole(directory / f"{name}_meta.json", meta)]


def load(directory: Path, tf: str, make: type[Params] = Params) -> Model:
    """Read what `save` wrote."""
    name = f"{make.family}_{tf}"
    meta = json.loads((directory / f"{name}_meta.json").read_bytes())
    texts = {head: (directory / f"{name}_{head}.txt").read_text() for head in head_names(tf)}
    fields = {field.name for field in dataclasses.fields(make)}
    params = make(**{k: v for k, v in meta["params"].items() if k in fields})
    facts = {k: meta[k] for k in ("seed", "training_digest")}
    return Model(texts, params, tuple(meta["features"]), facts)
