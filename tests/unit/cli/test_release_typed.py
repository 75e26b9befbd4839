"""What `invoke release` and `invoke health` are given and can't use: one message, no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from invoke import Collection, Exit, Program

from macd.cli import health, lab, usage
from macd.cli.release import lifetime_days
from macd.errors import UsageError


@pytest.mark.parametrize("typed", ["nan", "-1", "0", "1e9", "inf", "soon"])
def test_no_release_lives_for_no_time_or_for_ages(typed: str) -> None:
    with pytest.raises(UsageError, match=f"--expires-days {typed} is no time"):
        lifetime_days(typed)


def test_days_of_a_release_as_typed_or_left_to_the_inventory() -> None:
    assert lifetime_days("0.5") == 0.5
    assert lifetime_days("") == 0


def test_a_word_where_a_number_belongs_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    usage.install()
    program = Program(namespace=Collection(Collection("lab", lab.fault)))
    with pytest.raises(SystemExit) as ended:
        program.run("invoke lab.fault --rtt-ms soon")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "an option here takes a number: could not convert string to float: 'soon'" in told
    assert "invoke --list" in told


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
def test_damaged_settings_of_a_run_are_told_by_health(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MACD_ROOT", str(tmp_path))
    shutil.copytree(Path(__file__).parents[3] / "inventory", tmp_path / "inventory")
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    (run / "settings.json").write_text(settings)
    with pytest.raises(Exit) as ended:
        health.health.body(None, run="one")
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "run one has a settings.json that can't be read" in told
    assert "invoke train.fetch --run one" in told
