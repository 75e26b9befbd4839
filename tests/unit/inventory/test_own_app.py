"""An application of one's own: what is read, what is refused, what a host is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from macd import application
from macd.errors import UsageError
from macd.host.own import BUILT_IN, KEY, parse
from macd.host.own import argv as argv_of
from macd.inventory import Inventory, load

EXAMPLE = Path(__file__).parents[3] / "inventory" / "own-app.example.yml"


def loaded(tmp_path: Path, **app: Any) -> Inventory:
    document = yaml.safe_load(EXAMPLE.read_text())
    for path, value in app.items():
        *parents, last = path.split("__")
        here = document["app"]
        for parent in parents:
            here = here[parent]
        here[last] = value
    (tmp_path / "inventory").mkdir(exist_ok=True)
    (tmp_path / "inventory" / "ours.yml").write_text(yaml.safe_dump(document, sort_keys=False))
    return load("ours", root=tmp_path)


def test_the_example_is_read_and_named_by_its_app(tmp_path: Path) -> None:
    inventory = loaded(tmp_path)
    assert inventory.app is not None
    assert inventory.release.app == inventory.app.name == "macd-analysis"
    assert list(inventory.app.train.stages) == ["verify", "lstm"]  # type: ignore[union-attr]


def test_a_host_reads_what_the_inventory_says(tmp_path: Path) -> None:
    inventory = loaded(tmp_path)
    assert inventory.app is not None
    service = application.of(inventory).service(inventory.hosts["prod"].unit)
    text = json.dumps({KEY: service.document()}, sort_keys=True)
    assert parse(text) == service
    assert service.unit == "macd-analysis.service"
    ours = ["macd-analysis.service", "macd-analysis-web.service", "macd-analysis-fills.service"]
    assert list(service.units) == ours
    assert parse(None) == BUILT_IN
    assert parse('{"symbol": "BTCUSD"}') == BUILT_IN


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("python3 a.py -v", ["/r/runtime/bin/python", "a.py", "-v"]),
        ("gunicorn web:app", ["/r/runtime/bin/python", "/r/runtime/bin/gunicorn", "web:app"]),
        ("/usr/bin/env x", ["/usr/bin/env", "x"]),
    ],
)
def test_a_command_runs_by_the_releases_python(command: str, argv: list[str]) -> None:
    assert argv_of(command, "/r") == argv


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("serve__writes", ["../logs"], "relative to the source"),
        ("serve__writes", ["releases/x"], "macd's own"),
        ("serve__writes", ["logs", "logs/live"], "each directory once"),
        ("serve__writes", ["logs", "./logs/"], "each directory once"),
        ("serve__writes", ["./releases/x"], "macd's own"),
        ("serve__writes", ["logs/*"], "not globs"),
        ("serve__writes", ["."], "relative to the source"),
        ("serve__command", "a | b", "no shell reads it"),
        ("serve__ready", {"http": "http://example.com/"}, "on the host itself"),
        ("serve__ready", {"http": "http://127.0.0.1:1/", "running": 3}, "one of http"),
        ("train__metrics", {"auc": "log.txt"}, "json/pointer"),
        ("train__metrics", {"auc": "log.txt#auc=.*"}, "one group"),
        ("train__criteria", {"nothing": {"min": 1}}, "one of metrics: lstm_val_auc, lstm_gap"),
        ("signals__rates", {"tft": {"field": "x", "min": 0.5}}, "judged by gate"),
        ("signals__rates", {"mine": {"field": "x", "min": 1}}, "less than 1"),
        (
            "signals__rates",
            {"a": {"field": "x", "min": 0.5, "of": "b"}, "b": {"field": "x", "min": 0, "of": "a"}},
            "in a circle",
        ),
        ("flag", {"name": "X", "live": "0"}, "two values that differ"),
        ("serve__ready", {"http": "http://127.0.0.1:99999/health"}, "a port from 1 to 65535"),
    ],
)
def test_what_can_not_be_meant_is_refused(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        loaded(tmp_path, **{key: value})
    assert said in str(error.value.why)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("coverage: data", "coverag: data", "app.signals.map.coverag\n  expected a name that the"),
        ("of: coverage", "of: coverag", "app.signals.rates.lgb_normal.of\n  expected one of all"),
        (
            "min: 0.9",
            "mn: 0.9",
            "app.signals.rates.lgb_normal.mn\n  expected one of the keys field",
        ),
        (
            "lstm_gap: {max",
            "lstm_gp: {max",
            "app.train.criteria.lstm_gp\n  expected one of metrics",
        ),
        (
            "lstm_gap: data/gpu_results/train_lstm.log#",
            "lstm_gap: x",
            "app.train.metrics.lstm_gap\n",
        ),
    ],
)
def test_a_mistyped_name_is_told_with_its_own_line(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = EXAMPLE.read_text()
    assert text.count(old) == 1
    line = text[: text.index(old)].count("\n") + 1
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/ours.yml").write_text(text.replace(old, new))
    with pytest.raises(UsageError) as error:
        load("ours", root=tmp_path)
    assert f"line {line}: {said}" in error.value.why
    if "metrics." not in said:
        meant = "coverage" if "coverag" in new else old.partition(":")[0]
        assert f"(did you mean {meant}?)" in error.value.why
    assert "own-app.example.yml" in error.value.hint
    assert "production.example.yml" not in error.value.hint


def test_a_name_of_its_own_in_map_is_one_that_a_rate_uses(tmp_path: Path) -> None:
    rate = {"field": "lgb", "min": 0.5}
    signals = {"files": "x.jsonl", "map": {"lgb": "p.lgb"}, "rates": {"lgb_normal": rate}}
    assert loaded(tmp_path, signals=signals).app is not None


def test_a_value_of_a_variable_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        loaded(tmp_path, serve__env={"KEY": "s3crét"})
    assert "s3cr" not in str(error.value)
