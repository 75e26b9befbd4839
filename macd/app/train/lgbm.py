"""LightGBM: small trees on the features of one bar, one booster per horizon."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from macd.app.predict.boosting import import_lightgbm
from macd.app.train.fitdata import Facts, FitData, Floats, Report, Rows, silent
from macd.app.train.modelfiles import meta_json, write_whole
from macd.errors import MacdError, UsageError
from macd.heads import head_names

lightgbm = import_lightgbm()


@dataclass(frozen=True)
class Params:
    """Small on purpose: with so little signal larger trees learn the noise (docs/LOG.md).

    features: the set that the trees see (macd/app/market/features `subset`). bags: boosters of
    different seeds whose raw scores are averaged; with a bagging_fraction below 1 each tree sees
    another part of the rows, drawn anew every bagging_freq trees (Breiman 1996). What both are
    worth stands in docs/LOG.md. max_bin: of a feature's values.
    """

    family: ClassVar[str] = "lgbm"
    leaves: int = 15
    rate: float = 0.03
    rounds: int = 200
    feature_fraction: float = 0.4
    min_child: int = 200
    features: str = "path"
    bagging_fraction: float = 0.5
    bagging_freq: int = 1
    bags: int = 5
    max_bin: int = 255

    def __post_init__(self) -> None:
        if self.bags < 1 or not 0 < self.bagging_fraction <= 1 or self.bagging_freq < 1:
            raise UsageError(
                f"lgbm: no bagging with {self.bags} bags of {self.bagging_fraction:g} of the rows, "
                f"drawn every {self.bagging_freq} trees",
                why="at least 1 bag, a fraction above 0 and up to 1, every 1 or more trees",
            )

    @classmethod
    def demo(cls) -> Params:
        """A quarter of the time, and on BTC 2017-2019 as good to .001 (docs/LOG.md)."""
        return cls(rate=0.06, rounds=100, bags=3, max_bin=63)

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
        weight = np.ascontiguousarray(data.class_weights(rows)[:, k])
        X, bags = data.X[rows], []
        for bag in range(params.bags):
            rows_in = lightgbm.Dataset(
                X, y, weight=weight, feature_name=list(data.features) or "auto"
            )
            settings = _settings(params, _bag_seed(seed, bag))
            bags.append(lightgbm.train(settings, rows_in, params.rounds).model_to_string())
        texts[head] = merged(bags)
        counts = {"rows": len(rows), "rounds": params.rounds}
        report({"event": "fitted", "model": params.family, "head": head, **counts})
    facts = {"seed": seed, "training_digest": data.digest()}
    return Model(texts, params, data.features, facts)


def average(models: Sequence[Model]) -> Model:
    """Models of several seeds, fitted on the same data, as one."""
    first = models[0]
    texts = {head: merged([model.texts[head] for model in models]) for head in first.texts}
    seeds = [model.facts["seed"] for model in models]
    return Model(texts, first.params, first.features, {**first.facts, "seeds": seeds})


def merged(texts: Sequence[str]) -> str:
    """One model text whose raw score is the mean of the raw scores of these.

    LightGBM has no way of its own (its issue 5339). The trees of all stand one after another, and
    what a tree adds is divided by their number, as Tree::Shrinkage would: leaf and inner values
    and the shrinkage. LightGBM itself then numbers the trees and writes the text.
    Raises MacdError for models of different features.
    """
    if len(texts) == 1:
        return texts[0]
    heads, trees = zip(*(_divided(text, len(texts)) for text in texts), strict=True)
    if len({_NAMED.findall(head)[0] for head in heads}) > 1:
        raise MacdError("LightGBM models of different features can't be averaged")
    whole = heads[0] + "".join(trees) + _END + texts[0].partition(_END)[2]
    return str(lightgbm.Booster(model_str=whole).model_to_string())


_BEGIN, _END = "\nTree=0\n", "\nend of trees"
_NAMED = re.compile(r"^feature_names=.*$", re.MULTILINE)
_ADDED = re.compile(r"^(leaf_value|internal_value|shrinkage)=(.*)$", re.MULTILINE)


def _divided(text: str, by: int) -> tuple[str, str]:
    """Head and trees of a model text, with what each tree adds divided.

    Without sizes in its head LightGBM finds the trees by their names.
    """
    head, _, rest = text.partition(_BEGIN)
    trees = _BEGIN + rest.partition(_END)[0]

    def divide(match: re.Match[str]) -> str:
        values = (repr(float(value) / by) for value in match[2].split())
        return f"{match[1]}={' '.join(values)}"

    return re.sub(r"\ntree_sizes=.*", "", head), _ADDED.sub(divide, trees)


def _bag_seed(seed: int, bag: int) -> int:
    """The first bag has the fit's own seed; no two fits share the others."""
    return seed if bag == 0 else int(np.random.SeedSequence([seed, bag]).generate_state(1)[0] >> 1)


def _settings(params: Params, seed: int) -> dict[str, Any]:
    bagging = {"bagging_fraction": params.bagging_fraction, "bagging_freq": params.bagging_freq}
    return {
        **(bagging if params.bagging_fraction < 1 else {}),
        "objective": "binary",
        "num_leaves": params.leaves,
        "learning_rate": params.rate,
        "feature_fraction": params.feature_fraction,
        "min_child_samples": params.min_child,
        "max_bin": params.max_bin,
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
    facts = {k: meta[k] for k in ("seed", "seeds", "training_digest") if k in meta}
    return Model(texts, params, tuple(meta["features"]), facts)
