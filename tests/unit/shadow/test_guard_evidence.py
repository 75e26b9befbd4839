"""The guard's verdict rests on evidence without holes, as the gate's does."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.layout import Layout
from macd.shadow import gate, guard
from macd.shadow.gate import Rule
from tests import signal_lines

NOW = datetime(2026, 3, 3, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def verdict(app: Path, made: list[dict[str, Any]]) -> tuple[str, str]:
    release = str(made[0]["release"])
    live = app / "data" / "live"
    live.mkdir(parents=True)
    signal_lines.write(live, made)
    order = {
        "release": release,
        "since": (NOW - 60 * HOUR).timestamp(),
        "rule": {**Rule().__dict__, "rule": "point"},
    }
    decision, document = guard.judge(Layout(str(app)), order, NOW)
    assert json.dumps(document)
    return decision.verdict, "; ".join(decision.reasons)


def lines(end: datetime = NOW, **more: Any) -> list[dict[str, Any]]:
    return list(signal_lines.lines(25, end=end, every=HOUR, **more))


def test_whole_and_fresh_is_judged(tmp_path: Path) -> None:
    assert verdict(tmp_path, lines()) == (gate.PASS, "")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda made: made[:-20], "stale"),
        (lambda made: made[:10] + made[12:], "missing at"),
    ],
)
def test_holes_are_no_pass(tmp_path: Path, spoil: Any, told: str) -> None:
    word, why = verdict(tmp_path, spoil(lines()))
    assert word == gate.INCONCLUSIVE
    assert told in why


def test_what_fails_beyond_doubt_fails_in_spite_of_holes(tmp_path: Path) -> None:
    made = lines(ml_error="tft: broken")
    assert verdict(tmp_path, made[:10] + made[12:])[0] == gate.FAIL
