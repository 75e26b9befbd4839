"""The demo types known commands, on the lab only, and stops where one ends as it must not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit

import tasks
from macd.cli import demo
from macd.errors import ExitCode
from macd.lab import LabState


class Typed:
    """Stands for the processes: says how each one ends, remembers what was typed and with what."""

    def __init__(self, ends: dict[str, list[int]] | None = None) -> None:
        self.ends = ends or {}
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def __call__(self, argv: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(argv)
        self.environments.append(named["env"])
        codes = self.ends.get(argv[1])
        if codes:
            return subprocess.CompletedProcess(argv, codes.pop(0))
        wanted = tuple(argv[1:]) if argv[0] != "/bin/sh" else ()
        number = sum(one == argv for one in self.commands)
        steps = [step for step in (*demo.STORY, demo.LAST) if step.argv == wanted]
        return subprocess.CompletedProcess(argv, steps[number - 1].ends)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MACD_ROOT", str(tmp_path))
    monkeypatch.setenv("MACD_INVENTORY", "production")
    monkeypatch.setenv("MACD_PROD_HOST", "203.0.113.5")
    monkeypatch.setenv("ML_STACKING_MIN_SAMPLES", "1000000")
    monkeypatch.setattr("time.sleep", lambda _: None)
    (tmp_path / "tasks.py").touch()
    live = tmp_path / ".lab/hosts/prod/home/macd-analysis/current"
    live.parent.mkdir(parents=True)
    live.symlink_to("releases/20260301T000000Z-00000000")
    return tmp_path


def played(monkeypatch: pytest.MonkeyPatch, typed: Typed, **options: bool) -> None:
    monkeypatch.setattr(subprocess, "run", typed)
    demo.demo.body(None, **options)


def test_every_step_is_typed_on_the_lab_and_nowhere_else(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = Typed()
    played(monkeypatch, typed)
    assert len(typed.commands) == len(demo.STORY) + 1
    assert {env["MACD_INVENTORY"] for env in typed.environments} == {"lab"}
    assert {env["MACD_ROOT"] for env in typed.environments} == {str(root)}
    steering = {name for env in typed.environments for name in env if name[:3] in ("MAC", "ML_")}
    assert steering == {"MACD_INVENTORY", "MACD_ROOT"}
    for argv in typed.commands:
        assert argv[0] == "/bin/sh" or tasks.namespace[argv[1]]  # raises KeyError
    assert typed.commands[-1][1] == "lab.down"


def test_too_few_bars_are_waited_for_and_a_fail_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = Typed({"shadow-gate": [ExitCode.INCONCLUSIVE, ExitCode.INCONCLUSIVE, ExitCode.DONE]})
    played(monkeypatch, typed)
    assert [argv[1] for argv in typed.commands].count("shadow-gate") == 3
    typed = Typed({"shadow-gate": [ExitCode.FAILED]})
    with pytest.raises(Exit):
        played(monkeypatch, typed)
    err = capsys.readouterr().err
    assert "ended with 1, 0 was expected" in err
    assert "invoke demo --keep" in err
    assert [argv[1] for argv in typed.commands[-2:]] == ["shadow-gate", "lab.down"]


def test_a_lab_that_was_up_before_stays_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    up = LabState(root, running=True, pid=1, hosts={})
    monkeypatch.setattr("macd.lab.status", lambda _: up)
    typed = Typed()
    played(monkeypatch, typed)
    assert "lab.down" not in {argv[1] for argv in typed.commands}
    assert demo.LEFT_UP in capsys.readouterr().out


def test_json_is_one_document(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played(monkeypatch, Typed(), json=True)
    document = json.loads(capsys.readouterr().out)
    assert len(document["steps"]) == len(demo.STORY) + 1


def test_it_ends_with_what_stacking_is_worth(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, worth in (("20260101T000000Z", "an older one"), ("20260201T000000Z", "+0.004")):
        (root / "runs" / run).mkdir(parents=True)
        result = json.dumps({"stacking_worth": worth})
        (root / "runs" / run / "result.json").write_text(result)
    played(monkeypatch, Typed())
    assert capsys.readouterr().out.endswith("\n\n+0.004\n")
