"""Champion against challenger: same bars, paired intervals, and what makes them not comparable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macd.app.train import compare_runs, metrics
from macd.app.train.metrics import auc
from macd.errors import ExitCode, MacdError, UsageError
from macd.run_directory import FILES, read_run
from tests.support.run_directories import write_run

MODELS = ["lgbm", "lstm", "tft", "stacking", "mean"]


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "old", skill=0.5)


def compared(champion: Path, challenger: Path) -> dict[str, Any]:
    return compare_runs.compare(read_run(champion), read_run(challenger))


def test_a_run_against_itself_differs_in_nothing(champion: Path) -> None:
    comparison = compared(champion, champion)
    assert comparison["verdict"]["outcome"] == "not shown"
    assert comparison["differs"] == {}
    assert (
        comparison["rows"]["both"]
        == comparison["rows"]["validation"] + comparison["rows"]["holdout"]
        == 1_600
    )
    assert list(comparison["parts"]["5h"]["val"]["models"]) == MODELS
    for parts in comparison["parts"].values():
        for part in parts.values():
            for both in part["models"].values():
                assert both["champion"] == both["challenger"]
                assert both["disagree"] == {"n": 0, "challenger_right": None}
                for made in both["difference"].values():
                    assert (made["value"], made["low"], made["high"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("skill", "outcome", "said"),
    [(1.5, "better", "is better"), (0.5, "not shown", "is not shown to be better"),
     (0.05, "worse", "is worse")],
)  # fmt: skip
def test_the_verdict_goes_by_the_interval_of_the_difference(
    champion: Path, tmp_path: Path, skill: float, outcome: str, said: str
) -> None:
    comparison = compared(champion, write_run(tmp_path / "new", skill=skill, noise=3))
    made = comparison["verdict"]
    assert (made["outcome"], made["model"], made["head"]) == (outcome, "stacking", "5h")
    n = comparison["parts"]["5h"]["val"]["n"]
    assert made["text"].startswith(f"On these {n:,} bars the challenger {said}")
    assert "bars of both holdouts" in made["text"]
    assert "bars that count are of 8 weeks" in " ".join(comparison["limits"])


def test_the_figures_are_of_the_bars_where_all_models_of_both_speak(
    champion: Path, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "new", skill=1.0, noise=2)
    comparison = compared(champion, path)
    old, new = (compare_runs.read_side(read_run(run)) for run in (champion, path))
    ret, silent = old.returns[:, 0], np.isnan(old.p["stacking"][:, 0])
    on = ~old.holdout & ~silent & (np.abs(ret) > 0.003)
    part = comparison["parts"]["5h"]["val"]
    assert part["n"] == on.sum() < (~old.holdout).sum()
    y = (ret[on] > 0).astype(float)
    for name in MODELS:
        a, b = old.p[name][on, 0], new.p[name][on, 0]
        made = part["models"][name]
        assert made["champion"]["auc"] == pytest.approx(auc(y, a))
        assert made["difference"]["auc"]["value"] == pytest.approx(auc(y, b) - auc(y, a))
        assert made["difference"]["brier"]["value"] == pytest.approx(
            np.mean((b - y) ** 2) - np.mean((a - y) ** 2)
        )
        apart = (a >= 0.5) != (b >= 0.5)
        assert made["disagree"]["n"] == apart.sum() > 0
        assert made["disagree"]["challenger_right"] == np.mean((b[apart] >= 0.5) == (y[apart] == 1))


def test_paired_means_are_drawn_over_whole_weeks() -> None:
    times = np.arange(1_000, dtype=np.int64) * 3_600_000
    constant = metrics.resampled_means(np.full(1_000, 0.25), times)
    np.testing.assert_allclose(constant, 0.25)
    of_week = (times // metrics.WEEK_MS).astype(float)  # alike in a week: blocks make it wide
    shuffled = np.random.default_rng(0).permutation(of_week)
    spread = [np.ptp(metrics.interval(metrics.resampled_means(v, times))) for v in
              (of_week, shuffled)]  # fmt: skip
    assert spread[0] > 5 * spread[1]
    assert len(metrics.resampled_means(np.ones(100), times[:100])) == 0


def test_bars_that_only_the_challenger_had_learnt_are_not_compared(
    champion: Path, tmp_path: Path
) -> None:
    """300 more bars: its last fits learnt what the champion's holdout tests."""
    path = write_run(tmp_path / "new", skill=1.5, noise=2, bars=(0, 2_300))
    comparison = compared(champion, path)
    old, new = (compare_runs.read_side(read_run(run)) for run in (champion, path))
    assert new.run.metrics["holdout"]["from"] > old.run.metrics["holdout"]["from"]
    left = comparison["rows"]["left_out"]
    assert left["learnt_later"] > 0
    assert left["holdout_in_one"] > 0
    assert comparison["rows"]["holdout"] == 0
    assert comparison["parts"]["5h"]["test"]["n"] == 0
    assert "no holdout bar is left" in comparison["verdict"]["text"]
    said = " ".join(comparison["limits"])
    assert "which the champion's holdout" in said
    assert "over a week later" in said
    assert comparison["differs"]["bars"]["rows"] == [2_000, 2_300]


