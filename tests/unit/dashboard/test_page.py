"""What the page does with an answer that nobody expected, and with commands that mean one host."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from macd.dashboard import look, watch
from macd.dashboard.events import DEPLOY, Event
from macd.dashboard.page import Facts, _time_line, needed, page
from macd.errors import UsageError
from tests.support import watched_project
from tests.support.watched_project import LIVE, NOW, Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return watched_project.make(tmp_path_factory.mktemp("page") / "project", hours=30)


def facts_with(project: Project, **odd: Any) -> Facts:
    """prod-a answers with these things wrong in its state."""
    hosts = watch.hosts_of(project.inventory, "", "")
    seen = look.stored(project.inventory, "prod-a")
    assert seen is not None
    changed = replace(seen, state=replace(seen.state, **odd))
    return watch.Watch(project.inventory, hosts, 30, " --inventory x").facts(
        {"prod-a": changed}, NOW
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"history": [{"release": LIVE}]},
        {"history": [3]},
        {"history": None},
        {"health": None},
        {"stacking": []},
        {"details": 7},
        {"pending": {"number": 1}},
        {"last": {"state": "reverted"}},
    ],
    ids=str,
)
def test_an_odd_answer_hides_no_other_host(project: Project, odd: dict[str, Any]) -> None:
    html = page(facts_with(project, **odd))
    assert "can&#39;t be shown" in html
    assert 'id="host-prod-a"' in html
    assert "No line of this release" not in html
    assert html.count("Realised skill") >= 1, "prod-b is there"


@pytest.mark.parametrize(
    ("days", "heading", "title", "net"),
    [
        (30, "Since its first line", "since the first line", "net since the first line"),
        (1, "The last day", "of the last day", "net of the last day"),
        (1.5, "The last 1.5 days", "of the last 1.5 days", "net of the last 1.5 days"),
    ],
)
def test_a_result_of_fewer_days_than_the_release_serves_says_so(
    project: Project, days: float, heading: str, title: str, net: str
) -> None:
    hosts = watch.hosts_of(project.inventory, "prod", "prod-a")
    html = page(watch.Watch(project.inventory, hosts, days).facts({}, NOW))
    assert f"<h4>{heading}</h4>" in html
    assert f"Paper result {title}" in html
    assert net in html
    assert ("--days" in html) == (days < 16), "how to see all of it"


def test_a_young_hosts_time_line_begins_with_what_happened_first() -> None:
    facts = Facts(cast(Any, None), NOW, [], [], None, 30)

    def begins(*ago_s: float) -> float:
        deploys = [Event(NOW.timestamp() - ago, DEPLOY, "deployed") for ago in ago_s]
        made = _time_line("a", deploys, None, facts)
        assert made is not None
        assert made.table.rows
        return NOW.timestamp() - _start_of(made.svg)

    assert begins(900, 60) == pytest.approx(3600, abs=60)
    assert begins(10 * 86400, 60) == pytest.approx(10.5 * 86400, abs=60)
    assert begins(90 * 86400, 60) == pytest.approx(30 * 86400, abs=60)


def _start_of(svg: str) -> float:
    match = re.search(r"events from (\S+ \S+) to", svg)
    assert match
    return datetime.strptime(match[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()


def test_each_command_means_its_host(project: Project) -> None:
    hosts = watch.hosts_of(project.inventory, "", "")
    facts = watch.Watch(project.inventory, hosts, 30, " --inventory x").facts({}, NOW)
    assert [seen.options for seen in facts.hosts] == [
        " --host prod-a --inventory x",
        " --host prod-b --inventory x",
        " --env staging --inventory x",
    ]


def test_the_worst_needs_come_first(project: Project) -> None:
    moods = [need.mood for need in needed(facts_with(project))]
    assert moods == sorted(moods)
    assert set(moods) == {"bad", "warn"}


def test_a_damaged_journal_here_is_named_and_hides_nothing(tmp_path: Path) -> None:
    made = watched_project.make(tmp_path / "project", hours=5)
    journal = made.inventory.state_dir / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b"{torn")
    hosts = watch.hosts_of(made.inventory, "", "")
    facts = watch.Watch(made.inventory, hosts, 30, "").facts({}, NOW)
    first = needed(facts)[0]
    assert first.host == "this machine"
    assert "torn at record" in first.text
    assert "invoke history --repair-torn" in first.do
    assert f"release {LIVE} was made" in page(facts)


def test_hosts_are_chosen_by_environment_and_name(project: Project) -> None:
    def names(env: str, host: str) -> list[str]:
        return [chosen.name for chosen in watch.hosts_of(project.inventory, env, host)]

    assert names("", "") == ["prod-a", "prod-b", "stage"]
    assert names("staging", "") == ["stage"]
    assert names("", "prod-b") == ["prod-b"]
    for env, host in (("none", ""), ("staging", "prod-a"), ("", "h800"), ("", "none")):
        with pytest.raises(UsageError):
            watch.hosts_of(project.inventory, env, host)
