"""Each file of tests/cases/plan: what is there, what is wanted, and the plan that must follow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macd.cli.rollout import summary
from macd.deploy.candidate import Part, ReleaseCandidate, Unpacked, imports
from macd.deploy.desired import Desired
from macd.deploy.plan import Plan, make
from macd.deploy.state import HostState

CASES = Path(__file__).parents[2] / "cases" / "plan"
NAMES = sorted(path.stem for path in CASES.glob("*.json") if path.stem != "base")


def planned(name: str) -> tuple[Plan, dict[str, Any]]:
    base = json.loads((CASES / "base.json").read_text())
    case = json.loads((CASES / f"{name}.json").read_text())
    given = case["given"]
    offer = {**base["offer"], **given.get("offer", {})}
    for kind in ("files", "wheels"):
        offer[kind] = [
            Part(**{**part, "source": part["source"] and Path(part["source"])})
            for part in offer[kind]
        ]
    plan = make(
        "prod",
        HostState(**{**base["facts"], **given.get("facts", {})}),
        Desired(**{**base["desired"], **given.get("desired", {})}),
        ReleaseCandidate(**offer),
        now=1000.0,
        restart=given.get("restart", False),
        unpacked=Unpacked(**given.get("unpacked", {})),
    )
    return plan, case["expect"]


def as_told(plan: Plan, field: str) -> Any:
    if field == "rollback_ready":
        return plan.rollback["ready"]
    value = getattr(plan, field)
    if field == "delta":
        return [[row.path, row.how] for row in value]
    if field == "diffs":
        return [diff.name for diff in value]
    if field == "problems":
        return [problem.what for problem in value]
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    plan, expect = planned(name)
    assert {field: as_told(plan, field) for field in expect} == expect


@pytest.mark.parametrize(
    ("rollback", "told"),
    [
        ({"release": "R", "ready": True, "why": ""}, "rollback ready: R: files as signed"),
        (
            {"release": "R", "ready": False, "why": "its runtime lacks 1 packages (numpy)"},
            "✗ rollback target not usable: its runtime lacks 1 packages (numpy); a failed release "
            "can't be reverted to R",
        ),
        ({"release": None, "ready": False, "why": "nothing yet"}, "no rollback: nothing yet"),
    ],
)
def test_a_broken_way_back_is_loud_and_forbids_nothing(rollback: dict[str, Any], told: str) -> None:
    plan, _ = planned("a_new_release")
    shown = summary(replace(plan, rollback=rollback))
    assert next(line for line in shown if line.startswith("back ")).startswith(f"back   {told}")
    assert plan.problems == ()


def test_what_must_import_is_what_the_service_imports_with_its_feed() -> None:
    locked = ["ccxt", "numpy", "pip", "prometheus-client", "pydantic"]
    common = ["numpy", "prometheus_client", "pydantic"]
    assert imports(locked, "directory") == common
    assert imports(locked, "ccxt") == ["ccxt", *common]
    assert imports(["numpy"], "ccxt") == ["numpy"]  # not locked: its own check names that


def test_the_cases_are_there() -> None:
    assert len(NAMES) >= 30


def test_no_secret_is_in_any_plan() -> None:
    plan, _ = planned("foreign_things")
    assert "s3cret" not in repr(plan)
