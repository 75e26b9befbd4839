"""Labels say what the price did next, and never more than is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.market.labels import HORIZONS, direction, forward_returns
from macd.errors import UsageError


def test_returns_look_exactly_h_bars_ahead():
    close = np.array([100.0, 110.0, 99.0, 120.0])
    out = forward_returns(close, (1, 2))
    np.testing.assert_allclose(out[:, 0], [0.10, -0.10, 120 / 99 - 1, np.nan])
    np.testing.assert_allclose(out[:, 1], [-0.01, 120 / 110 - 1, np.nan, np.nan])


def test_the_last_h_bars_have_no_label_at_any_horizon():
    out = forward_returns(np.linspace(1, 2, 100))
    for column, h in enumerate(HORIZONS):
        assert np.isfinite(out[: 100 - h, column]).all()
        assert np.isnan(out[100 - h :, column]).all()


@pytest.mark.parametrize("n", [0, 1, 4, 24])
def test_fewer_bars_than_the_horizon_are_all_unknown(n):
    out = forward_returns(np.ones(n))
    assert out.shape == (n, 3)
    assert np.isnan(out[:, 2]).all()


def test_a_bad_price_is_unknown_and_not_an_infinite_return():
    out = forward_returns(np.array([1.0, 0.0, -1.0, np.nan, 2.0, 3.0]), (1,))
    np.testing.assert_array_equal(np.isnan(out[:, 0]), [True, True, True, True, False, True])


def test_direction_is_the_sign_and_small_moves_are_left_out():
    returns = np.array([0.01, -0.01, 0.002, -0.002, 0.0, np.nan])
    np.testing.assert_array_equal(direction(returns), [1, 0, 1, 0, np.nan, np.nan])
    small = direction(returns, min_move=0.003)
    np.testing.assert_array_equal(small, [1, 0, np.nan, np.nan, np.nan, np.nan])


def test_a_move_of_exactly_min_move_is_too_small():
    np.testing.assert_array_equal(direction([0.25, -0.25], 0.25), [np.nan, np.nan])


@given(st.lists(st.floats(0.5, 2.0), min_size=30, max_size=60), st.floats(0.1, 10.0))
def test_direction_does_not_depend_on_the_price_level(close, scale):
    once = forward_returns(np.array(close))
    scaled = forward_returns(np.array(close) * scale)
    np.testing.assert_allclose(once, scaled, rtol=0, atol=1e-12)


def test_nonsense_is_refused():
    with pytest.raises(UsageError):
        forward_returns(np.ones(9), (0,))
    with pytest.raises(UsageError):
        forward_returns(np.ones((3, 3)))
    with pytest.raises(UsageError):
        direction(np.ones(3), float("nan"))
