"""`invoke train.compare`: which runs, what is said, and the errors that are worth a sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from macd.cli import compare
from macd.errors import MacdError, UsageError
from macd.inventory import load
from tests.support import their_app
from tests.support.commands import run
from tests.support.run_directories import write_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "inventory", root / "inventory")
    write_run(root / "runs/old", skill=0.5)
    write_run(root / "runs/new", skill=1.5, noise=2, settings={"seeds": 3})
    return root


def typed(root: Path, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "MACD_ROOT": str(root)}
    done = run(ROOT, "train.compare", *words, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_two_runs_side_by_side(project: Path) -> None:
    code, output = typed(project, "new", "old")
    assert code == 0, output
    assert output.startswith("BTCUSD 1h  challenger new against champion old")
    assert "bars the challenger is better: Stacking at 5h, AUC 0." in output
    assert "Validation, direction of moves; champion's figures first" in output
    assert "Holdout, direction of moves" in output
    assert output.count("Mean of models") == 6  # three heads, validation and holdout
    assert "settings   seeds: - -> 3" in output
    assert "* Validation bars are those on which heads and settings are chosen" in output


def test_a_twin_is_said_to_be_the_same(project: Path) -> None:
    write_run(project / "runs/twin", skill=0.5)
    code, output = typed(project, "twin", "old")
    assert code == 0, output
    assert "is not shown to be better" in output
    assert output.count(", the same in both") == 30
    assert "nothing that was recorded: settings, bars" in output


def test_the_same_for_machines_and_the_other_way_round(project: Path) -> None:
    code, output = typed(project, "old", str(project / "runs/new"), "--json")
    assert code == 0, output
    document = json.loads(output)
    assert document["verdict"]["outcome"] == "worse"
    assert (document["champion"]["run"], document["challenger"]["run"]) == ("new", "old")


def test_what_can_not_be_compared_is_one_clear_error(project: Path) -> None:
    write_run(project / "runs/eth", symbol="ETHUSDT")
    for words, said in {
        (): "which run is the challenger?",
        ("new", "new"): "new is both challenger and champion",
        ("new",): "which run is live in prod is not known from the records here",
        ("eth", "old"): "different symbols or timeframes",
        ("gone", "old"): "there is no run at gone",
    }.items():
        code, output = typed(project, *words)
        assert (code, said in output, "Traceback" in output) == (2, True, False), output


def live(monkeypatch: pytest.MonkeyPatch, runs: dict[str, tuple[str, str]]) -> None:
    """release -> (env, run), each live on a host."""

    def load(identifier: str) -> Any:
        if identifier not in runs:
            raise MacdError("no such release")
        env, name = runs[identifier]
        return SimpleNamespace(manifest=SimpleNamespace(env=env, details={"run": name}))

    monkeypatch.setattr(compare, "store_of", lambda _: SimpleNamespace(load=load))
    monkeypatch.setattr(compare, "live_on", lambda _: {**{r: ["p1"] for r in runs}, "gone": ["p"]})


def test_the_champion_is_what_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory: Any = None
    live(monkeypatch, {"r1": ("prod", "one"), "r2": ("staging", "two"), "r3": ("prod", "one")})
    assert compare.behind_live(inventory, "prod") == "one"
    assert compare.behind_live(inventory, "staging") == "two"
    live(monkeypatch, {"r1": ("prod", "one"), "r2": ("prod", "two")})
    with pytest.raises(UsageError, match="is not known") as caught:
        compare.behind_live(inventory, "prod")
    assert "several are: one on p1; two on p1" in caught.value.why


def test_runs_of_an_application_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    example = (ROOT / "inventory/own-app.example.yml").read_text()
    (tmp_path / "inventory/ours.yml").write_text(example)
    inventory = load("ours", root=tmp_path)
    for name, auc in (("old", 0.6), ("new", 0.634)):
        their_app.finished_run(inventory, name, val_auc=auc)
    code, output = typed(tmp_path, "new", "old", "--inventory", "ours")
    assert code == 0, output
    assert output.startswith("macd-analysis  challenger new against champion old")
    assert "lstm_val_auc: 0.6 -> 0.634 (+0.034)" in output
    assert "a verdict on the same bars" in output
    code, output = typed(tmp_path, "new", "old", "--inventory", "ours", "--json")
    assert json.loads(output)["metrics"]["lstm_val_auc"] == [0.6, 0.634]
