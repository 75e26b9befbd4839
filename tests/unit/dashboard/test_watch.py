"""Hosts are asked at the same time, and what goes wrong at one is that one's alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.dashboard import look, served, watch
from macd.dashboard.look import Look
from macd.errors import MacdError
from macd.gate.logs import logs_of
from macd.inventory import Host, Inventory
from tests.support import signal_lines, watched_project
from tests.support.watched_project import LIVE, NOW, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return watched_project.empty(tmp_path / "project")


def ask(project: Project, monkeypatch: Any, answers: dict[str, Look | Exception]) -> Any:
    together = threading.Barrier(3, timeout=60)

    def one(host: Host, inventory: Inventory) -> Look:
        together.wait()  # breaks, and fails the test, where one is asked after the other
        answer = answers[host.name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("macd.dashboard.watch.look.look", one)
    hosts = watch.hosts_of(project.inventory, "", "")
    return {seen.host.name: seen for seen in watch.Watch(project.inventory, hosts, 30).ask().hosts}


def test_each_host_has_its_own_end(project: Project, monkeypatch: Any) -> None:
    good = watched_project.nothing(project, "stage")
    gone, odd = MacdError("prod-a: no route"), KeyError("free")
    seen = ask(project, monkeypatch, {"stage": good, "prod-a": gone, "prod-b": odd})
    assert (seen["stage"].answered, seen["stage"].failure) == (True, None)
    assert (seen["prod-a"].answered, seen["prod-a"].failure) == (False, gone)
    assert seen["prod-b"].failure is not None
    assert "KeyError: 'free'" in seen["prod-b"].failure.what
    stored = look.stored(project.inventory, "stage")
    assert stored is not None
    assert (stored.asked, stored.findings) == (good.asked, good.findings)
    assert look.stored(project.inventory, "prod-a") is None


def test_a_host_that_went_away_keeps_its_last_answer(project: Project, monkeypatch: Any) -> None:
    nothing = {name: watched_project.nothing(project, name) for name in ("stage", "prod-a")}
    gone = MacdError("gone")
    ask(project, monkeypatch, {**nothing, "prod-b": gone})
    seen = ask(project, monkeypatch, {"stage": gone, "prod-a": gone, "prod-b": gone})
    assert seen["stage"].look.findings == nothing["stage"].findings
    assert not seen["stage"].answered
    assert seen["prod-b"].look is None


def test_a_disk_that_takes_nothing_is_no_reason_to_see_nothing(
    project: Project, monkeypatch: Any
) -> None:
    good = watched_project.nothing(project, "stage")
    project.inventory.state_dir.mkdir(parents=True)
    (project.inventory.state_dir / "dashboard").write_text("no directory")
    gone = MacdError("gone")
    answers: dict[str, Look | Exception] = {"stage": good, "prod-a": gone, "prod-b": gone}
    seen = ask(project, monkeypatch, answers)
    assert seen["stage"].look == good


def test_logs_are_read_again_once_they_have_a_new_line(tmp_path: Path, monkeypatch: Any) -> None:
    project = watched_project.make(tmp_path / "watched", hours=10)
    counted = []

    def counting(*given: Any, **named: Any) -> Any:
        counted.append(given)
        return served.served(*given, **named)

    monkeypatch.setattr("macd.dashboard.watch.served", counting)
    watched = watch.Watch(project.inventory, [project.host("prod-a")], 30)
    [first] = watched.facts({}, NOW).hosts
    [again] = watched.facts({}, NOW + timedelta(minutes=10)).hosts
    assert first.served is not None
    assert again.served is first.served
    assert len(counted) == 1
    directory = logs_of(project.inventory, project.host("prod-a"))
    line = next(signal_lines.lines(1, end=NOW, release=LIVE, first_seq=99))
    signal_lines.write(directory, iter([line]))
    [more] = watched.facts({}, NOW + timedelta(minutes=10)).hosts
    assert more.served is not None
    assert more.served.bars == first.served.bars + 1


def test_a_page_counts_the_bytes_that_its_gate_report_counts(tmp_path: Path) -> None:
    project = watched_project.make(tmp_path / "watched", hours=10)
    watched = watch.Watch(project.inventory, [project.host("prod-a")], 30)
    [first] = watched.facts({}, NOW).hosts
    assert first.look is not None
    assert first.served is not None
    directory = logs_of(project.inventory, project.host("prod-a"))
    logs = [{"name": p.name, "to": p.stat().st_size} for p in directory.glob("trades_*.jsonl")]
    line = next(signal_lines.lines(1, end=NOW, release=LIVE, first_seq=99))
    signal_lines.write(directory, iter([line]))  # somebody pulled the logs since then
    judged = replace(first.look, report={**(first.look.report or {}), "logs": logs})
    [same] = watched.facts({"prod-a": judged}, NOW).hosts
    assert same.served is not None
    assert same.served.bars == first.served.bars


def test_logs_that_another_command_moves_meanwhile_end_no_page(
    tmp_path: Path, monkeypatch: Any
) -> None:
    project = watched_project.make(tmp_path / "watched", hours=10)

    def moved(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("trades_20260322.jsonl")

    monkeypatch.setattr("macd.dashboard.watch.served", moved)
    [seen] = watch.Watch(project.inventory, [project.host("prod-a")], 30).facts({}, NOW).hosts
    assert seen.look is not None
    assert seen.served is None
