"""Behind which bar a service goes on when it starts: not behind one of another feed's past."""

from __future__ import annotations

import pytest

from macd.app.service.loop import NEED
from tests.unit.app.service.test_service_loop import BARS, HOUR, Run, Scripted, run

pytestmark = pytest.mark.slow

__all__ = ["run"]


@pytest.mark.parametrize(
    ("live", "hours_later", "behind_it"),
    [
        (True, 2, True),  # it was restarted
        (True, NEED, True),  # it was down for weeks: each bar it missed is told
        (True, NEED + 2, False),  # a replay's years lie between
        (False, 70_000, True),  # a replay has the time of its bars
    ],
)
def test_it_goes_on_behind_what_it_told(
    run: Run, live: bool, hours_later: int, behind_it: bool
) -> None:
    bar = BARS[NEED]
    run.now_ms = bar.open_ms + HOUR
    run(Scripted(run.stop, [bar], live=live))
    run.now_ms = bar.open_ms + hours_later * HOUR
    again = Scripted(run.stop, [], live=live)
    run(again)
    assert again.asked == (NEED, bar.open_ms if behind_it else None)
