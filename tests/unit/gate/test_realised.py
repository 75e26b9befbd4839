"""Realised AUC against scikit-learn, and what is no label."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import roc_auc_score

from macd.heads import HORIZONS, MODELS
from macd.host.judge.realised import Prediction, auc, realised
from macd.host.judge.tallies import Groups, Latency, Model, Pair, Timeline

HOUR = 3_600_000


def test_auc_is_scikit_learns_with_ties_too() -> None:
    rng = random.Random(2)
    for digits in (1, 6):
        pairs = [(round(rng.random(), digits), rng.random() < 0.4) for _ in range(500)]
        estimate = auc(pairs)
        known = roc_auc_score([up for _, up in pairs], [p for p, _ in pairs])
        assert estimate["value"] == pytest.approx(known, abs=1e-12)
        assert estimate["low"] < known < estimate["high"]


def test_one_class_has_no_auc_and_overlap_widens() -> None:
    assert auc([(0.4, True), (0.6, True)])["value"] is None
    pairs = [(i / 200, (i * 7) % 13 > 5) for i in range(200)]
    once, over = auc(pairs), auc(pairs, 24)
    assert over["value"] == once["value"]
    assert over["high"] - over["low"] > 3 * (once["high"] - once["low"])
    assert over["effective_n"] == pytest.approx(200 / 24)


def test_labels_are_closes_h_bars_later_by_time_not_by_row() -> None:
    closes = [100.0 + (i * 37) % 11 for i in range(80)]
    seen = []
    for i, close in enumerate(closes):
        # a model that knows the close five hours later; one bar is missing
        known = closes[i + 5] > close if i + 5 < 80 else False
        heads = (0.9 if known else 0.1, *[None] * (len(MODELS) * len(HORIZONS) - 1))
        if i != 40:
            seen.append(Prediction("BTCUSD", "1h", i * HOUR, HOUR, close, heads))
    row = realised(seen)[0]
    assert (row["model"], row["head"], row["value"]) == ("lgbm", "5h", 1.0)
    equal = sum(closes[i] == closes[i + 5] for i in range(75) if 40 not in (i, i + 5))
    assert row["n"] == 75 - 2 - equal
    assert realised([])[0]["value"] is None


def test_bars_of_another_symbol_or_timeframe_are_neither_bars_nor_labels_of_this_one() -> None:
    heads = (0.9, *[None] * (len(MODELS) * len(HORIZONS) - 1))
    rising = [Prediction("BTCUSD", "1h", i * HOUR, HOUR, 100.0 + i, heads) for i in range(30)]
    falling = [Prediction("ETHUSD", "1h", i * HOUR, HOUR, 100.0 - i, heads) for i in range(30)]
    other = [Prediction("BTCUSD", "5h", i * 5 * HOUR, 5 * HOUR, 1.0, heads) for i in range(6)]
    row = realised([*rising, *falling, *other])[0]
    assert (row["n"], row["value"]) == (25 + 25, 0.5)


def test_texts_that_differ_in_numbers_are_one_group_and_groups_are_bounded() -> None:
    groups = Groups()
    for i in range(50):
        groups.add(f"tft: took {i} ms", i)
    assert groups.document() == [{"count": 50, "example": "tft: took 0 ms", "first": 0, "last": 49}]
    for i in range(500):
        groups.add("x" * (i + 1), i)
    assert len(groups.document()) <= 61
    assert sum(one["count"] for one in groups.document()) == 550


def test_spread_and_correlation_are_the_textbooks() -> None:
    model, pair = Model(), Pair()
    for i in range(1, 10):
        assert model.add(i / 10)
        pair.add(i / 10, 1 - i / 10 - 0.001)
    assert model.document()["mean"] == pytest.approx(0.5)
    assert model.document()["spread"] == pytest.approx(0.2581988897)
    assert pair.document()["correlation"] == pytest.approx(-1)
    assert pair.document()["same_side"] == pytest.approx(1 / 9)


def test_a_timeline_stays_small_and_loses_no_bar() -> None:
    timeline = Timeline()
    for i in range(5000):
        timeline.add(1_700_000_000_000 + i * HOUR, True, i % 2 == 0)
    rows = timeline.document()
    assert len(rows) <= 97
    assert [sum(row[k] for row in rows) for k in (1, 2, 3)] == [5000, 5000, 2500]


def test_latency_quantiles_are_within_a_step() -> None:
    latency = Latency()
    for i in range(1, 1001):
        latency.add(i / 10)
    document = latency.document()
    assert document["p50"] == pytest.approx(50, rel=0.13)
    assert document["p99"] == pytest.approx(99, rel=0.13)
    assert document["max"] == 100


def test_a_few_bars_that_all_came_true_are_no_certainty() -> None:
    right = [(0.1, False), (0.9, True)] * 3
    wrong = [(p, not up) for p, up in right]
    for pairs, value in ((right, 1.0), (wrong, 0.0)):
        estimate = auc(pairs, overlap=24)
        assert estimate["value"] == value
        assert 0.9 < estimate["high"] - estimate["low"] < 1
    assert auc(right * 1000)["low"] > 0.99
