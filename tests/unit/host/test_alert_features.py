"""The host's look at its own newest bars: judged by what the live release's manifest says."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.alerts.facts import _features
from macd.host.judge.drift import BLOCK
from macd.host.layout import Layout
from macd.host.store.manifest import File, Manifest, release_id, render
from tests.support import signal_lines

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
SHARE = {"mean": 0.01, "spread": 0.01}
BLOCKS = {"count": 50, "features": 80, "outside": SHARE, "worst": SHARE}


def host(tmp_path: Path, details: dict[str, Any], **components: Any) -> tuple[Layout, str]:
    """A host with a release of these details, and a block of its lines."""
    made = Manifest(
        app="macd-analysis",
        env="prod",
        serial=1,
        created=NOW,
        expires=NOW + timedelta(days=30),
        files=(File("a", 1, "0" * 64),),
        lock="0" * 64,
        details=details,
    )
    raw = render(made)
    live = release_id(raw)
    (tmp_path / "releases" / live).mkdir(parents=True)
    (tmp_path / "releases" / live / "manifest.json").write_bytes(raw)
    every = timedelta(hours=1)
    lines = signal_lines.lines(BLOCK, end=NOW, every=every, release=live, **components)
    signal_lines.write(tmp_path / "data/live", lines)
    return Layout(str(tmp_path)), live


@pytest.mark.parametrize(("outside", "outcome"), [(30, "drift"), (0, "none")])
def test_the_newest_block_is_judged(tmp_path: Path, outside: int, outcome: str) -> None:
    details = {"symbol": "BTCUSD", "drift": {"block": BLOCK, "assets": {"BTCUSD": BLOCKS}}}
    worst = "\x1b[31mrsi" if outside else None
    layout, live = host(tmp_path, details, ml_features_outside=outside, ml_feature_worst=worst)
    seen = _features(layout, live)
    assert seen is not None
    assert (seen.outcome, seen.bars) == (outcome, BLOCK)
    assert "\x1b" not in seen.text


def test_of_several_symbols_the_one_that_drifts_is_named(tmp_path: Path) -> None:
    names = [f"A{number}USD" for number in range(6)]
    parts = {
        name: {"drift": {"block": BLOCK, "assets": {name: BLOCKS}}, "more": "x"} for name in names
    }
    layout, live = host(tmp_path, {"symbol": names[0], "symbols": parts})
    shutil.rmtree(layout.live)
    (tmp_path / "service.json").write_text(json.dumps({"symbols": names}))
    assert _features(layout, live) is None, "there are no logs yet"
    every = timedelta(hours=1)
    for name in names:
        over = {"ml_features_outside": 30 if name == names[3] else 0, "padding": "x" * 600}
        made = signal_lines.lines(BLOCK, end=NOW, every=every, release=live, **over)
        signal_lines.write(Path(layout.live), ({**line, "symbol": name} for line in made))
    seen = _features(layout, live)
    assert seen is not None
    assert (seen.outcome, seen.bars) == ("drift", BLOCK)
    assert seen.text.startswith(f"{names[3]}: ")


def test_nothing_is_asked_of_an_earlier_release(tmp_path: Path) -> None:
    layout, live = host(tmp_path, {"symbol": "BTCUSD"}, ml_features_outside=30)
    assert _features(layout, live) is None
    assert _features(layout, None) is None
