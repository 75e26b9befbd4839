"""The two inventories in git load, document every key and hold the guide's values."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from macd.app.market.findings import Limits, parse
from macd.criteria import DEFAULTS, GUIDE
from macd.inventory import Inventory, load
from macd.inventory.load import _OURS
from macd.inventory.models import LimitName

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "inventory" / "production.example.yml"
OWN_APP = EXAMPLE.with_name("own-app.example.yml")


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> Inventory:
    monkeypatch.setenv("MACD_PROD_HOST", "prod.example.net")
    monkeypatch.setenv("MACD_NOTIFY_URL", "json://localhost")
    return load("production.example", root=ROOT)


def test_the_guides_values_stand_in_the_example(production: Inventory) -> None:
    prod = production.host("prod")
    assert (prod.ssh, prod.port, prod.user) == ("prod.example.net", 22222, "root")
    assert (prod.app_dir, prod.unit, prod.scope) == (
        "/opt/macd-analysis",
        "macd-analysis",
        "system",
    )
    h800 = production.host("h800")
    assert (h800.work_dir, h800.jump) == ("~/work/macd-analysis", ("jumphost",))
    thresholds = {name: c.threshold for name, c in production.train.criteria.items()}
    assert thresholds["lstm_val_auc"] == 0.57
    assert thresholds["test_val_gap"] == 0
    assert thresholds["stacking_oof_auc"] == 0.58
    assert thresholds["n_oof"] == 10000
    assert {n: c.level for n, c in production.train.criteria.items()} == {
        n: rule.level for n, rule in GUIDE.items()
    }
    gate = production.gate
    shares = (gate.ml_coverage, gate.stacking_activation, gate.tft_normal, gate.lstm_normal)
    assert shares == (0.80, 0.90, 0.80, 0.95)
    assert gate.min_bars == 20


def test_the_examples_values_are_the_defaults(production: Inventory) -> None:
    """Leaving a section out means what the example says; only the places are the example's own."""
    for section in ("link", "gate", "guard", "soak"):
        shown = getattr(production, section)
        assert shown == type(shown)(), section
    fresh = type(production.train)(data_dir=production.train.data_dir)
    own = {"symbol", "cross", "accept"}
    assert production.train.model_dump(exclude=own) == fresh.model_dump(exclude=own)


def test_the_production_address_comes_only_from_the_environment() -> None:
    assert yaml.safe_load(EXAMPLE.read_text())["hosts"]["prod"]["ssh"] == "${MACD_PROD_HOST}"


def fields_of(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, str]]:
    for name, info in model.model_fields.items():
        if (model is Inventory and name in _OURS) or (at.endswith("hosts.") and name == "name"):
            continue
        yield at + name, info.alias or name
        for inner in models_in(info.annotation):
            yield from fields_of(inner, f"{at}{name}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from models_in(inner)


def test_every_field_of_the_models_appears_in_the_example() -> None:
    shown = set(keys_of(yaml.safe_load(EXAMPLE.read_text())))
    shown |= set(keys_of(yaml.safe_load(OWN_APP.read_text())))
    missing = [path for path, name in fields_of(Inventory) if name not in shown]
    assert not missing
    assert len(list(fields_of(Inventory))) > 50  # the walk really went down


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


def test_every_key_is_explained_where_it_first_appears() -> None:
    """A comment beside the key or above it; a section may explain its keys."""
    explained, above = set[str](), False
    bare = []
    for line in EXAMPLE.read_text().splitlines():
        if match := re.match(r"\s*-?\s*([a-z_0-9]+):", line):
            if "#" in line or above or match[1] in explained:
                explained.add(match[1])
            else:
                bare.append(match[1])
        above = line.lstrip().startswith("#")
    assert set(bare) <= {"hosts", "train", "release", "env", "every_hours", "for_hours"} | {
        "h800",
        "prod",
    }


def test_limits_are_those_of_the_checks(production: Inventory) -> None:
    assert list(typing.get_args(LimitName)) == [field.name for field in fields(Limits)]
    (shown,) = (parse(one.as_json()) for one in production.train.accept)
    assert str(shown) == (
        "check=gap,symbol=BTCUSDT,from=2018-02-08T00:00,to=2018-02-10T23:59,"
        "reason=Binance stood still"
    )


def test_the_criteria_are_those_the_training_knows(production: Inventory) -> None:
    trained = {name: c.threshold for name, c in DEFAULTS.items()}
    assert {n: c.threshold for n, c in production.train.criteria.items()} == trained


def test_the_lab_is_the_demo_with_warning_thresholds() -> None:
    lab = load("lab", root=ROOT)
    assert {name: host.ssh for name, host in lab.hosts.items()} == {
        "jump": "lab-jump",
        "h800": "lab-h800",
        "prod": "lab-prod",
    }
    assert lab.known_hosts == ROOT / ".lab" / "known_hosts"
    assert lab.ssh_config == ROOT / ".lab" / "ssh_config"
    assert lab.train.profile == "demo"
    measured = ("lstm_val_auc", "test_val_gap", "stacking_oof_auc", "n_oof")
    assert {lab.train.criteria[name].level for name in measured} == {"warn"}
    assert lab.train.criteria["leak_audit"].level == "block"
    assert [host.name for host in lab.env_hosts("prod")] == ["prod"]
