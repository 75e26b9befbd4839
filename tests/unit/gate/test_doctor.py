"""Each known failure is found by its evidence, with a remedy; a host that is well has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd import application
from macd.deploy.state import HostState
from macd.gate import report
from macd.gate.doctor import Case, Feed, diagnose
from macd.gate.finding import Finding
from macd.host.judge import drift
from macd.host.judge.drift import BLOCK, Bar
from macd.inventory import load
from macd.inventory.models import ServiceSettings
from tests.support import signal_lines

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
LIVE = signal_lines.RELEASE
NAMES = [
    "serving", "processes", "release", "flag", "dependencies",
    "ML coverage", "stacking samples", "TFT output", "LSTM output",
    "LightGBM output", "feed", "disk", "clock", "units", "alerts",
    "training on h800",
]  # fmt: skip


def judged(tmp_path: Path, **components: Any) -> Mapping[str, Any]:
    """A gate document as the product makes it, of lines with these components."""
    signal_lines.write(tmp_path / "logs", signal_lines.lines(30, end=NOW, **components))
    known = load("lab")
    judgement = report.of_files(known, tmp_path / "logs", report.rule_of(known), None, NOW)
    return judgement.document


STACKING = {
    "in_file": ["0"], "unread": "", "passed_over": [], "beside": [], "next": "0", "running": "0",
    "guard": "none", "changing": False,
}  # fmt: skip


ALERTS = {
    "installed": True, "runs": True, "late": False, "checked": "2026-03-02T11:58:00+00:00",
    "age_s": 120.0, "open": [], "unsent": 0, "sending": "", "beating": "",
}  # fmt: skip
OPEN = {"name": "silent", "since": "2026-03-02T09:00:00+00:00", "text": "no bar for 3 hours"}


JUDGED = {"symbol": "C", "verdict": "FAIL", "reasons": ["TFT normal 0.0 %"]}


@pytest.fixture
def well(tmp_path: Path) -> Case:
    """A host with nothing wrong."""
    health = {
        "release": LIVE, "pid": 42, "status": "ok", "golden": {"ok": True},
        "feed": {"state": "polling", "last_arrival": NOW.timestamp() - 1800},
        "started": "2026-03-01T00:00:00Z", "last_bar": "2026-03-02T10:00:00Z",
    }  # fmt: skip
    state = HostState(
        app="/opt/macd-analysis",
        exists=True,
        python={"executable": "/usr/bin/python3", "version": "3.11"},
        endpoint="unix:/h.sock",
        live=LIVE,
        history=[{"release": LIVE}],
        process={"active": "active", "pid": 42},
        health=health,
        stacking=STACKING,
        alerts=ALERTS,
        readiness={"ready": True, "why": ""},
    )
    checkup = {
        "others": [],
        "check": {"code": 0, "said": '{"ok": true}'},
        "log": "",
        "disk": {"free": 20 << 30, "total": 40 << 30, "inodes": 10**6},
        "unjudged": "",
    }
    return Case(
        application=application.built_in(ServiceSettings()),
        state=state,
        checkup=checkup,
        drift=[],
        clock_offset=0.2,
        clock_error=0.1,
        feed=Feed("ccxt", 3600, live=True),
        now=NOW.timestamp(),
        report=judged(tmp_path / "well"),
        trainings={"h800": {"state": "DONE", "why": "", "remedy": ""}},
    )


def about(case: Case, **more: Any) -> Case:
    """The case with facts of the host, or of the checkup, replaced."""
    fields = {field.name for field in dataclasses.fields(HostState)}
    facts = {name: value for name, value in more.items() if name in fields}
    checkup = {name: value for name, value in more.items() if name in case.checkup}
    rest = {n: v for n, v in more.items() if n not in facts and n not in checkup}
    return dataclasses.replace(
        case,
        state=dataclasses.replace(case.state, **facts),
        checkup={**case.checkup, **checkup},
        **rest,
    )


def wrong(case: Case) -> list[Finding]:
    findings = diagnose(case)
    assert [one.name for one in findings] == NAMES
    bad = [one for one in findings if one.ok is False]
    assert all(one.remedy and one.evidence for one in bad)
    return bad


def test_a_host_that_is_well(well: Case) -> None:
    assert [(one.name, one.ok) for one in diagnose(well)] == [(name, True) for name in NAMES]


@pytest.mark.parametrize(
    ("name", "evidence", "remedy", "changed"),
    [
        (
            "serving",
            "unit is failed",
            f"invoke deploy --restart --release {LIVE}",
            {"process": {"active": "failed", "pid": 0}},
        ),
        (
            "serving",
            "unit is failed",
            f"invoke rollback, or invoke deploy --restart --release {LIVE}",
            {"process": {"active": "failed", "pid": 0}, "rollback": {"ready": True}},
        ),
        ("processes", "run 7 8", "kill 7 8; invoke deploy --restart", {"others": [7, 8]}),
        (
            "release",
            "model.txt",
            "invoke rollback",
            {"readiness": {"ready": False, "why": "model.txt"}},
        ),
        ("release", "never committed", "invoke deploy", {"history": []}),
        (
            "flag",
            ".env says ML_ENABLE_STACKING=1 (twice), the process 0",
            "invoke disable-stacking",
            {"stacking": {**STACKING, "in_file": ["0", "1"], "next": "1"}},
        ),
        (
            "flag",
            ".env says ML_ENABLE_STACKING=0, the process 1; stacking decides without evidence",
            "invoke disable-stacking",
            {"stacking": {**STACKING, "running": "1"}},
        ),
        (
            "flag",
            "takes nothing from .env: line 2 holds a NUL byte",
            "mend .env",
            {"stacking": {**STACKING, "unread": "line 2 holds a NUL byte"}},
        ),
        (
            "flag",
            "/etc/x.env sets ML_ENABLE_STACKING=1; only .env may",
            "take it out there",
            {"stacking": {**STACKING, "beside": [{"where": "/etc/x.env", "value": "1"}]}},
        ),
        (
            "flag",
            "its guard could not judge, 2 of 3: no answer",
            "invoke disable-stacking",
            {
                "unjudged": "could not judge, 2 of 3: no answer",
                "stacking": {
                    **STACKING,
                    "in_file": ["1"],
                    "next": "1",
                    "running": "1",
                    "guard": "watches",
                },
            },
        ),
        (
            "dependencies",
            "No module named 'lightgbm'",
            "invoke release",
            {
                "check": {
                    "code": 1,
                    "said": "Trace\nImportError: No module named 'lightgbm'",
                }
            },
        ),
        (
            "dependencies",
            "libgomp.so.1",
            "invoke provision",
            {"check": {"code": 1, "said": "libgomp.so.1: cannot open shared object file"}},
        ),
        (
            "dependencies",
            "does not run",
            "invoke deploy",
            {"check": {"code": None, "said": "no such file"}},
        ),
        (
            "alerts",
            "silent, since 2026-03-02T09:00:00+00:00: no bar for 3 hours",
            "invoke logs",
            {"alerts": {**ALERTS, "open": [{**OPEN, "hint": "invoke logs"}]}},
        ),
        (
            "alerts",
            "nobody looks for alarms here: the last look was 3 hours ago",
            "invoke provision",
            {"alerts": {**ALERTS, "runs": False, "age_s": 3 * 3600.0}},
        ),
        (
            "alerts",
            "a message could not be sent yet: the address answered 404",
            "--notify-test",
            {"alerts": {**ALERTS, "unsent": 2, "sending": "the address answered 404"}},
        ),
        (
            "disk",
            "21.0 MB of 1099.5 GB free",
            "release.keep",
            {"disk": {"free": 20 << 20, "total": 1 << 40, "inodes": -1}},
        ),
        (
            "disk",
            "3 inodes",
            "data/live",
            {"disk": {"free": 9 << 30, "total": 9 << 30, "inodes": 3}},
        ),
        ("clock", "-61.0 s", "timedatectl set-ntp true", {"clock_offset": -61.0}),
        ("feed", "10800 s ago", "invoke logs --grep feed", {"now": NOW.timestamp() + 9000}),
        (
            "units",
            "macd-analysis.service",
            "invoke plan",
            {"drift": ["macd-analysis.service was changed or is missing"]},
        ),
        (
            "units",
            "x.conf overrides macd-analysis.service, sets User",
            "remove it on the host",
            {
                "drift": ["/etc/x.conf overrides macd-analysis.service, sets User"],
                "dropins": {"macd-analysis.service": [{"path": "/etc/x.conf", "sets": ["User"]}]},
            },
        ),
        (
            "units",
            "not read x.socket",
            "invoke deploy --restart",
            {"drift": ["systemd has not read x.socket as it stands on the disk: ..."]},
        ),
        (
            "training on h800",
            "CUDA out of memory",
            "smaller",
            {
                "trainings": {
                    "h800": {"state": "FAILED", "why": "CUDA out of memory", "remedy": "smaller"}
                }
            },
        ),
    ],
)
def test_each_failure_is_named(
    well: Case, name: str, evidence: str, remedy: str, changed: dict[str, Any]
) -> None:
    (problem,) = wrong(about(well, **changed))
    assert problem.name == name
    assert evidence in problem.evidence
    assert remedy in problem.remedy


def test_a_weight_by_hand_goes_back_to_the_proved_one(well: Case) -> None:
    weight = {"in_file": ["75"], "beside": [], "next": 75, "running": 75, "covered": 10}
    said = {**STACKING, "in_file": ["1"], "next": "1", "running": "1", "guard": "watches"}
    health = {**well.state.health, "stacking_weight": 75}
    (problem,) = wrong(about(well, stacking={**said, "weight": weight}, health=health))
    assert problem.name == "flag"
    assert problem.evidence == "stacking decides with 75 %, its evidence is for 10 %"
    assert problem.remedy == (
        "invoke disable-stacking, or invoke enable-stacking --weight 10, sets and proves both"
    )


def test_a_flag_that_no_file_sets_is_not_said_to_be_there(well: Case) -> None:
    said = {one.name: one.evidence for one in diagnose(well)}
    assert said["flag"] == "ML_ENABLE_STACKING=0 in .env and in the process"
    unset = about(well, stacking={**STACKING, "in_file": []})
    said = {one.name: one.evidence for one in diagnose(unset)}
    assert said["flag"] == "ML_ENABLE_STACKING=0 in the process; .env does not set it"


def test_what_answers_is_not_what_should(well: Case) -> None:
    health = {**well.state.health, "pid": 41}
    (problem,) = wrong(about(well, health=health))
    assert (problem.name, "pid 41 answers" in problem.evidence) == ("processes", True)
    assert "kill 41; invoke deploy --restart" in problem.remedy
    health = {**well.state.health, "release": "20250101T000000Z-deadbeef"}
    (problem,) = wrong(about(well, health=health))
    assert (problem.name, "20250101T000000Z-deadbeef" in problem.evidence) == ("release", True)
    assert problem.remedy == f"invoke deploy --restart --release {well.state.live}"
    health = {**well.state.health, "status": "failed", "last_error": "disk\x1b[31m full"}
    (problem,) = wrong(about(well, health=health))
    assert problem.name == "serving"
    assert "invoke rollback" not in problem.remedy  # there is nothing to go back to
    (back,) = wrong(about(well, health=health, rollback={"ready": True}))
    assert "invoke rollback" in back.remedy
    assert "\x1b" not in problem.evidence


@pytest.mark.parametrize(
    ("evidence", "changed"),
    [
        # Bars come, an hour each, and they are of yesterday.
        ("came 1800 s ago (polling)", {"last_bar": "2026-03-01T10:00:00Z"}),
        ("closed 90000 s ago", {"last_bar": "2026-03-01T10:00:00Z"}),
        ("in the 43200 s since", {"feed": {"state": "polling", "last_arrival": None}}),
    ],
)
def test_a_feed_that_brings_nothing_new_is_not_well(
    well: Case, evidence: str, changed: dict[str, Any]
) -> None:
    changed = {"started": "2026-03-02T00:00:00Z", **changed}
    (problem,) = wrong(about(well, health={**well.state.health, **changed}))
    assert problem.name == "feed"
    assert evidence in problem.evidence
    assert "invoke logs" in problem.remedy


def test_a_feed_may_take_its_time_after_the_start_and_a_replay_is_of_the_past(well: Case) -> None:
    young = {"feed": {"state": "polling", "last_arrival": None}, "started": "2026-03-02T10:30:00Z"}
    for more in (young, {**young, "started": None}):
        case = about(well, health={**well.state.health, **more})
        assert [one.ok for one in diagnose(case) if one.name == "feed"] == [None]
    old = {**well.state.health, "last_bar": "2021-01-01T00:00:00Z"}
    assert wrong(about(well, health=old, feed=Feed("replay", 3600, live=False))) == []


@pytest.mark.parametrize(
    ("name", "evidence", "remedy", "components"),
    [
        ("TFT output", "every one of them 0", "invoke train --mode tft", {"ml_tft_prob": 0.0}),
        ("TFT output", "every one of them 0.5", "invoke train --mode tft", {"ml_tft_prob": 0.5}),
        ("TFT output", "no number on any of 30 bars", "invoke health", {"ml_tft_prob": None}),
        ("LSTM output", "every one of them 0.5", "invoke train --mode lstm", {"ml_lstm_prob": 0.5}),
        ("LSTM output", "no number on any of 30", "invoke health", {"ml_lstm_prob": None}),
        (
            "LightGBM output",
            "30 answers, every one of them 0.5",
            "invoke train --mode lgbm",
            {"ml_lgb_prob": 0.5},
        ),
        ("LightGBM output", "no number on any", "invoke disable-stacking", {"ml_lgb_prob": None}),
        ("ML coverage", "30 × lstm: broken", "invoke health", {"ml_error": "lstm: broken"}),
        (
            "stacking samples",
            "1200 is below",
            "invoke data.fetch",
            {
                "ml_stacking_prob": None,
                "ml_stacking_mode": "off",
                "ml_stacking_skipped_reason": (
                    "n_oof_samples 1200 is below ML_STACKING_MIN_SAMPLES 5000"
                ),
            },
        ),
    ],
)
def test_the_guides_problems_are_read_from_the_lines(
    well: Case, tmp_path: Path, name: str, evidence: str, remedy: str, components: dict[str, Any]
) -> None:
    (problem,) = wrong(dataclasses.replace(well, report=judged(tmp_path, **components)))
    assert problem.name == name
    assert evidence in problem.evidence
    assert remedy in problem.remedy


def test_models_that_are_too_old_are_why_there_is_no_coverage(well: Case, tmp_path: Path) -> None:
    why = "too old: the models' bars end 2025-01-01"
    nothing = {"ml_bull_prob": None, "ml_stacking_mode": "off", "ml_stacking_skipped_reason": why}
    health = {**well.state.health, "age": {"state": "too old", "text": why}}
    case = dataclasses.replace(about(well, health=health), report=judged(tmp_path, **nothing))
    (problem,) = [one for one in diagnose(case) if one.ok is False]
    assert problem.name == "ML coverage"
    assert why in problem.evidence
    assert problem.remedy.startswith("invoke train on newer bars")


@pytest.mark.parametrize(("outside", "ok"), [(40.0, False), (0.5, True), (None, None)])
def test_features_that_drift_are_a_problem(
    well: Case, tmp_path: Path, outside: float | None, ok: bool | None
) -> None:
    bars = [] if outside is None else [Bar(outside)] * BLOCK
    seen = drift.judge(drift.Expected(80, 0.05, 0.2), bars)
    case = dataclasses.replace(well, report={**judged(tmp_path), "drift": seen.document()})
    (features,) = [one for one in diagnose(case) if one.name == "features"]
    assert features.ok is ok
    assert bool(features.remedy) == (ok is False)
    assert seen.text == features.evidence


def test_a_tree_may_say_the_same_of_a_few_bars_and_a_net_may_not(
    well: Case, tmp_path: Path
) -> None:
    said = judged(tmp_path, ml_lgb_prob=0.5, ml_lstm_prob=0.5)
    for name in ("lgb", "lstm"):
        said["findings"]["models"][name].update(answers=5)
    assert [one.name for one in wrong(dataclasses.replace(well, report=said))] == ["LSTM output"]


def test_what_can_not_be_told_is_no_problem_and_no_all_clear(well: Case) -> None:
    findings = {
        one.name: one.ok
        for one in diagnose(
            about(
                well,
                report=None,
                no_report="no logs",
                others=None,
                stacking={**STACKING, "running": None},
                health={**well.state.health, "feed": None},
                alerts={**ALERTS, "installed": False, "age_s": None},
                trainings={"h800": {"state": "", "why": "can't be reached", "remedy": ""}},
            )
        )
    }
    unknown = {name for name, ok in findings.items() if ok is None}
    assert unknown == {
        "processes", "flag", "ML coverage", "stacking samples",
        "TFT output", "LSTM output", "LightGBM output", "feed", "alerts",
        "training on h800",
    }  # fmt: skip
    assert not [name for name, ok in findings.items() if ok is False]


@pytest.mark.parametrize(
    ("release", "remedy"),
    [("20260301T000100Z-0", "rm -r /opt/macd-analysis/releases/"), (LIVE, "invoke rollback")],
)
def test_a_damaged_release_on_the_host_is_named(well: Case, release: str, remedy: str) -> None:
    [bad] = [one for one in diagnose(about(well, damaged={release: "x"})) if one.ok is False]
    assert (bad.name, bad.evidence) == ("stored releases", f"{release} is damaged: x")
    assert remedy in bad.remedy


def test_a_host_that_was_never_provisioned(well: Case) -> None:
    (problem,) = diagnose(about(well, exists=False))
    assert (problem.ok, problem.remedy) == (False, "invoke provision")


def test_of_several_symbols_those_that_are_not_well_are_named(well: Case) -> None:
    def of_symbols(**symbols: Any) -> Finding:
        state = dataclasses.replace(well.state, health={**well.state.health, "symbols": symbols})
        report = {**(well.report or {}), "symbols": [JUDGED]}
        findings = diagnose(dataclasses.replace(well, state=state, report=report))
        return next(one for one in findings if one.name == "symbols")

    good = {"ok": True, "last_bar": "2026-03-02T10:00:00Z"}
    assert of_symbols(A=good, B=good, C=good).evidence == "1 of 3: C: TFT normal 0.0 %"
    said = of_symbols(A={"ok": False}, B={**good, "stopped": True})
    assert said.ok is False
    assert "A: its models fail: it gets the base signal; B: its bars have stopped" in said.evidence


def test_an_instance_that_is_away_is_started_again(well: Case) -> None:
    away = {"ok": False, "error": "it does not answer"}
    health = {
        **well.state.health,
        "status": "failed",
        "last_error": "a@B.service: it does not answer",
        "symbols": {"A": {"ok": True}, "B": away},
        "units": {"a@A.service": {"wrong": ""}, "a@B.service": {"wrong": "it does not answer"}},
    }
    findings = {one.name: one for one in diagnose(about(well, health=health))}
    restart = f"invoke deploy --restart --release {well.state.live}"
    assert findings["symbols"].remedy == f"invoke logs --unit B; {restart}"
    assert findings["serving"].remedy.startswith(f"{restart}; ")


def test_what_a_container_or_selinux_forbids_has_its_remedy(well: Case) -> None:
    def units(**more: Any) -> Finding:
        return next(one for one in diagnose(about(well, **more)) if one.name == "units")

    forbidden = units(no_namespaces="systemd can start no such process here")
    assert forbidden.ok is False and "service.hardening: container" in forbidden.remedy
    assert "restorecon" in units(selinux="SELinux lets systemd start no program").remedy
    assert units(no_namespaces="", unconfined="service.hardening: container: x").ok is True
