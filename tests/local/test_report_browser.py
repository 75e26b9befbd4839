"""The page of a real training, opened in a real browser: it stands alone and fits its readers.

Every test but one looks at the page of the small run that tests share.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macd import application
from macd.app.market.bars import read_bars, write_bars
from macd.app.pages import training
from macd.app.train import pipeline
from macd.app.train.settings import settings_from
from macd.errors import MacdError
from macd.report import numbers
from tests.support.browser import Browser, chromium
from tests.support.sweeps import sweep
from tests.support.training_run import bars_directory, trained_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "20260325T120000Z-report"
    shutil.copytree(trained_run(), out, ignore=shutil.ignore_patterns("cache"))
    training.write(out, host="h800")
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change things in."""
    return Path(shutil.copytree(run_dir, tmp_path / run_dir.name))


def url(run: Path) -> str:
    return (run / training.PAGE).as_uri()


@pytest.mark.parametrize(
    "look", sweep(["390-light", "390-dark", "1280-light", "1280-dark"], "390-light", "1280-dark")
)
def test_stands_alone_and_fits(run_dir: Path, browser: Browser, look: str, tmp_path: Path) -> None:
    width, dark = int(look.partition("-")[0]), look.endswith("dark")
    page = browser.open(url(run_dir), width=width, dark=dark).unfold()
    assert page.complaints == []
    assert page.requests == [url(run_dir)], "the page asks for nothing else"
    assert page.run("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    # letters in charts keep a readable size at every width
    smallest = page.run(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t =>"
        " parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"
    )
    assert smallest >= 8.5
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(n) for n in re.findall(r"\d+", paper)[:3])
    assert (brightness < 200) is dark
    assert page.screenshot(tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.parametrize("width", [390, 1280])
def test_no_words_lie_on_each_other_in_any_chart(
    run_dir: Path, browser: Browser, width: int
) -> None:
    page = browser.open(url(run_dir), width=width).unfold()
    overlaps = page.run(
        """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
          const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent,
            t.getBoundingClientRect()]);
          const out = [];
          for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
            const [a, b] = [boxes[i][1], boxes[j][1]];
            const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (w > 1 && h > 4) out.push(svg.querySelector('title').textContent + ': ' +
              boxes[i][0] + ' / ' + boxes[j][0]);
          }
          return out; })"""
    )
    assert overlaps == []
    outside = page.run(
        """[...document.querySelectorAll('svg.chart text')].filter(t => {
          const box = t.getBoundingClientRect();
          return box.left < 0 || box.right > innerWidth; }).map(t => t.textContent)"""
    )
    assert outside == []


def test_every_chart_has_a_name_and_its_numbers_as_a_table(run_dir: Path, browser: Browser) -> None:
    page = browser.open(url(run_dir))
    charts = page.run("document.querySelectorAll('svg.chart').length")
    named = page.run("document.querySelectorAll('svg.chart[role=img][aria-label] > title').length")
    tabled = page.run("document.querySelectorAll('figure svg.chart ~ details table').length")
    # 2 equity, 2 comparisons, 6 AUC, 7 models x 3 heads by fold, 3 surrogates, 2 x 2 curves,
    # 7 reliability, 7 ROC, 7 by confidence, 5 distributions, 3 stacking, 2 importance,
    # 2 x 3 contributions, 1 attention, 1 durations
    assert charts == named == tabled == 4 + 6 + 21 + 3 + 4 + 3 * 7 + 5 + 3 + 2 + 6 + 1 + 1
    assert page.run("document.querySelectorAll('svg.chart').length") == page.run(
        "new Set([...document.querySelectorAll('svg.chart')].map(s => s.ariaLabel)).size"
    )
    broken = page.run(
        "[...document.querySelectorAll('nav a')].filter(a =>"
        " !document.querySelector(a.hash)).length"
    )
    assert broken == 0


def test_says_what_the_run_wrote(run_dir: Path, browser: Browser) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    criteria = json.loads((run_dir / "criteria.json").read_text())
    words = browser.open(url(run_dir)).unfold().run("document.body.innerText")
    best = metrics["best_head"]["stacking"]
    for model, part in (("stacking", "val"), ("stacking", "val_all"), ("volatility", "val")):
        made = metrics["models"][model][best][part]
        assert f"{made['value']:.3f}" in words
        assert f"[{made['low']:.3f}, {made['high']:.3f}]" in words
    assert f"{metrics['models']['stacking'][best]['val']['effective_n']:,.0f}" in words
    assert metrics["data_digest"] in words
    assert run_dir.name in words
    assert "h800" in words
    met = sum(o["ok"] for o in criteria)
    assert f"{met} of {len(criteria)} criteria met" in words
    for outcome in criteria:
        assert numbers.typeset(outcome["title"]) in words
    signs = browser.open(url(run_dir)).run(
        "[...document.querySelectorAll('#criteria .sign')].map(e => e.textContent).join('')"
    )
    missed = {"block": "✗", "warn": "⚠"}
    assert signs == "".join("✓" if o["ok"] else missed[o["level"]] for o in criteria)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_has_the_verdict_and_what_policies_earned(
    run_dir: Path, browser: Browser, width: int, height: int
) -> None:
    page = browser.open(url(run_dir), width=width, height=height)
    ends = page.run(
        "['.verdict', '.opening figure svg'].map(s =>"
        " document.querySelector(s).getBoundingClientRect().bottom)"
    )
    assert max(ends) < height
    figures = page.run(
        "[...document.querySelectorAll('.opening figcaption')].map(f => f.innerText)"
    )
    assert [name.split(",")[0] for name in figures] == [
        "Policies net of costs",
        "Policies net of costs",
        "AUC on all bars",
        "Stacking minus others",
    ]
    if width > 1000:
        bottom = "document.querySelector('.opening').getBoundingClientRect().bottom"
        assert page.run(bottom) < height
    words = page.run("document.querySelector('.opening').innerText")
    policies = json.loads((run_dir / "metrics.json").read_text())["policies"]
    for left_out in policies["not_modelled"]:
        assert left_out in words
    assert "no claim of profit" in words
    assert "The head was chosen by its AUC on the same validation bars" in words


def test_what_is_folded_opens_by_key_and_by_link_and_is_printed(
    run_dir: Path, browser: Browser
) -> None:
    page = browser.open(url(run_dir))
    tall = "[...document.querySelectorAll('details.fold > div')].map(d => d.checkVisibility({"
    tall += "contentVisibilityAuto: true, visibilityProperty: true}))"
    assert not any(page.run(tall))
    page.run("document.querySelector('details.fold summary').focus()")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", page.session, type=kind, **key)
    assert page.run(tall).count(True) == 1
    page.run("document.querySelector('nav a[href=\"#data\"]').click()")
    assert page.run("document.querySelector('#data').closest('details').open")
    browser.call("Emulation.setEmulatedMedia", page.session, media="print")
    assert all(page.run(tall))


def test_no_key_of_a_file_is_shown_to_people(run_dir: Path, browser: Browser) -> None:
    page = browser.open(url(run_dir)).unfold()
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    words = page.run(
        "[...document.querySelectorAll('main > :not(:has(#record)), dl.facts')]"
        ".map(e => e.textContent).join(' ')"
    )
    assert len(words) > 10_000
    assert re.findall(r"\b[a-zA-Z0-9]+_\w+", words) == []


def test_every_chart_tells_its_values_where_the_pointer_rests(
    run_dir: Path, browser: Browser
) -> None:
    page = browser.open(url(run_dir))
    silent = page.run(
        "[...document.querySelectorAll('svg.chart')].filter(s =>"
        " ![...s.querySelectorAll('g > title, rect > title, circle > title')]"
        ".some(t => /\\d/.test(t.textContent))).map(s => s.ariaLabel)"
    )
    assert silent == []


def test_what_changed_stands_on_the_first_screen_and_whole_below(
    run_dir: Path, browser: Browser, copy: Path
) -> None:
    others = {"the previous run": run_dir, "what is live in prod": copy / "nowhere"}
    application.write_training_page(copy, host="h800", others=others)
    for width in (1280, 390):
        page = browser.open(url(copy), width=width).unfold()
        assert page.complaints == []
        assert page.run("document.documentElement.scrollWidth") <= width
    first = page.run("document.querySelector('.opening').innerText")
    assert f"Against the previous run, {run_dir.name}:" in first
    assert "this run is not shown to be better" in first
    assert "Against what is live in prod: not compared" in first
    whole = page.run("document.querySelector('#changes').innerText")
    assert "Settings, bars, features, code and libraries are the same." in whole
    assert page.run("document.querySelectorAll('#changes table tbody tr').length") == 15


def test_a_run_of_one_stage_says_what_did_not_run(browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "only-lgbm"
    small = {"folds": 2, "initial": 0.3, "workers": 1, "params": {"lgbm": {"rounds": 5}}}
    bars = read_bars(bars_directory(trained_run()) / "BTCUSD_1h.parquet")[:2600]
    write_bars(bars, tmp_path / "bars/BTCUSD_1h.parquet")
    where = {"data": str(tmp_path / "bars"), "out": str(out)}
    settings = settings_from({**small, **where, "mode": "lgbm"})
    pipeline.run(settings, clock=lambda: 1_900_000_000.0, environment={}, echo=False)
    training.write(out)
    wide = browser.open(url(out), width=1280).unfold()
    assert wide.complaints == []
    page = browser.open(url(out), width=390).unfold()
    assert page.complaints == []
    words = page.run("document.body.innerText")
    assert wide.run("document.body.innerText").split() == words.split()
    for told in (
        "LSTM has no figures in this run.",
        "Stacking has no figures in this run.",
        "The audit runs with the stacking stage.",
        "LightGBM has no epochs.",
        "No leak audit ran",
    ):
        assert told in words
    assert "LightGBM 5h" in words


def test_hostile_text_in_a_run_stays_text(copy: Path, browser: Browser) -> None:
    evil = (
        "<script>document.title='owned'</script><img src=http://x.invalid/a.png onerror=alert(1)>"
    )
    for name in ("metrics.json", "criteria.json", "leak_audit.json", "settings.json"):
        content = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(_poisoned(content, evil)))
    training.write(copy)
    page = browser.open(url(copy)).unfold()
    assert page.requests == [url(copy)]
    assert page.complaints == []
    assert page.run("document.querySelectorAll('script, body img').length") == 0
    assert evil in page.run("document.body.innerText")


def _poisoned(value: Any, evil: str, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _poisoned(v, evil, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_poisoned(v, evil, key) for v in value]
    if isinstance(value, str) and key in ("symbol", "detail", "title", "profile", "code_digest"):
        return value + evil
    return value


def test_a_failed_run_says_where_why_and_what_to_do(copy: Path, browser: Browser) -> None:
    failure = {
        "state": "failed",
        "stage": "lstm",
        "what": "lstm: the loss became nan in epoch 2",
        "why": "the weights diverged",
        "hint": "train with a lower learning rate",
    }
    (copy / "result.json").write_text(json.dumps(failure))
    training.write(copy)
    words = browser.open(url(copy)).run("document.querySelector('.verdict.bad').innerText")
    assert "failed in stage lstm" in words
    assert "figures below are from an earlier call" in words
    for told in ("what", "why", "hint"):
        assert failure[told] in words
    (copy / "result.json").unlink()
    training.write(copy)
    words = browser.open(url(copy)).run("document.querySelector('.verdict.warn').innerText")
    assert "has not finished" in words


def test_a_damaged_file_is_named_and_an_old_page_stays(copy: Path) -> None:
    old = (copy / training.PAGE).read_bytes()
    (copy / "metrics.json").write_text('{"torn": ')
    with pytest.raises(MacdError, match=r"metrics\.json of the run can't be read"):
        training.write(copy)
    assert (copy / training.PAGE).read_bytes() == old


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(MacdError, match="is not the directory of a training"):
        training.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
