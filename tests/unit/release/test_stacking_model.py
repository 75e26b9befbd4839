"""The stacking JSON: computed in plain Python, strict about its content, calm about its inputs."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.predict import stacking
from macd.app.predict.stacking import StackingError, StackingModel

HEAD = {
    "inputs": ["lgbm_5h", "lstm_5h", "hour_sin"],
    "mean": [0.1, -0.2, 0.0],
    "scale": [0.5, 0.25, 0.7],
    "meta_coefficients": [0.3, 0.2, -0.1],
    "intercept": 0.05,
    "slope": 1.5,
    "limit": 8.0,
}
DOCUMENT = {
    "format": "macd-stacking/1",
    "bases": ["lgbm_5h", "lstm_5h"],
    "context": ["hour_sin"],
    "clip": 1e-4,
    "headline": "5h",
    "heads": {"5h": HEAD},
    "n_oof_samples": 12345,
}
BASE = {"lgbm_5h": 0.6, "lstm_5h": 0.45}
CONTEXT = {"hour_sin": 0.5}


def model(**changes: Any) -> StackingModel:
    return StackingModel.from_json(json.dumps({**DOCUMENT, **changes}).encode())


def head(**changes: Any) -> dict[str, Any]:
    return {"heads": {"5h": {**HEAD, **changes}}}


def test_probability_is_the_calibrated_logistic_regression_done_by_hand() -> None:
    z = [
        (math.log(0.6 / 0.4) - 0.1) / 0.5,
        (math.log(0.45 / 0.55) + 0.2) / 0.25,
        0.5 / 0.7,
    ]
    score = 0.3 * z[0] + 0.2 * z[1] - 0.1 * z[2] + 0.05
    expected = 1 / (1 + math.exp(-1.5 * score))
    assert model().probability(BASE, CONTEXT)["5h"] == pytest.approx(expected, abs=1e-14)
    assert model().skipped_reason(BASE, CONTEXT) == ""
    assert model().facts["n_oof_samples"] == 12345


def test_certain_bases_and_freak_context_stay_within_bounds() -> None:
    one = model().probability({"lgbm_5h": 1.0, "lstm_5h": 0.0}, {"hour_sin": 1e300})["5h"]
    capped = model().probability({"lgbm_5h": 1 - 1e-4, "lstm_5h": 1e-4}, {"hour_sin": 8.0 * 0.7})[
        "5h"
    ]
    assert one is not None
    assert 0.0 < one < 1.0
    assert one == pytest.approx(capped, abs=1e-12)


@pytest.mark.parametrize(
    ("base", "context", "bad"),
    [
        ({"lgbm_5h": 0.6}, CONTEXT, "lstm_5h"),
        ({**BASE, "lstm_5h": math.nan}, CONTEXT, "lstm_5h"),
        ({**BASE, "lstm_5h": 1.2}, CONTEXT, "lstm_5h"),
        ({**BASE, "lgbm_5h": None}, CONTEXT, "lgbm_5h"),
        ({**BASE, "lgbm_5h": "much"}, CONTEXT, "lgbm_5h"),
        (BASE, {}, "hour_sin"),
        (BASE, {"hour_sin": math.inf}, "hour_sin"),
        ({}, {}, "lgbm_5h, lstm_5h, hour_sin"),
    ],
)
def test_a_missing_input_gives_none_and_a_reason_that_names_it(
    base: dict[str, Any], context: dict[str, Any], bad: str
) -> None:
    assert model().probability(base, context) == {"5h": None}
    assert model().skipped_reason(base, context) == f"no usable {bad}"


def test_one_horizon_without_inputs_does_not_stop_the_other() -> None:
    two = model(
        bases=["lgbm_5h", "lstm_5h", "lgbm_12h"],
        heads={"5h": HEAD, "12h": {**HEAD, "inputs": ["lgbm_12h", "lstm_5h", "hour_sin"]}},
    )
    got = two.probability(BASE, CONTEXT)
    assert got["12h"] is None
    assert got["5h"] is not None


anything = st.one_of(st.none(), st.floats(), st.text(max_size=3), st.booleans(), st.integers())


@given(st.dictionaries(st.sampled_from([*BASE, *CONTEXT]), anything))
def test_no_input_whatever_makes_it_raise_or_leave_the_unit_interval(values: dict) -> None:
    p = model().probability(values, values)["5h"]
    assert p is None or 0.0 < p < 1.0
    assert (p is None) == bool(model().skipped_reason(values, values))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "macd-stacking/2"}, "format"),
        ({"bases": []}, "bases"),
        ({"bases": ["lgbm_5h", "lgbm_5h"]}, "twice"),
        ({"bases": "lgbm_5h"}, "list of names"),
        ({"context": ["lgbm_5h"]}, "named like context"),
        ({"clip": 0.7}, "clip"),
        ({"clip": True}, "clip"),
        ({"headline": "7h"}, "headline"),
        ({"heads": {}}, "heads"),
        ({"heads": {"5h": []}}, "not an object"),
        (head(inputs=["tft_5h", "lstm_5h", "hour_sin"]), "unknown"),
        (head(inputs=[]), "no inputs"),
        (head(mean=[0.0, 0.0]), "3 numbers"),
        (head(scale=[1.0, 0.0, 1.0]), "not positive"),
        (head(slope=-1.0), "not positive"),
        (head(intercept=1e300), "finite"),
        (head(intercept=10**400), "finite"),
        (head(intercept="0.1"), "finite"),
        (head(meta_coefficients=[0.1, None, 0.1]), "finite"),
    ],
)
def test_a_document_that_is_not_a_sound_model_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(StackingError) as caught:
        model(**change)
    assert why in caught.value.why


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**DOCUMENT, **head(slope=math.nan)}).encode(),
        json.dumps({**DOCUMENT, **head(slope=math.inf)}).encode(),
    ],
)
def test_bytes_that_are_no_plain_json_are_refused(data: bytes) -> None:
    with pytest.raises(StackingError):
        StackingModel.from_json(data)


def test_production_needs_nothing_but_the_standard_library_for_it() -> None:
    tree = ast.parse(Path(stacking.__file__).read_text())
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    allowed = {"__future__", "json", "math", "dataclasses", "typing", "collections.abc"}
    assert names == {*allowed, "macd.errors"}
