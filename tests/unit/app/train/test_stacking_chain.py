"""Stacking: forward-chained for real, equal to the JSON, refused below the least sample count."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit

from macd.app.predict.combine import log_odds, mean_of_logits, sigmoid
from macd.app.predict.stacking import StackingModel
from macd.app.train import stacking
from macd.app.train.metrics import auc
from macd.app.train.stacking import Params, StackData
from macd.errors import RefusedError, UsageError
from macd.heads import GUIDE, head_names

HEADS = head_names(GUIDE)
M, FOLDS, START = 4_000, 4, 700
PARAMS = Params(min_samples=500)


def world(seed: int = 0) -> StackData:
    """Two models that know a little, one that guesses. They are sure enough of what they know."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(M, 3))
    y_all = (rng.random((M, 3)) < expit(truth)).astype(np.float32)
    y_all[-24:] = np.nan
    y = y_all.copy()
    y[rng.random((M, 3)) < 0.3] = np.nan

    def knows(share: float) -> np.ndarray:
        return expit(share * truth + rng.normal(0, 0.5, (M, 3))).astype(np.float32)

    base = {"lgbm": knows(0.5), "lstm": knows(0.4), "tft": knows(0.0)}
    base["lstm"][:10] = np.nan
    fold = np.repeat(np.arange(FOLDS), M // FOLDS)
    hours = START + np.arange(M)
    context = {"vol_z_168": rng.normal(size=M), "hour_sin": np.sin(hours * np.pi / 12)}
    return StackData(hours.astype(np.int64), fold, base, y, y_all, context)


@pytest.fixture(scope="module")
def data() -> StackData:
    return world()


@pytest.fixture(scope="module")
def stack(data: StackData) -> stacking.Stack:
    return stacking.fit(data, PARAMS)


def test_the_first_fold_only_trains(stack: stacking.Stack, data: StackData) -> None:
    assert np.isnan(stack.oof[data.fold == 0]).all()
    assert not np.isnan(stack.oof[data.fold > 0]).any()


def test_it_beats_each_model_and_says_how_well(stack: stacking.Stack, data: StackData) -> None:
    for k, head in enumerate(HEADS):
        scores = stack.document["heads"][head]
        scored = ~np.isnan(stack.oof[:, k]) & ~np.isnan(data.y[:, k])
        assert scores["oof_meta_auc"] == pytest.approx(
            auc(data.y[scored, k], stack.oof[scored, k]), abs=1e-12
        )
        best = max(auc(data.y[scored, k], p[scored, k]) for p in data.base.values())
        assert scores["oof_meta_auc"] > best
        assert scores["n_oof_scored"] == scored.sum()
        assert scores["n_oof_samples"] == (~np.isnan(data.y[10:, k])).sum()


def test_calibrated_chances_come_true(stack: stacking.Stack, data: StackData) -> None:
    """On all bars, those of small moves included: 70 % means 70 %."""
    p, y = stack.oof[data.fold >= 2, 0], data.y_all[data.fold >= 2, 0]
    sure = (p > 0.6) & ~np.isnan(y)
    assert sure.sum() > 200
    assert y[sure].mean() == pytest.approx(p[sure].mean(), abs=0.05)


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_a_fold_is_predicted_from_earlier_folds_only(
    fold: int, stack: stacking.Stack, data: StackData
) -> None:
    """Whatever the labels of this fold, of later ones and of the embargo before it are."""
    first = int(np.flatnonzero(data.fold == fold)[0])
    known = slice(first - PARAMS.embargo, None)
    turned = {"y": data.y.copy(), "y_all": data.y_all.copy()}
    for labels in turned.values():
        labels[known] = 1.0 - labels[known]
    got = stacking.fit(dataclasses.replace(data, **turned), PARAMS).oof
    now = data.fold == fold
    assert np.array_equal(got[now], stack.oof[now])
    earlier = slice(first - PARAMS.embargo - 400, first - PARAMS.embargo)
    turned["y"][earlier] = 1.0 - turned["y"][earlier]  # but rows before the embargo do teach
    got = stacking.fit(dataclasses.replace(data, **turned), PARAMS).oof
    assert not np.array_equal(got[now], stack.oof[now])


def test_the_json_gives_the_numbers_of_the_fit(
    stack: stacking.Stack, data: StackData, tmp_path: Path
) -> None:
    stacking.save(stack, tmp_path, "1h", headline="12h")
    model = StackingModel.from_json((tmp_path / "stacking_meta_1h.json").read_bytes())
    freak = {"vol_z_168": 1e6, "hour_sin": -1.0}
    for i in [*range(100, 3_000, 97), -1]:
        base = {
            f"{m}_{h}": float(p[i, k]) for m, p in data.base.items() for k, h in enumerate(HEADS)
        }
        context = freak if i == -1 else {n: float(v[i]) for n, v in data.context.items()}
        for k, head in enumerate(HEADS):
            made = stack.document["heads"][head]
            row = np.array([*(log_odds(p[i, k]) for p in data.base.values()), *context.values()])
            weights = np.array(made["meta_coefficients"])
            expected = sigmoid(made["slope"] * (np.clip(row, -8, 8) @ weights))
            got = model.probability(base, context)[head]
            assert got == pytest.approx(expected, abs=1e-12)
        assert model.skipped_reason(base, context) == ""


def test_files_hold_what_the_guide_reads(stack: stacking.Stack, tmp_path: Path) -> None:
    written = stacking.save(stack, tmp_path, "1h", headline="12h", facts={"schema_hash": "abc"})
    assert [p.name for p in written] == ["stacking_meta_1h.json"]
    meta = json.loads(written[0].read_bytes())
    head = meta["heads"]["12h"]
    for name in ("intercept", "n_oof_samples", "oof_meta_auc"):
        assert meta[name] == head[name]
    assert list(meta["meta_coefficients"].values()) == pytest.approx(
        [head["meta_coefficients"][head["inputs"].index(n)] for n in meta["meta_coefficients"]]
    )
    assert {*meta["meta_coefficients"]} == {*head["inputs"]}
    assert (meta["headline"], meta["tf"], meta["schema_hash"]) == ("12h", "1h", "abc")
    assert meta["bases"] == [f"{m}_{h}" for h in HEADS for m in ("lgbm", "lstm", "tft")]
    assert stack.model("12h").headline == "12h"


def test_same_data_same_bytes(data: StackData, stack: stacking.Stack, tmp_path: Path) -> None:
    one = stacking.save(stack, tmp_path / "a", "1h", headline="5h")
    two = stacking.save(stacking.fit(data, PARAMS), tmp_path / "b", "1h", headline="5h")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_too_few_samples_are_refused_by_name_and_number(data: StackData) -> None:
    with pytest.raises(RefusedError) as caught:
        stacking.fit(data, Params(min_samples=5_000))
    assert "5000 out-of-fold samples at 5h" in str(caught.value)
    assert "ML_STACKING_MIN_SAMPLES is 5000" in caught.value.why


def test_one_fold_is_refused(data: StackData) -> None:
    with pytest.raises(RefusedError, match="at least two folds"):
        stacking.fit(dataclasses.replace(data, fold=np.zeros(M, int)), PARAMS)


@pytest.mark.parametrize(("text", "count"), [("", 1_000), ("  ", 1_000), ("250", 250)])
def test_least_samples_from_the_environment(text: str, count: int) -> None:
    assert stacking.min_samples({"ML_STACKING_MIN_SAMPLES": text}) == count
    assert stacking.min_samples({}) == 1_000


@pytest.mark.parametrize("text", ["0", "-5", "many", "1e3"])
def test_a_least_sample_count_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="ML_STACKING_MIN_SAMPLES"):
        stacking.min_samples({"ML_STACKING_MIN_SAMPLES": text})


