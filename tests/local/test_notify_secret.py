"""The guard's address gets to the host, for one account alone, and is shown nowhere on the way."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from macd.lab import LabState
from tests.support.lab_project import project

URL = "https://hooks.example/t0psecret"


def test_provision_puts_it_there_and_shows_it_nowhere(
    lab: LabState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(lab, tmp_path, "told")
    book = made.root / "inventory" / "lab.yml"
    plain = book.read_text()
    book.write_text(plain + "guard: {notify_url: '${T_GUARD_URL}'}\n")
    monkeypatch.setenv("T_GUARD_URL", URL)
    said = made.invoke("provision", "--dry-run") + made.invoke("provision", "--yes")
    path = made.app / "state/notify.json"
    assert json.loads(path.read_text()) == {"url": URL}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("T_GUARD_URL", f"{URL}/another")
    said += json.dumps(made.json("provision", "--dry-run"))
    assert "state/notify.json" in said
    assert "t0psecret" not in said
    book.write_text(plain)
    made.invoke("provision", "--yes")
    assert json.loads(path.read_text()) == {}
    assert "  0 changes" in made.invoke("provision", "--yes")
