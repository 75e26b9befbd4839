"""`invoke why` tells what was measured, also where a figure has no interval or no value."""

from __future__ import annotations

from macd.cli import status


def test_heads_without_an_interval_or_a_value_are_told_as_the_card_tells_them() -> None:
    by_head = {
        "5h": {"val": {"value": 0.61, "low": 0.58, "high": 0.64}},
        "24h": {"val": {"value": None, "low": None, "high": None}},
        "12h": {"val": {"value": 0.55, "low": None, "high": None}},
        "48h": {},
    }
    [line] = status._as_lines("metrics", {"lgb": by_head})
    assert line.split("val AUC  ")[1] == "5h 0.610 [0.580, 0.640]  12h 0.550  24h not known"
