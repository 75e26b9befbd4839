"""The age of a release's models: a pure function of their bars' end, the moment and the limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.store.age import FRESH, GRACE_DAYS, OLD, TOO_OLD, age_of, bars_end

END = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("later", "state"),
    [
        (timedelta(days=-400), FRESH),  # a replay of bars before
        (timedelta(0), FRESH),
        (timedelta(days=90), FRESH),
        (timedelta(days=90) + SECOND, OLD),
        (timedelta(days=97), OLD),
        (timedelta(days=97) + SECOND, TOO_OLD),
        (timedelta(days=9000), TOO_OLD),
    ],
)
def test_it_warns_from_the_limit_on_and_a_week_later_the_models_stop(
    later: timedelta, state: str
) -> None:
    age = age_of(END, END + later, 90)
    assert age.state == state
    assert bool(age.text) == (state != FRESH)
    if state == OLD:
        assert age.text == (
            "the models' bars end 2026-01-01, "
            f"{later.days} days ago; 90 are allowed; from 2026-04-08 00:00Z on they decide nothing"
        )
    assert age_of(END, END + later, 0).state == FRESH


ORDER = (FRESH, OLD, TOO_OLD)
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@given(MOMENTS, MOMENTS, st.floats(0, 36500), st.floats(0, 36500))
def test_time_and_a_lower_limit_make_nothing_younger(
    first: datetime, second: datetime, low: float, high: float
) -> None:
    (sooner, later), (low, high) = sorted((first, second)), sorted((low, high))
    if low:
        at = [ORDER.index(age_of(END, now, low).state) for now in (sooner, later)]
        assert at == sorted(at)
        by = [ORDER.index(age_of(END, later, most).state) for most in (high, low)]
        assert by == sorted(by)
    # Nothing stops before it has warned for as long as was promised.
    if age_of(END, later, low).state == TOO_OLD:
        assert age_of(END, later - timedelta(days=GRACE_DAYS), low).state != FRESH


@pytest.mark.parametrize(
    ("details", "wanted"),
    [
        ({"bars": {"last": "2025-11-30T23:00:00+00:00"}}, datetime(2025, 11, 30, 23, tzinfo=UTC)),
        ({"bars": {"last": "2025-11-30T23:00:00"}}, datetime(2025, 11, 30, 23, tzinfo=UTC)),
        ({"bars": {"last": "yesterday"}}, END),
        ({"bars": {"last": None}}, END),
        ({"bars": []}, END),
        ({}, END),
    ],
)
def test_the_last_bar_counts_and_not_when_the_release_was_made(
    details: dict[str, Any], wanted: datetime
) -> None:
    assert bars_end(details, END) == wanted