def test_a_few_more_bars_stay_comparable(champion: Path, tmp_path: Path) -> None:
    comparison = compared(champion, write_run(tmp_path / "new", noise=2, bars=(0, 2_024)))
    assert comparison["rows"]["left_out"]["learnt_later"] == 0
    assert comparison["rows"]["holdout"] > 300


def test_a_refit_on_the_holdout_and_repeated_looks_are_said(champion: Path, tmp_path: Path) -> None:
    looks = {"holdout": {**read_run(champion).metrics["holdout"], "looks": 3}}
    path = write_run(tmp_path / "new", noise=2, metas={"trained_until_ms": 2**42}, metrics=looks)
    said = " ".join(compared(champion, path)["limits"])
    assert "fitted again on its own holdout" in said
    assert "looked at 3 times" in said


def test_other_prices_are_left_out_and_counted(champion: Path, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "new"))
    old = compare_runs.read_side(read_run(champion))
    returns = old.returns.copy()
    returns[:40] += 0.001
    changed = dataclasses.replace(compare_runs.read_side(run), returns=returns)
    with pytest.MonkeyPatch.context() as patched:
        sides = iter([old, changed])
        patched.setattr(compare_runs, "read_side", lambda _: next(sides))
        comparison = compare_runs.compare(old.run, run)
    assert comparison["rows"]["left_out"]["other_returns"] == 40
    assert any("other prices" in said for said in comparison["limits"])


def test_what_differs_is_named(champion: Path, tmp_path: Path) -> None:
    path = write_run(
        tmp_path / "new",
        settings={"params": {"lstm": {"epochs": 9}}, "cache": "/elsewhere", "workers": 9},
        metas={"features": ["b", "c"]},
        metrics={"code_digest": "def", "libraries": {"numpy": "3"}},
    )
    assert compared(champion, path)["differs"] == {
        "settings": {"params.lstm.epochs": [None, 9]},
        "features": {f: {"gained": ["c"], "lost": ["a"]} for f in ("lgbm", "lstm", "tft")},
        "code": {"digest": ["abc", "def"]},
        "libraries": {"numpy": ["2", "3"]},
    }


@pytest.mark.parametrize("other", [{"symbol": "ETHUSD"}, {"tf": "4h"}])
def test_another_symbol_or_timeframe_is_one_clear_error(
    champion: Path, tmp_path: Path, other: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="different symbols or timeframes") as caught:
        compared(champion, write_run(tmp_path / "new", **other))
    assert "BTCUSD 1h" in caught.value.why


def test_runs_without_a_common_bar_or_a_table_say_so(champion: Path, tmp_path: Path) -> None:
    with pytest.raises(MacdError, match="no tested bar in common"):
        compared(champion, write_run(tmp_path / "later", bars=(3_000, 5_000)))
    bare = write_run(tmp_path / "bare")
    (bare / FILES.out_of_fold("1h")).unlink()
    with pytest.raises(MacdError, match="no out-of-fold table"):
        compared(champion, bare)
    answer = compare_runs.answer({"champion": str(champion), "challenger": str(bare)})
    assert answer["error"]["exit_code"] == ExitCode.FAILED


def test_heads_of_15m_named_in_the_old_way_meet_the_new(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", tf="15m", heads=("5h", "12h", "24h"))
    comparison = compared(old, write_run(tmp_path / "new", tf="15m", skill=1.5, noise=2))
    assert list(comparison["parts"]) == ["h5", "h12", "h24"]
    assert comparison["verdict"]["head"] == "h5"
    assert "Stacking at 5 bars (1h15m)" in comparison["verdict"]["text"]
