"""The dashboard in a real browser: alone, on a phone and a desk, live without a flicker, with the
keyboard, without JavaScript, and with hostile words in the logs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from macd.dashboard import look, watch
from macd.dashboard.page import Facts, page
from macd.dashboard.server import Server
from macd.errors import MacdError
from macd.report.page import write_page
from tests.support import watched_project
from tests.support.browser import Browser, Opened, chromium
from tests.support.watched_project import EVIL, LIVE, NOW, Project

LOOKS = [(390, False), (390, True), (1280, False), (1280, True)]
GONE = MacdError(
    "prod-b: no route to host", why="it is said <b>so</b>", hint="invoke doctor --host prod-b"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return watched_project.make(tmp_path_factory.mktemp("dashboard") / "project")


def facts_of(project: Project, *, away: str = "", later: float = 0.0) -> Facts:
    """What the page is made of, `later` hours after the hosts were asked."""
    hosts = watch.hosts_of(project.inventory, "", "")
    looks = {host.name: look.stored(project.inventory, host.name) for host in hosts}
    answers = {name: seen for name, seen in looks.items() if seen is not None}
    return watch.Watch(project.inventory, hosts, 30, "").facts(
        {**answers, away: GONE} if away else answers, NOW + timedelta(hours=later)
    )


@pytest.fixture(scope="module")
def facts(project: Project) -> Facts:
    return facts_of(project)


def written(facts: Facts, directory: Path) -> str:
    return write_page(directory / "dashboard.html", page(facts)).as_uri()


def words(opened: Opened) -> str:
    return str(opened.run("document.body.innerText"))


@pytest.mark.parametrize(("width", "dark"), LOOKS, ids=str)
def test_the_file_stands_alone_and_fits(
    facts: Facts, browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    url = written(facts, tmp_path)
    opened = browser.open(url, width=width, dark=dark)
    opened.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert opened.complaints == []
    assert opened.requests == [url], "the page asks for nothing else"
    assert opened.run("document.documentElement.scrollWidth") <= width
    assert opened.run("document.querySelectorAll('script').length") == 0
    assert opened.run("document.querySelectorAll('svg.timeline').length") == 2
    smallest = opened.run(
        "Math.min(...[...document.querySelectorAll('svg text, svg tspan')].map(t =>"
        " parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"
    )
    assert smallest >= 8.5
    assert opened.screenshot(tmp_path / "page.png").stat().st_size > 20_000


def test_it_says_what_is_live_how_it_came_and_what_needs_a_person(
    facts: Facts, browser: Browser, tmp_path: Path
) -> None:
    said = words(browser.open(written(facts, tmp_path)))
    for told in (
        LIVE,
        "20260305T211500Z-weekly on h800",
        "ci@team",
        "PASS on 2026-03-14",
        "ML_ENABLE_STACKING=1 by ana@ops",
        "Needs a person now: 3",
        "4 % of /opt are free",
        "Do: invoke history --env prod --host prod-b",
        "no release is live",
        "Paper, net of 10 bp fee and 2 bp slippage",
        "no claim",
        "Nothing is deployed here yet.",
        "Environment staging",
        "The release expires 2026-04-05 12:00 UTC.",
        "117 of 118 lines said again on final bars, by the audit of 2026-03-21 06:00 UTC",
        "20260317T201500Z-weekly\tDONE",
    ):
        assert told in said, told


def test_an_away_host_is_shown_with_the_age_of_its_data_and_hides_nobody(
    project: Project, browser: Browser, tmp_path: Path
) -> None:
    said = words(browser.open(written(facts_of(project, away="prod-b", later=3), tmp_path)))
    assert "2 of 3 hosts answered" in said
    assert "prod-b: no route to host" in said
    assert "it is said <b>so</b>" in said
    assert "What follows is of 2026-03-22 12:00:07 UTC, 3:00 h ago." in said
    assert "Do: invoke doctor --host prod-b" in said
    assert said.count("Realised skill") == 2, "what it did is still there"
    assert "prod-a" in said


def test_before_anything_is_known(browser: Browser, tmp_path: Path) -> None:
    facts = facts_of(watched_project.empty(tmp_path / "project"), away="prod-b")
    for width in (390, 1280):
        opened = browser.open(written(facts, tmp_path), width=width)
        assert opened.complaints == []
        assert opened.run("document.documentElement.scrollWidth") <= width
    said = words(opened)
    assert said.count("Not asked yet.") == 2
    assert "It was never reached from here, so nothing is known about it." in said
    assert opened.run("document.querySelectorAll('svg').length") == 0


def test_hostile_words_stay_words(browser: Browser, tmp_path: Path) -> None:
    made = watched_project.make(tmp_path / "project", hours=40, error=EVIL)
    opened = browser.open(written(facts_of(made), tmp_path))
    opened.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert opened.complaints == []
    assert len(opened.requests) == 1
    assert opened.run("document.querySelectorAll('script, body img').length") == 0
    assert EVIL in words(opened)
    assert opened.run("document.title") != "owned"


def test_until_the_hosts_answer_it_shows_what_was_known(
    project: Project, browser: Browser, tmp_path: Path
) -> None:
    hosts = watch.hosts_of(project.inventory, "", "")
    facts = watch.Watch(project.inventory, hosts, 30, "").facts({}, NOW + timedelta(hours=2))
    said = words(browser.open(written(facts, tmp_path)))
    assert "Asking 3 hosts; until then, what was known before" in said
    assert said.count("Answered 2026-03-22 12:00:07 UTC, 2:00 h ago.") == 3
    assert LIVE in said


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def live(facts: Facts) -> str:
    return page(replace(facts, every_s=60.0))


def until(opened: Opened, script: str) -> None:
    """Let the page look at once, then wait for what it does."""
    opened.run("document.dispatchEvent(new Event('visibilitychange'))")
    limit = time.monotonic() + 120
    while not opened.run(script):
        assert time.monotonic() < limit, script
        time.sleep(0.02)


def test_it_follows_what_changes_and_leaves_the_rest_alone(
    project: Project, facts: Facts, browser: Browser, server: Server
) -> None:
    server.show(live(facts))
    opened = browser.open(server.address)
    opened.run(
        "(() => { const d = document.querySelector('#host-prod-a details'); d.open = true;"
        " d.querySelector('summary').focus(); window.mine = document.activeElement;"
        " window.kept = document.querySelector('#host-prod-a svg'); window.scrollTo(0, 600);"
        " window.changed = 0; new MutationObserver(all => { window.changed += all.length; })"
        ".observe(document.querySelector('#host-prod-a'), {subtree: true, childList: true,"
        " attributes: true, characterData: true}); })()"
    )
    server.show(live(facts_of(project, away="prod-b")))
    until(opened, "document.body.innerText.includes('no route to host')")
    assert "2 of 3 hosts answered" in words(opened)
    assert opened.run("document.title").startswith("(3) macd team") or "macd" in words(opened)
    assert opened.run("document.activeElement === window.mine"), "the focus stays"
    assert opened.run("document.querySelector('#host-prod-a details').open"), "what is open stays"
    assert opened.run("document.querySelector('#host-prod-a svg') === window.kept")
    assert opened.run("window.changed") == 0, "nothing of prod-a was touched"
    assert opened.run("window.scrollY") > 300
    assert opened.complaints == []
    assert {url.split("?")[0] for url in opened.requests} == {
        server.address,
        f"{server.address}live.js",
    }


def test_it_says_when_nobody_answers_any_more(facts: Facts, browser: Browser) -> None:
    server = Server()
    server.show(live(facts))
    opened = browser.open(server.address)
    assert opened.run("document.getElementById('stale').textContent") == ""
    server.close()
    until(opened, "document.getElementById('stale').textContent.includes('does not answer')")
    assert LIVE in words(opened), "what was known stays"


def test_without_javascript_all_of_it_is_there_and_it_asks_again_by_itself(
    facts: Facts, browser: Browser, server: Server
) -> None:
    server.show(live(facts))
    opened = browser.open(server.address, scripts=False)
    root = browser.call("DOM.getDocument", opened.session, depth=0)["root"]["nodeId"]
    html = browser.call("DOM.getOuterHTML", opened.session, nodeId=root)["outerHTML"]
    assert "Environment staging" in html
    assert LIVE in html
    assert '<meta http-equiv="refresh" content="60">' in html
    assert opened.complaints == []
    assert f"{server.address}live.js" not in opened.requests


def test_the_page_is_for_keyboard_and_screen_reader(
    facts: Facts, browser: Browser, server: Server
) -> None:
    server.show(live(facts))
    opened = browser.open(server.address)
    levels = opened.run(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels)), "no level is skipped"
    landmarks = opened.run(
        "['header', 'nav[aria-label]', 'main', 'footer'].map(s =>"
        " document.querySelectorAll('body > ' + s + ', body > header > ' + s).length)"
    )
    assert landmarks == [1, 1, 1, 1]
    assert opened.run("[...document.querySelectorAll('[aria-live]')].map(e => e.id)") == ["needs"]
    assert opened.run("document.querySelectorAll('table').length") > 5
    assert (
        opened.run("document.querySelectorAll('table:not(:has(thead th[scope=col]))').length") == 0
    )
    assert opened.run("document.querySelectorAll('svg.chart:not([aria-label])').length") == 0
    assert opened.run("document.querySelectorAll('svg.timeline > desc').length") == 2
    unnamed = "[...document.querySelectorAll('section')].filter(s => !document.getElementById("
    unnamed += "s.getAttribute('aria-labelledby'))).length"
    assert opened.run(unnamed) == 0
    ids = opened.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    key = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    browser.call("Input.dispatchKeyEvent", opened.session, type="rawKeyDown", **key)
    assert opened.run("document.activeElement.className") == "skip"
    assert opened.run("document.activeElement.getBoundingClientRect().left") >= 0, "it is seen"
    browser.call("Input.dispatchKeyEvent", opened.session, type="rawKeyDown", **key)
    assert opened.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
