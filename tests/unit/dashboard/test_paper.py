"""The paper result is what a training's evaluation would compute for the same positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.train import returns
from macd.dashboard.paper import Held, held, result
from macd.host.judge.parse import SIGNAL, Line

HOUR = 3_600_000


def line(bar: int, close: float | None = 100.0, share: float | None = 0.0, tf: str = "1h") -> Line:
    at = bar * HOUR
    return Line(SIGNAL, at + HOUR, bar + 1, "r", "BTCUSD", tf, at, close=close, held=share)


bars = st.lists(
    st.tuples(st.floats(1, 1e5), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])),
    min_size=2,
    max_size=60,
)


@given(bars, st.floats(0, 0.01))
def test_it_is_the_arithmetic_of_the_training(rows: list[tuple[float, float]], cost: float) -> None:
    made = result([Held(at, close, share) for at, (close, share) in enumerate(rows)], cost)
    close, side = (np.array(column) for column in zip(*rows, strict=True))
    net = returns.net_returns(close, side, cost)
    assert made is not None
    assert [value for _, value in made.points] == pytest.approx(returns.equity(net), abs=1e-9)
    assert made.net == pytest.approx(returns.equity(net)[-1] - 1, abs=1e-9)
    assert made.drawdown == pytest.approx(returns.max_drawdown(net), abs=1e-9)
    assert made.market == pytest.approx(close[-1] / close[0] - 1)
    assert made.exposure == pytest.approx(np.mean(side != 0))


def test_a_trade_is_a_side_that_is_taken() -> None:
    shares = [0, 1, 1, -1, -0.5, 0, -1]
    made = result([Held(at, 100.0, share) for at, share in enumerate(shares)], 0.001)
    assert made is not None
    assert made.trades == 3
    bought = 1 + 2 + 0.5 + 0.5 + 1
    assert made.net == pytest.approx(-0.001 * bought, rel=0.02)


def test_one_bar_or_none_has_no_result() -> None:
    assert result([], 0.0) is None
    assert result([Held(0, 100.0, 1.0)], 0.0) is None


def test_each_bar_counts_once_and_what_has_no_position_is_left_out() -> None:
    lines = [line(1), line(2, share=None), line(3, close=None), line(4, close=-1.0), line(5)]
    lines += [line(5, share=1.0), line(6)]
    assert [(bar.bar // HOUR, bar.share) for bar in held(lines)] == [(1, 0), (5, 0), (6, 0)]


def test_a_replay_that_begins_again_is_another_account() -> None:
    assert [bar.bar // HOUR for bar in held([line(7), line(8), line(1), line(2)])] == [1, 2]


def test_another_market_is_another_account() -> None:
    assert [bar.bar // HOUR for bar in held([line(7, tf="4h"), line(8), line(9)])] == [8, 9]
