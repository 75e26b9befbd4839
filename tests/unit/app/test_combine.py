"""The mean of logits: same for numbers and arrays, between its parts, silent models left out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.predict.combine import CLIP, mean_of_logits, weighted

probability = st.floats(0.0, 1.0)


def test_it_is_the_mean_in_log_odds() -> None:
    expected = 1 / (1 + math.exp(-(math.log(0.9 / 0.1) + math.log(0.6 / 0.4)) / 2))
    assert float(mean_of_logits([0.9, 0.6])) == pytest.approx(expected, abs=1e-15)


@given(st.lists(probability, min_size=1, max_size=5))
def test_it_lies_between_its_parts_and_turns_with_them(values: list[float]) -> None:
    mean = float(mean_of_logits(values))
    kept = np.clip(values, CLIP, 1 - CLIP)
    assert kept.min() - 1e-12 <= mean <= kept.max() + 1e-12
    assert float(mean_of_logits([1 - v for v in values])) == pytest.approx(1 - mean, abs=1e-12)


@given(st.lists(st.tuples(probability, probability, probability), min_size=1, max_size=6))
def test_arrays_give_what_single_values_give(rows: list[tuple[float, float, float]]) -> None:
    whole = mean_of_logits(np.array(rows).T)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(whole, [float(mean_of_logits(row)) for row in rows], rtol=1e-13)


@pytest.mark.parametrize("silence", [math.nan, math.inf, -math.inf, 1.5, -0.1])
def test_who_says_nothing_usable_is_left_out(silence: float) -> None:
    assert float(mean_of_logits([0.7, silence, 0.7])) == pytest.approx(0.7)
    assert math.isnan(mean_of_logits([silence]))
    assert math.isnan(mean_of_logits([]))
    rows = mean_of_logits([np.array([0.7, silence]), np.array([silence, silence])])
    assert rows[0] == pytest.approx(0.7) and math.isnan(rows[1])


@given(probability, probability, st.integers(1, 100))
def test_a_weight_moves_the_decision_by_its_share(stacked: float, mean: float, weight: int) -> None:
    p = weighted(stacked, mean, weight)
    assert min(stacked, mean) <= p + 1e-15
    assert p <= max(stacked, mean) + 1e-15
    assert p - mean == pytest.approx(weight / 100 * (stacked - mean), abs=1e-12)


@given(probability, probability)
def test_the_ends_are_exact_and_ask_the_other_for_nothing(stacked: float, mean: float) -> None:
    assert weighted(stacked, mean, 100) == weighted(stacked, math.nan, 100) == stacked
    assert weighted(stacked, mean, 0) == weighted(math.nan, mean, 0) == mean
    assert math.isnan(weighted(stacked, math.nan, 50))
