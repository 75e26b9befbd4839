"""Which runs may become a release: by the inventory's criteria, the audit, what is believable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.predict.stacking import has_samples
from macd.inventory import Criterion
from macd.inventory.models import TrainSettings
from macd.inventory.own_app import Bound
from macd.release.judge import Finding, blocking, judge, judge_own

AUDIT = {
    "ok": True,
    "checks": [{"name": "provenance", "ok": True, "detail": "fine"}],
    "allowed": {"5h": 0.65, "12h": 0.65, "24h": 0.66},
}


def figures(low: float | None, part: str = "val") -> dict[str, Any]:
    blank = {"value": 0.55, "low": 0.5, "high": 0.6, "n": 100}
    made: dict[str, Any] = {name: dict(blank) for name in ("val", "val_all", "test", "test_all")}
    made[part]["low"] = low
    return {"lstm": {head: made for head in ("5h", "12h", "24h")}}


def judged(
    criteria: dict[str, Criterion] | None = None,
    *,
    audit: dict[str, Any] = AUDIT,
    models: dict[str, Any] | None = None,
) -> list[Finding]:
    return judge((), criteria or {}, audit, {"models": models or figures(0.5)}, {})


def outcome(
    name: str, value: float | None, threshold: float, level: str = "block"
) -> tuple[bool, str, list[str]]:
    measured = ({"name": name, "value": value, "detail": "at 5h", "level": "warn"},)
    criteria = {name: Criterion(threshold=threshold, level=level)}
    findings = judge(measured, criteria, AUDIT, {"models": figures(0.5)}, {})
    return findings[0].ok, findings[0].note, [one.name for one in blocking(findings)]


@pytest.mark.parametrize(
    ("name", "value", "threshold", "ok"),
    [
        ("lstm_val_auc", 0.57, 0.57, True),
        ("lstm_val_auc", 0.5699, 0.57, False),
        ("test_val_gap", 0.0, 0.0, True),
        ("test_val_gap", 0.0001, 0.0, False),
        ("holdout_looks", 1, 1, True),
        ("holdout_looks", 2, 1, False),
        ("n_oof", 10000, 10000, True),
        ("n_oof", 9999, 10000, False),
        ("onnx_test", 0.0, 1.0, False),
        ("onnx_test", None, 1.0, False),
        ("lstm_val_auc", float("nan"), 0.57, False),
    ],
)
def test_each_criterion_is_held_to_its_threshold(
    name: str, value: float | None, threshold: float, ok: bool
) -> None:
    met, _, blocks = outcome(name, value, threshold)
    assert met is ok
    assert blocks == ([] if ok else [name])


def test_the_inventory_decides_the_level_not_the_run() -> None:
    assert outcome("lstm_val_auc", 0.5, 0.57, "warn")[2] == []
    assert outcome("lstm_val_auc", 0.5, 0.57, "block")[2] == ["lstm_val_auc"]


def test_a_miss_says_by_how_much() -> None:
    assert "missed by 0.05" in outcome("lstm_val_auc", 0.52, 0.57)[1]
    assert "missed by 8,000" in outcome("n_oof", 2000, 10000)[1]
    assert "not measured" in outcome("lstm_val_auc", None, 0.57)[1]
    assert "at least 1 % is asked for, missed by 0.58 %" in outcome("flag_matters", 0.0042, 0.01)[1]


@given(n=st.integers(1, 30_000), threshold=st.integers(0, 30_000), asked=st.integers(0, 30_000))
def test_stacking_that_meets_its_criterion_is_never_skipped_by_the_service(
    n: int, threshold: int, asked: int
) -> None:
    stacking = {"n_oof_samples": n, "headline": "5h"}
    metrics = {
        "models": {"stacking": figures(0.5)["lstm"]},
        "best_head": {"stacking": "5h"},
        "min_move": 0.003,
        "tf": "1h",
    }
    older = ({"name": "n_oof", "value": 50_000, "detail": "bars, as versions before 0.2 count"},)
    criteria = {"n_oof": Criterion(threshold=threshold)}
    (finding, *_) = judge(older, criteria, AUDIT, metrics, stacking, samples=asked)
    assert finding.value == n
    assert finding.ok is (n >= threshold and has_samples(stacking, asked))
    assert ("ML_STACKING_MIN_SAMPLES" in finding.note) is (asked > threshold)


@pytest.mark.parametrize("name", ["flag_matters", "net_edge"])
def test_a_run_from_before_policies_is_warned_of_and_not_blocked(name: str) -> None:
    guide = TrainSettings(data_dir=Path("bars")).criteria
    findings = judged({name: guide[name]})
    assert (findings[0].ok, findings[0].note) == (False, "not measured")
    assert name not in [one.name for one in blocking(findings)]


def test_an_edge_of_zero_is_none() -> None:
    assert outcome("net_edge", 0.0, 0.0, "warn")[0] is False
    assert outcome("net_edge", 0.1, 0.0, "warn")[0] is True
    assert outcome("flag_matters", 0.01, 0.01, "warn")[0] is True


def test_a_criterion_the_run_never_measured_is_missed() -> None:
    findings = judged({"stacking_oof_auc": Criterion(threshold=0.58)})
    assert [one.name for one in blocking(findings)] == ["stacking_oof_auc"]


@pytest.mark.parametrize(
    "audit",
    [
        {},
        {**AUDIT, "ok": False},
        {**AUDIT, "ok": "yes"},
        {**AUDIT, "checks": [{"name": "provenance", "ok": False, "detail": "row 9"}]},
    ],
)
def test_a_failed_or_missing_audit_blocks_whatever_the_level(audit: dict[str, Any]) -> None:
    criteria = {"leak_audit": Criterion(threshold=1, level="warn")}
    blocked = [one.name for one in blocking(judged(criteria, audit=audit))]
    assert "leak_audit" in blocked


@pytest.mark.parametrize("part", ["val", "val_all", "test", "test_all"])
def test_an_interval_above_what_can_be_believed_blocks(part: str) -> None:
    assert blocking(judged(models=figures(0.65, part))) == []
    (finding,) = blocking(judged(models=figures(0.67, part)))
    assert finding.name == "too_good"
    assert "above 0.650 by 0.020" in finding.note
    assert blocking(judged(models=figures(None, part))) == []


NAN = float("nan")


@pytest.mark.parametrize("low", [None, NAN, {"no": "number"}])
def test_without_an_interval_the_value_itself_is_held_to_the_limit(low: Any) -> None:
    models = figures(low)
    for head in models["lstm"].values():
        head["val"]["value"] = 0.97
    (finding,) = blocking(judged(models=models))
    assert "lstm 5h: without an interval 0.970, above 0.650 by 0.320" in finding.note


def test_a_nan_before_it_hides_no_result_that_is_too_good() -> None:
    models = figures(0.9, "test")
    models["lstm"]["5h"]["val"] |= {"low": NAN, "value": NAN}
    (finding,) = blocking(judged(models=models))
    assert "lstm 5h: interval from 0.900" in finding.note


def test_a_head_without_a_limit_blocks_and_is_named() -> None:
    models = {"lstm": {**figures(0.5)["lstm"], "7h": {}}}
    (finding,) = blocking(judged(models=models))
    assert "lstm 7h: an unknown head" in finding.note


@pytest.mark.parametrize(
    "allowed",
    [{}, {"5h": 0.65}, *({"5h": 0.65, "12h": broken, "24h": 0.6} for broken in (None, NAN))],
)
def test_no_limits_is_not_no_limit(allowed: dict[str, Any]) -> None:
    audit = {**AUDIT, "allowed": allowed}
    assert [one.name for one in blocking(judged(audit=audit))] == ["too_good"]


def test_metrics_of_an_own_application_against_todays_bounds() -> None:
    bounds = {"auc": Bound(min=0.57), "gap": Bound(max=0.05, level="warn"), "n": Bound(min=10)}
    auc, gap, n = judge_own({"auc": 0.55, "gap": None, "n": 12}, bounds)
    assert (auc.ok, auc.level, auc.note) == (False, "block", "0.55, missed by 0.02")
    assert (gap.ok, gap.level, gap.value) == (False, "warn", None)
    assert (n.ok, n.note) == (True, "12")
    assert blocking([auc, gap, n]) == [auc]
