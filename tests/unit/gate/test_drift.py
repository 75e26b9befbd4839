"""Blocks of bars against the training's own: what alarms, what is unproved, what can't be used."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.cli.gate import report_lines
from macd.gate import page, report
from macd.host.judge import drift, reading
from macd.host.judge.drift import BLOCK, DRIFT, NONE, UNPROVED, Bar
from macd.host.judge.parse import Line, parse
from macd.inventory import load
from tests.support.signal_lines import RELEASE, encode, lines, write

NOW = datetime(2026, 3, 2, tzinfo=UTC)
DETAILS: dict[str, Any] = {
    "symbol": "BTCUSD",
    "drift": {
        "block": BLOCK,
        "assets": {
            "BTCUSD": {
                "count": 100,
                "features": 80,
                "outside": {"mean": 0.009, "spread": 0.0075},
                "worst": {"mean": 0.04, "spread": 0.02},
            }
        },
    },
}
EXPECTED = drift.expected(DETAILS)


def test_limits_are_six_spreads_from_the_mean() -> None:
    assert EXPECTED is not None
    assert EXPECTED.features == 80
    assert EXPECTED.outside == pytest.approx(0.054)
    assert EXPECTED.worst == pytest.approx(0.16)


def test_a_usual_block_is_none_and_half_of_it_is_unproved() -> None:
    assert EXPECTED is not None
    usual = [Bar(at % 3, "abc"[at % 3] if at % 9 == 0 else "") for at in range(2 * BLOCK)]
    assert drift.judge(EXPECTED, usual).outcome == NONE
    half = drift.judge(EXPECTED, usual[: BLOCK // 2])
    assert (half.outcome, half.bars, half.more) == (UNPROVED, 84, 84)
    assert half.text == "84 of 168 bars so far"
    assert drift.judge(EXPECTED, []).outcome == UNPROVED


def test_more_outside_than_the_training_s_blocks_had_is_drift_once_it_is_too_much_for_a_block() -> (
    None
):
    assert EXPECTED is not None
    many = [Bar(40.0, "abcdefghij"[at % 10]) for at in range(BLOCK)]
    needed = next(n for n in range(BLOCK) if drift.judge(EXPECTED, many[:n]).outcome == DRIFT)
    assert needed == 19  # 18 * 40 = 720 of 168 * 80 are 5.36 %, 19 * 40 are 5.65 %
    judged = drift.judge(EXPECTED, many)
    assert judged.text == (
        "50.0 % of the features' values lie outside the training's range, 5.4 % are its limit"
    )


def test_a_feature_that_is_always_the_worst_is_drift_and_is_named() -> None:
    assert EXPECTED is not None
    judged = drift.judge(EXPECTED, [Bar(1.0, "rsi_14")] * 30)
    assert (judged.outcome, judged.feature) == (DRIFT, "rsi_14")
    assert judged.text == "rsi_14 is the furthest outside on 30 of 30 bars, 27 are its limit"
    assert drift.judge(EXPECTED, [Bar(1.0, "rsi_14")] * 26).outcome == UNPROVED


SAID = {"head": "5h", "count": 90, "mean": {"mean": 0.5, "spread": 0.008}}
SAID |= {"spread": {"mean": 0.031, "spread": 0.0046}}


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.47, 0.53, ""),
        (0.52, 0.60, "the mean prediction is 0.560, its limits are 0.452 to 0.548"),
        (0.4999, 0.5001, "the predictions' spread is 0.000, its limits are 0.003 to 0.059"),
        (0.40, 0.60, "the predictions' spread is 0.100, its limits are 0.003 to 0.059"),
    ],
)
def test_predictions_are_compared_with_out_of_fold_ones(
    low: float, high: float, words: str
) -> None:
    expected = drift.expected({**DETAILS, "drift": {**DETAILS["drift"], "predictions": SAID}})
    assert expected is not None
    bars = [Bar(0.0, "", "BTCUSD", (low, high)[at % 2]) for at in range(BLOCK)]
    judged = drift.judge(expected, bars)
    assert (judged.outcome, judged.text if words else "") == (DRIFT if words else NONE, words)
    # Part of a block says nothing of them, and nor does a release that named none.
    assert drift.judge(expected, bars[1:]).outcome == UNPROVED
    assert drift.judge(expected, [*bars[1:], Bar(0.0)]).p is None
    assert EXPECTED is not None
    assert drift.judge(EXPECTED, bars).outcome == NONE


def test_predictions_of_the_trained_asset_say_nothing_of_another() -> None:
    assets = {name: DETAILS["drift"]["assets"]["BTCUSD"] for name in ("BTCUSD", "ETHUSD")}
    details = {"symbol": "BTCUSD", "drift": {"block": BLOCK, "assets": assets, "predictions": SAID}}
    own, other = drift.expected(details, "BTCUSD"), drift.expected(details, "ETHUSD")
    assert own is not None and other is not None
    assert own.p == pytest.approx((0.452, 0.548))
    assert other.p is None
    few = {**details["drift"], "predictions": {**SAID, "count": 9}}  # type: ignore[dict-item]
    limited = drift.expected({**details, "drift": few})
    assert limited is not None and limited.p is None


def test_only_the_newest_block_counts() -> None:
    assert EXPECTED is not None
    old = [Bar(80.0, "x")] * 1000
    assert drift.judge(EXPECTED, old + [Bar(0.0)] * BLOCK).outcome == NONE


def test_few_blocks_of_training_give_no_limit_and_it_says_so() -> None:
    details = copy.deepcopy(DETAILS)
    details["drift"]["assets"]["BTCUSD"] |= {"count": 9}
    expected = drift.expected(details)
    assert expected is not None
    judged = drift.judge(expected, [Bar(80.0, "x")] * BLOCK)
    assert (judged.outcome, judged.text) == (
        UNPROVED,
        "the training had 9 blocks of 168 bars, it takes 10",
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["block", "assets", "BTCUSD", "count", "features", "outside", "mean", "predictions"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_details_of_any_shape_are_limits_between_0_and_1_or_nothing(said: Any) -> None:
    expected = drift.expected({"symbol": "BTCUSD", "drift": said})
    assert expected is None or (0 <= expected.outside <= 1 and 0 <= expected.worst <= 1)


@pytest.mark.parametrize("details", [{}, {"drift": None}, {"symbol": "ETHUSD", **DETAILS}])
def test_an_earlier_release_says_nothing(details: dict[str, Any]) -> None:
    expected = drift.expected(details, "" if "symbol" not in details else "ETHUSD")
    assert expected is None


def test_the_fields_of_a_line_are_read_and_may_be_absent() -> None:
    (plain,) = lines(1, end=NOW)
    line = parse(encode(plain).strip())
    assert isinstance(line, Line)
    assert (line.outside, line.worst) == (None, "")
    (full,) = lines(1, end=NOW, ml_features_outside=3, ml_feature_worst="rsi_14")
    line = parse(encode(full).strip())
    assert isinstance(line, Line)
    assert (line.outside, line.worst) == (3.0, "rsi_14")


@pytest.mark.parametrize("said", ["3", True, -1, 1e9, 10**400, [3], {}, float("nan")])
def test_a_number_that_is_none_makes_no_line_malformed(said: Any) -> None:
    (made,) = lines(1, end=NOW, ml_features_outside=said, ml_feature_worst=said)
    line = parse(encode(made).strip())
    assert isinstance(line, Line)
    assert line.outside is None
    assert line.worst == (said if isinstance(said, str) else "")


def test_the_newest_block_is_read_from_as_few_files_as_it_takes(tmp_path: Path) -> None:
    for day in range(3):
        rows = lines(
            100,
            end=NOW + timedelta(days=day, hours=12),
            first_seq=1 + 100 * day,
            ml_features_outside=day,
            ml_feature_worst=None,
        )
        write(tmp_path, rows)
    (tmp_path / "trades_20260302.jsonl").write_bytes(b"nobody reads this\n" * 3)
    sources = reading.ordered(tmp_path)
    bars = drift.recent(sources, RELEASE)
    assert [bar.outside for bar in bars] == [1.0] * 68 + [2.0] * 100
    assert drift.recent(sources[1:], "20260301T000100Z-00000000") == []


def test_page_and_terminal_say_it(tmp_path: Path) -> None:
    write(tmp_path, lines(30, end=NOW))
    inventory = load("lab")
    rule = report.rule_of(inventory)
    document = dict(report.of_files(inventory, tmp_path, rule, None, NOW).document)
    assert document["drift"] is None
    assert "<h3>Drift</h3>" not in page.page(document)
    assert EXPECTED is not None
    document["drift"] = drift.judge(EXPECTED, [Bar(1.0, "rsi_14")] * 30).document()
    said = "rsi_14 is the furthest outside on 30 of 30 bars, 27 are its limit"
    assert said in page.page(document)
    assert "<strong>Drift.</strong>" in page.page(document)
    assert f"    ! {said}" in report_lines(document)
    earlier = {name: value for name, value in document.items() if name != "drift"}
    assert "<h3>Drift</h3>" not in page.page(earlier)
    assert said not in "".join(report_lines(earlier))
