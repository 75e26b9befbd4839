"""Models side by side: same bars, paired intervals, the best chosen on validation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macd.app.train import comparison, oof
from macd.app.train.metrics import auc, effective_n, interval, resampled_aucs, week_interval
from macd.criteria import evaluate, measured, parse_criteria
from macd.heads import GUIDE, head_names
from macd.run_directory import on_same_bars

HOUR = 3_600_000
HEADS = head_names(GUIDE)
SKILL = {"lgbm": 0.6, "lstm": 0.3, "tft": 0.0}


def table(n: int = 1_500, held: int = 400, *, skill: dict[str, float] = SKILL) -> pl.DataFrame:
    """Bars of five folds and a holdout; models that know a share of the truth."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(n, 3))
    fold = np.repeat(np.arange(5), (n - held) // 5)
    fold = np.concatenate([fold, np.full(n - len(fold), oof.HOLDOUT)])
    frame = pl.DataFrame(
        {
            "row": np.arange(n, dtype=np.int64) + 700,
            "bar_time": pl.Series(np.arange(n, dtype=np.int64) * HOUR).cast(
                pl.Datetime("ms", "UTC")
            ),
            "fold": fold.astype(np.int32),
            **{f"ret_{h}": 0.01 * (truth[:, k] + rng.normal(size=n)) for k, h in enumerate(HEADS)},
        }
    )
    for name, share in skill.items():
        p = 1 / (1 + np.exp(-(share * truth + 0.3 * rng.normal(size=(n, 3)))))
        frame = oof.with_model(frame, name, p)
    return frame


def with_stacking(frame: pl.DataFrame, like: str) -> pl.DataFrame:
    """Stacking that says what another model says, but nothing in its first fold."""
    p = oof.columns(frame, f"p_{like}")
    p[frame["fold"].to_numpy() == 0] = np.nan
    return oof.with_model(frame, "stacking", p)


@pytest.fixture(scope="module")
def made() -> tuple[pl.DataFrame, dict[str, Any]]:
    frame = oof.with_mean(with_stacking(table(), "lgbm"))
    return frame, comparison.compare(frame, 0.003, 0)


def test_all_are_scored_where_all_of_them_speak(
    made: tuple[pl.DataFrame, dict[str, Any]],
) -> None:
    frame, compared = made
    spoken = frame.filter((pl.col("fold") > 0) & (pl.col("ret_5h").abs() > 0.003))
    part = compared["5h"]["val"]
    assert part["n"] == len(spoken)
    assert part["effective_n"] == effective_n(spoken["row"].to_numpy(), 5)
    y = (spoken["ret_5h"].to_numpy() > 0).astype(float)
    assert set(part["models"]) == {"lgbm", "lstm", "tft", "stacking", "mean"}
    times = spoken["bar_time"].dt.epoch("ms").to_numpy()
    for name, figures in part["models"].items():
        p = spoken[f"p_{name}_5h"].to_numpy().astype(np.float64)
        assert figures["value"] == auc(y, p)
        assert (figures["low"], figures["high"]) == week_interval(y, p, times)
        assert figures["brier"] == pytest.approx(np.mean((p - y) ** 2))
        losses = np.where(y == 1, -np.log(p), -np.log(1 - p))
        assert figures["log_loss"] == pytest.approx(losses.mean(), abs=1e-6)


def test_the_same_predictions_differ_by_nothing(
    made: tuple[pl.DataFrame, dict[str, Any]],
) -> None:
    _, compared = made
    for parts in compared.values():
        for part in parts.values():
            assert part["differences"]["stacking_minus_best"] == {
                "value": 0.0, "low": 0.0, "high": 0.0, "best": "lgbm",
            }  # fmt: skip


def test_a_better_model_stands_above_a_worse_one() -> None:
    frame = oof.with_mean(with_stacking(table(), "lgbm"))
    value, detail = measured(_metrics(frame), {})["stacking_vs_mean"]
    assert value is not None and value > 0
    made = comparison.compare(frame, 0.003, 0)["5h"]["val"]["differences"]
    assert made["stacking_minus_mean"]["low"] > 0 > made["mean_minus_best"]["high"]
    assert "against Mean of models at 5h" in detail


def test_a_worse_one_than_the_mean_blocks_and_than_the_best_warns() -> None:
    metrics = _metrics(oof.with_mean(with_stacking(table(), "tft")))
    by_name = {o.name: o for o in evaluate(parse_criteria({}), measured(metrics, {}))}
    for name, level in (("stacking_vs_mean", "block"), ("stacking_vs_best", "warn")):
        assert (by_name[name].ok, by_name[name].level) == (False, level)
        assert by_name[name].value is not None and by_name[name].value < 0
    said = comparison.worth(metrics)
    assert "worse than chance explains" in said and "on the holdout -0." in said


def test_the_best_is_chosen_without_the_holdout() -> None:
    """LightGBM is best on validation bars; that another wins on the holdout changes nothing."""
    frame = table()
    held = frame["fold"].to_numpy() == oof.HOLDOUT
    p, q = oof.columns(frame, "p_lgbm"), oof.columns(frame, "p_tft")
    p[held], q[held] = q[held], p[held]
    frame = oof.with_model(oof.with_model(frame, "lgbm", p), "tft", q)
    compared = comparison.compare(oof.with_mean(with_stacking(frame, "lstm")), 0.003, 0)
    for parts in compared.values():
        assert {p["differences"]["mean_minus_best"]["best"] for p in parts.values()} == {"lgbm"}
        test = parts["test"]["models"]
        assert test["tft"]["value"] > test["lgbm"]["value"]


def test_the_mean_speaks_where_all_base_models_do() -> None:
    frame = table(300, 50)
    p = oof.columns(frame, "p_lstm")
    p[:20, 1] = np.nan
    mean = oof.columns(oof.with_mean(oof.with_model(frame, "lstm", p)), "p_mean")
    assert np.isnan(mean[:20, 1]).all()
    assert np.isfinite(mean).sum() == mean.size - 20
    assert "p_mean_5h" not in oof.with_mean(table(300, 50, skill={"lgbm": 0.5})).columns


def test_one_model_alone_has_no_differences() -> None:
    frame = table(600, 100, skill={"lgbm": 0.5})
    part = comparison.compare(frame, 0.003, 0)["5h"]["val"]
    assert (set(part["models"]), part["differences"]) == ({"lgbm"}, {})
    metrics = _metrics(frame)
    assert measured(metrics, {}) == {}
    assert (comparison.difference_lines(metrics), comparison.worth(metrics)) == ([], "")


def _metrics(frame: pl.DataFrame) -> dict[str, Any]:
    made = {"comparison": comparison.compare(frame, 0.003, 0)}
    models = on_same_bars(made)
    return {"tf": GUIDE, "models": models, "best_head": dict.fromkeys(models, "5h"), **made}


weeks = st.integers(2, 6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weeks=weeks, digits=st.integers(1, 3))
def test_paired_resamples(seed: int, weeks: int, digits: int) -> None:
    """The same model differs by nothing; a difference is that of the AUCs of the very same draw;
    and it is invariant to the order of the models.
    """
    rng = np.random.default_rng(seed)
    n = weeks * 60
    times = np.sort(rng.integers(0, weeks * 168, n)) * HOUR
    y = (rng.random(n) < 0.5).astype(float)
    p = np.round(rng.random(n) + 0.2 * y, digits)
    q = np.round(rng.random(n), digits)
    drawn = resampled_aucs(y, [p, p, q], times, reps=40, seed=1)
    assert interval(drawn[:, 0] - drawn[:, 1]) == (0.0, 0.0) or drawn.shape[0] == 0
    turned = resampled_aucs(y, [q, p], times, reps=40, seed=1)
    np.testing.assert_array_equal(turned[:, ::-1], drawn[:, 1:])
    low, high = interval(drawn[:, 0] - drawn[:, 2])
    back = interval(drawn[:, 2] - drawn[:, 0])
    assert back == pytest.approx((-high, -low), abs=1e-12, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_model_with_noise_added_is_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 168 * 8
    y = (rng.random(n) < 0.5).astype(float)
    good = y + rng.normal(size=n)
    bad = good + 4 * rng.normal(size=n)
    drawn = resampled_aucs(y, [good, bad], np.arange(n) * HOUR)
    low, high = interval(drawn[:, 0] - drawn[:, 1])
    assert 0 < low < auc(y, good) - auc(y, bad) < high
