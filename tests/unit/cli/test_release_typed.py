"""What `invoke release` and `invoke health` are given and can't use: one message, no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invoke import Collection, Exit, Program

from macd.app.predict.__main__ import check_run
from macd.cli import health, lab, release, usage
from macd.cli.release import lifetime_days
from macd.deploy.desired import served
from macd.errors import MacdError, UsageError
from macd.inventory import Inventory, load


@pytest.mark.parametrize("typed", ["nan", "-1", "0", "1e9", "inf", "soon"])
def test_no_release_lives_for_no_time_or_for_ages(typed: str) -> None:
    with pytest.raises(UsageError, match=f"--expires-days {typed} is no time"):
        lifetime_days(typed)


def test_days_of_a_release_as_typed_or_left_to_the_inventory() -> None:
    assert lifetime_days("0.5") == 0.5
    assert lifetime_days("") == 0


@pytest.mark.parametrize("option", ["--rtt-ms soon", "--rtt-ms=soon"])
def test_a_word_where_a_number_belongs_ends_with_2(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usage.install()
    program = Program(namespace=Collection(Collection("lab", lab.fault)))
    with pytest.raises(SystemExit) as ended:
        program.run(f"invoke lab.fault {option}")
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "--rtt-ms takes a number, and 'soon' is none" in err
    assert "invoke --help lab.fault" in err


@pytest.mark.parametrize(
    "settings",
    [
        "{",
        "[]",
        "{}",
        '{"tf": "1h", "symbol": 5, "cross": []}',
        '{"tf": "1h", "symbol": "BTCUSD", "cross": 5}',
        '{"tf": "1q", "symbol": "BTCUSD", "cross": []}',
        '{"tf": "1h", "symbol": "?", "cross": []}',
    ],
)
def test_damaged_settings_of_a_run_are_refused(settings: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(MacdError, match=r"has a settings\.json that can't be read"):
        check_run({"run": str(tmp_path), "data": str(tmp_path)})


def test_damaged_settings_of_a_run_are_shown_by_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACD_ROOT", str(tmp_path))
    shutil.copytree(Path(__file__).parents[3] / "inventory", tmp_path / "inventory")
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    (run / "settings.json").write_text('{"tf": "1h", "symbol": "BTCUSD", "cross": 5}')
    with pytest.raises(Exit) as ended:
        health.health.body(None, run="one")
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert "run one has a settings.json that can't be read" in shown
    assert "invoke train.fetch --run one" in shown


def test_the_line_that_serves_what_was_released_is_told(tmp_path: Path) -> None:
    """The line, written as printed, is what the inventory then has."""
    path = tmp_path / "inventory/one.yml"
    path.parent.mkdir()
    train = "train:\n  symbols: [ETHUSD, LTCUSD, BTCUSD]\n"

    def written(more: str = "") -> Inventory:
        hosts = "hosts:\n  prod: {role: serve, env: prod, ssh: p, app_dir: /opt/macd-analysis}\n"
        path.write_text(f"{train}{more}{hosts}")
        return load("one", root=tmp_path)

    assert release._unserved(written(), ["ETHUSD", "LTCUSD", "BTCUSD"]) == []
    what, do = release._unserved(written(), ["BTCUSD", "ETHUSD"])
    assert "watch LTCUSD too" in what
    assert do.startswith(f"in {path}, below service, write ")
    line = do.partition(" write ")[2].removesuffix("; then: invoke provision")
    inventory = written(f"service:\n  {line}\n")
    assert release._unserved(inventory, ["BTCUSD", "ETHUSD"]) == []
    assert served(inventory) == ("ETHUSD", "BTCUSD")


def test_symbols_are_left_out_by_name_or_told() -> None:
    parts = {"ETHUSD": "eth", "LTCUSD": "ltc"}
    several: Any = SimpleNamespace(id="one", symbol="ETHUSD", parts=parts)
    alone: Any = SimpleNamespace(id="two", symbol="ETHUSD", parts={})
    assert release._released(several, "") == parts
    assert release._released(several, "LTCUSD") == {"ETHUSD": "eth"}
    assert release._released(alone, "") == {}
    for run, without, said in (
        (several, "BTCUSD", "--without BTCUSD: run one has no such symbol"),
        (several, "ETHUSD, LTCUSD", "--without leaves no symbol to release"),
        (alone, "ETHUSD", "--without ETHUSD: this is no run of several symbols"),
    ):
        with pytest.raises(UsageError) as caught:
            release._released(run, without)
        assert caught.value.what == said
        assert "ETHUSD" in caught.value.why
