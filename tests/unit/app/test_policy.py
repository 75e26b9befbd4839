"""The base rule against figures worked out apart, and the positions that follow from signals."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest
import talib
from hypothesis import given
from hypothesis import strategies as st

from macd.app.predict.policy import (
    FLAT,
    Policy,
    Position,
    Thresholds,
    base,
    bases,
    decide,
    read_policy,
    read_position,
)
from macd.inventory.models import PolicySettings

TILT = Policy().at("5h")


def test_macd_is_talibs_once_its_first_bars_are_forgotten() -> None:
    closes = pl.Series([100 + 10 * math.sin(i / 7) + i / 50 for i in range(527)])
    ours = base(closes)
    macd, line, hist = talib.MACD(closes.to_numpy(), 12, 26, 9)
    assert ours.macd == pytest.approx(macd[-1], abs=1e-9)
    assert ours.signal == pytest.approx(line[-1], abs=1e-9)
    assert ours.hist == pytest.approx(hist[-1], abs=1e-9)


def test_a_cross_upward_in_a_rising_market_buys_and_its_mirror_sells() -> None:
    down_then_up = [100.0] * 300 + [100.0 + 4 * k for k in range(1, 3)]
    up = base(pl.Series(down_then_up))
    assert (up.buy, up.sell) == (50.0, 0.0)  # it crossed a bar ago: side, rising, trend
    first = base(pl.Series(down_then_up[:-1]))
    assert (first.buy, first.sell) == (100.0, 0.0)
    mirrored = base(pl.Series([200.0 - value for value in down_then_up[:-1]]))
    assert (mirrored.buy, mirrored.sell) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("buy", "sell", "p", "action"),
    [
        (100.0, 0.0, None, "BUY"),
        (0.0, 100.0, None, "SELL"),
        (50.0, 0.0, None, "HOLD"),
        (50.0, 0.0, 0.7, "BUY"),
        (100.0, 0.0, 0.0, "BUY"),
        (80.0, 0.0, 0.1, "HOLD"),
        (100.0, 100.0, None, "HOLD"),
        (100.0, 0.0, math.nan, "BUY"),
    ],
)
def test_the_models_tilt_the_scores(buy: float, sell: float, p: float | None, action: str) -> None:
    assert decide(TILT, buy, sell, p).action == action


def follow(policy: Policy, given: list[float | None]) -> list[tuple[str, int]]:
    """(action, side) bar by bar; the base rule says nothing."""
    position, taken = FLAT, []
    for p in given:
        decision = decide(policy.at("5h"), 0.0, 0.0, p, position)
        position = decision.position
        taken.append((decision.action, position.side))
    return taken


UP, DOWN, NONE = 0.7, 0.3, 0.5


def test_a_position_ends_when_its_forecast_has_run_out() -> None:
    policy = Policy(kind="threshold")
    assert follow(policy, [UP, *[NONE] * 6]) == [
        ("BUY", 1), *[("HOLD", 1)] * 4, ("SELL", 0), ("HOLD", 0),
    ]  # fmt: skip
    assert follow(policy, [DOWN, *[NONE] * 5])[-1] == ("BUY", 0)


def test_each_signal_for_a_position_gives_it_a_whole_horizon_more() -> None:
    taken = follow(Policy(kind="threshold"), [UP, NONE, NONE, UP, *[NONE] * 5])
    assert [side for _, side in taken] == [1] * 8 + [0]


@pytest.mark.parametrize("hold", ["horizon", "signal"])
def test_a_signal_against_it_turns_a_position(hold: str) -> None:
    policy = read_policy({"kind": "threshold", "hold": hold})
    assert follow(policy, [UP, DOWN, UP]) == [("BUY", 1), ("SELL", -1), ("BUY", 1)]


def test_held_until_the_signal_turns_it_outlasts_its_horizon() -> None:
    taken = follow(Policy(kind="threshold", hold="signal"), [UP, *[NONE] * 30, None, DOWN])
    assert [side for _, side in taken] == [1] * 32 + [-1]


def test_long_only_closes_and_never_goes_short() -> None:
    policy = Policy(kind="threshold", long_only=True)
    assert follow(policy, [DOWN, UP, DOWN]) == [("SELL", 0), ("BUY", 1), ("SELL", 0)]


def test_thresholds_belong_to_the_head_and_are_reached_at_their_value() -> None:
    policy = Policy(
        kind="threshold", thresholds={"h5": Thresholds(0.8, 0.1), "all": Thresholds(0.55, 0.45)}
    )
    assert policy.at("5h").long == 0.8
    assert policy.at("12h").long == 0.55
    assert Policy().at("24h")[1:3] == (0.6, 0.4)
    assert decide(policy.at("5h"), 0, 0, 0.8).action == "BUY"
    assert decide(policy.at("5h"), 0, 0, 0.799).action == "HOLD"
    assert decide(policy.at("5h"), 0, 0, 0.1).action == "SELL"


@pytest.mark.parametrize("p", [None, math.nan])
def test_without_a_probability_a_threshold_gives_no_signal(p: float | None) -> None:
    assert decide(Policy(kind="threshold").at("5h"), 100.0, 0.0, p).action == "HOLD"


def test_bars_that_passed_unseen_count_towards_the_horizon() -> None:
    terms = Policy(kind="threshold").at("5h")
    assert decide(terms, 0, 0, None, Position(1, 5), elapsed=4).position == Position(1, 1)
    assert decide(terms, 0, 0, None, Position(1, 5), elapsed=9).action == "SELL"


@given(st.integers(-1, 1), st.integers(0, 50), st.floats(0.1, 1))
def test_a_position_on_a_line_is_read_back(side: int, left: int, size: float) -> None:
    held = Position(side, left) if side else FLAT
    assert read_position(held.as_json(size)) == held


@pytest.mark.parametrize(
    "raw",
    [None, 1, {}, {"side": "long"}, {"side": "up", "bars_left": 3},
     {"side": "long", "bars_left": -1}, {"side": "short", "bars_left": True}],
)  # fmt: skip
def test_what_is_no_position_is_flat(raw: object) -> None:
    assert read_position(raw) == FLAT


def test_the_inventory_and_the_policy_agree(tmp_path: Path) -> None:
    rendered = PolicySettings().model_dump(mode="json")
    assert read_policy(rendered) == Policy(thresholds={"all": Thresholds()})
    assert rendered.keys() == Policy().as_json().keys()
    assert Policy(thresholds={"all": Thresholds()}).at("5h") == Policy().at("5h")
    assert read_policy(Policy(kind="threshold").as_json()) == Policy(kind="threshold")


def test_every_problem_of_a_policy_is_named() -> None:
    with pytest.raises(ValueError, match=r"speed is unknown.*9h.*kind.*hold.*size.*fee_bps"):
        read_policy(
            {
                "kind": "x",
                "hold": "x",
                "size": 2,
                "fee_bps": -1,
                "speed": 1,
                "thresholds": {"9h": {}},
            }
        )
    with pytest.raises(ValueError, match="short below long"):
        read_policy({"thresholds": {"5h": {"long": 0.4, "short": 0.6}}})


def test_the_base_rule_of_a_bar_needs_no_later_bar() -> None:
    closes = pl.Series([100 + 10 * math.sin(i / 7) + i / 50 for i in range(300)])
    whole = bases(closes)
    for end in (2, 3, 120, 299):
        assert bases(closes[:end]).equals(whole[:end])
