"""Every HTML page the product makes, from real material, on a desk's screen and on a phone's.

What a page says is held by the tests of its own; here all of them are held to one look: they ask
for nothing, complain of nothing, fit, and every drawing shows something and stays in its frame.
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.app.pages import several, training
from macd.dashboard import page as watched
from macd.dashboard import watch
from macd.gate import page as gate
from macd.gate import report
from macd.host.store.manifest import Manifest
from macd.inventory import load
from macd.release import card
from macd.report.page import write_page
from macd.run_directory import FILES
from tests.support import signal_lines, watched_project
from tests.support.browser import Browser, Opened, chromium
from tests.support.gate_rule import RULE
from tests.support.sweeps import sweep
from tests.support.training_run import trained_run
from tests.unit.release.making import workshop

TOP = Path(__file__).parents[2] / "templates"
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
PAGES = ("training", "several", "card", "accepted", "own", "several_card")
PAGES += ("passed", "failed", "dashboard")
TEMPLATES = {
    "training_report.html.j2": ("training",),
    "card.j2": ("card", "accepted"),
    "own_card.j2": ("own",),
    "several_card.j2": ("several_card",),
    "several_report.html.j2": ("several",),
    "gate_report.html.j2": ("passed", "failed"),
    "dashboard.html.j2": ("dashboard",),
}
PARTS = {"report_base.html.j2", "report_parts.html.j2", "card_parts.j2"}
PARTS |= {"unit_hardening.j2", "unit_unset.j2"}  # of units, no pages
NAMES = tuple(f"1000SYMBOL{number:02}USDT" for number in range(40))
LONG = "RuntimeError:" + "tft_1h.onnx/MatMul_" * 12


def lines() -> Iterator[dict[str, Any]]:
    """Four hundred bars, so that labels of all horizons have come to pass."""
    return signal_lines.lines(400, end=NOW, every=timedelta(minutes=7))


def ill() -> Iterator[dict[str, Any]]:
    """A log with all that a page may have to show: errors, silence, a stuck model, long words."""
    for line in lines():
        parts, seq = line["data"]["components"], line["seq"]
        if seq % 3 == 0:
            parts["ml_error"], parts["ml_bull_prob"] = LONG, None
        if seq % 5 == 0:
            parts["ml_stacking_prob"] = None
            parts["ml_stacking_skipped_reason"] = f"only {seq} samples of 10000"
        parts["ml_tft_prob"] = 0.5
        yield line
        if seq % 50 == 0:
            yield {**line, "level": "WARNING", "data": {"event": f"feed: bar {seq} came late"}}
            yield {**line, "level": "ERROR", "data": {"event": f"models: {LONG}"}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("pages")
    ran = shutil.copytree(
        trained_run(), top / "20260301T000000Z-run", ignore=shutil.ignore_patterns("cache")
    )
    (top / "shop").mkdir()
    shop = workshop(top / "shop")
    made = shop.make(shop.request())
    told = made.manifest
    accepted = top / "accepted.html"
    accepted.write_bytes(
        card.render(
            {**told.details, "accepted": "the holdout was looked at before; " * 6},
            app=told.app,
            env=told.env,
            serial=told.serial,
            created=told.created,
            expires=told.expires,
        )[card.HTML]
    )
    return {
        "training": training.write(ran, host="h800"),
        "card": made.directory / card.HTML,
        "accepted": accepted,
        "own": own_card(top / "own.html"),
        "several_card": several_card(told, top / "several.html"),
        "several": several_training(ran, top / "20260301T000000Z-several"),
        "passed": judged(top / "passed", lines()),
        "failed": judged(top / "failed", ill(), b"junk\n" * 3),
        "dashboard": dashboard(top / "watched"),
    }


def several_card(told: Manifest, path: Path) -> Path:
    each = dict.fromkeys(NAMES, told.details)
    rows = [{**row, "symbol": name} for name in NAMES for row in told.details["criteria"]]
    pages = card.render(
        {**told.details, "symbols": each, "criteria": rows},
        app=told.app,
        env=told.env,
        serial=told.serial,
        created=told.created,
        expires=told.expires,
    )
    path.write_bytes(pages[card.HTML])
    return path


def several_training(ran: Path, top: Path) -> Path:
    for name in NAMES:
        shutil.copytree(ran, FILES.of_symbol(top, name))
    for file in (FILES.settings, FILES.result):
        document = json.loads((ran / file).read_text())
        (top / file).write_text(json.dumps({**document, "symbols": list(NAMES)}))
    return several.write(top, host="h800")


def own_card(path: Path) -> Path:
    """Of an application of one's own, with names as long as teams give them."""
    long = "data/ml_models/" + "lightgbm_with_every_feature_" * 4 + "1h.txt"
    model = {"path": long, "size": 7423, "sha256": "ab" * 32}
    missed = {"name": "gap", "title": "gap", "ok": False, "level": "warn", "note": "missed by 0.02"}
    details = {
        "own": {
            "name": "ml-signals",
            "writes": ["logs"],
            "check": "python3 c.py",
            "units": ["web"],
        },
        "run": "20260301T120000Z-theirs",
        "host": "h800",
        "symbol": "ETHUSDT",
        "tf": "1h",
        "code": {"version": "", "commit": "c" * 40, "dirty": True, "changed": [long]},
        "trained_with": {"commit": "d" * 40, "dirty": False},
        "train_seconds": 60,
        "metrics": {"lstm_val_auc": 0.634, "gap": None},
        "criteria": [missed | {"value": 0.06, "threshold": 0.04}],
        "accepted": None,
        "models": [model | {"from": "run"}, model | {"from": "source"}],
    }
    packages = {f"package-{number}": "1.2.3" for number in range(40)}
    pages = card.render(
        details, app="ml-signals", env="prod", serial=7, created=NOW, expires=NOW, packages=packages
    )
    path.write_bytes(pages[card.HTML])
    return path


