"""Which bars may be computed with."""

from __future__ import annotations

import math

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.service.feed import Bar
from macd.app.service.history import History, unusable

HOUR = 3_600_000


def bar(hour: int, close: float = 100.0, **changes: float) -> Bar:
    given = {"open": close, "high": close + 1, "low": close - 1, "close": close, "volume": 1.0}
    return Bar("BTCUSD", hour * HOUR, **{**given, **changes})


def history(hours: int = 5, need: int = 5) -> History:
    return History("BTCUSD", HOUR, need, [bar(hour) for hour in range(hours)])


def test_the_next_bar_is_taken_and_the_oldest_goes() -> None:
    kept = history()
    assert kept.accept(bar(5)).refused is None
    assert kept.frame["timestamp"].dt.epoch("ms").to_list() == [h * HOUR for h in range(1, 6)]
    assert kept.warm
    assert not history(4).warm


@pytest.mark.parametrize(
    ("odd", "event"),
    [
        (bar(4), "duplicate"),
        (bar(4, 101.0), "duplicate"),
        (bar(2), "out_of_order"),
        (bar(5, close=math.nan), "bad_bar"),
        (bar(5, volume=math.inf), "bad_bar"),
        (bar(5, volume=-1.0), "bad_bar"),
        (bar(5, low=0.0), "bad_bar"),
        (bar(5, high=99.5), "bad_bar"),
        (Bar("BTCUSD", 5 * HOUR + 1, 100, 101, 99, 100, 1), "bad_bar"),
    ],
)
def test_what_does_not_fit_is_refused_and_forgotten(odd: Bar, event: str) -> None:
    kept = history()
    before = kept.frame
    refused = kept.accept(odd).refused
    assert refused is not None
    assert refused[0] == event
    assert kept.frame.equals(before)
    assert kept.accept(bar(5)).refused is None


def test_bad_bars_in_what_was_stored_are_left_out_too() -> None:
    stored = [bar(0), bar(1, close=math.nan), bar(2), bar(2), bar(1), bar(3)]
    kept = History("BTCUSD", HOUR, 9, stored)
    assert kept.frame["timestamp"].dt.epoch("ms").to_list() == [0, 2 * HOUR, 3 * HOUR]


def test_after_a_gap_the_models_rest_as_long_as_it_was() -> None:
    kept = history()
    assert kept.accept(bar(8)).missing == 3
    resting = []
    for hour in range(9, 13):
        resting.append(kept.doubtful)
        kept.accept(bar(hour))
    assert resting == [3, 2, 1, 0]
    kept.accept(bar(5000))
    assert kept.doubtful == 48


@hypothesis.settings(deadline=None)  # a busy machine is no defect
@given(st.lists(st.tuples(st.integers(0, 30), st.floats() | st.integers(-5, 200)), max_size=40))
def test_whatever_arrives_what_is_kept_is_in_order_and_finite(
    arriving: list[tuple[int, float]],
) -> None:
    kept = History("BTCUSD", HOUR, 10)
    for hour, close in arriving:
        kept.accept(bar(hour, close))
    stamps = kept.frame["timestamp"].dt.epoch("ms").to_list()
    assert stamps == sorted(set(stamps))
    assert all(math.isfinite(v) and v > 0 for v in kept.frame["close"])


def test_a_bar_is_named_by_what_is_wrong_with_it() -> None:
    assert unusable(bar(1), HOUR) == ""
    assert "finite" in unusable(bar(1, open=math.inf), HOUR)
    assert "grid" in unusable(Bar("X", 1, 1, 1, 1, 1, 0), HOUR)
