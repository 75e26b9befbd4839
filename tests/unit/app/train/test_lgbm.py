"""LightGBM: the same numbers each time, honest about its rows, text files that give it back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from macd.app.train import lgbm
from macd.app.train.fitdata import FitData
from macd.app.train.metrics import auc_by_head
from macd.errors import MacdError
from macd.heads import GUIDE, head_names

PARAMS = dataclasses.replace(lgbm.Params.demo(), rounds=30, min_child=20)


@pytest.fixture(scope="module")
def data() -> FitData:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 6)).astype(np.float32)
    chance = 1 / (1 + np.exp(-2 * X[:, [1, 1, 4]]))
    y = (rng.random((1500, 3)) < chance).astype(np.float32)
    X[::11, 2] = np.nan
    y[::5, 0] = np.nan
    return FitData(X, np.arange(1000), y, features=tuple("abcdef"))


@pytest.fixture(scope="module")
def model(data: FitData) -> lgbm.Model:
    return lgbm.fit(data, PARAMS, seed=1)


def test_learns_and_names_what_it_used(model: lgbm.Model, data: FitData) -> None:
    rows = np.arange(1000, 1500)
    p = lgbm.predict(model, data.X, rows)
    assert p.shape == (500, 3)
    assert ((p > 0) & (p < 1)).all()
    assert min(auc_by_head(data.y[rows], p, head_names(GUIDE)).values()) > 0.7
    shares = lgbm.importance(model)
    assert list(shares)[:2] == ["b", "e"]
    assert sum(shares.values()) == pytest.approx(1.0)


def test_same_seed_same_trees_other_seed_others(model: lgbm.Model, data: FitData) -> None:
    assert lgbm.fit(data, PARAMS, seed=1).texts == model.texts
    assert lgbm.fit(data, PARAMS, seed=2).texts != model.texts


def test_rows_outside_the_training_change_nothing(model: lgbm.Model, data: FitData) -> None:
    X, y = data.X.copy(), data.y.copy()
    X[1000:], y[1000:] = 1e6, 1.0
    assert lgbm.fit(dataclasses.replace(data, X=X, y=y), PARAMS, seed=1).texts == model.texts


def test_unknown_labels_teach_nothing(data: FitData) -> None:
    told: list[dict[str, object]] = []
    lgbm.fit(data, PARAMS, seed=1, report=told.append)
    assert [(e["head"], e["rows"]) for e in told] == [("5h", 800), ("12h", 1000), ("24h", 1000)]


def test_saved_and_loaded_it_predicts_the_same(
    model: lgbm.Model, data: FitData, tmp_path: Path
) -> None:
    written = lgbm.save(model, tmp_path, "1h", facts={"best_head": "12h"})
    assert [p.name for p in written] == [
        "lgbm_1h_5h.txt",
        "lgbm_1h_12h.txt",
        "lgbm_1h_24h.txt",
        "lgbm_1h_meta.json",
    ]
    back = lgbm.load(tmp_path, "1h")
    rows = np.arange(50)
    assert np.array_equal(lgbm.predict(back, data.X, rows), lgbm.predict(model, data.X, rows))
    assert (back.params, back.features, back.facts) == (model.params, model.features, model.facts)
    assert json.loads((tmp_path / "lgbm_1h_meta.json").read_bytes())["best_head"] == "12h"


def test_one_class_only_is_an_error_that_names_the_head(data: FitData) -> None:
    y = data.y.copy()
    y[:, 2] = 1.0
    with pytest.raises(MacdError, match="24h head has nothing to learn"):
        lgbm.fit(dataclasses.replace(data, y=y), PARAMS, seed=1)


def test_profiles_are_the_small_trees_that_worked() -> None:
    full = lgbm.Params.full()
    assert (full.leaves, full.rate, full.rounds) == (15, 0.03, 200)
    assert (full.feature_fraction, full.min_child) == (0.4, 200)


def test_contributions_add_up_to_the_log_odds_of_each_row(model: lgbm.Model, data: FitData) -> None:
    rows = np.arange(1000, 1100)
    p = lgbm.predict(model, data.X, rows)
    for k, head in enumerate(head_names(GUIDE)):
        given = lgbm.contributions(model, head, data.X, rows)
        assert given.shape == (100, 7)
        assert 1 / (1 + np.exp(-given.sum(axis=1))) == pytest.approx(p[:, k], abs=1e-6)
        assert np.abs(given[:, :-1]).mean(axis=0).argmax() == (1 if k < 2 else 4)
