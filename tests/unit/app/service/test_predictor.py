"""Real models of a tiny training, each broken in turn: the fields stay there and say so."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from macd.app.market import features
from macd.app.market.bars import read_bars
from macd.app.predict.scoring import MODELS, SEQ, Floats, Scorer, window_at
from macd.app.service.loop import NEED
from macd.app.service.predictor import Predictor, _as_numbers, no_models
from macd.app.service.settings import Flags, flags
from tests.support.deployed_app import prepared
from tests.support.training_run import SAMPLE

pytestmark = pytest.mark.slow

PRICES = ("open", "high", "low", "close")
SHADOW, LIVE = flags({}), flags({"ML_ENABLE_STACKING": "1"})


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load(prepared() / MODELS, "1h")


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return read_bars(SAMPLE)[:6000]


def with_model(scorer: Scorer, family: str, model: Callable[[Floats], Floats]) -> Scorer:
    return dataclasses.replace(scorer, models={**scorer.models, family: model})


def fields(scorer: Scorer, bars: pl.DataFrame, mode: Flags = SHADOW) -> dict[str, Any]:
    answer = dict(Predictor(scorer, mode, "1h").predict(bars.tail(NEED), {}).fields)
    json.dumps(answer, allow_nan=False)  # whatever it is, it must fit on a line
    return answer


def test_a_bar_in_the_stream_is_what_the_batch_would_say(
    scorer: Scorer, bars: pl.DataFrame
) -> None:
    table = features.compute(bars, tf="1h").select(scorer.features).to_numpy().astype(np.float32)
    predictor = Predictor(scorer, SHADOW, "1h")
    for row in (3000, 4711, 5999):
        batch = scorer.score(window_at(table, row))
        streamed = predictor.predict(bars[row + 1 - NEED : row + 1], {})
        heads = streamed.fields["ml_heads"]
        for family, by_head in {**batch.base, "stacking": batch.stacking}.items():
            for head, p in by_head.items():
                assert heads[family][head] == pytest.approx(p, abs=1e-5), (row, family, head)
    assert NEED == features.WARMUP - 1 + SEQ


def test_the_row_of_features_is_on_the_line_to_the_last_bit(
    scorer: Scorer, bars: pl.DataFrame
) -> None:
    row = scorer.rows(features.latest(bars.tail(NEED), tf="1h", rows=SEQ))[-1]
    written = json.loads(json.dumps(fields(scorer, bars)["ml_features"]))
    assert np.array_equal(np.array(written, np.float32), row)
    assert len(written) == len(scorer.features)


def test_a_missing_feature_is_null() -> None:
    assert _as_numbers(np.array([1.5, np.nan, np.inf], np.float32)) == [1.5, None, None]


def test_the_line_counts_the_features_outside_of_the_training_s_range(
    scorer: Scorer, bars: pl.DataFrame
) -> None:
    assert scorer.reference is not None
    table = features.latest(bars.tail(NEED), tf="1h", rows=SEQ).select(scorer.reference.names)
    seen = scorer.reference.outside(table.to_numpy().astype(np.float32))
    said = fields(scorer, bars)
    assert (said["ml_features_outside"], said["ml_feature_worst"]) == (seen.count, seen.worst)
    assert seen.count < 20
    last = pl.col("timestamp") == bars["timestamp"].max()
    leap = [pl.when(last).then(3 * pl.col(c)).otherwise(pl.col(c)).alias(c) for c in PRICES]
    said = fields(scorer, bars.with_columns(leap))
    assert said["ml_features_outside"] > 20
    assert said["ml_feature_worst"] in scorer.features


def test_a_release_without_quantiles_says_nothing_of_them(
    scorer: Scorer, bars: pl.DataFrame
) -> None:
    for quantiles in (b"", b"damaged"):
        said = fields(dataclasses.replace(scorer, quantiles=quantiles), bars)
        assert (said["ml_features_outside"], said["ml_feature_worst"]) == (None, None)
        assert said["ml_error"] is None


def test_in_shadow_the_base_models_decide_and_stacking_is_logged(
    scorer: Scorer, bars: pl.DataFrame
) -> None:
    answer = fields(scorer, bars)
    each = [answer[f"ml_{name}_prob"] for name in ("lgb", "lstm", "tft")]
    assert min(each) <= answer["ml_bull_prob"] <= max(each)
    assert answer["ml_bull_prob"] == answer["ml_avg_prob"] != answer["ml_stacking_prob"]
    means = answer["ml_heads"]["mean"]
    assert set(means) == set(answer["ml_heads"]["lgbm"])
    assert means[answer["ml_horizon"]] == pytest.approx(answer["ml_avg_prob"], abs=1e-6)
    assert answer["ml_stacking_mode"] == "shadow"
    assert answer["ml_error"] is None
    assert answer["ml_stacking_skipped_reason"] is None


def test_live_stacking_decides(scorer: Scorer, bars: pl.DataFrame) -> None:
    answer = fields(scorer, bars, LIVE)
    assert answer["ml_bull_prob"] == answer["ml_stacking_prob"]
    assert answer["ml_stacking_mode"] == "live"
    assert answer["ml_direction"] == ("bull" if answer["ml_stacking_prob"] > 0.5 else "bear")


def test_with_a_weight_stacking_decides_in_part(scorer: Scorer, bars: pl.DataFrame) -> None:
    for weight in (1, 25, 99):
        mode = flags({"ML_ENABLE_STACKING": "1", "ML_STACKING_WEIGHT": str(weight)})
        answer = fields(scorer, bars, mode)
        stacked, mean = answer["ml_stacking_prob"], answer["ml_avg_prob"]
        expected = weight / 100 * stacked + (1 - weight / 100) * mean
        assert answer["ml_bull_prob"] == pytest.approx(expected, abs=1e-15)
        assert (answer["ml_stacking_mode"], answer["ml_stacking_weight"]) == ("live", weight)
    assert fields(scorer, bars)["ml_stacking_weight"] == 0
    assert fields(scorer, bars, LIVE)["ml_stacking_weight"] == 100
    without = dataclasses.replace(scorer, stacking=None)
    answer = fields(without, bars, mode)  # the line says what the process was started with
    assert (answer["ml_stacking_mode"], answer["ml_stacking_weight"]) == ("off", 99)
    assert answer["ml_bull_prob"] == answer["ml_avg_prob"]


def test_the_average_is_the_equal_mean_of_log_odds(scorer: Scorer, bars: pl.DataFrame) -> None:
    def known(value: float) -> Callable[[Floats], Floats]:
        return lambda windows: np.full((len(windows), 3), value, np.float32)

    assert scorer.stacking is not None
    head = scorer.stacking.headline
    made = dataclasses.replace(
        scorer,
        models={"lgbm": known(0.2), "lstm": known(0.6), "tft": known(0.9)},
        metas={"lgbm": {"calibration": dict.fromkeys(scorer.heads, 0.5)}, "lstm": {}, "tft": {}},
    )
    answer = fields(made, bars)
    assert answer["ml_horizon"] == head
    odds = [math.log(p / (1 - p)) for p in (0.2, 0.6, 0.9)]
    odds[0] *= 0.5  # its meta calibrates it
    assert answer["ml_lgb_prob"] == pytest.approx(1 / (1 + math.exp(-odds[0])), abs=1e-6)
    slope = scorer.stacking.mean_slopes[head]  # and the mean has a slope of its own
    assert slope != 1.0
    expected = 1 / (1 + math.exp(-slope * sum(odds) / 3))
    assert answer["ml_avg_prob"] == pytest.approx(expected, abs=1e-6)


def raising(_: Floats) -> Floats:
    raise RuntimeError("CUDA on fire")


def exiting(_: Floats) -> Floats:
    raise SystemExit(3)


def nan(windows: Floats) -> Floats:
    return np.full((len(windows), 3), np.nan, np.float32)


def outside(windows: Floats) -> Floats:
    return np.full((len(windows), 3), 1.5, np.float32)


def wrong_shape(windows: Floats) -> Floats:
    return np.zeros((len(windows), 2), np.float32)


@pytest.mark.parametrize("mode", [SHADOW, LIVE])
@pytest.mark.parametrize("family", ["lgbm", "lstm", "tft"])
@pytest.mark.parametrize("broken", [raising, nan, outside, wrong_shape])
def test_a_broken_model_is_named_and_the_others_go_on(
    scorer: Scorer, bars: pl.DataFrame, broken: Any, family: str, mode: Flags
) -> None:
    whole = fields(scorer, bars, mode)
    answer = fields(with_model(scorer, family, broken), bars, mode)
    assert answer["ml_error"].startswith(f"{family}: ")
    names = {"lgbm": "ml_lgb_prob", "lstm": "ml_lstm_prob", "tft": "ml_tft_prob"}
    assert answer[names.pop(family)] is None
    assert {key: answer[key] for key in names.values()} == {k: whole[k] for k in names.values()}
    assert answer["ml_stacking_prob"] is None
    assert answer["ml_stacking_mode"] == "off"
    assert family in answer["ml_stacking_skipped_reason"]
    assert answer["ml_bull_prob"] == answer["ml_avg_prob"] is not None


def test_even_one_that_ends_the_process_does_not(scorer: Scorer, bars: pl.DataFrame) -> None:
    predictor = Predictor(with_model(scorer, "tft", exiting), SHADOW, "1h")
    for _ in range(2):
        prediction = predictor.predict(bars.tail(NEED), {})
        assert "SystemExit" in prediction.fields["ml_error"]
        assert prediction.p is None


def test_one_that_hangs_holds_up_a_bar_and_not_the_next(scorer: Scorer, bars: pl.DataFrame) -> None:
    release = threading.Event()

    def hanging(windows: Floats) -> Floats:
        release.wait()
        return np.full((len(windows), 3), 0.5, np.float32)

    predictor = Predictor(with_model(scorer, "lstm", hanging), SHADOW, "1h", limit=0.2)
    first = predictor.predict(bars.tail(NEED), {}).fields
    second = predictor.predict(bars.tail(NEED), {}).fields
    release.set()
    assert "did not answer within" in first["ml_error"]
    assert "earlier bar" in second["ml_error"]
    assert second["ml_bull_prob"] is None
    whole = None
    while whole is None:  # the hang is over: the models are asked again
        whole = predictor.predict(bars.tail(NEED), {}).p


def test_all_models_broken_is_said_and_nothing_is_decided(
    scorer: Scorer, bars: pl.DataFrame
) -> None:
    made = dataclasses.replace(scorer, models=dict.fromkeys(scorer.models, raising))
    answer = fields(made, bars, LIVE)
    assert answer["ml_bull_prob"] is answer["ml_direction"] is None
    assert all(family in answer["ml_error"] for family in ("lgbm", "lstm", "tft"))


def test_a_missing_or_young_stacking_model_is_a_reason(scorer: Scorer, bars: pl.DataFrame) -> None:
    without = dataclasses.replace(scorer, stacking=None, errors={"stacking": "no such file"})
    answer = fields(without, bars, LIVE)
    assert answer["ml_stacking_skipped_reason"] == "no such file"
    assert answer["ml_bull_prob"] == answer["ml_avg_prob"] is not None
    assert answer["ml_error"] is None  # the base models did all that was asked of them

    young = fields(scorer, bars, flags({"ML_STACKING_MIN_SAMPLES": "1000000"}))
    assert "below ML_STACKING_MIN_SAMPLES 1000000" in young["ml_stacking_skipped_reason"]
    assert (young["ml_stacking_mode"], young["ml_stacking_prob"]) == ("off", None)
    assert fields(scorer, bars, flags({"ML_STACKING_MIN_SAMPLES": "1"}))["ml_stacking_prob"]


def test_distrusted_models_are_logged_and_do_not_decide(scorer: Scorer, bars: pl.DataFrame) -> None:
    predictor = Predictor(scorer, LIVE, "1h", distrust="golden predictions fail here")
    prediction = predictor.predict(bars.tail(NEED), {})
    assert prediction.p is None
    assert prediction.fields["ml_tft_prob"] is not None
    assert "golden" in prediction.fields["ml_error"]


def test_bad_features_are_an_error_on_the_line(scorer: Scorer, bars: pl.DataFrame) -> None:
    prediction = Predictor(scorer, SHADOW, "1h").predict(bars.tail(NEED - 1), {})
    assert "features" in prediction.fields["ml_error"]
    unknown = dataclasses.replace(scorer, features=("no_such_feature",))
    assert "no_such_feature" in fields(unknown, bars)["ml_error"]


def test_lines_without_models_have_the_same_fields(scorer: Scorer, bars: pl.DataFrame) -> None:
    assert set(no_models("models", "gone").fields) == set(fields(scorer, bars))


def test_no_infinite_number_reaches_a_line(scorer: Scorer, bars: pl.DataFrame) -> None:
    def endless(_: Any, __: Any) -> dict[str, float]:
        return {"24h": math.inf, "5h": math.nan, "12h": 0.5}

    class Odd:
        headline = "24h"
        facts: dict[str, Any] = {}  # noqa: RUF012
        mean_slopes: dict[str, float] = {}  # noqa: RUF012
        probability = staticmethod(endless)

        @staticmethod
        def skipped_reason(*_: Any) -> str:
            return ""

    answer = fields(dataclasses.replace(scorer, stacking=Odd()), bars, LIVE)  # type: ignore[arg-type]
    assert (answer["ml_stacking_prob"], answer["ml_stacking_mode"]) == (None, "off")
    assert answer["ml_stacking_skipped_reason"] == "no usable output"
