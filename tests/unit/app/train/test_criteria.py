"""Criteria: the guide's numbers, the inventory's levels, and nothing met that was not measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.criteria import DEFAULTS, Criterion, evaluate, parse_criteria
from macd.inventory.models import TrainSettings


def _outcome(name: str, value: float | None, criterion: Criterion | None = None):
    made = evaluate({name: criterion or DEFAULTS[name]}, {name: (value, "")})
    assert len(made) == 1
    return made[0]


@pytest.mark.parametrize(
    ("name", "value", "ok"),
    [
        ("lstm_val_auc", 0.57, True),
        ("lstm_val_auc", 0.5699, False),
        ("test_val_gap", 0.0, True),
        ("test_val_gap", 0.0001, False),
        ("holdout_looks", 1, True),
        ("holdout_looks", 2, False),
        ("stacking_oof_auc", 0.58, True),
        ("n_oof", 10_000, True),
        ("n_oof", 9_999, False),
        ("leak_audit", 0.0, False),
    ],
)
def test_the_guides_thresholds(name: str, value: float, ok: bool) -> None:
    assert _outcome(name, value).ok is ok


@pytest.mark.parametrize("name", sorted(DEFAULTS))
@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_was_not_measured_is_not_met(name: str, value: float | None) -> None:
    made = _outcome(name, value)
    assert not made.ok
    assert made.value is None
    assert "not measured" in made.line()


def test_a_line_shows_tick_cross_and_what_missing_means() -> None:
    assert _outcome("lstm_val_auc", 0.6).line().startswith("✓ best LSTM head")
    blocked = _outcome("lstm_val_auc", 0.5).line()
    assert blocked.startswith("✗")
    assert "blocks a release" in blocked
    warned = _outcome("lstm_val_auc", 0.5, Criterion(0.57, "warn")).line()
    assert warned.startswith("⚠")
    assert "warns" in warned


def test_levels_come_from_the_settings_and_the_rest_stays_the_guides() -> None:
    made = parse_criteria({"lstm_val_auc": {"level": "warn"}, "n_oof": 5000})
    assert made["lstm_val_auc"] == Criterion(0.57, "warn")
    assert made["n_oof"] == Criterion(5000.0, "block")
    assert made["stacking_oof_auc"] == DEFAULTS["stacking_oof_auc"]


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"speed is unknown.*n_oof: threshold.*gap: level"):
        parse_criteria(
            {
                "speed": 1,
                "n_oof": {"threshold": "many"},
                "test_val_gap": {"level": "ignore"},
            }
        )


def test_the_inventorys_defaults_are_ours(tmp_path: Path) -> None:
    theirs = TrainSettings(data_dir=tmp_path).criteria
    assert parse_criteria({k: v.model_dump() for k, v in theirs.items()}) == DEFAULTS
    assert set(theirs) == set(DEFAULTS)
