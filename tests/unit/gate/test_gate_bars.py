"""Bars not logged: the feed is dead, a bar was refused, or it never came. None may pass."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.judge.gate import FAIL, INCONCLUSIVE, PASS
from tests.support import signal_lines
from tests.support.signal_lines import warning
from tests.unit.gate.test_gate_decision import (
    NOW,
    OTHER,
    START,
    Made,
    analysed,
    changed,
    judged,
    made,
    rates,
)

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def old_bars(n: int, hours: float) -> list[Made]:
    return list(signal_lines.lines(n, end=NOW - hours * HOUR))


def numbered(lines: list[Made]) -> list[Made]:
    """The lines as the one writer numbers them."""
    return [{**line, "seq": seq} for seq, line in enumerate(lines, start=1)]


@pytest.mark.parametrize("event", ["feed", "stale_feed", "duplicate"])
@pytest.mark.parametrize("strict", [True, False])
def test_lines_that_are_no_bar_keep_nothing_fresh(event: str, strict: bool) -> None:
    tail = [warning(event, None, at=NOW - 5 * MINUTE * (239 - i), seq=26 + i) for i in range(240)]
    decision = judged([*old_bars(25, 20), *tail], strict=strict)
    assert decision.verdict == INCONCLUSIVE
    assert decision.reasons == ("stale: the newest bar was logged 20 h ago",)


def test_bars_of_another_release_or_of_the_future_keep_nothing_fresh() -> None:
    other = made(40, first_seq=26, release=OTHER)
    back = warning("start", None, at=NOW, seq=66)
    decision = judged([*old_bars(25, 20), *other, back])
    assert "stale: the newest bar was logged 20 h ago" in decision.reasons
    ahead = list(signal_lines.lines(1, end=NOW + HOUR, first_seq=26))
    assert (
        "stale: the newest bar was logged 20 h ago" in judged([*old_bars(25, 20), *ahead]).reasons
    )


def test_files_of_earlier_versions_do_not_say_when_a_bar_was_due() -> None:
    lines = old_bars(25, 20)
    for line in lines:
        del line["tf"], line["seq"], line["release"]
    info = {"timestamp": NOW.isoformat(), "level": "INFO"}
    assert judged([*lines, info], strict=False).verdict == PASS


@pytest.mark.parametrize("event", ["stale", "bad_bar"])
def test_a_refused_bar_is_a_bar_without_evidence_once(event: str) -> None:
    # of 40 bars 8 came and were refused: 80 % is not more than 80 %
    lines = made(32)
    refused = [warning(event, 33 + i, at=NOW, seq=0) for i in range(8)]
    decision = judged(numbered([*lines, *refused]))
    assert rates(decision)["ml_coverage"] == (32, 40)
    assert (decision.verdict, len(decision.reasons)) == (FAIL, 1)
    # a service that starts again finds the same bars again
    again = analysed(numbered([*lines, *refused, *refused, *refused]))
    assert again.tally()["ml_coverage"] == (32, 40)
    document = again.document()
    assert document["counts"]["refused bars"] == 8
    assert document["not_activated"][0]["example"] == f"not covered: the bar was refused as {event}"
    assert sum(row[1] for row in document["timeline"]) == 40


def test_other_warnings_and_bad_bars_of_cross_symbols_are_no_bars() -> None:
    others = [
        warning(event, 30 + i, at=NOW, seq=0)
        for event in ("duplicate", "out_of_order", "not_closed", "gap")
        for i in range(3)
    ]
    cross = [warning("bad_bar", i, at=NOW, seq=0, symbol="ETHUSD") for i in range(5)]
    elsewhere = [warning("bad_bar", 39, at=NOW, seq=0, release=OTHER)]
    lines = numbered([*elsewhere, *cross, *made(40), *others, *cross])
    assert rates(judged(lines))["ml_coverage"] == (40, 40)


def test_a_bar_of_no_time_that_was_refused_counts_too() -> None:
    lines = [*made(40), *(warning("bad_bar", None, at=NOW - i * MINUTE, seq=0) for i in range(3))]
    assert rates(judged(numbered(lines)))["ml_coverage"] == (40, 43)


@pytest.mark.parametrize("lacking", [[20], [7, 8, 9], [5, 30]])
def test_bars_that_never_came_are_named(lacking: list[int]) -> None:
    lines = numbered([line for at, line in enumerate(made(60)) if at not in lacking])
    decision = judged(lines)
    assert decision.verdict == INCONCLUSIVE
    assert all(
        why.startswith("BTCUSD 1h: bars missing between 2019-01-0") for why in decision.reasons
    )
    assert len(decision.reasons) == (2 if lacking == [5, 30] else 1)
    if lacking == [20]:  # the first line tells bar 1, of 01:00
        assert decision.reasons[0].endswith("2019-01-01 20:00 and 2019-01-01 22:00")


def test_many_holes_are_counted_and_a_few_named() -> None:
    decision = judged(numbered(made(200)[::2]))
    assert decision.reasons[-1] == "and bars missing at 94 more places"


def test_the_next_lap_of_a_replay_is_no_hole() -> None:
    lap = made(30)
    assert judged(numbered([*lap, *lap])).verdict == PASS
    # nor is a restart that tells its last bar again, or begins the lap in its middle
    assert judged(numbered([*lap[:20], *lap[19:], *lap[10:]])).verdict == PASS
    hole = judged(numbered([*lap, *lap[:5], *lap[6:]]))
    assert (hole.verdict, len(hole.reasons)) == (INCONCLUSIVE, 1)


def test_a_new_release_begins_where_it_begins() -> None:
    before = made(30, release=OTHER)
    assert judged(numbered([*before[:20], *made(60)[31:]])).verdict == PASS


def test_a_bar_that_was_refused_did_come() -> None:
    lines = made(60)
    for event in ("stale", "bad_bar"):
        refused = [warning(event, 21 + i, at=NOW - HOUR, seq=0) for i in range(3)]
        assert judged(numbered([*lines[:20], *refused, *lines[23:]])).verdict == PASS
        short = judged(numbered([*lines[:20], *refused, *lines[24:]]))
        assert (short.verdict, len(short.reasons)) == (INCONCLUSIVE, 1)
    # where its time is what was bad, it says nothing of which bars came
    far = warning("bad_bar", 900, at=NOW - HOUR, seq=0)
    assert judged(numbered([*lines[:20], far, *lines[25:]])).verdict == INCONCLUSIVE
    other = warning("duplicate", 21, at=NOW - HOUR, seq=0)
    assert judged(numbered([*lines[:20], other, *lines[21:]])).verdict == INCONCLUSIVE


def test_a_hole_leaves_with_the_window() -> None:
    early = list(signal_lines.lines(20, end=START - HOUR))
    late = made(60)[20:]
    assert judged(numbered([*early, *late])).verdict == PASS
    assert judged(numbered([*early[:10], *early[12:], *late])).verdict == PASS
    over_the_edge = judged(numbered([*early, *late[3:]]))
    assert over_the_edge.verdict == INCONCLUSIVE


def test_each_symbol_and_timeframe_has_its_own_bars_and_strange_ones_none() -> None:
    both = []
    for line in made(40):
        both += [line, {**line, "symbol": "ETHUSD"}]
    assert judged(numbered(both)).verdict == PASS
    assert judged(numbered([*both[:9], *both[10:]])).verdict == INCONCLUSIVE
    strange = [{**line, "tf": "tick"} for line in made(60)[::2]]
    assert judged(numbered(strange)).verdict == PASS


EVENTS = ("feed", "gap", "duplicate", "out_of_order", "not_closed", "start")


@given(
    bars=st.integers(20, 60),
    hours=st.floats(3.05, 47),
    events=st.lists(st.sampled_from(EVENTS), max_size=80),
)
def test_no_tail_of_warnings_makes_dead_bars_pass(
    bars: int, hours: float, events: list[str]
) -> None:
    tail = [
        warning(event, bars + 1 if event != "feed" else None, at=NOW - i * MINUTE, seq=0)
        for i, event in reversed(list(enumerate(events)))
    ]
    assert judged(numbered([*old_bars(bars, hours), *tail])).verdict != PASS


@given(data=st.data(), laps=st.integers(1, 3))
def test_no_order_of_enough_refused_bars_passes(data: Any, laps: int) -> None:
    """Each of ten refused bars of fifty is one, wherever, however often and as what logged."""
    lines = made(50)
    rows = data.draw(st.sets(st.integers(1, 48), min_size=10, max_size=10))
    logged: list[Made] = []
    for at, line in enumerate(lines):
        if at in rows:
            event = data.draw(st.sampled_from(("stale", "bad_bar")))
            times = data.draw(st.integers(1, 3))
            logged += [warning(event, at + 1, at=NOW - HOUR, seq=0)] * times
        else:
            logged.append(line)
    decision = judged(numbered(logged * laps))
    assert decision.verdict == FAIL
    assert rates(decision)["ml_coverage"] == (40, 50)


@given(data=st.data(), spoilt=st.integers(0, 5))
def test_no_hole_between_bars_passes(data: Any, spoilt: int) -> None:
    lines = changed(made(60), range(spoilt), ml_tft_prob=None)
    first = data.draw(st.integers(1, 57))
    last = data.draw(st.integers(first, 58))
    lap = [*lines[:first], *lines[last + 1 :]]
    again = data.draw(st.sampled_from(([], lines[: first + 1], lines)))
    assert judged(numbered([*again, *lap])).verdict != PASS
    assert judged(numbered(lines)).verdict == PASS
