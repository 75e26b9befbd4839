"""The note about the newest gate report stays the newest, whoever writes at the same time."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.flag import evidence
from macd.host.layout import Layout

NOW = datetime.now(UTC)


def note(verdict: str, minutes: int) -> dict[str, Any]:
    made = (NOW - timedelta(minutes=minutes)).isoformat()
    return {"verdict": verdict, "opens": verdict == "PASS", "release": "r", "made": made}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "state").mkdir()
    return Layout(str(tmp_path))


def test_an_older_one_replaces_no_newer_one(layout: Layout) -> None:
    assert evidence.gate_note(layout.app, note("FAIL", 1))
    assert not evidence.gate_note(layout.app, note("PASS", 2))
    assert evidence.gate_newest(layout.app) is not None


def test_nor_does_it_when_both_are_written_at_once(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, save = threading.Event(), evidence.save

    def slowly(path: str, document: Any) -> None:
        if document["verdict"] == "PASS":
            entered.set()
            time.sleep(0.3)
        save(path, document)

    monkeypatch.setattr(evidence, "save", slowly)
    older = threading.Thread(target=evidence.gate_note, args=(layout.app, note("PASS", 2)))
    older.start()
    assert entered.wait(120)
    assert evidence.gate_note(layout.app, note("FAIL", 1))
    older.join()
    newest = evidence.gate_newest(layout.app)
    assert newest is not None and newest["verdict"] == "FAIL"
