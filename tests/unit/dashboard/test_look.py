"""The last answer of a host is stored whole, without secrets, and read again; or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from macd.dashboard import look, needs
from macd.dashboard.look import Look
from macd.deploy.state import HostState
from macd.errors import MacdError
from tests.support import watched_project
from tests.support.watched_project import NOW, Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return watched_project.make(tmp_path_factory.mktemp("looks") / "project", hours=30)


def stored(project: Project, name: str) -> Look:
    seen = look.stored(project.inventory, name)
    assert seen is not None
    return seen


def test_what_was_stored_is_read_again(project: Project) -> None:
    seen = stored(project, "prod-b")
    assert seen.state.live == watched_project.LIVE
    assert [r.kind for r in seen.records] == ["committed", "committed", "reverted"]
    look.store(seen, project.inventory)
    assert stored(project, "prod-b") == seen


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 99}', b'{"version": 1}'])
def test_a_file_that_is_no_look_is_none(project: Project, damage: bytes) -> None:
    path = look.path_of(project.inventory, "prod-c")
    path.write_bytes(damage)
    assert look.stored(project.inventory, "prod-c") is None


def test_no_secret_of_the_host_is_stored() -> None:
    state = HostState(
        "/opt",
        True,
        {},
        "unix",
        env="API_KEY=hunter2\n",
        service_settings="hunter2",
        units={"macd.service": "Environment=hunter2"},
        allowed_signers="hunter2",
        revoked="hunter2",
        live_files=[["hunter2", 1, "aa"]],
        dropins={"macd.service": [{"path": "p", "sets": ["hunter2"]}]},
        accepts="{}",
    )
    kept = look._without_secrets(state)
    assert "hunter2" not in repr(kept)
    assert (kept.app, kept.accepts) == ("/opt", "{}")


def texts(open_needs: list[needs.Need]) -> str:
    return "\n".join(f"{need.mood} {need.text} -> {need.do}" for need in open_needs)


def test_a_host_that_serves_well_needs_nobody(project: Project) -> None:
    assert needs.of_host("prod-a", "", stored(project, "prod-a"), None) == []
    assert needs.of_host("prod-a", "", None, None) == []


def test_alerts_and_reverts_need_a_person(project: Project) -> None:
    said = texts(needs.of_host("prod-b", " --host prod-b", stored(project, "prod-b"), None))
    assert "bad alerts: disk, since 2026-03-22T09:14:00Z: 4 % of /opt are free -> make room" in said
    assert "was reverted" in said
    assert "invoke history --env prod --host prod-b" in said


def test_findings_bring_their_remedy(project: Project) -> None:
    open_needs = needs.of_host("stage", " --env staging", stored(project, "stage"), None)
    assert texts(open_needs) == "bad serving: no release is live -> invoke deploy"
    assert open_needs[0].options == " --env staging"


def test_a_host_that_is_away_is_the_one_need(project: Project) -> None:
    gone = MacdError("prod-b: no route", hint="is it up?")
    open_needs = needs.of_host("prod-b", "", stored(project, "prod-b"), gone)
    assert texts(open_needs) == "bad it does not answer: prod-b: no route -> is it up?"


def test_what_is_under_way_and_dead_needs_a_person(project: Project) -> None:
    seen = stored(project, "prod-a")
    pending = {"number": 4, "kind": "deploy", "to": "next", "state": "soaking", "runner": 0}
    dead = replace(seen, state=replace(seen.state, pending=pending))
    assert "invoke deploy --attach --host x" in texts(
        needs.of_host("prod-a", " --host x", dead, None)
    )
    alive = replace(seen, state=replace(seen.state, pending={**pending, "runner": 7}))
    assert needs.of_host("prod-a", "", alive, None) == []
    change = {"was": "0", "wanted": "1", "started": NOW.timestamp(), "who": "ana", "state": "set"}
    stopped = replace(seen, state=replace(seen.state, flag_change=change))
    assert "INTERRUPTED" in texts(needs.of_host("prod-a", "", stopped, None))


def test_a_guard_that_can_not_judge_needs_a_person(project: Project) -> None:
    seen = stored(project, "prod-a")
    weight = {"running": 100, "next": 100, "raised": [], "steps": [], "waits": ""}
    state = replace(seen.state, stacking={**seen.state.stacking, "weight": weight})
    why = replace(seen.records[-1], kind="guard.unjudged", fields={"why": "no logs"})
    blind = replace(seen, state=state, records=(*seen.records, why))
    said = texts(needs.of_host("prod-a", " --host prod-a", blind, None))
    assert said == (
        "bad stacking decides, its guard could not judge: no logs -> invoke monitor --host prod-a"
    )
    assert needs.of_host("prod-a", "", replace(blind, records=seen.records), None) == []


def test_drift_is_named_once_and_what_is_harmless_is_not(project: Project) -> None:
    seen = replace(stored(project, "prod-a"), drift=("a is not b", "c is not d", "e (harmless)"))
    assert texts(needs.of_host("prod-a", "", seen, None)) == (
        "warn drift: a is not b (and 1 more) -> invoke status"
    )
