"""Calibration: learnt on earlier folds only, never turns a model round, mends what is too sure."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from macd.app.predict.combine import SUREST, calibrated, log_odds, sigmoid
from macd.app.train import oof
from macd.app.train.calibration import (
    BASE,
    LEAST,
    MOST,
    Prior,
    Scores,
    calibrate,
    forward_chained,
)
from macd.app.train.metrics import auc
from macd.heads import GUIDE, head_names

HEADS = head_names(GUIDE)
N, EMBARGO = 6_000, 48


def scores(truth: float, *, n: int = N, folds: int = 5, seed: int = 0) -> Scores:
    """Log-odds that are right when multiplied by `truth`; labels that don't overlap."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    y = (rng.random(n) < sigmoid(truth * z)).astype(float)
    fold = np.repeat(np.arange(folds), n // folds)
    return Scores(z, y, np.arange(n, dtype=np.int64) * 60, fold, horizon=1)


@pytest.mark.parametrize("truth", [0.1, 0.3, 1.0])
def test_the_slope_is_found_where_there_is_evidence(truth: float) -> None:
    assert scores(truth, n=20_000).slope(BASE) == pytest.approx(truth, abs=0.08)


def test_without_evidence_it_is_the_priors() -> None:
    few = scores(3.0)
    assert few.slope(BASE, np.zeros(N, bool)) == BASE.mean
    assert few.slope(Prior(0.7, 0.001), few.fold == 0) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("truth", [-2.0, -0.5, 0.0])
def test_a_losing_model_is_quietened_not_turned_round(truth: float) -> None:
    assert LEAST <= scores(truth).slope(BASE) < 0.1


@settings(max_examples=15, deadline=None)
@given(truth=st.floats(-20, 20), seed=st.integers(0, 2**32 - 1), spread=st.floats(0.01, 100))
def test_a_slope_stays_in_its_bounds(truth: float, seed: int, spread: float) -> None:
    assert LEAST <= scores(truth, n=300, seed=seed).slope(Prior(1.0, spread)) <= MOST


def test_overlapping_labels_are_not_counted_twice() -> None:
    """The same labels on bars side by side, 24 ahead: the prior weighs more."""
    apart = scores(2.0, n=500)
    beside = Scores(apart.z, apart.y, np.arange(500, dtype=np.int64), apart.fold, horizon=24)
    assert abs(beside.slope(BASE) - BASE.mean) < 0.2 < apart.slope(BASE) - BASE.mean


def test_a_later_fold_counts_more() -> None:
    early, late = scores(0.2, folds=2), scores(1.0, folds=2)
    first = early.fold == 0
    mixed = Scores(
        early.z,
        np.where(first, early.y, late.y),
        early.rows,
        early.fold,
        1,
    )
    turned = Scores(early.z, mixed.y, early.rows, 1 - early.fold, 1)
    assert mixed.slope(BASE) > 0.6 > turned.slope(BASE)


@pytest.mark.parametrize("fold", [1, 3])
def test_a_folds_slope_is_learnt_from_earlier_folds_only(fold: int) -> None:
    made = scores(1.0)
    slopes = forward_chained(made, BASE, EMBARGO)
    assert (slopes[made.fold == 0] == BASE.mean).all()
    first = int(np.flatnonzero(made.fold == fold)[0])
    y = made.y.copy()
    y[first:] = 1 - y[first:]
    later = forward_chained(Scores(made.z, y, made.rows, made.fold, 1), BASE, EMBARGO)
    assert np.array_equal(slopes[made.fold <= fold], later[made.fold <= fold])
    assert not np.array_equal(slopes, later)


def test_labels_within_the_embargo_do_not_teach() -> None:
    dense = Scores(*(v for v in (scores(1.0).z, scores(1.0).y)), np.arange(N), scores(1.0).fold, 1)
    first = int(np.flatnonzero(dense.fold == 2)[0])
    assert not dense.before(2, EMBARGO)[first - EMBARGO :].any()
    assert dense.before(2, EMBARGO)[first - EMBARGO - 1]


def test_the_table_is_calibrated_and_no_slope_knows_the_holdout() -> None:
    rng = np.random.default_rng(1)
    n, held = 3_000, 500
    truth = rng.normal(size=(n, 3))
    fold = np.concatenate([np.repeat(np.arange(5), (n - held) // 5), np.full(held, oof.HOLDOUT)])
    y = (rng.random((n, 3)) < sigmoid(0.5 * truth)).astype(float)
    p = sigmoid(2 * truth).astype(np.float32)  # far too sure
    p[fold == 0, 1] = np.nan

    def table(labels: np.ndarray) -> pl.DataFrame:
        frame = pl.DataFrame(
            {
                "row": np.arange(n, dtype=np.int64) * 30,
                "fold": fold.astype(np.int32),
                **{f"y_{h}": labels[:, k] for k, h in enumerate(HEADS)},
                **{f"ret_{h}": labels[:, k] - 0.5 for k, h in enumerate(HEADS)},
            }
        )
        return oof.with_model(frame, "lgbm", p)

    frame, shipped = calibrate(table(y), "lgbm", EMBARGO)
    said = oof.columns(frame, "p_lgbm")
    assert np.array_equal(np.isnan(said), np.isnan(p))
    held_out = fold == oof.HOLDOUT
    for k, head in enumerate(HEADS):
        expected = calibrated(p[held_out, k], shipped[head])
        np.testing.assert_allclose(said[held_out, k], expected, atol=1e-7)
        assert auc(y[held_out, k], said[held_out, k]) == auc(y[held_out, k], p[held_out, k])
        late = fold == 4
        before, after = (np.mean((q[late, k] - y[late, k]) ** 2) for q in (p, said))
        assert after < 0.25 < before
    other = y.copy()
    other[held_out] = 1 - other[held_out]
    assert calibrate(table(other), "lgbm", EMBARGO)[1] == shipped
    # On all bars, however little they moved.
    still = table(y).with_columns(pl.col(f"ret_{h}") / 1_000 for h in HEADS)
    assert calibrate(still, "lgbm", EMBARGO)[1] == shipped
    # A fold's predictions don't know its own labels, or later ones; what ships knows all folds.
    other[fold >= 3] = 1 - other[fold >= 3]
    again, slopes = calibrate(table(other), "lgbm", EMBARGO)
    known = (fold >= 0) & (fold <= 3)
    assert np.array_equal(said[known], oof.columns(again, "p_lgbm")[known], equal_nan=True)
    assert not np.array_equal(said[late], oof.columns(again, "p_lgbm")[late])
    assert slopes != shipped


@example(1.0, 4.0)
@example(1.0, 2.0)
@given(st.floats(0, 1), st.floats(0.02, 5))
def test_calibration_keeps_the_side_and_the_logit_scales(p: float, slope: float) -> None:
    made = float(calibrated(p, slope))
    assert 0 < made < 1 and (made - 0.5) * (p - 0.5) >= 0
    expected = np.clip(slope * float(log_odds(p)), -SUREST, SUREST)
    rounded = 1e-9 + 1e-15 / (1 - made)  # near 1 a double has few digits left
    assert np.log(made / (1 - made)) == pytest.approx(expected, abs=rounded)


def test_sums_are_split_alike_on_machines_of_any_size() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    asked = (
        "import macd.app.train.calibration, threadpoolctl as t;"
        "print({i['num_threads'] for i in t.threadpool_info() if i['user_api'] == 'blas'})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", asked], check=True, env=environment, capture_output=True
    )
    assert ran.stdout.strip() == b"{1}"
