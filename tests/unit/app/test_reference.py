"""Feature quantiles: what counts as outside, and on the sample's own weeks how often it alarms."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from macd.app.market import features
from macd.app.market.bars import read_bars
from macd.app.predict.reference import FORMAT, Floats, Outside, Reference, parse
from macd.host.judge import drift
from macd.host.judge.drift import BLOCK, DRIFT
from tests.support.training_run import SAMPLE

_APART = 3  # weeks: the longest feature looks back 480 bars
_PARTS = 12


@cache
def sample() -> tuple[tuple[str, ...], Floats]:
    """Names and rows of the sample's features after the warm-up: 116 whole blocks."""
    table = features.compute(read_bars(SAMPLE), tf="1h").drop("timestamp")
    rows = table.to_numpy().astype(np.float32)[features.WARMUP + 47 :]
    return tuple(table.columns), rows[: len(rows) // BLOCK * BLOCK]


def limits(reference: Reference, rows: Floats) -> drift.Expected:
    """What a release that was trained on these rows says."""
    blocks = {**reference.blocks(rows), "features": len(reference.names)}
    details = {"symbol": "A", "drift": {"block": BLOCK, "assets": {"A": blocks}}}
    expected = drift.expected(json.loads(json.dumps(details)))
    assert expected is not None
    return expected


def alarms(train: Floats, test: Floats) -> list[bool]:
    """Of each block of `test`, judged as the gate does, by what `train` looked like."""
    reference = Reference.of(train, sample()[0])
    expected = limits(reference, train)
    return [
        judged(reference, expected, test[at : at + BLOCK]).outcome == DRIFT
        for at in range(0, len(test), BLOCK)
    ]


def judged(reference: Reference, expected: drift.Expected, rows: Floats) -> drift.Drift:
    distance = reference.distances(rows)
    bars = [
        drift.Bar(float((row > 0).sum()), reference.names[int(row.argmax())] if row.any() else "")
        for row in distance
    ]
    return drift.judge(expected, bars)


def test_at_most_five_of_the_sample_s_weeks_alarm_when_each_is_judged_by_the_others() -> None:
    """Each twelfth of the weeks by the quantiles and blocks of the rest, three weeks apart."""
    _, rows = sample()
    weeks = rows.reshape(-1, BLOCK, rows.shape[1])
    assert len(weeks) == 116
    alarmed = []
    for part in np.array_split(np.arange(len(weeks)), _PARTS):
        near = range(max(0, part[0] - _APART), part[-1] + 1 + _APART)
        others = np.delete(weeks, [at for at in near if at < len(weeks)], axis=0)
        alarmed += alarms(others.reshape(-1, rows.shape[1]), np.concatenate(weeks[part]))
    print(f"{sum(alarmed)} of {len(alarmed)} weeks")
    assert len(alarmed) == 116
    assert sum(alarmed) <= 5


@pytest.mark.parametrize("first", [True, False])
def test_either_half_of_the_sample_judged_by_the_other_alarms_at_most_five_times(
    first: bool,
) -> None:
    _, rows = sample()
    half = len(rows) // BLOCK // 2 * BLOCK
    train, test = (rows[:half], rows[half:]) if first else (rows[half:], rows[:half])
    alarmed = alarms(train, test)
    print(f"{sum(alarmed)} of {len(alarmed)} weeks")
    assert sum(alarmed) <= 5


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_features_in_another_scale_are_found_in_every_week(scale: float) -> None:
    _, rows = sample()
    half = len(rows) // BLOCK // 2 * BLOCK
    alarmed = alarms(rows[:half], rows[half:] * np.float32(scale))
    assert all(alarmed)


@pytest.mark.parametrize("name", ["ret_1", "rsi_14", "volume_6_72"])
@pytest.mark.parametrize("value", ["constant", "missing"])
def test_one_feature_that_died_is_named_within_two_days_of_bars(name: str, value: str) -> None:
    """By the newest row of windows, as the service asks; the first window was alive."""
    names, rows = sample()
    half = len(rows) // BLOCK // 2 * BLOCK
    reference = Reference.of(rows[:half], names)
    expected = limits(reference, rows[:half])
    broken = rows[half : half + 3 * BLOCK].copy()
    broken[48:, names.index(name)] = np.nan if value == "missing" else broken[48, 0] * 0 + 0.5
    bars: list[drift.Bar] = []
    alarmed_after = None
    for at in range(48, len(broken)):
        seen = reference.outside(broken[at - 47 : at + 1])
        bars.append(drift.Bar(seen.count, seen.worst or ""))
        if drift.judge(expected, bars).outcome == DRIFT:
            alarmed_after = len(bars)
            break
    assert alarmed_after is not None
    assert alarmed_after <= 48 + 48
    assert drift.judge(expected, bars).feature == name


def test_a_healthy_half_s_windows_hold_no_feature_that_stands_still() -> None:
    names, rows = sample()
    reference = Reference.of(rows, names)
    assert reference.longest.max() < 48
    for at in range(47, 1000, 50):
        window = rows[at - 47 : at + 1]
        distance = reference.distances(window[-1:])[0]
        assert reference.outside(window).count == (distance > 0).sum()


def test_missing_values_count_and_are_the_worst() -> None:
    rows = np.random.default_rng(5).normal(size=(1000, 3)).astype(np.float32)
    reference = Reference.of(rows, ("a", "b", "c"))
    assert reference.outside(np.array([[0, 0, 0]], np.float32)) == Outside(0, None)
    assert reference.outside(np.array([[9, 0, 0]], np.float32)) == Outside(1, "a")
    assert reference.outside(np.array([[9, -20, 0]], np.float32)) == Outside(2, "b")
    assert reference.outside(np.array([[9, -20, np.nan]], np.float32)) == Outside(3, "c")
    assert reference.outside(np.array([[9, -20, np.inf]], np.float32)) == Outside(3, "c")


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 60), st.integers(1, 4)),
        elements=st.sampled_from([0.0, 1.0, 1.1, -3.3, 1e-30, float("nan")]),
    )
)
def test_what_was_written_reads_as_it_was_and_few_training_values_lie_outside(
    rows: Floats,
) -> None:
    names = tuple(f"f{k}" for k in range(rows.shape[1]))
    made = Reference.of(rows, names)
    document = {"format": FORMAT, "assets": {"A": {"features": made.as_json()}}}
    read = parse(json.dumps(document, allow_nan=False).encode(), "A")
    assert np.array_equal(read.distances(rows), made.distances(rows))
    assert np.array_equal(read.longest, made.longest)
    finite = np.isfinite(rows)
    # Quantiles are values that occurred: of at most 200 values none lies outside.
    assert not ((made.distances(rows) > 0) & finite).any()
    assert np.isinf(made.distances(rows)[~finite]).all()


FEATURES: list[Any] = [[], {"f0": None}, {"f0": [1]}, {"f0": ["x", 1, 1]}, {"f0": [1, 2, None]}]
DAMAGED = [
    *(b"", b"[]", b"{}", b'{"format": "macd-features/1"}', b"\xff", b"[" * 100_000),
    *(json.dumps({"format": FORMAT, "assets": {"A": {"features": f}}}).encode() for f in FEATURES),
]


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_quantiles_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse(data, "A")
