"""Which runs the report of a collected run is compared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from macd.cli import compare, train
from macd.errors import UsageError
from macd.inventory import Inventory, load


@pytest.fixture
def inventory() -> Inventory:
    return load("lab")


def made(runs: Path, name: str, symbol: str = "BTCUSD", state: str = "done") -> Path:
    run = runs / name
    run.mkdir(parents=True)
    (run / "settings.json").write_text(json.dumps({"symbol": symbol, "tf": "1h"}))
    (run / "result.json").write_text(json.dumps({"state": state}))
    return run


def live(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    def behind_live(inventory: Inventory, env: str) -> str:
        if not run:
            raise UsageError("nothing is live")
        return run

    monkeypatch.setattr(compare, "behind_live", behind_live)


def test_the_previous_run_of_the_same_market_and_what_is_live(
    tmp_path: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(tmp_path, "20260101T000000Z-a"), made(tmp_path, "20260201T000000Z-b")
    made(tmp_path, "20260202T000000Z-eth", symbol="ETHUSDT")
    made(tmp_path, "20260203T000000Z-c.failed", state="failed")
    (made(tmp_path, "20260204T000000Z-torn") / "settings.json").write_text("{")
    new = made(tmp_path, "20260301T000000Z-d")
    made(tmp_path, "20260401T000000Z-later")
    live(monkeypatch, first.name)
    assert train._compared_with(new, inventory) == {
        "the previous run": second,
        "what is live in prod": first,
    }
    live(monkeypatch, second.name)
    assert train._compared_with(new, inventory) == {
        "the previous run, which is live in prod": second
    }
    live(monkeypatch, "20260202T000000Z-eth")
    assert train._compared_with(new, inventory) == {"the previous run": second}


def test_a_first_run_is_compared_with_nothing(
    tmp_path: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = made(tmp_path, "20260301T000000Z-d")
    for said in ("", new.name, "20250101T000000Z-gone"):
        live(monkeypatch, said)
        assert train._compared_with(new, inventory) == {}
    shutil.rmtree(new)
    assert train._compared_with(new, inventory) == {}
