"""Minutes become hours, with what is missing said; never a bar that is not whole at its ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from macd.app.market import bars
from macd.app.market.resampling import resample
from macd.errors import UsageError
from tests.unit.app.market.test_importing import truth

START = datetime(2024, 1, 1, tzinfo=UTC)


def minutes(first: int, last: int, *, without: range = range(0)) -> pl.DataFrame:
    """Bars of a minute that open from minute `first` to before `last` after START."""
    at = [i for i in range(first, last) if i not in without]
    return bars.canonical(
        pl.DataFrame(
            {
                "timestamp": [START + timedelta(minutes=i) for i in at],
                "open": [100.0 + i for i in at],
                "high": [100.5 + i + (i % 60 == 7) * 50 for i in at],
                "low": [99.5 + i - (i % 60 == 9) * 50 for i in at],
                "close": [100.25 + i for i in at],
                "volume": [1.0 for _ in at],
            }
        )
    )


def test_an_hour_is_its_sixty_minutes() -> None:
    made = resample(minutes(0, 180), "1m", "1h")
    assert made.bars["timestamp"].to_list() == [START + timedelta(hours=i) for i in range(3)]
    assert made.bars.row(1)[1:] == (160.0, 219.5, 118.5, 219.25, 60.0)
    assert (made.thin, made.cut) == (0, 0)


def test_what_is_not_whole_at_an_end_is_no_bar_and_a_hole_inside_is_said() -> None:
    made = resample(minutes(30, 200, without=range(70, 80)), "1m", "1h")
    assert made.bars["timestamp"].to_list() == [START + timedelta(hours=i) for i in (1, 2)]
    assert (made.thin, made.cut) == (1, 30 + 20)
    assert made.bars["volume"].to_list() == [50.0, 60.0]
    words = " ".join(made.notes("1m", "1h"))
    assert "1 of them from fewer 1m bars" in words
    assert "1m bars at the ends that fill no whole 1h: 50 left out" in words


def test_weeks_open_on_monday_and_steps_may_be_joined() -> None:
    hours = resample(minutes(0, 60 * 24 * 15), "1m", "1h").bars
    weeks = resample(hours, "1h", "1w").bars
    assert [f"{time:%a}" for time in weeks["timestamp"]] == ["Mon", "Mon"]
    assert weeks.equals(resample(minutes(0, 60 * 24 * 15), "1m", "1w").bars)


@pytest.mark.parametrize("tf", ["1h", "90m", "15m", "1m"])
def test_only_a_longer_whole_multiple_can_be_made(tf: str) -> None:
    with pytest.raises(UsageError, match="1h bars can't be made"):
        resample(truth(), "1h", tf)


def test_too_few_for_one_whole_bar_is_said() -> None:
    with pytest.raises(UsageError, match="not one whole 1w"):
        resample(truth(), "1h", "1w")
