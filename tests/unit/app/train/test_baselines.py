"""The baselines: they find what they can find, from their own training rows alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from macd.app.market.labels import direction, forward_returns
from macd.app.train import oof
from macd.app.train.dataset import Dataset, Plan, plan_rows
from macd.app.train.fitdata import Floats
from macd.app.train.metrics import auc

N, FIRST = 6_000, 300


def made(coupling: float) -> Dataset:
    """Bars whose return leans on the one before."""
    noise = np.random.default_rng(4).normal(0, 0.01, N)
    steps = np.empty(N)
    before = 0.0
    for at in range(N):
        before = steps[at] = coupling * before + noise[at]
    close = 100 * np.exp(np.cumsum(steps))
    returns = forward_returns(close)
    return Dataset(
        times_ms=1_600_000_000_000 + 3_600_000 * np.arange(N),
        close=close,
        X=np.zeros((N, 1), np.float32),
        features=("none",),
        returns=returns,
        y=direction(returns, 0.003).astype(np.float32),
        y_all=direction(returns, 0.0).astype(np.float32),
        first=FIRST,
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_rows(N, FIRST, folds=2, initial=0.4, holdout=0.15, embargo=48)


def reached(data: Dataset, plan: Plan, p: Floats) -> float:
    rows = oof.table(data, plan)["row"].to_numpy()
    return auc(data.y[rows, 0], p[:, 0])


def test_ridge_finds_what_the_last_returns_say(plan: Plan) -> None:
    data = made(-0.5)
    frame = oof.table(data, plan)
    assert reached(data, plan, oof.ridge_baseline(data, plan, frame)) > 0.58
    assert reached(data, plan, oof.volatility_baseline(data, plan, frame)) < 0.54
    nothing = made(0.0)
    assert abs(reached(nothing, plan, oof.ridge_baseline(nothing, plan, frame)) - 0.5) < 0.03


def test_ridge_speaks_of_every_bar_that_is_tested(plan: Plan) -> None:
    data = made(-0.5)
    p = oof.ridge_baseline(data, plan, oof.table(data, plan))
    assert np.isfinite(p).all()
    assert ((p > 0) & (p < 1)).all()


@pytest.mark.parametrize("baseline", [oof.ridge_baseline, oof.volatility_baseline])
def test_labels_after_the_training_part_change_nothing(plan: Plan, baseline: object) -> None:
    assert callable(baseline)
    data = made(-0.5)
    frame = oof.table(data, plan)
    y = data.y.copy()
    y[int(plan.folds[0].train[-1]) + 1 :] = 1.0
    changed = dataclasses.replace(data, y=y)
    first = np.searchsorted(frame["row"].to_numpy(), plan.folds[0].test)
    before, after = baseline(data, plan, frame), baseline(changed, plan, frame)
    np.testing.assert_array_equal(before[first], after[first])
    assert not np.array_equal(before, after), "the second fold was trained on them"


def test_a_later_close_changes_no_earlier_prediction(plan: Plan) -> None:
    data = made(-0.5)
    frame = oof.table(data, plan)
    close = data.close.copy()
    close[5_000:] *= 1.5
    before = oof.ridge_baseline(data, plan, frame)
    after = oof.ridge_baseline(dataclasses.replace(data, close=close), plan, frame)
    earlier = frame["row"].to_numpy() < 5_000
    folds = frame["fold"].to_numpy() >= 0
    np.testing.assert_array_equal(before[earlier & folds], after[earlier & folds])
    assert not np.array_equal(before, after)
