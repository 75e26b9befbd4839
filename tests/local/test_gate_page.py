"""The gate's page in a real browser: it stands alone, says what the report says, and fits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.gate import page, report
from macd.inventory import load
from tests.support import signal_lines
from tests.support.browser import Browser, chromium
from tests.support.gate_rule import RULE
from tests.unit.gate.test_by_symbol import log

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
EVIL = "<script>document.title='owned'</script><img src=http://x.invalid/a.png onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("width", [390, 1280])
def test_why_is_seen_beside_the_symbol_it_is_about(
    tmp_path: Path, browser: Browser, width: int
) -> None:
    names = [f"1000SYM{number:02}USDT" for number in range(6)]
    bad = {names[1]: {"ml_stacking_prob": None, "ml_error": "lstm: " + "no answer in time " * 30}}
    path, document = made(tmp_path, log(30, names, **bad))
    assert document["symbols"][0]["symbol"] == names[1]
    opened = browser.open(path.as_uri(), width=width)
    assert opened.run("document.documentElement.scrollWidth") <= width
    row = "document.querySelector('#symbols tbody tr')"
    assert opened.run(f"{row}.querySelector('.words').getBoundingClientRect().right") <= width
    assert opened.run(f"{row}.querySelector('.words').innerText.length") < 300
    name = f"(r => {{ r.selectNodeContents({row}.querySelector('th')); return r }})"
    rects = f"{name}(document.createRange()).getClientRects().length"
    assert opened.run(rects) == 1, "its name is on one line"


def made(directory: Path, lines: Iterator[dict[str, Any]], junk: bytes = b"") -> tuple[Path, Any]:
    signal_lines.write(directory / "logs", lines)
    if junk:
        newest = max((directory / "logs").iterdir())
        newest.write_bytes(newest.read_bytes() + junk)
    judged = report.of_files(load("lab"), directory / "logs", RULE, 2.0, NOW)
    path = report.save(judged.document, directory / "report", load("lab"))
    return page.write(path), judged.document


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_stands_alone_and_fits(tmp_path: Path, browser: Browser, width: int, dark: bool) -> None:
    lines = signal_lines.lines(200, end=NOW, every=timedelta(minutes=13))
    path, document = made(tmp_path, lines, junk=b"junk\n")
    opened = browser.open(path.as_uri(), width=width, dark=dark)
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()], "the page asks for nothing else"
    assert opened.run("document.documentElement.scrollWidth") <= width
    words = opened.run("document.body.innerText")
    assert document["verdict"] == "PASS"
    for told in (
        document["verdict"],
        document["release"],
        "99.5 %",
        "200 of 201",
        "must exceed 90 %",
        "local files were analysed",
        "not JSON",
        document["logs"][0]["sha256"],
    ):
        assert told in words, told
    charts = opened.run("document.querySelectorAll('svg.chart').length")
    # 4 shares, time and latency, 5 histograms, agreement, 3 horizons
    assert charts == 4 + 2 + 5 + 1 + 3
    assert charts == opened.run(
        "document.querySelectorAll('figure svg.chart ~ details table').length"
    )
    outside = opened.run(
        "[...document.querySelectorAll('svg.chart text')].filter(t => {"
        " const box = t.getBoundingClientRect();"
        " return box.left < 0 || box.right > innerWidth; }).map(t => t.textContent)"
    )
    assert outside == []
    assert opened.screenshot(tmp_path / "page.png").stat().st_size > 20_000


def test_a_page_without_a_bar(tmp_path: Path, browser: Browser) -> None:
    lines = signal_lines.lines(3, end=NOW)
    path, document = made(tmp_path, ({**line, "level": "INFO"} for line in lines))
    opened = browser.open(path.as_uri(), width=390)
    assert opened.complaints == []
    assert document["more_bars"] == 20
    words = opened.run("document.body.innerText")
    assert "INCONCLUSIVE" in words
    assert "20 more bars are needed" in words
    assert "No bar of this release lies in the window." in words


def test_hostile_words_in_the_log_stay_words(tmp_path: Path, browser: Browser) -> None:
    lines = signal_lines.lines(30, end=NOW, ml_error=EVIL, ml_stacking_skipped_reason=EVIL)
    path, _ = made(tmp_path, lines)
    opened = browser.open(path.as_uri())
    assert opened.requests == [path.as_uri()]
    assert opened.complaints == []
    assert opened.run("document.querySelectorAll('script, body img').length") == 0
    assert EVIL in opened.run("document.body.innerText")
