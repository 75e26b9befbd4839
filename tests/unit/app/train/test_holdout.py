"""The ledger of looks at the holdout, and what is said of choices made after looking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from macd.app.train import caveats
from macd.app.train.cache import key_of
from macd.app.train.events import read_events
from macd.app.train.holdout import Span, look

HOUR = 3_600_000
FIRST = 1_560_000_000_000
SPAN = Span("BTCUSD", "1h", FIRST, FIRST + 2_000 * HOUR)


def predictions(seed: int, rows: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, 3))


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "cache/holdout.jsonl"


def test_repeating_the_very_same_predictions_is_no_new_look(ledger: Path) -> None:
    for _ in range(3):
        assert look(ledger, SPAN, "d1", {"lgbm": predictions(1), "lstm": predictions(2)}, 0.0) == 1
    assert len(read_events(ledger)) == 2


def test_one_more_bar_and_another_recipe_is_a_second_look(ledger: Path) -> None:
    assert look(ledger, SPAN, "d1", {"lgbm": predictions(1)}, 0.0) == 1
    longer = Span("BTCUSD", "1h", FIRST + HOUR, SPAN.last + HOUR)
    assert look(ledger, longer, "d2", {"lgbm": predictions(2, 51)}, 1.0) == 2
    assert look(ledger, SPAN, "d3", {"lgbm": predictions(3)}, 2.0) == 3


@pytest.mark.parametrize(
    ("other", "looks"),
    [
        (Span("BTCUSD", "1h", SPAN.last, SPAN.last + HOUR), 2),
        (Span("BTCUSD", "1h", SPAN.last + HOUR, SPAN.last + 9 * HOUR), 1),
        (Span("BTCUSD", "1h", FIRST - 9 * HOUR, FIRST - HOUR), 1),
        (Span("ETHUSDT", "1h", SPAN.first, SPAN.last), 1),
        (Span("BTCUSD", "15m", SPAN.first, SPAN.last), 1),
    ],
)
def test_only_the_same_market_at_the_same_time_counts(
    ledger: Path, other: Span, looks: int
) -> None:
    look(ledger, SPAN, "d1", {"lgbm": predictions(1)}, 0.0)
    assert look(ledger, other, "d2", {"lgbm": predictions(2)}, 1.0) == looks


def test_a_model_is_counted_by_its_own_predictions(ledger: Path) -> None:
    look(ledger, SPAN, "d1", {"lgbm": predictions(1), "lstm": predictions(2)}, 0.0)
    assert look(ledger, SPAN, "d1", {"lgbm": predictions(1), "tft": predictions(4)}, 1.0) == 1
    assert look(ledger, SPAN, "d1", {"lgbm": predictions(1), "lstm": predictions(3)}, 2.0) == 2


def test_lines_of_earlier_versions_count_where_the_bars_are_the_same(ledger: Path) -> None:
    ledger.parent.mkdir()
    old = {"t": 0, "data": "d1", "model": "lgbm", "recipe": key_of({"p": predictions(1)})}
    ledger.write_text(json.dumps(old) + "\n")
    assert look(ledger, SPAN, "d2", {"lgbm": predictions(2)}, 1.0) == 1, "nothing ties d1 to d2"
    assert look(ledger, SPAN, "d1", {"lgbm": predictions(1)}, 2.0) == 2, "its own look is known"
    assert look(ledger, SPAN, "d3", {"lgbm": predictions(3)}, 3.0) == 3, "d1 has a place by now"


def day(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))


@pytest.mark.parametrize(
    ("symbol", "validation", "holdout", "said"),
    [
        ("BTCUSD", ("2018-01-01", "2019-06-01"), ("2019-07-01", "2019-10-01"), (True, True)),
        ("BTCUSDT", ("2018-01-01", "2022-06-01"), ("2022-07-01", "2022-12-01"), (True, False)),
        ("ETHUSDT", ("2023-06-01", "2025-09-01"), ("2025-10-03", "2026-03-01"), (True, True)),
        ("ETHUSDT", ("2020-06-01", "2021-09-01"), ("2025-10-03", "2026-03-01"), (False, True)),
    ],
)
def test_caveats_stand_on_runs_over_the_bars_that_were_looked_at(
    symbol: str, validation: tuple[str, str], holdout: tuple[str, str], said: tuple[bool, bool]
) -> None:
    folds, last = (Span(symbol, "1h", day(a), day(b)) for a, b in (validation, holdout))
    texts = caveats.of(folds, last)
    assert caveats.GENERAL not in texts
    assert any("which these folds share" in text for text in texts) is said[0]
    assert any("no first look" in text for text in texts) is said[1]


@pytest.mark.parametrize(("symbol", "year"), [("ADAUSDT", "2024"), ("BTCUSDT", "2022")])
def test_other_bars_get_the_general_part(symbol: str, year: str) -> None:
    folds = Span(symbol, "1h", day(f"{year}-01-01"), day(f"{year}-06-01"))
    last = Span(symbol, "1h", day(f"{year}-07-01"), day(f"{year}-12-01"))
    assert caveats.of(folds, last) == [caveats.GENERAL]