def test_a_model_that_lost_is_left_out_not_turned_round(data: StackData) -> None:
    base = {**data.base, "lgbm": 1.0 - data.base["lgbm"]}
    unsure = dataclasses.replace(PARAMS, weights=2.0)
    heads = stacking.fit(dataclasses.replace(data, base=base), unsure).document["heads"]
    for head in heads.values():
        assert head["meta_coefficients"][0] == 0.0  # lgbm
        assert head["meta_coefficients"][1] > 0.0  # lstm
    whole = stacking.fit(data, PARAMS).document["heads"]["5h"]["meta_coefficients"]
    assert whole[0] > whole[2] > 0.0  # it knows more than the one that guesses


def test_without_evidence_it_ships_the_mean() -> None:
    """Labels of coins teach little; with a firm prior bars are ordered as the mean orders them."""
    data = world(1)
    coins = np.random.default_rng(2).integers(0, 2, (M, 3)).astype(np.float32)
    base = {name: data.base["tft"] for name in ("lgbm", "lstm")}
    base["tft"] = expit(np.random.default_rng(3).normal(0, 0.5, (M, 3))).astype(np.float32)
    blind = dataclasses.replace(data, base=base, y=coins, y_all=coins, context={})
    for head in stacking.fit(blind, PARAMS).document["heads"].values():
        weights = np.array(head["meta_coefficients"])
        assert weights == pytest.approx(np.full(3, weights.mean()), rel=0.5)
    sure = stacking.fit(blind, dataclasses.replace(PARAMS, weights=1e-4))
    for fold in (1, 2, 3):  # each has a slope of its own
        said = sure.oof[data.fold == fold, 0]
        mean = mean_of_logits([p[data.fold == fold, 0] for p in base.values()])
        assert (np.diff(said[np.argsort(mean)]) >= -1e-6).all()


@pytest.mark.parametrize("count", [1, 2, 6])
def test_any_number_of_base_models(count: int, data: StackData) -> None:
    base = {f"model{i}": list(data.base.values())[i % 2] for i in range(count)}
    stack = stacking.fit(dataclasses.replace(data, base=base), PARAMS)
    weights = stack.document["heads"]["5h"]["meta_coefficients"][:count]
    assert len(weights) == count and min(weights) > 0
    assert weights[::2] == pytest.approx([weights[0]] * len(weights[::2]), rel=1e-3)  # twins


def test_the_gradient_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong gradient still converges somewhere; scipy compares it with differences."""
    seen = []

    def check(loss, start, **_kw):  # type: ignore[no-untyped-def]
        at = start + np.linspace(0.1, 0.3, len(start))
        seen.append(
            scipy.optimize.check_grad(lambda v: loss(v)[0], lambda v: loss(v)[1], at)
            / np.abs(loss(at)[1]).max()
        )
        return scipy.optimize.OptimizeResult(x=start)

    monkeypatch.setattr(scipy.optimize, "minimize", check)
    rng = np.random.default_rng(0)
    Z, C, y = rng.normal(size=(300, 4)), rng.normal(size=(300, 2)), rng.integers(0, 2, 300)
    stacking._posterior_mode(Z, C, y.astype(float), 60.0, Params())
    assert seen and seen[0] < 1e-5
