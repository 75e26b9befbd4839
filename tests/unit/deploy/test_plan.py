"""Each file of tests/cases/plan: what is there, what is wanted, and the plan that must follow."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd import application
from macd.cli.rollout import summary
from macd.deploy.candidate import Part, ReleaseCandidate, Unpacked, imports
from macd.deploy.desired import Desired, Market
from macd.deploy.plan import Plan, make
from macd.deploy.state import HostState
from macd.inventory.models import ServiceSettings

BUILT_IN = application.built_in(ServiceSettings())
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
    wanted = {**base["desired"], **given.get("desired", {})}
    if "market" in wanted:
        wanted["market"] = Market(**wanted["market"])
    plan = make(
        "prod",
        HostState(**{**base["facts"], **given.get("facts", {})}),
        Desired(**wanted, application=BUILT_IN),
        ReleaseCandidate(**offer),
        now=1000.0,
        restart=given.get("restart", False),
        unpacked=Unpacked(**given.get("unpacked", {})),
        accept=given.get("accept", ()),
    )
    return plan, case["expect"]


def as_shown(plan: Plan, field: str) -> Any:
    if field == "rollback_ready":
        return plan.rollback["ready"]
    value = plan.problems if field == "remedies" else getattr(plan, field)
    if field == "delta":
        return [[row.path, row.how] for row in value]
    if field == "diffs":
        return [diff.name for diff in value]
    if field == "problems":
        return [problem.what for problem in value]
    if field == "remedies":
        return [problem.hint for problem in value]
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    plan, expect = planned(name)
    assert {field: as_shown(plan, field) for field in expect} == expect


@pytest.mark.parametrize(
    ("days", "limit", "note"),
    [(29, 30, ""), (31, 30, "; from "), (38, 30, "too old: "), (9000, 0, "")],
)
def test_a_release_whose_models_are_too_old_for_the_host_is_noted(
    days: int, limit: float, note: str
) -> None:
    base = json.loads((CASES / "base.json").read_text())
    offer = {**base["offer"], "files": [], "wheels": []}
    now = datetime(2026, 3, 1, tzinfo=UTC)
    plan = make(
        "prod",
        HostState(**base["facts"]),
        Desired(**{**base["desired"], "max_age_days": limit}, application=BUILT_IN),
        ReleaseCandidate(**{**offer, "bars_end": now - timedelta(days=days)}),
        now=now.timestamp(),
    )
    assert plan.steps
    notes = [text for text in plan.notes if "the models' bars end" in text]
    assert len(notes) == bool(note)
    assert all(note in text and "service.max_age_days" in text for text in notes)


@pytest.mark.parametrize(
    ("rollback", "text"),
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
def test_a_broken_way_back_is_loud_and_forbids_nothing(rollback: dict[str, Any], text: str) -> None:
    plan, _ = planned("a_new_release")
    shown = summary(replace(plan, rollback=rollback))
    assert next(line for line in shown if line.startswith("back ")).startswith(f"back   {text}")
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
