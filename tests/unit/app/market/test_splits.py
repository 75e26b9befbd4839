"""Folds keep the future out of training, whatever their number and size."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.market.splits import (
    EMBARGO,
    LONGEST,
    Fold,
    LeakError,
    assert_purged,
    assert_walk_forward,
    holdout_rows,
    holdout_start,
    inner_split,
    purge,
    walk_forward,
)
from macd.errors import MacdError, UsageError

N = 20_111


def test_folds_expand_side_by_side_and_leave_the_holdout_alone():
    folds = walk_forward(N, folds=7, initial=0.15, first=500)
    assert [fold.index for fold in folds] == list(range(7))
    for fold in folds:
        assert fold.train[0] == 500
        assert fold.test[0] - fold.train[-1] == EMBARGO + 1
        np.testing.assert_array_equal(np.diff(fold.test), 1)
    for earlier, later in pairwise(folds):
        assert later.test[0] == earlier.test[-1] + 1
    start = holdout_start(N, 0.15, first=500)
    assert folds[-1].test[-1] + EMBARGO + 1 == start
    assert len(folds[0].train) == round((N - 500) * 0.15)
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_no_label_of_development_reads_a_price_of_the_holdout():
    folds = walk_forward(N, folds=6, initial=0.2)
    last = holdout_rows(N)
    assert folds[-1].test[-1] + LONGEST < last.test[0]
    assert last.index == -1
    assert last.train[-1] == last.test[0] - EMBARGO - 1
    assert last.test[-1] == N - 1
    assert len(last.test) == round(N * 0.15)


def test_without_a_holdout_the_folds_run_to_the_end():
    assert walk_forward(N, folds=3, initial=0.2, holdout=0.0)[-1].test[-1] == N - 1


@given(
    n=st.integers(2_000, 40_000),
    folds=st.integers(1, 9),
    initial=st.floats(0.12, 0.3),
    first=st.integers(0, 600),
    horizon=st.integers(1, 40),
)
def test_label_intervals_of_train_and_test_never_meet(n, folds, initial, first, horizon):
    embargo = 2 * horizon
    made = walk_forward(
        n, folds=folds, initial=initial, first=first, embargo=embargo, horizon=horizon
    )
    for fold in made:
        assert fold.train.max() + horizon < fold.test.min()
        assert fold.train.min() >= first


def test_inner_split_is_purged_and_inside_the_training_rows():
    rows = np.arange(100, 4_000)[::3]
    fit, stop = inner_split(rows, fraction=0.1)
    assert set(fit) | set(stop) <= set(rows)
    assert stop[0] - fit[-1] > EMBARGO
    assert stop[-1] == rows[-1]
    assert len(stop) == round(len(rows) * 0.1)


def test_purge_keeps_exactly_the_rows_that_are_safe():
    rows = np.arange(0, 100)
    assert purge(rows, before=100, embargo=48)[-1] == 51


def test_too_few_rows_are_said_so():
    for ask in (
        lambda: walk_forward(300, folds=8, initial=0.2),
        lambda: walk_forward(5_000, folds=0, initial=0.2),
        lambda: walk_forward(5_000, folds=3, initial=1.5),
        lambda: holdout_rows(50),
        lambda: holdout_rows(5_000, holdout=0.0),
        lambda: inner_split(np.arange(50), fraction=0.1),
        lambda: inner_split(np.arange(5), fraction=0.01),
    ):
        with pytest.raises(UsageError):
            ask()


def test_mutant_no_embargo():
    folds = walk_forward(N, folds=6, initial=0.2)
    leaky = Fold(2, np.arange(0, folds[2].test[0]), folds[2].test)
    with pytest.raises(LeakError, match="only 0 rows before its test"):
        assert_purged(leaky)
    short = Fold(2, np.arange(0, folds[2].test[0] - EMBARGO + 1), folds[2].test)
    with pytest.raises(LeakError, match="only 47 rows"):
        assert_purged(short)
    for embargo in (0, 2 * LONGEST - 1):
        with pytest.raises(LeakError, match="too short"):
            walk_forward(N, folds=6, initial=0.2, embargo=embargo)
        with pytest.raises(LeakError, match="too short"):
            holdout_rows(N, embargo=embargo)
        with pytest.raises(LeakError, match="too short"):
            inner_split(np.arange(1_000), fraction=0.2, embargo=embargo)
        with pytest.raises(LeakError, match="too short"):
            assert_purged(folds[0], embargo=embargo)


def test_mutant_random_folds():
    shuffled = np.random.default_rng(0).permutation(N)
    test, train = shuffled[: N // 5], shuffled[N // 5 :]
    with pytest.raises(LeakError, match="not in time order"):
        assert_purged(Fold(0, train, test))
    with pytest.raises(LeakError, match="trains on row"):
        assert_purged(Fold(0, np.sort(train), np.sort(test)))


def test_mutant_early_stopping_on_the_reported_fold():
    fold = walk_forward(N, folds=6, initial=0.2)[3]
    with pytest.raises(LeakError):
        assert_purged(Fold(3, fold.test, fold.test))


def test_mutant_training_on_the_future_and_judging_the_past():
    with pytest.raises(LeakError):
        assert_purged(Fold(0, np.arange(5_000, 9_000), np.arange(0, 4_000)))


def test_mutant_a_bar_judged_twice():
    fold = walk_forward(N, folds=6, initial=0.2)
    with pytest.raises(LeakError, match="overlap"):
        assert_walk_forward([fold[0], fold[0]])
    with pytest.raises(LeakError, match="overlap"):
        assert_walk_forward(fold[::-1])


def test_empty_and_repeated_rows_are_leaks_until_proven_otherwise():
    rows = np.arange(10)
    for train, test in ((rows[:0], rows), (rows, rows[:0]), (np.zeros(5, int), rows + 500)):
        with pytest.raises(LeakError):
            assert_purged(Fold(0, train, test))
    assert issubclass(LeakError, MacdError)


def test_too_few_bars_name_how_many_and_how_few_folds_would_do():
    few = {"initial": 0.15, "holdout": 0.15, "first": 527}
    with pytest.raises(UsageError, match="900 bars are too few for 8 folds") as caught:
        walk_forward(900, folds=8, **few)
    (least,) = re.findall(r"\(([0-9,]+) in all\)", caught.value.hint)
    assert len(walk_forward(int(least.replace(",", "")), folds=8, **few)) == 8
    (folds,) = re.findall(r'"folds": (\d+)', caught.value.hint)
    assert len(walk_forward(900, folds=int(folds), **few)) == int(folds)
    with pytest.raises(UsageError):
        walk_forward(900, folds=int(folds) + 1, **few)
