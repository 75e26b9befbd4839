"""The service does on the holdout's bars what the evaluation of the training says it does there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import polars as pl
import pytest

from macd.app.market.bars import read_bars
from macd.app.predict.policy import Policy, Thresholds
from macd.app.predict.scoring import MODELS, Scorer
from macd.app.service.feed import Bar, Item, bars_of
from macd.app.service.health import Status
from macd.app.service.loop import NEED, Loop, Served
from macd.app.service.predictor import Predictor
from macd.app.service.settings import Feed, Settings, flags
from macd.app.service.signal_log import SignalLog
from macd.app.train import backtest, oof
from tests.support.deployed_app import prepared
from tests.support.training_run import bars_directory, trained_run

pytestmark = pytest.mark.slow

BARS = 90
SIDES = {"long": 1, "short": -1, "flat": 0}
ACTIONS = {"BUY": 1, "SELL": -1, "HOLD": 0}


class Replay:
    """The bars of a frame from `start` on, in the shape of a feed; then it ends the loop."""

    live, state = False, "replaying"

    def __init__(self, bars: Sequence[Bar], start: int, stop: Event) -> None:
        self._bars, self._start, self._stop = bars, start, stop

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        return {"BTCUSD": self._bars[self._start - need : self._start]}

    def wait(self, seconds: float) -> Sequence[Item]:
        if self._start >= len(self._bars):
            self._stop.set()
            return []
        self._start += 1
        return [self._bars[self._start - 1]]


def served(root: Path, bars: Sequence[Bar], start: int, policy: Policy, flag: str) -> list[Any]:
    """The signal lines of a service on these bars, stopped and started again half way."""
    settings = Settings(root, "BTCUSD", "1h", (), "127.0.0.1:1", Feed(), policy)
    scorer = Scorer.load(prepared() / MODELS, "1h")
    half = (start + len(bars)) // 2
    for first, last in ((start, half), (half, len(bars))):
        stop, log = Event(), SignalLog(settings.live)
        loop = Loop(
            settings,
            "20260301T000000Z-00000000",
            [Served(settings, Predictor(scorer, flags({"ML_ENABLE_STACKING": flag}), "1h"))],
            Replay(bars[:last], first, stop),
            log,
            Status({}),
            stop=stop,
        )
        loop.begin()
        loop.run()
        log.close()
    written = next(settings.live.glob("*.jsonl")).read_text().splitlines()
    return [json.loads(line) for line in written]


@pytest.mark.parametrize(
    ("policy", "flag", "name"),
    [
        (Policy(), "0", "base_mean"),
        (Policy("threshold"), "1", "prob_stacking"),
        (Policy("threshold", long_only=True, size=0.5, hold="signal"), "0", "prob_mean"),
    ],
)
def test_service_and_evaluation_take_the_same_actions_and_positions(
    tmp_path: Path, policy: Policy, flag: str, name: str
) -> None:
    run = trained_run()
    frame = read_bars(bars_directory(run) / "BTCUSD_1h.parquet")
    times = frame["timestamp"].dt.epoch("ms").to_numpy().astype(np.int64)
    table = pl.read_parquet(run / "data/gpu_results/oof_1h.parquet")
    rows = np.searchsorted(times, table["bar_time"].dt.epoch("ms").to_numpy())
    head = json.loads((run / "data/ml_models/stacking_meta_1h.json").read_text())["headline"]
    close = frame["close"].to_numpy()
    table = table.with_columns(row=pl.Series(rows))
    market = backtest.market_of(table, close, times, head, "1h")
    tested = np.flatnonzero(market.fold == oof.HOLDOUT)[:BARS]
    said = market.said[name.partition("_")[2]][tested]  # small models hardly leave one half
    low, high = np.quantile(said, (0.3, 0.6))
    policy = dataclasses.replace(policy, thresholds={"all": Thresholds(float(high), float(low))})
    walked = backtest.walk(market, policy)
    evaluated = walked.tracks["test"][name]

    start = int(np.searchsorted(times, walked.parts["test"].times_ms[0]))
    assert start >= NEED
    lines = served(tmp_path, bars_of("BTCUSD", frame)[: start + BARS], start, policy, flag)
    assert len(lines) == BARS
    assert all(line["data"]["components"]["ml_error"] is None for line in lines)
    assert {line["data"]["components"]["ml_horizon"] for line in lines} == {head}
    took = [ACTIONS[line["data"]["action_taken"]] for line in lines]
    held = [SIDES[line["data"]["position"]["side"]] for line in lines]
    assert took == evaluated.actions[:BARS].tolist()
    assert held == evaluated.sides[:BARS].tolist()
    assert len(set(took)) > 1, "a policy that never acts proves nothing"
    assert any(held)
    sizes = {line["data"]["position"]["size"] for line in lines}
    assert sizes <= {0.0, policy.size}