def dashboard(root: Path) -> Path:
    inventory = watched_project.make(root, error=LONG).inventory
    hosts = watch.hosts_of(inventory, "", "")
    facts = watch.Watch(inventory, hosts, 30, "").facts({}, watched_project.NOW)
    return write_page(root / "dashboard.html", watched.page(facts))


def judged(directory: Path, made: Iterator[dict[str, Any]], junk: bytes = b"") -> Path:
    signal_lines.write(directory / "logs", made)
    newest = max((directory / "logs").iterdir())
    newest.write_bytes(newest.read_bytes() + junk)
    found = report.of_files(load("lab"), directory / "logs", RULE, 72.0, NOW)
    return gate.write(report.save(found.document, directory / "report", load("lab")))


def opened(browser: Browser, pages: dict[str, Path], name: str, size: str = "phone") -> Opened:
    width, height = SIZES[size]
    return browser.open(pages[name].as_uri(), width=width, height=height).unfold()


def test_no_page_is_left_out() -> None:
    pages = {path.name for path in TOP.glob("*.j2")} - {path.name for path in TOP.glob("*.*.j2")}
    pages |= {path.name for path in TOP.glob("*.html.j2")}
    assert pages - PARTS == set(TEMPLATES)
    assert {name for names in TEMPLATES.values() for name in names} == set(PAGES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_stands_alone_fits_and_can_be_read(
    pages: dict[str, Path], browser: Browser, name: str, size: str
) -> None:
    page = opened(browser, pages, name, size)
    assert page.complaints == []
    assert page.requests == [pages[name].as_uri()]
    root = "document.documentElement"
    assert page.run(f"{root}.scrollWidth") <= page.run(f"{root}.clientWidth")
    assert page.run("document.title")
    titles = page.run("[...document.querySelectorAll('h1')].map(e => e.innerText.trim())")
    assert len(titles) == 1
    assert titles[0]
    assert page.run(UNNAMED) == []
    assert page.run(OUTSIDE) == []
    papers = []
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", page.session, features=media)
        papers.append(page.run("getComputedStyle(document.body).backgroundColor"))
        assert page.run(FAINT) == [], scheme
        answer = browser.call("Page.captureScreenshot", page.session, format="png")
        assert colours(base64.b64decode(answer["data"])) > 50, scheme
    assert papers[0] != papers[1]


@pytest.mark.parametrize("size", sweep(SIZES, "desktop"))
@pytest.mark.parametrize("name", ["training", "passed", "failed", "dashboard"])
def test_every_drawing_shows_something(
    pages: dict[str, Path], browser: Browser, name: str, size: str
) -> None:
    empty, page = browser.open("about:blank"), opened(browser, pages, name, size)
    frames = page.run(
        "[...document.querySelectorAll('svg.chart')].map(s => {"
        " const b = s.getBoundingClientRect(); return [s.ariaLabel,"
        " {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height, scale: 1}]; })"
    )
    assert len(frames) > 10
    for clip, shown in together(frames):
        answer = browser.call(
            "Page.captureScreenshot",
            page.session,
            format="png",
            clip=clip,
            captureBeyondViewport=True,
        )
        asked = json.dumps([answer["data"], [box for _, box in shown]])
        counts = empty.run(f"({COLOURS})(...{asked})")
        for (label, _), count in zip(shown, counts, strict=True):
            assert count > 20, label


Framed = tuple[str, dict[str, float]]


def together(frames: list[Framed]) -> Iterator[tuple[dict[str, float], list[Framed]]]:
    """Pictures to take, of some drawings each, and where in it each lies."""
    while frames:
        top = min(box["y"] for _, box in frames)
        some = [one for one in frames if one[1]["y"] + one[1]["height"] <= top + TALLEST]
        assert some, frames
        frames = [one for one in frames if one not in some]
        left, bottom = (min(b["x"] for _, b in some), max(b["y"] + b["height"] for _, b in some))
        right = max(b["x"] + b["width"] for _, b in some)
        clip = {"x": left, "y": top, "width": right - left, "height": bottom - top, "scale": 1}
        yield clip, [(n, {**b, "x": b["x"] - left, "y": b["y"] - top}) for n, b in some]


def test_what_came_to_pass_stands_on_the_gate_s_page(
    pages: dict[str, Path], browser: Browser
) -> None:
    document = report.read_document(pages["passed"].with_name("report.json"))
    rows = document["findings"]["realised"]
    assert len(rows) == 12
    page = opened(browser, pages, "passed")
    drawn = page.run("[...document.querySelectorAll('#realised figure')].map(f => f.textContent)")
    assert len(drawn) == 3
    for row in rows:
        ahead = int(row["head"].removesuffix("h"))
        assert row["n"] == 400 - ahead, "each bar whose label has come to pass"
        text = next(words for words in drawn if f"{row['head']} ahead" in words)
        assert f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in text


TALLEST = 4000  # of a picture, in pixels
# How many colours a picture has in each of some places.
COLOURS = """async (png, boxes) => {
  const image = new Image(); image.src = 'data:image/png;base64,' + png; await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
  canvas.drawImage(image, 0, 0);
  return boxes.map(b => new Set(new Uint32Array(
    canvas.getImageData(b.x, b.y, b.width, b.height).data.buffer)).size); }"""

# Images without a name, for those who can't see them.
UNNAMED = """[...document.querySelectorAll('svg, img, [role=img]')].filter(e =>
  !(e.getAttribute('aria-label') || e.getAttribute('alt'))).map(e => e.outerHTML.slice(0, 80))"""

# Words or marks of a drawing that lie outside its own frame, where they would be cut or lie on
# what is beside it; and words that lie on each other. A drawing inside one cuts its words itself.
OUTSIDE = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const frame = svg.getBoundingClientRect(), name = svg.ariaLabel + ': ', out = [];
  const own = names => [...svg.querySelectorAll(names)].filter(e => !e.closest('svg svg'));
  for (const e of own('text, rect, circle, line, polyline')) {
    const b = e.getBoundingClientRect();
    if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1 ||
        b.bottom > frame.bottom + 1) out.push(name + e.tagName + ' ' + e.textContent);
  }
  const words = own('text').map(t => [t.textContent, t.getBoundingClientRect()]);
  words.forEach(([one, a], at) => words.slice(at + 1).forEach(([other, b]) => {
    const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (w > 1 && h > 4) out.push(name + one + ' / ' + other);
  }));
  return out; })"""

# Words with a contrast below 4.5 against the paper they stand on (WCAG AA).
FAINT = """(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 :
    ((v + .055) / 1.055) ** 2.4).reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const paper = e => { if (e.classList.contains('inside'))
    return parts(getComputedStyle(e.previousSibling).fill);
    for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const out = [];
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const box = e.getBoundingClientRect();
    if (!box.width || e.closest('title, caption')) continue;
    const style = getComputedStyle(e);
    const ink = parts(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(paper(e))].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) out.push(contrast.toFixed(2) + ' ' + e.textContent.trim().slice(0, 50));
  }
  return out; })()"""


def colours(png: bytes) -> int:
    """How many different bytes the picture's data hold: a blank one has a handful."""
    at, packed = 8, b""
    while at < len(png):
        size = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + size]
        at += 12 + size
    return len(set(zlib.decompress(packed)))
