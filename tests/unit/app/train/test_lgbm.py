"""LightGBM: the same numbers each time, honest about its rows, text files that give it back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from macd.app.predict.scoring import Scorer
from macd.app.train import lgbm
from macd.app.train.fitdata import FitData, Floats
from macd.app.train.metrics import auc_by_head
from macd.app.train.training import params_of
from macd.errors import MacdError, UsageError
from macd.heads import GUIDE, head_names

PARAMS = lgbm.Params(rounds=30, min_child=20, bags=1, bagging_fraction=1.0)
BAGGED = dataclasses.replace(PARAMS, bagging_fraction=0.6, bags=3)


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
    events: list[dict[str, object]] = []
    lgbm.fit(data, PARAMS, seed=1, report=events.append)
    assert [(e["head"], e["rows"]) for e in events] == [("5h", 800), ("12h", 1000), ("24h", 1000)]


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


def raw(text: str, X: Floats) -> NDArray[np.float64]:
    return np.asarray(lightgbm.Booster(model_str=text).predict(X, raw_score=True, num_threads=1))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_merged_the_raw_score_is_the_mean_of_the_raw_scores(data: FitData, count: int) -> None:
    models = [lgbm.fit(data, PARAMS, seed=seed) for seed in range(count)]
    together = lgbm.average(models)
    for head, text in together.texts.items():
        alone = [lightgbm.Booster(model_str=model.texts[head]) for model in models]
        each = [raw(model.texts[head], data.X) for model in models]
        assert np.ptp([scores[0] for scores in each]) > 1e-3, "the seeds differ"
        # exact but for the order in which doubles are added up
        np.testing.assert_allclose(raw(text, data.X), np.mean(each, axis=0), rtol=0, atol=1e-14)
        booster = lightgbm.Booster(model_str=text)
        assert booster.num_trees() == count * PARAMS.rounds
        assert booster.feature_name() == list("abcdef")
        assert booster.model_to_string() == text, "as LightGBM writes it: sizes, numbers, counts"
        shares = booster.predict(data.X, pred_contrib=True)  # what explains it adds up, too
        np.testing.assert_allclose(shares.sum(axis=1), raw(text, data.X), rtol=0, atol=1e-12)
        gains = [one.feature_importance("gain") for one in alone]
        np.testing.assert_allclose(booster.feature_importance("gain"), np.sum(gains, axis=0))
    gained = [lgbm.importance(model)["b"] for model in models]
    assert min(gained) <= lgbm.importance(together)["b"] <= max(gained)
    assert together.facts["seeds"] == list(range(count))


def test_merging_twice_weighs_all_alike(data: FitData) -> None:
    four = [lgbm.fit(data, PARAMS, seed=seed).texts["5h"] for seed in range(4)]
    twice = lgbm.merged([lgbm.merged(four[:2]), lgbm.merged(four[2:])])
    np.testing.assert_allclose(
        raw(twice, data.X), raw(lgbm.merged(four), data.X), rtol=0, atol=1e-14
    )


def test_bags_ship_as_one_text_that_survives_the_health_check(
    data: FitData, tmp_path: Path
) -> None:
    bagged = lgbm.fit(data, BAGGED, seed=1)
    assert lgbm.fit(data, BAGGED, seed=1).texts == bagged.texts
    alone = lgbm.fit(data, dataclasses.replace(BAGGED, bags=1), seed=1)
    text = bagged.texts["12h"]
    assert lightgbm.Booster(model_str=text).num_trees() == 3 * PARAMS.rounds
    assert not np.allclose(raw(text, data.X), raw(alone.texts["12h"], data.X), atol=1e-3)
    assert "[bagging_fraction: 0.6]" in text
    lgbm.save(bagged, tmp_path, "1h", facts={})
    served = Scorer.load(tmp_path, "1h")  # parses the text in a child process
    windows = data.X[:20, np.newaxis].repeat(48, axis=1)
    p, _ = served.score_batch(windows)
    np.testing.assert_array_equal(p["lgbm"], lgbm.predict(bagged, data.X, np.arange(20)))
    back = lgbm.load(tmp_path, "1h")
    assert (back.params, back.texts) == (BAGGED, bagged.texts)


def test_models_of_different_features_are_not_merged(data: FitData) -> None:
    other = dataclasses.replace(data, features=tuple("abcdeg"))
    texts = [lgbm.fit(which, PARAMS, seed=1).texts["5h"] for which in (data, other)]
    with pytest.raises(MacdError, match="different features"):
        lgbm.merged(texts)


@pytest.mark.parametrize(
    "change", [{"bags": 0}, {"bagging_fraction": 0.0}, {"bagging_fraction": 1.5}]
)
def test_impossible_bagging_is_said(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no bagging with"):
        params_of("lgbm", "demo", change)


def test_one_class_only_is_an_error_that_names_the_head(data: FitData) -> None:
    y = data.y.copy()
    y[:, 2] = 1.0
    with pytest.raises(MacdError, match="24h head has nothing to learn"):
        lgbm.fit(dataclasses.replace(data, y=y), PARAMS, seed=1)


def test_profiles_are_the_small_trees_that_worked() -> None:
    full = lgbm.Params.full()
    assert (full.leaves, full.rate, full.rounds) == (15, 0.03, 200)
    assert (full.feature_fraction, full.min_child) == (0.4, 200)
    assert full.features == "path"
    assert (full.bags, full.bagging_fraction, full.bagging_freq) == (5, 0.5, 1)


def test_contributions_add_up_to_the_log_odds_of_each_row(model: lgbm.Model, data: FitData) -> None:
    rows = np.arange(1000, 1100)
    p = lgbm.predict(model, data.X, rows)
    for k, head in enumerate(head_names(GUIDE)):
        given = lgbm.contributions(model, head, data.X, rows)
        assert given.shape == (100, 7)
        assert 1 / (1 + np.exp(-given.sum(axis=1))) == pytest.approx(p[:, k], abs=1e-6)
        assert np.abs(given[:, :-1]).mean(axis=0).argmax() == (1 if k < 2 else 4)
