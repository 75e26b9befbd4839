"""An application of the team's own: what the doctor finds of it, and what it says it can't."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from macd import application
from macd.deploy.state import HostState
from macd.gate.doctor import Case, Feed, diagnose
from macd.gate.finding import Finding
from macd.inventory.own_app import OwnApp
from tests.support import their_app

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
LIVE = "20260301T000100Z-214a116f"
STACKING = {
    "name": "ML_ENABLE_STACKING", "in_file": ["0"], "unread": "", "passed_over": [], "beside": [],
    "next": "0", "running": "0", "guard": "none", "changing": False,
}  # fmt: skip
ALERTS = {
    "installed": True, "runs": True, "late": False, "checked": "2026-03-02T11:58:00+00:00",
    "age_s": 120.0, "open": [], "unsent": 0, "sending": "", "beating": "",
}  # fmt: skip
ENGINE = {"pid": 42, "active": "active", "since": 7200.0, "wrong": ""}

CONSTANT = {"answers": 30, "min": 0.5, "max": 0.5}


def share(name: str, successes: int, trials: int = 40, **more: Any) -> dict[str, Any]:
    fields = {"name": name, "title": name.replace("_", " "), "threshold": 0.8, "level": "block"}
    return {**fields, "successes": successes, "trials": trials, **more}


def report(*criteria: dict[str, Any], newest: float = 1800.0, **findings: Any) -> dict[str, Any]:
    at = int((NOW.timestamp() - newest) * 1000)
    timeline = [[at - 3_600_000, 1, 1, 1], [at - 60_000, 1, 1, 1]]
    empty: dict[str, Any] = {"timeline": timeline, "models": {}, "errors": [], "lacking": {}}
    return {"criteria": list(criteria), "findings": {**empty, **findings}}


@pytest.fixture
def well() -> Case:
    app = TypeAdapter(OwnApp).validate_python(
        their_app.app_section(their_app.Ports(8080, 8081)), context={"base": their_app.APPS}
    )
    state = HostState(
        app="/opt/x",
        exists=True,
        python={"executable": "/usr/bin/python3", "version": "3.11"},
        endpoint="",
        live=LIVE,
        history=[{"release": LIVE}],
        process={"active": "active", "pid": 42},
        health={
            "release": LIVE,
            "status": "ok",
            "last_error": None,
            "units": {"x.service": ENGINE},
        },
        stacking=STACKING,
        alerts=ALERTS,
        readiness={"ready": True, "why": ""},
    )
    disk = {"free": 20 << 30, "total": 40 << 30, "inodes": 10**6}
    checkup = {"others": None, "check": {"code": 0, "said": "OK"}, "log": "", "disk": disk}
    return Case(
        application=application.of_own(app),
        state=state,
        checkup={**checkup, "unjudged": ""},
        drift=[],
        clock_offset=0.0,
        clock_error=0.1,
        feed=Feed("ccxt", 3600, live=True),
        now=NOW.timestamp(),
        report=report(share("ml_coverage", 40)),
        tf="1h",
    )


def changed(case: Case, **state: Any) -> Case:
    return dataclasses.replace(case, state=dataclasses.replace(case.state, **state))


def named(case: Case, name: str) -> Finding:
    return next(finding for finding in diagnose(case) if finding.name == name)


def bad(case: Case) -> list[Finding]:
    findings = [finding for finding in diagnose(case) if finding.ok is False]
    assert all(finding.remedy and finding.evidence for finding in findings)
    return findings


def test_one_that_is_well_has_no_problem_and_says_what_is_not_looked_for(well: Case) -> None:
    assert bad(well) == []
    assert named(well, "x.service").ok is True
    last = named(well, "not looked for")
    assert last.ok is None
    assert "golden predictions" in last.evidence
    # Nothing of the built-in application's models is spoken of.
    names = {finding.name for finding in diagnose(well)}
    assert not names & {"feed", "TFT output", "stacking samples", "processes"}


def test_an_env_that_everybody_can_read_is_warned_of(well: Case) -> None:
    assert "secrets" not in {finding.name for finding in diagnose(well)}
    case = dataclasses.replace(well, checkup={**well.checkup, "env_open": "644"})
    secrets = named(case, "secrets")
    assert secrets.ok is None
    assert "/opt/x/.env (mode 644" in secrets.evidence
    assert "chmod o= /opt/x/.env" in secrets.remedy


def test_a_unit_that_does_not_serve_is_named_with_what_it_said(well: Case) -> None:
    web = {**ENGINE, "wrong": "its working directory is /opt/old"}
    health = {**well.state.health, "units": {"x.service": ENGINE, "x-web.service": web}}
    health |= {"status": "failed", "last_error": "x-web.service: wrong"}
    case = dataclasses.replace(
        changed(well, health=health), checkup={**well.checkup, "log": "Traceback\nKeyError: 'a'"}
    )
    findings = {finding.name: finding for finding in bad(case)}
    assert set(findings) == {"serving", "x-web.service"}
    assert "/opt/old" in findings["x-web.service"].evidence
    assert "KeyError" in findings["x-web.service"].evidence


@pytest.mark.parametrize(
    ("judged", "name", "ok", "said"),
    [
        (report(share("ml_coverage", 10)), "ml coverage", False, "10 of 40"),
        (report(share("lgb", 10, level="warn")), "lgb", None, "warns only"),
        (report(share("lgb", 0, 0)), "lgb", None, "no line counts"),
        (report(newest=4 * 3600), "signals", False, "invoke logs --follow"),
        (report(timeline=[]), "signals", None, "no line of the live release"),
        (report(models={"lstm": CONSTANT}), "lstm output", False, "30 answers"),
    ],
)  # fmt: skip
def test_lines_are_judged_by_the_map(
    well: Case, judged: dict[str, Any], name: str, ok: bool | None, said: str
) -> None:
    finding = named(dataclasses.replace(well, report=judged), name)
    assert finding.ok is ok
    assert said in f"{finding.evidence} {finding.remedy}"


def test_few_equal_answers_are_no_finding(well: Case) -> None:
    models = {"lstm": {"answers": 3, "min": 0.5, "max": 0.5}}
    assert bad(dataclasses.replace(well, report=report(models=models))) == []


def test_what_the_inventory_leaves_out_is_said_where_it_would_stand(well: Case) -> None:
    bare = dataclasses.replace(well.application, signals=None, flag=None)
    checkup = {**well.checkup, "check": None}
    case = dataclasses.replace(well, application=bare, report=None, checkup=checkup)
    assert bad(case) == []
    for name, words in (
        ("signals", "app.signals is left out"),
        ("flag", "app.flag is left out"),
        ("dependencies", "app.check is empty"),
    ):
        assert words in named(case, name).evidence


def test_a_module_that_is_missing_belongs_into_its_requirements(well: Case) -> None:
    check = {"code": 1, "said": "ModuleNotFoundError: No module named 'flask'"}
    case = dataclasses.replace(well, checkup={**well.checkup, "check": check})
    assert "serve.requirements" in named(case, "dependencies").remedy


def test_nothing_live_is_one_problem(well: Case) -> None:
    case = dataclasses.replace(
        changed(well, live=None, health={"unreachable": "no release is live"}), report=None
    )
    assert {finding.name for finding in bad(case)} == {"serving"}
