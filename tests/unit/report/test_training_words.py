"""What the page of a training says first: verdict, numbers, and the doubts it must not hide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macd.app.market.features import feature_names
from macd.app.pages import figures, names, opening, training
from macd.errors import MacdError, UsageError
from macd.run_directory import TrainingRun, read_run

Made = dict[str, Any]


def auc(value: float | None, half: float = 0.02, n: int = 1000) -> Made:
    ends = (None, None) if value is None else (value - half, value + half)
    return {
        "value": value,
        "low": ends[0],
        "high": ends[1],
        "n": n,
        "effective_n": n / 5,
        "base_rate": 0.5,
        "brier": 0.25,
    }


def model(val: float, test: float, half: float = 0.02) -> Made:
    head = {
        "val": auc(val, half),
        "val_all": auc(val - 0.01, half),
        "test": auc(test, half),
        "test_all": auc(test - 0.01, half),
        "folds": [{"fold": 0, **auc(None)}, {"fold": 1, **auc(val, half)}],
        "reliability": [],
    }
    return dict.fromkeys(("5h", "12h", "24h"), head)


def outcome(name: str, ok: bool, level: str = "block") -> Made:
    return {"name": name, "title": f"the {name}", "ok": ok, "level": level}


def run(models: Made | None = None, **changes: Any) -> TrainingRun:
    models = {"stacking": model(0.56, 0.565), "volatility": model(0.50, 0.50)} | (models or {})
    metrics = {
        "models": models,
        "best_head": dict.fromkeys(models, "5h"),
        "min_move": 0.003,
        "holdout": {"openings": 1},
    }
    values: Made = {
        "directory": Path("runs/x"),
        "result": {"state": "done", "mode": "all"},
        "settings": {},
        "metrics": metrics,
        "criteria": (outcome("a", True),),
        "audit": {"ok": True, "checks": []},
        "findings": (),
        "stacking": {},
        "metas": {},
        "job": {},
    }
    return TrainingRun(**{**values, **changes})


@pytest.mark.parametrize(
    ("criteria", "mood", "words"),
    [
        ([("a", True), ("b", True)], "good", "2 of 2 criteria met: a release may be made"),
        ([("a", True), ("b", False, "warn")], "warn", "1 of 2 criteria met: a release may be made"),
        ([("a", False), ("b", False, "warn")], "bad", "0 of 2 criteria met: a release is blocked"),
    ],
)
def test_the_verdict_follows_the_criteria(criteria: list[Any], mood: str, words: str) -> None:
    made = training.verdict(run(criteria=tuple(outcome(*c) for c in criteria)))
    assert made.mood == mood
    assert made.words.startswith(words)


def test_only_what_blocks_is_named_as_blocking() -> None:
    made = training.verdict(run(criteria=(outcome("hard", False), outcome("soft", False, "warn"))))
    assert "the hard" in made.why
    assert "the soft" not in made.why


@pytest.mark.parametrize(
    ("result", "mood", "words"),
    [
        ({}, "warn", "not finished"),
        (
            {"state": "failed", "stage": "tft", "what": "out of memory"},
            "bad",
            "failed in stage tft",
        ),
        ({"state": "cancelled", "stage": "run"}, "bad", "was stopped"),
    ],
)
def test_a_run_that_did_not_end_well_is_never_praised(result: Made, mood: str, words: str) -> None:
    made = training.verdict(run(result=result))
    assert made.mood == mood
    assert words in made.words
    assert "release" not in made.words


def test_a_clean_run_needs_no_caution() -> None:
    assert training.cautions(run()) == []


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"audit": {"ok": False, "checks": [{"name": "peek", "ok": False}]}}, "(Peek)"),
        ({"audit": {}}, "No leak audit ran"),
        ({"models": {"stacking": model(0.51, 0.515)}}, "chance explains it"),
        ({"models": {"stacking": model(0.60, 0.56)}}, "worse on the holdout than chance explains"),
        ({"models": {"volatility": model(0.45, 0.45)}}, "Volatility alone is 0.050"),
        ({"models": {"volatility": model(0.55, 0.55)}}, "Volatility alone is 0.050"),
        ({"models": {"ridge": model(0.56, 0.56)}}, "A linear model of the last returns is 0.060"),
    ],
)
def test_doubts_are_said(changes: Made, doubt: str) -> None:
    (words,) = training.cautions(run(**changes))
    assert doubt in words


@pytest.mark.parametrize("name", ["looks", "openings"])  # openings: written by earlier versions
def test_looking_at_the_holdout_again_is_said(name: str) -> None:
    opened = run()
    opened.metrics["holdout"] = {name: 3}
    (words,) = training.cautions(opened)
    assert "3 configurations of a model were evaluated" in words


def test_what_was_chosen_after_looking_is_said() -> None:
    looked = run()
    looked.metrics["caveats"] = ["Features were chosen on these bars."]
    assert training.cautions(looked) == ["Features were chosen on these bars."]


def test_the_headline_never_stands_without_all_bars_baseline_and_effective_n() -> None:
    tiles = {tile.title: tile for tile in training.tiles(run())}
    assert tiles["Stacking 5h, validation"].value == "0.560"
    assert tiles["Stacking 5h, validation"].interval == "[0.540, 0.580]"
    assert tiles["The same on ALL bars"].value == "0.550"
    assert tiles["The same on the holdout"].value == "0.565"
    assert tiles["Volatility only"].value == "0.500"
    assert (tiles["Effective sample size"].value, tiles["Effective sample size"].interval) == (
        "200",
        "of 1,000 bars",
    )


def test_the_headline_is_the_stack_then_the_nets_then_the_trees() -> None:
    assert training.headline(run()) == "stacking"
    only = run()
    del only.metrics["models"]["stacking"]
    only.metrics["models"] |= {"lgbm": model(0.6, 0.6), "lstm": model(0.55, 0.55)}
    assert training.headline(only) == "lstm"
    assert training.tiles(run(metrics={})) == []


def test_reading_tells_no_run_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the directory of a training"):
        read_run(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    assert read_run(tmp_path).state == "unfinished"
    (tmp_path / "events.jsonl").write_text('{"t": 0, "event": "run_started"}\n{"t": 60, "ev')
    assert read_run(tmp_path).started == "1970-01-01T00:00:00+00:00", "a line on its way is no harm"
    (tmp_path / "events.jsonl").write_text('{"t": 0}\nnonsense\n')
    with pytest.raises(MacdError, match=r"events\.jsonl") as caught:
        _ = read_run(tmp_path).started
    assert "line 2" in caught.value.why


def test_the_star_marks_the_headline_alone() -> None:
    names = [str(row[0]) for row in training.all_auc(run()).rows]
    assert [name for name in names if "★" in name] == ["Stacking 5h ★"]


def test_the_run_says_what_a_criterion_measured_in_its_own_unit() -> None:
    made = {
        "net_edge": (-45.94, "measured −45.9"),
        "flag_matters": (0.0234, "measured 2.3 %"),
        "n_oof": (9417, "measured 9,417"),
        "lstm_val_auc": (0.56721, "measured 0.567"),
        "leak_audit": (1.0, "yes"),
        "onnx_test": (None, "not measured"),
    }
    for name, (value, shown) in made.items():
        assert training.shown_value({"name": name, "value": value}) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ret_24", "return of 24 bars"),
        ("ret_1", "return of 1 bar"),
        ("x_ethusd_ret_1", "ETHUSD: return of 1 bar"),
        ("lstm_5h", "LSTM 5h"),
        ("lgbm_panel_12h", "LightGBM, panel 12h"),
        ("vol_24_168", "volatility, 24 to 168 bars"),
        ("macd_hist_change", "MACD histogram change"),
    ],
)
def test_features_have_names_for_people(name: str, shown: str) -> None:
    assert names.feature(name) == shown


def test_no_feature_is_shown_by_its_key_and_no_two_alike() -> None:
    shown = [names.feature(name) for name in feature_names(["ETHUSD"])]
    assert not [name for name in shown if "_" in name]
    assert len(set(shown)) == len(shown)


def test_a_run_without_policies_or_comparison_opens_as_before() -> None:
    old = run()
    assert opening.equity(old) == []
    assert opening.discrimination(old, "5h") == []
    assert opening.policy_words(old) == []
    assert opening.policies_table(old, "val") is None
    assert figures.contributions(old) == figures.roc(old) == figures.hits(old) == []


def test_models_side_by_side_are_of_the_bars_of_which_all_speak() -> None:
    """A model's own bars, of which there are more, stand by themselves: folds, calibration."""
    same = {name: auc(at, n=700) for name, at in (("stacking", 0.61), ("volatility", 0.52))}
    part = {"n": 700, "effective_n": 140.0, "base_rate": 0.5, "models": same, "differences": {}}
    parts = dict.fromkeys(("val", "val_all", "test", "test_all"), part)
    made = run()
    metrics = {**made.metrics, "comparison": dict.fromkeys(("5h", "12h", "24h"), parts)}
    made = run(metrics=metrics)
    first = training.tiles(made)[0]
    assert (first.value, training.tiles(made)[3].value) == ("0.610", "0.520")
    for row in training.all_auc(made).rows:
        shown = "0.610" if str(row[0]).startswith("Stacking") else "0.520"
        assert all(str(cell).startswith(shown) for cell in row[1:5]), row
        assert row[5] == "700"
    for figure in figures.auc_by_head(made, "val"):
        assert {row[1] for row in figure.table.rows} == {"0.610", "0.520"}
