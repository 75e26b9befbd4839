"""Returns of held positions against figures worked out by hand, and by the papers' examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.train import returns

HOUR = 3_600_000
WEEK = 7 * 24


def sides(*values: int) -> np.ndarray:
    return np.array(values, np.int8)


def test_a_position_earns_from_the_close_it_was_decided_at_and_pays_both_ways() -> None:
    close = np.array([100.0, 110.0, 99.0, 99.0])
    net = returns.net_returns(close, np.array([0.5, 0.5, 0.0, 0.0]), cost=0.001)
    assert net == pytest.approx([-0.0005, 0.05, -0.05 - 0.0005, 0.0])


def test_turning_a_position_pays_for_both_of_them() -> None:
    close = np.array([100.0, 110.0, 99.0])
    net = returns.net_returns(close, np.array([1.0, -1.0, 0.0]), cost=0.001)
    assert net == pytest.approx([-0.001, 0.1 - 0.002, 0.1 - 0.001])
    trades = returns.trades_of(close, sides(1, -1, 0), cost=0.001)
    assert trades.entered.tolist() == [0, 1]
    assert trades.net == pytest.approx([0.098, 0.098])


@given(
    st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.floats(-0.2, 0.2)), min_size=2, max_size=60),
    st.floats(0.1, 1),
    st.floats(0, 0.01),
)
def test_the_trades_are_the_bars_added_up(
    given: list[tuple[int, float]], size: float, cost: float
) -> None:
    side = np.array([one for one, _ in given[:-1]] + [0], np.int8)
    close = 100 * np.cumprod([1 + r for _, r in given])
    net = returns.net_returns(close, size * side, cost)
    trades = returns.trades_of(close, side, cost)
    assert net.sum() == pytest.approx(size * trades.net.sum(), abs=1e-9)


def test_drawdown_is_from_the_highest_value_so_far_the_beginning_included() -> None:
    assert returns.max_drawdown(np.array([-0.1, 0.5, -0.2, -0.5, 1.0])) == pytest.approx(0.6)
    assert returns.max_drawdown(np.array([-0.25, 0.1])) == pytest.approx(0.25)
    assert returns.max_drawdown(np.array([0.1, 0.1])) == 0.0
    assert returns.max_drawdown(np.array([-1.5, 0.1])) == 1.0


def test_a_year_has_as_many_bars_as_the_market_had() -> None:
    always = np.arange(1000, dtype=np.int64) * HOUR
    assert returns.periods_a_year(always, HOUR) == pytest.approx(8766)
    assert returns.periods_a_year(always * 4, 4 * HOUR) == pytest.approx(8766 / 4)
    days = np.arange(200)[:, None] * 24 + np.arange(8)[None, :]
    office = np.sort((days * HOUR).ravel()).astype(np.int64)
    assert returns.periods_a_year(office, HOUR) == pytest.approx(8 * 365.25, rel=0.01)


def test_the_deflated_sharpe_ratio_of_its_paper() -> None:
    """Bailey & Lopez de Prado 2014, "A numerical example": N = 100, V = 1/2, T = 1250, SR 2.5."""
    expected = 0.1132  # theirs, of a day of 250 a year
    deflated = returns.probabilistic_sharpe(2.5 / math.sqrt(250), expected, 1250, -3.0, 10.0)
    assert deflated == pytest.approx(0.9004, abs=5e-4)
    spread = math.sqrt(0.5 / 250)
    trials = [-spread / math.sqrt(2), spread / math.sqrt(2)]  # of just that variance
    net = np.random.default_rng(1).normal(0.002, 0.02, 1250)
    ours = returns.deflated_sharpe(net, trials, tried=100)
    theirs = returns.probabilistic_sharpe(
        returns.sharpe(net), expected, len(net), *returns._moments(net)
    )
    assert ours == pytest.approx(theirs, abs=5e-4)


def test_the_more_was_tried_the_less_a_sharpe_ratio_proves() -> None:
    net = np.random.default_rng(3).normal(0.001, 0.02, 2000)
    values = [returns.deflated_sharpe(net, [0.01, 0.03, 0.05], tried) for tried in (1, 10, 1000)]
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] < values[0] <= 1
    assert math.isnan(returns.deflated_sharpe(np.zeros(50), [0.1], 1))


def test_the_interval_is_of_whole_weeks() -> None:
    times = np.arange(20 * WEEK, dtype=np.int64) * HOUR
    rng = np.random.default_rng(5)
    week = np.repeat(rng.normal(0.001, 0.01, 20), 30)  # thirty equal trades each week
    entered = np.concatenate([w * WEEK + np.arange(30) for w in range(20)])
    made = returns.mean_bp(returns.Trades(entered, week), times, seed=1)
    assert made["value"] == pytest.approx(1e4 * week.mean())
    assert made["low"] < made["value"] < made["high"]
    narrow = 2 * 1.96 * 1e4 * week.std() / math.sqrt(len(week))  # as if trades were independent
    assert made["high"] - made["low"] > 3 * narrow


def test_no_trades_and_one_week_have_no_interval() -> None:
    times = np.arange(50, dtype=np.int64) * HOUR
    none = returns.Trades(np.zeros(0, np.int64), np.zeros(0))
    assert returns.mean_bp(none, times) == {"value": None, "low": None, "high": None}
    one = returns.mean_bp(returns.Trades(np.array([3]), np.array([0.01])), times)
    assert one == {"value": pytest.approx(100.0), "low": None, "high": None}
