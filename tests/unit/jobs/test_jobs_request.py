"""What a remote training is made of is decided, and refused, before any host is touched."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.app.predict.policy import Policy, Thresholds
from macd.errors import UsageError
from macd.inventory import Inventory, load, project_root
from macd.jobs import request as requests
from macd.jobs.record import train_host
from macd.jobs.request import TrainRequest

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    (tmp_path / "inventory").mkdir()
    shutil.copy(project_root() / "inventory/lab.yml", tmp_path / "inventory")
    (tmp_path / "data/sample").mkdir(parents=True)
    (tmp_path / "data/sample/BTCUSD_1h.parquet").write_bytes(b"bars")
    return load("lab", root=tmp_path)


def request(inventory: Inventory, *, now: datetime = NOW, **changes: Any) -> TrainRequest:
    raw = requests.settings_of(inventory, changes)
    bars = requests.data_files(raw, inventory.train.data_dir)
    return requests.make(raw, bars, python="python3", env={}, now=now)


def test_the_inventory_is_what_is_trained(inventory: Inventory) -> None:
    settings = request(inventory).settings
    assert (settings.symbol, settings.profile, settings.seed) == ("BTCUSD", "demo", 7)
    assert settings.criteria["lstm_val_auc"].level == "warn"
    assert settings.criteria["files_exist"].level == "block"


def test_the_policy_of_the_service_is_what_a_training_evaluates(inventory: Inventory) -> None:
    path = inventory.path
    policy = "{kind: threshold, thresholds: {5h: {long: 0.7, short: 0.3}}, fee_bps: 4}"
    text = path.read_text()
    path.write_text(re.sub("policy: .*", f"policy: {policy}", text))
    known = load("lab", root=inventory.root)
    assert request(known).settings.policy == Policy(
        "threshold", {"5h": Thresholds(0.7, 0.3)}, fee_bps=4.0
    )
    assert request(inventory).settings.policy == Policy("threshold", {"all": Thresholds()})


def test_what_is_asked_wins(inventory: Inventory) -> None:
    made = request(inventory, seed=9, profile="full", params={"lstm": {"epochs": 2}})
    assert (made.settings.seed, made.settings.profile) == (9, "full")
    assert made.settings.params == {"lstm": {"epochs": 2}}


def test_only_what_a_training_imports_travels(inventory: Inventory) -> None:
    files = request(inventory).tree.files
    rooms = {path.split("/")[1] for path in files if path.count("/") > 1}
    assert rooms == {"app", "host"}
    assert {path.split("/")[2] for path in files if path.startswith("macd/app/")} == {
        "__init__.py",
        "market",
        "predict",
        "train",
    }
    assert {"macd/app/train/__main__.py", "macd/app/market/sessions.json"} <= files.keys()
    assert files["data/BTCUSD_1h.parquet"].size == 4


def test_an_id_says_when_and_changes_with_whatever_decides_the_outcome(
    inventory: Inventory,
) -> None:
    first = request(inventory)
    assert first.run.startswith("20260102T030405Z-")
    assert request(inventory).run == first.run
    assert request(inventory, seed=8).run != first.run
    (inventory.train.data_dir / "BTCUSD_1h.parquet").write_bytes(b"more bars")
    other = request(inventory)
    assert other.run != first.run
    assert other.tree.digest != first.tree.digest


def test_the_directories_belong_to_the_job(inventory: Inventory) -> None:
    assert "{run}" in request(inventory).argv
    with pytest.raises(UsageError, match="out can't be set"):
        request(inventory, out="/somewhere")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"market": "bonds"}, "none of crypto, fx, stocks"),
        ({"profile": "huge"}, "profile"),
        ({"folds": "many"}, "folds"),
        ({"nonsense": 1}, "nonsense"),
        ({"params": {"gru": {}}}, "params"),
    ],
)
def test_wrong_settings_are_named(inventory: Inventory, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as caught:
        request(inventory, **changes)
    assert word in str(caught.value)


def test_settings_survive_the_way_to_the_host(inventory: Inventory) -> None:
    made = request(inventory, symbol="btc/usd")
    from macd.app.train.settings import settings_from  # noqa: PLC0415

    assert settings_from(json.loads(json.dumps(made.raw))) == made.settings
    assert made.settings.symbol == "BTCUSD"


def test_seeds_market_parameters_and_refit_reach_the_training(inventory: Inventory) -> None:
    asked = {
        "seeds": 3,
        "market": "fx",
        "params": {"lgbm": {"features": "all", "rate": 0.05}},
        "refit": True,
    }
    train = inventory.train.model_copy(update=asked)
    book = inventory.model_copy(update={"train": train})
    settings = request(book).settings
    assert {name: getattr(settings, name) for name in asked} == asked
    assert request(book, mode="lgbm").settings.refit is False, "one stage judges nothing"


def test_a_symbol_is_not_its_own_cross_asset(inventory: Inventory) -> None:
    train = inventory.train.model_copy(update={"cross": ("BTCUSD", "ETHUSD")})
    book = inventory.model_copy(update={"train": train})
    assert requests.settings_of(book, {})["cross"] == ["ETHUSD"]


def test_the_panels_bars_travel_and_the_symbol_is_one_of_them(inventory: Inventory) -> None:
    for name in ("ETHUSD", "SOLUSD"):
        (inventory.train.data_dir / f"{name}_1h.parquet").write_bytes(name.encode())
    train = inventory.train.model_copy(update={"panel": ("BTCUSD", "ETHUSD", "SOLUSD")})
    made = request(inventory.model_copy(update={"train": train}))
    sent = {path for path in made.tree.files if path.startswith("data/")}
    assert sent == {f"data/{name}_1h.parquet" for name in ("BTCUSD", "ETHUSD", "SOLUSD")}
    assert made.settings.panel_others == ("ETHUSD", "SOLUSD")
    assert made.settings.families[3:] == ("lgbm_panel", "lstm_panel", "tft_panel")


def test_a_panel_of_the_symbol_alone_is_none(inventory: Inventory) -> None:
    with pytest.raises(UsageError) as caught:
        request(inventory, panel=["BTC/USD"])
    assert "panel: names no asset beside BTCUSD" in caught.value.why


def test_the_only_training_host_needs_no_name(inventory: Inventory) -> None:
    assert train_host(inventory).name == "h800"
    assert train_host(inventory, "h800").name == "h800"
    with pytest.raises(UsageError, match="no training host"):
        train_host(inventory, "prod")
    second = inventory.host("h800").model_copy(update={"name": "h801"})
    several = inventory.model_copy(update={"hosts": {**inventory.hosts, "h801": second}})
    with pytest.raises(UsageError) as caught:
        train_host(several)
    assert "h800, h801" in caught.value.why


def test_several_symbols_travel_with_what_each_needs(inventory: Inventory) -> None:
    for name in ("ETHUSD", "LTCUSD"):
        (inventory.train.data_dir / f"{name}_1h.parquet").write_bytes(name.encode())
    made = request(inventory, symbols="ETHUSD,LTCUSD", cross=["ETHUSD", "BTCUSD"])
    assert (made.settings.symbol, made.settings.symbols) == ("ETHUSD", ("ETHUSD", "LTCUSD"))
    assert [one.cross for one in made.settings.each] == [("BTCUSD",), ("ETHUSD", "BTCUSD")]
    data = [path for path in made.tree.files if path.startswith("data/")]
    assert sorted(data) == [f"data/{name}_1h.parquet" for name in ("BTCUSD", "ETHUSD", "LTCUSD")]
    assert made.about["symbols"] == ["ETHUSD", "LTCUSD"]
    alone = request(inventory, symbols="ETHUSD")
    assert (alone.settings.symbol, alone.settings.symbols) == ("ETHUSD", ())
    assert "symbols" not in {*alone.raw, *alone.about, *alone.settings.as_json()}
    with pytest.raises(UsageError, match="of symbols ETHUSD is the first"):
        request(inventory, symbols="ETHUSD,LTCUSD", symbol="LTCUSD")


def test_symbols_that_can_not_be_trained_together_are_told(inventory: Inventory) -> None:
    with pytest.raises(UsageError) as caught:
        request(inventory, symbols="ETHUSD,ETH/USD")
    assert "each symbol once" in caught.value.why
    with pytest.raises(UsageError) as caught:
        request(inventory, symbols="ETHUSD,LTCUSD", panel=["LTCUSD"], stages=["verify", "lgb"])
    assert "panel: names no asset beside LTCUSD" in caught.value.why
    assert "stages: only" in caught.value.why
