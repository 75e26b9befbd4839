"""The comparison of an audit, without a service: lines in, cases and differences out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.gate import audit, replay
from macd.gate.replay import Case, Outcome, Said, Values

RELEASE = "20260301T000000Z-00000000"
HOUR = 3_600_000
START = 1_767_225_600_000  # 2026-01-01
numbers = st.floats(-10, 10, allow_nan=False)


def bar(n: int, close: float = 100.0) -> dict[str, float]:
    return {"open": 100.0, "high": 200.0, "low": 50.0, "close": close, "volume": float(n)}


def values(n: int, close: float = 100.0) -> Values:
    return tuple(bar(n, close).values())


def line(level: str, n: int, data: Mapping[str, Any], seq: int, symbol: str = "BTCUSD") -> bytes:
    document = {
        "timestamp": "2026-02-01T00:00:00Z", "level": level, "seq": seq, "release": RELEASE,
        "symbol": symbol, "tf": "1h", "bar_time": replay.moment(START + n * HOUR), "data": data,
    }  # fmt: skip
    return json.dumps(document).encode()


def signal(n: int, seq: int, *, until: int = -1, close: float = 100.0, **more: Any) -> bytes:
    components = {
        "bar": bar(n, close),
        "history_until": replay.moment(START + until * HOUR),
        "ml_features": [1.0, None],
        "ml_error": None,
        **more,
    }
    return line("SIGNAL", n, {"components": components}, seq)


def read(*raws: bytes) -> replay.Written:
    return replay.read(raws, release=RELEASE, symbol="BTCUSD", tf="1h", since_ms=0)


def rows(count: int, **closes: float) -> dict[int, Values]:
    return {START + n * HOUR: values(n, closes.get(f"b{n}", 100.0)) for n in range(-10, count)}


def case_pair(written: replay.Written, at: int, finals: dict[int, Values]) -> tuple[Case, Case]:
    all_finals = {"BTCUSD": finals}
    return replay.cases(
        written,
        written.lines[at],
        all_finals,
        written.doubtful(all_finals, written.lines),
        START - 10 * HOUR,
    )


def test_bars_that_nobody_changed_leave_nothing_to_put_in() -> None:
    written = read(*(signal(n, n + 1) for n in range(5)))
    for at in range(5):
        final, seen = case_pair(written, at, rows(5))
        assert (final.seen, seen.seen, seen.corrected) == ({}, {}, ())


def test_a_hole_is_a_hole_on_final_bars_too() -> None:
    gap = line("WARN", 3, {"event": "gap", "missing": 2, "bar": bar(3)}, 2)
    written = read(signal(0, 1), gap, signal(3, 3))
    final, seen = case_pair(written, 1, rows(4))
    assert final.seen == seen.seen == {"BTCUSD": [[START + HOUR], [START + 2 * HOUR]]}
    assert seen.corrected == ()


def test_after_a_restart_the_hole_is_filled() -> None:
    gap = line("WARN", 3, {"event": "gap", "missing": 2, "bar": bar(3)}, 2)
    written = read(signal(0, 1), gap, signal(3, 3), signal(4, 4, until=3))
    assert case_pair(written, 2, rows(5))[1].seen == {}


def test_a_refused_bar_is_none_that_the_service_had() -> None:
    bad = line("WARN", 1, {"event": "bad_bar", "bar": bar(1, close=7.0)}, 2)
    stale = line("WARN", 2, {"event": "stale", "bar": bar(2, close=8.0)}, 3)
    written = read(signal(0, 1), bad, stale, signal(3, 4))
    _, seen = case_pair(written, 1, rows(4))
    assert seen.corrected == (("BTCUSD", START + 2 * HOUR),)  # late, but taken
    assert seen.seen == {"BTCUSD": [[START + 2 * HOUR, *values(2, 8.0)]]}


@pytest.mark.parametrize(("taken", "after"), [(True, ()), (False, (("BTCUSD", START),))])
def test_a_correction_counts_from_when_it_was_taken(taken: bool, after: tuple[Any, ...]) -> None:
    corrected = line(
        "WARN", 0,
        {"event": "corrected", "bar": bar(0, 9.0), "was": bar(0, 5.0), "taken": taken}, 2,
    )  # fmt: skip
    written = read(signal(0, 1, close=5.0), corrected, signal(1, 3))
    finals = rows(2, b0=9.0)
    assert case_pair(written, 0, finals)[1].corrected == (("BTCUSD", START),)
    assert case_pair(written, 1, finals)[1].corrected == after


def test_a_replay_that_begins_again_knows_nothing_of_the_lap_before() -> None:
    written = read(signal(0, 1, close=5.0), signal(1, 2), signal(0, 3), signal(1, 4))
    assert [case_pair(written, at, rows(2))[1].corrected for at in range(4)] == [
        (("BTCUSD", START),), (("BTCUSD", START),), (), (),
    ]  # fmt: skip


def test_a_cross_symbol_that_was_late_or_away_is_so_again() -> None:
    def hour(n: int) -> str:
        return replay.moment(START + n * HOUR)

    there = {"cross_bars": {"ETHUSD": bar(0)}}
    gap = line("WARN", 3, {"event": "gap", "missing": 1, "bar": bar(3)}, 5, "ETHUSD")
    written = read(
        signal(0, 1, **there),
        signal(1, 2, cross_last={"ETHUSD": hour(0)}),
        signal(2, 3, cross_last={"ETHUSD": hour(1)}),  # the bar of 1 came late
        gap,
        signal(3, 6, cross_bars={"ETHUSD": bar(3)}),
        signal(4, 7, until=3, cross_last={"ETHUSD": None}),  # its market is gone at a restart
    )
    finals = {"BTCUSD": rows(5), "ETHUSD": rows(5)}
    doubtful = written.doubtful(finals, written.lines)
    pairs = [replay.cases(written, at, finals, doubtful, START) for at in written.lines]
    gone = [
        [START + n * HOUR for n in range(5) if [START + n * HOUR] in seen.seen.get("ETHUSD", ())]
        for _, seen in pairs
    ]
    assert gone == [
        [],
        [START + HOUR],
        [START + 2 * HOUR],
        [START + 2 * HOUR],
        [START + n * HOUR for n in range(5)],
    ]
    assert all(final.seen == seen.seen and seen.corrected == () for final, seen in pairs)


def test_lines_without_a_row_are_counted_with_why() -> None:
    written = read(
        signal(0, 1),
        signal(1, 2, ml_features=None, ml_error="timeout: no answer; lgbm: no"),
        signal(2, 3, ml_features=None),
        b"not json",
        signal(3, 4).replace(RELEASE.encode(), b"20250301T000000Z-00000000"),
    )
    assert len(written.lines) == 1
    assert dict(written.left_out) == {
        "the models were not asked: timeout: no answer": 1,
        "it holds no row of features: written by an earlier version": 1,
    }


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*replay.NAMES, "ETHUSD", "lgbm", "5h"]), inner, max_size=6
        )
    ),
    max_leaves=12,
)
FIELD_NAMES = ("bar", "cross_bars", "cross_last", "history_until", "ml_features", "ml_avg_prob",
               "ml_bull_prob", "ml_heads", "ml_stacking_weight")  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELD_NAMES), anything), anything, anything)
def test_whatever_stands_on_a_line_is_read_or_left_out(
    fields: dict[str, Any], bar_of_warning: Any, other: Any
) -> None:
    data = {"event": "corrected", "bar": bar_of_warning, "was": other, "taken": True}
    raw = signal(1, 2, **fields)
    written = read(signal(0, 1), line("WARN", 0, data, 2), raw, signal(2, 3))
    assert len(written.lines) + sum(written.left_out.values()) >= 2
    finals = {"BTCUSD": rows(3), "ETHUSD": rows(3)}
    doubtful = written.doubtful(finals, written.lines)
    for said in written.lines:
        replay.cases(written, said, finals, doubtful, START - 10 * HOUR)
        replay.summary([Outcome(said, "different", APART)], {}, {})
        replay.differences(said.fields, FIELDS, WHO)
        replay.differences(FIELDS, said.fields, WHO)


def test_final_bars_that_end_too_early_are_no_proof() -> None:
    written = read(*(signal(n, n + 1) for n in range(5)))
    reached = [replay.covered(said, "BTCUSD", {"BTCUSD": rows(3)}) for said in written.lines]
    assert reached == [True, True, True, False, False]
    assert replay.first_needed(written.lines[0], rows(3), 11) == START - 10 * HOUR
    assert replay.first_needed(written.lines[0], rows(3), 12) is None


FIELDS = {
    "ml_features": [0.5, None, -3.0],
    "ml_lgb_prob": 0.4,
    "ml_avg_prob": 0.45,
    "ml_stacking_prob": 0.6,
    "ml_bull_prob": 0.45,
    "ml_stacking_mode": "shadow",
    "ml_heads": {"lgbm": {"5h": 0.4}},
}
WHO = ("a", "b", "c")


@given(st.lists(st.one_of(st.none(), numbers), min_size=1, max_size=9))
def test_a_line_is_equal_to_itself(row: list[float | None]) -> None:
    assert replay.differences({"ml_features": row}, {"ml_features": row}, ()) == []


@given(numbers, numbers)
def test_a_feature_differs_beyond_a_millionth(ours: float, theirs: float) -> None:
    differences = replay.differences({"ml_features": [ours]}, {"ml_features": [theirs]}, ["a"])
    apart = abs(ours - theirs)
    if apart > 2e-6 * max(1.0, abs(ours)):
        assert [one.size for one in differences] == [apart]
    if apart < 1e-6:
        assert differences == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"ml_features": [0.5, None, -3.1]}, "c"),
        ({"ml_features": [0.6, None, -3.5]}, "c"),  # the largest first
        ({"ml_features": [0.5, 0.0, -3.0]}, "b"),
        ({"ml_features": [0.5, None]}, "number of features"),
        ({"ml_features": None}, "number of features"),
        ({"ml_lgb_prob": None}, "ml_lgb_prob"),
        ({"ml_avg_prob": 0.46}, "ml_avg_prob"),
        ({"ml_stacking_prob": 0.61}, "ml_stacking_prob"),
        ({"ml_heads": {"lgbm": {"5h": 0.400002}}}, "ml_heads.lgbm.5h"),
        ({"ml_heads": {}}, "ml_heads.lgbm.5h"),
    ],
)
def test_any_number_that_differs_is_named(change: dict[str, Any], name: str) -> None:
    differences = replay.differences(FIELDS, {**FIELDS, **change}, WHO)
    assert differences[0].name == name


def test_the_last_digit_of_a_head_is_no_difference() -> None:
    assert replay.differences(FIELDS, {**FIELDS, "ml_heads": {"lgbm": {"5h": 0.400001}}}, WHO) == []


@pytest.mark.parametrize(
    ("mode", "weight", "decides"),
    [("shadow", None, 0.45), ("live", None, 0.6), ("live", 100, 0.6), ("live", 25, 0.4875)],
)
def test_what_decides_follows_from_mode_and_weight(
    mode: str, weight: int | None, decides: float
) -> None:
    line = {**FIELDS, "ml_stacking_mode": mode, "ml_stacking_weight": weight}
    assert replay.differences({**line, "ml_bull_prob": decides}, FIELDS, WHO) == []
    (difference,) = replay.differences({**line, "ml_bull_prob": decides + 0.01}, FIELDS, WHO)
    assert difference.name == "ml_bull_prob"


def test_models_that_decided_nothing_are_compared_by_what_they_said() -> None:
    line = {**FIELDS, "ml_bull_prob": None, "ml_stacking_mode": "off"}
    assert replay.differences(line, FIELDS, WHO) == []
    assert replay.differences(line, {**FIELDS, "ml_avg_prob": 0.5}, WHO)[0].name == "ml_avg_prob"


def test_a_stacking_left_out_by_a_flag_is_not_compared() -> None:
    line = {**FIELDS, "ml_stacking_prob": None, "ml_stacking_mode": "off"}
    assert replay.differences(line, FIELDS, WHO) == []


ABLE = {"replay": 1}
SAID = Said(1, 0, START, values(0), {}, {})
APART = [replay.Difference("a", 1.0, 2.0)]
KEY = (("BTCUSD", START),)


@pytest.mark.parametrize(
    ("final", "seen", "corrected", "kind"),
    [
        ([], [], (), "equal"),
        ([], APART, KEY, "equal"),
        (APART, [], KEY, "explained"),
        (APART, APART, KEY, "different"),
        (APART, APART, (), "different"),
        (APART, [], (), "different"),  # nothing was corrected, so nothing explains it
    ],
)
def test_what_becomes_of_a_line(
    final: Sequence[Any], seen: Sequence[Any], corrected: tuple[Any, ...], kind: str
) -> None:
    assert replay.outcome(SAID, final, seen, corrected).kind == kind


@given(st.lists(st.sampled_from(["equal", "explained", "different"]), max_size=30))
def test_the_figures_add_up(kinds: list[str]) -> None:
    outcomes = [Outcome(SAID, kind, APART if kind != "equal" else ()) for kind in kinds]
    figures = replay.summary(outcomes, {"why": 2}, {})
    assert figures["lines"] == len(kinds) + 2
    assert figures["equal"] + figures["explained"] + figures["different"] == len(kinds)
    assert (figures["share_equal"] is None) == (not kinds)
    assert (figures["verdict"] == "different") == ("different" in kinds)
    assert (figures["first_difference"] is None) == ("different" not in kinds)
    shown = audit.for_gate({**figures, "made": "2026-03-01T00:00", "days": 7})
    assert bool(audit.notes(shown, RELEASE, ABLE)) == (not kinds or {*kinds} != {"equal"})


def test_a_corrected_bar_is_named_field_by_field() -> None:
    key = ("BTCUSD", START)
    figures = replay.summary([], {}, {key: (values(0, 1.0), values(3, 2.0))})
    assert [(row["field"], row["from"], row["to"]) for row in figures["corrected"]] == [
        ("close", 1.0, 2.0), ("volume", 0.0, 3.0),
    ]  # fmt: skip
    assert figures["corrected"][0]["time"] == "2026-01-01T00:00:00Z"
    assert math.isclose(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000, START)


def test_without_an_audit_of_the_live_release_the_gate_says_so() -> None:
    assert "invoke audit" in audit.notes(None, RELEASE, ABLE)[0]
    assert audit.notes(None, None, ABLE) == []
    assert "earlier version" in audit.notes(None, RELEASE, {})[0]
