"""The note that the window can't hold the bars that a verdict takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from macd.gate.report import _too_short, _worth
from macd.host.judge import gate
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.gate import Decision
from macd.host.judge.parse import parse
from tests.support import signal_lines

NOW = datetime(2026, 3, 16, 12, tzinfo=UTC)


def noted(n: int, apart: timedelta, more: int, verdict: str = gate.INCONCLUSIVE) -> list[str]:
    """`n` bars of 1h were written `apart`; `more` are wanted."""
    analysis = Analysis(Window(0, round(NOW.timestamp() * 1000), signal_lines.RELEASE))
    for at, line in enumerate(signal_lines.lines(n, end=NOW)):
        line["timestamp"] = f"{NOW - (n - 1 - at) * apart:%Y-%m-%dT%H:%M:%S.%f}Z"
        analysis.add(parse(signal_lines.encode(line)), "log", at + 1)
    analysis.finish()
    decision: Any = Decision(verdict, (), (), more)
    return _too_short(analysis, decision, 2.0)


def test_bars_as_slow_as_the_clock_need_more_days() -> None:
    (note,) = noted(30, timedelta(hours=1), 38)
    assert note == "2 days hold 48 bars of 1h, it takes 68: invoke shadow-gate --days 4"
    assert noted(30, timedelta(hours=1), 18) == []


def test_a_replays_bars_are_judged_by_their_own_pace() -> None:
    assert noted(30, timedelta(seconds=2), 1137) == []
    (note,) = noted(30, timedelta(minutes=30), 138)
    assert note == "2 days hold 96 bars of 1h, it takes 168: invoke shadow-gate --days 5"


def test_where_no_more_bars_are_needed_there_is_no_note() -> None:
    assert noted(60, timedelta(hours=1), 0) == []
    assert noted(30, timedelta(hours=1), 38, gate.FAIL) == []


@pytest.mark.parametrize(
    ("n", "wanted", "said"),
    [
        (372, 0, ""),
        (372, 31, ""),
        (372, 100, "372 bars, worth 31 that don't overlap; train.min_n_eff asks for 100: 828 more"),
        (0, 2.5, "0 bars, worth 0 that don't overlap; train.min_n_eff asks for 2.5: 30 more bars"),
        (372, 900, "asks for 900: the newest 10,000 bars are never worth so many"),
    ],
)
def test_outcomes_that_overlap_are_worth_fewer(n: int, wanted: float, said: str) -> None:
    rows = [{"model": "stacking", "head": "12h", "n": 36, "effective_n": 3.0}]
    found = {"realised": rows}  # of the last days, which may never hold as many as are asked for
    compared = {"head": "12h", "against": {"mean": {"n": n}}}
    document = {"skill": compared, "findings": found}
    assert said in "".join(_worth(document, wanted))
    assert bool(_worth(document, wanted)) == bool(said)
    assert _worth({"skill": None, "findings": found}, wanted) == []


def test_without_a_comparison_the_window_says_what_outcomes_are_worth() -> None:
    rows = [
        {"model": "stacking", "head": head, "n": 36, "effective_n": 36 / ahead}
        for head, ahead in (("5h", 5), ("12h", 12))
    ]
    document = {"skill": {"head": "12h", "against": {}}, "findings": {"realised": rows}}
    (note,) = _worth(document, 4)
    assert note.startswith("outcomes at 12h in this window: 36 bars, worth 3")
    assert note.endswith("12 more bars")
    assert _worth({**document, "findings": {"realised": []}}, 4) != []
