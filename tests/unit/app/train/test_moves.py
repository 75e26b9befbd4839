"""Bars that hardly move are told before any fit, with a min_move that really works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.pages import training as report
from macd.app.train import dataset, pipeline
from macd.app.train.settings import settings_from
from macd.errors import MacdError, RefusedError, UsageError
from tests.unit.app.train.test_pipeline import ENVIRONMENT, NOW, QUICK, SAMPLE, SMALL

pytestmark = pytest.mark.slow


def calm(power: float, rows: int = 3200) -> pl.DataFrame:
    """The sample's bars as those of a stablecoin: every return a small part of the real one."""
    bars = read_bars(SAMPLE)[:rows]
    first = bars["close"][0]
    prices = ((pl.col(name) / first) ** power for name in ("open", "high", "low", "close"))
    return bars.with_columns(*prices)


def settings_for(where: Path, bars: pl.DataFrame, **changes: Any) -> Any:
    write_bars(bars, where / "bars" / "PEGUSD_1h.parquet")
    own = {"symbol": "PEGUSD", "data": str(where / "bars"), "out": str(where / "out")}
    return settings_from({**SMALL, "params": QUICK, **own, **changes})


def run(settings: Any) -> dict[str, Any]:
    return pipeline.run(settings, clock=lambda: NOW, environment=ENVIRONMENT, echo=False)


@pytest.mark.parametrize(("power", "mode"), [(0.03, "lgbm"), (0.002, "all")])
def test_the_value_that_is_named_really_works(tmp_path: Path, power: float, mode: str) -> None:
    bars = calm(power)
    with pytest.raises(UsageError) as caught:
        run(settings_for(tmp_path, bars))
    error = caught.value
    assert re.fullmatch(
        r"only \d+ of 2,668 bars moved more than min_move 0\.3 % within 5 bars "
        r"\(median move 0\.\d+ %\)",
        error.what,
    )
    assert not (tmp_path / "out" / "data").exists()  # nothing was fitted
    (value,) = re.findall(r"--min-move (0\.0*\d+) ", error.hint)
    done = run(settings_for(tmp_path, bars, min_move=float(value), mode=mode))
    assert done["state"] == "done"
    assert done["complete"] == (mode == "all")


def test_no_value_helps_bars_that_stand_still(tmp_path: Path) -> None:
    still = calm(0.0)
    limits = {"frozen_error": 10_000}
    with pytest.raises(UsageError) as caught:
        run(settings_for(tmp_path, still, limits=limits))
    assert "prices hardly move" in caught.value.what
    assert "--min-move 0:" in caught.value.why
    assert "--min-move" not in caught.value.hint


def test_stacking_counts_beforehand_what_it_will_ask_for(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, calm(1.0))
    data = dataset.build(dataset.read(settings), settings.min_move)
    plan = dataset.plan(data, settings)
    dataset.require_moves(data, plan, 0.003, stacking=100)
    with pytest.raises(UsageError, match="only"):
        dataset.require_moves(data, plan, 0.003, stacking=1350)
    with pytest.raises(RefusedError) as caught:
        dataset.require_moves(data, plan, 0.003, stacking=5000)
    assert "stacking asks for 5,000 out-of-fold moves" in caught.value.why
    (most,) = re.findall(r"ML_STACKING_MIN_SAMPLES to at most (\d+)$", caught.value.hint)
    dataset.require_moves(data, plan, 0.003, stacking=int(most))


def test_what_a_person_accepts_is_on_record_in_the_run(tmp_path: Path) -> None:
    """A wick as of the crash of October 2025, and hours in which the exchange stood still."""
    bars = calm(1.0)
    crash = pl.when(pl.int_range(pl.len()) == 1500).then(pl.col("low") * 0.4)
    bars = bars.with_columns(crash.otherwise(pl.col("low")).alias("low"))
    bars = pl.concat([bars[:2000], bars[2033:]])
    with pytest.raises(MacdError) as caught:
        run(settings_for(tmp_path, bars, mode="verify"))
    hint = caught.value.hint
    assert "data.fetch" not in hint
    typed = [text.replace("WHY", "as everywhere") for text in re.findall(r'--accept "(.*)"', hint)]
    done = run(settings_for(tmp_path, bars, mode="verify", accept=typed))
    accepted = done["bars_checked"]["accepted"]
    assert {a["check"] for a in accepted} == {"spike", "gap", "missing"}
    assert {a["reason"] for a in accepted} == {"as everywhere"}
    assert "accepted: as everywhere" in report.write(tmp_path / "out").read_text()
    (limits,) = re.findall(r"--limits (\S+)", hint)
    done = run(settings_for(tmp_path, bars, mode="verify", limits=limits))
    assert done["bars_checked"]["limits"]["gap_error"] == 33
    assert done["bars_checked"]["accepted"] == []
    with pytest.raises(UsageError, match="2 problems"):
        settings_from({"limits": "gap=3", "accept": ["check=nan,symbol=A,reason=x"]})


def test_samples_that_a_criterion_can_not_have_are_told_before_any_fit(tmp_path: Path) -> None:
    bars = read_bars(SAMPLE)[:3200]
    settings = settings_for(tmp_path, bars)
    made = dataset.build(dataset.read(settings), settings.min_move)
    plan = dataset.plan(made, settings)

    def too_few(wanted: float, min_move: float = settings.min_move) -> str:
        return dataset.too_few_samples(made.returns, plan, min_move, wanted)

    said = too_few(10_000)
    (most,) = re.findall(r"to at most ([0-9,]+)$", said)
    (whole,) = re.findall(r"--min-move 0 gives ([0-9,]+)", said)
    assert "criterion n_oof asks for 10,000" in said
    assert too_few(float(most.replace(",", ""))) == ""
    assert too_few(float(most.replace(",", "")) + 1)
    assert too_few(float(whole.replace(",", "")), 0.0) == ""
    assert too_few(float(whole.replace(",", "")) + 1, 0.0)
