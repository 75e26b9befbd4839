"""The figures of a report: right to the digit, and honest about overlap and weeks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from macd.app.train import metrics
from macd.app.train.metrics import (
    WEEK_MS,
    auc,
    by_confidence,
    effective_n,
    reliability,
    roc,
    score,
    week_interval,
)

HOUR = 3_600_000


def _hours(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64) * HOUR


def test_auc_is_sklearns_also_with_ties() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(500) < 0.4).astype(float)
    p = np.round(rng.random(500) + 0.2 * y, 1)
    assert auc(y, p) == pytest.approx(roc_auc_score(y, p), abs=1e-12)


def test_auc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(auc(np.ones(5), np.arange(5.0)))


def test_week_interval_is_what_resampling_whole_weeks_gives() -> None:
    rng = np.random.default_rng(2)
    n = 168 * 6
    y = (rng.random(n) < 0.5).astype(float)
    p = np.round(rng.random(n) + 0.1 * y, 2)
    weeks = _hours(n) // WEEK_MS
    draws = np.random.default_rng(5).integers(0, 6, size=(50, 6))
    slow = []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(weeks == week) for week in draw])
        slow.append(roc_auc_score(y[rows], p[rows]))
    expected = np.quantile(slow, (0.025, 0.975))
    assert week_interval(y, p, _hours(n), reps=50, seed=5) == pytest.approx(tuple(expected))


def test_interval_is_wider_when_whole_weeks_agree() -> None:
    """Rows of a week that stand or fall together carry less evidence than their number says."""
    rng = np.random.default_rng(3)
    weeks = np.repeat(np.arange(40), 168)
    y = (rng.random(len(weeks)) < 0.5).astype(float)
    skill = np.where(rng.random(40) < 0.5, 0.6, -0.5)[weeks]
    together = rng.normal(size=len(y)) + skill * (2 * y - 1)
    apart = rng.normal(size=len(y)) + rng.permutation(skill) * (2 * y - 1)
    wide = np.ptp(week_interval(y, together, _hours(len(y))))
    narrow = np.ptp(week_interval(y, apart, _hours(len(y))))
    assert wide > 2 * narrow


def test_a_single_week_has_no_interval() -> None:
    y = np.array([0.0, 1.0, 0.0, 1.0])
    assert all(np.isnan(week_interval(y, y, _hours(4))))


def test_overlapping_labels_count_once() -> None:
    assert effective_n(np.arange(100), 5) == pytest.approx(104 / 5)
    assert effective_n(np.arange(0, 1000, 50), 5) == 20
    assert effective_n(np.array([7]), 24) == 1
    assert effective_n(np.array([], dtype=np.int64), 24) == 0


@given(st.lists(st.integers(0, 200), min_size=1), st.integers(1, 30))
def test_effective_n_counts_the_bars_that_labels_cover(rows: list[int], horizon: int) -> None:
    covered = {row + ahead for row in rows for ahead in range(1, horizon + 1)}
    assert effective_n(np.array(rows), horizon) == pytest.approx(len(covered) / horizon)


def test_rows_without_label_or_prediction_are_not_counted() -> None:
    n = 400
    rng = np.random.default_rng(4)
    y = (rng.random(n) < 0.5).astype(float)
    p = rng.random(n)
    kept = score(y[:300], p[:300], _hours(300), np.arange(300), 5)
    y_more, p_more = y.copy(), p.copy()
    y_more[300:350] = np.nan
    p_more[350:] = np.nan
    assert score(y_more, p_more, _hours(n), np.arange(n), 5) == kept
    assert kept.n == 300


def test_nothing_known_is_no_figure() -> None:
    made = score(np.full(3, np.nan), np.ones(3), _hours(3), np.arange(3), 5)
    assert made.n == 0
    assert np.isnan(made.value)


def test_brier_and_reliability_of_a_calibrated_score() -> None:
    rng = np.random.default_rng(6)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(float)
    curve = reliability(y, p, bins=10)
    assert [point["n"] for point in curve] == [2000] * 10
    assert all(abs(point["p"] - point["y"]) < 0.04 for point in curve)
    made = score(y, p, _hours(len(y)), np.arange(len(y)), 5)
    assert made.brier == pytest.approx(np.mean((p - y) ** 2))
    assert made.brier == pytest.approx(1 / 6, abs=0.01)


def test_the_area_under_the_roc_curve_is_the_auc_also_with_ties() -> None:
    rng = np.random.default_rng(7)
    y = (rng.random(300) < 0.4).astype(float)
    p = np.round(rng.random(300) + 0.2 * y, 1)
    y[::9] = np.nan
    known = np.isfinite(y)
    down, up = np.array(roc(y, p, points=500)).T
    assert np.trapezoid(up, down) == pytest.approx(auc(y[known], p[known]), abs=1e-3)
    few = roc(y, rng.random(300), points=9)
    assert (few[0], few[-1]) == ([0.0, 0.0], [1.0, 1.0])
    assert len(few) <= 10
    assert roc(np.ones(5), np.arange(5.0)) == []


def test_hit_rates_by_confidence_count_the_side_taken() -> None:
    rng = np.random.default_rng(8)
    n = 168 * 8
    p = rng.random(n)
    y = (rng.random(n) < p).astype(float)  # calibrated: right as often as it is sure
    p[:3], y[3:6] = 0.5, np.nan
    bins = by_confidence(y, p, _hours(n))
    assert sum(int(made["n"] or 0) for made in bins) == n - 6
    for made in bins:
        low, high = made["low"], made["high"]
        middle = 0.5 + ((made["from"] or 0) + (made["to"] or 0)) / 2
        assert made["value"] == pytest.approx(middle, abs=0.1)
        assert low is not None
        assert high is not None
        assert low < (made["value"] or 0) < high
    wrong = by_confidence(1 - y, p, _hours(n))
    for right, made in zip(bins, wrong, strict=True):
        assert (right["value"] or 0) + (made["value"] or 0) == pytest.approx(1.0)


def test_hit_rates_of_less_than_two_weeks_have_no_interval() -> None:
    (made,) = by_confidence(np.array([1.0, 0.0]), np.array([0.6, 0.7]), _hours(2), bins=1)
    assert (made["value"], made["low"], made["high"]) == (0.5, None, None)
    assert by_confidence(np.array([np.nan]), np.array([0.6]), _hours(1)) == []


def test_blocks_of_daily_bars_hold_their_longest_head() -> None:
    """Labels of 24 days overlap: single weeks would count them as independent."""
    day = 86_400_000
    assert metrics.block_ms(np.arange(50, dtype=np.int64) * 3_600_000) == metrics.WEEK_MS
    times = np.arange(2_000, dtype=np.int64) * day
    assert metrics.block_ms(times) == 4 * metrics.WEEK_MS
    assert metrics.block_ms(times[:1]) == metrics.WEEK_MS
    overlapping = np.convolve(np.random.default_rng(0).normal(size=2_023), np.ones(24), "valid")
    wide = np.ptp(metrics.interval(metrics.resampled_means(overlapping, times)))
    narrow = np.ptp(metrics.interval(metrics.resampled_means(overlapping, times, metrics.WEEK_MS)))
    true = 2 * 1.96 * 24 / np.sqrt(2_000)
    assert narrow < 0.7 * true
    assert 0.75 * true < wide < 1.3 * true


def test_the_best_of_alike_heads_owes_something_to_luck_and_a_clear_winner_nothing() -> None:
    rng = np.random.default_rng(5)
    n = 2_000
    y = rng.integers(0, 2, (n, 3)).astype(float)
    times = 3_600_000 * np.arange(n, dtype=np.int64)
    alike = 0.3 * y + rng.standard_normal((n, 3))
    ahead = alike + np.array([2.0, 0.0, 0.0]) * y
    assert 0.002 < metrics.luck_of_the_best(y, alike, times, reps=300) < 0.03
    assert metrics.luck_of_the_best(y, ahead, times, reps=300) < 0.002
    assert metrics.luck_of_the_best(y[:100], alike[:100], times[:100]) == 0.0, "one week alone"


def test_the_best_heads_luck_is_of_the_same_weeks_where_a_head_has_no_move_in_one() -> None:
    """As written down: whole weeks drawn, each head's AUC over its own rows of them."""
    rng, weeks, reps = np.random.default_rng(3), 9, 60
    times = np.arange(weeks * 168) * HOUR
    y = rng.integers(0, 2, (len(times), 2)).astype(float)
    p = y * 0.2 + rng.random(y.shape)
    y[168 * 2 : 168 * 4, 1] = np.nan  # quiet weeks: the second head's moves are too small
    week = times // metrics.WEEK_MS
    moved = ~np.isnan(y)
    values = [metrics.auc(y[moved[:, k], k], p[moved[:, k], k]) for k in (0, 1)]
    luck = []
    for drawn in np.random.default_rng(7).integers(0, week.max() + 1, (reps, week.max() + 1)):
        rows = np.concatenate([np.flatnonzero(week == one) for one in drawn])
        there = [rows[moved[rows, k]] for k in (0, 1)]
        aucs = [metrics.auc(y[at, k], p[at, k]) for k, at in enumerate(there)]
        best = int(np.argmax(aucs))
        luck.append(aucs[best] - values[best])
    found = metrics.luck_of_the_best(y, p, times, reps=reps, seed=7)
    assert found == pytest.approx(max(0.0, float(np.mean(luck))), abs=1e-12)
