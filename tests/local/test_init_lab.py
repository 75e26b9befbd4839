"""`invoke init` on the lab: from a repository and a host that runs it to a first plan."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from macd.inventory import load, project_root
from macd.lab import LabState
from tests.support import commands, their_app


def test_a_first_inventory_says_what_the_host_and_the_repository_have(
    lab: LabState, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ports = their_app.free_ports()
    by_hand = their_app.install_by_hand(lab, "handmade", ports)
    request.addfinalizer(by_hand.remove)
    before = {p: p.read_bytes() for p in sorted(by_hand.directory.glob("*")) if p.is_file()}
    root = _root(tmp_path, lab)
    there = their_app.repository(tmp_path / "ml-signals", models=True)
    typed = ["init", "--name", "ours", "--source", str(there), "--prod", "lab-prod", "--yes"]
    typed += ["--ssh-config", str(lab.ssh_config), "--keys", str(tmp_path / "keys")]
    said = _type(root, *typed)
    assert said[0] == 0, said[1]
    assert "invoke plan" in said[1]
    inventory = load("ours", root=root)
    host, app = inventory.host("prod"), inventory.app
    assert (host.app_dir, host.unit, host.scope) == (str(by_hand.directory), "handmade", "user")
    assert app is not None
    assert app.source == there
    assert app.serve.command == "python3 live_runner.py --phase paper"
    assert app.serve.ready.http == f"http://127.0.0.1:{ports.health}/health"
    web = app.serve.more["web"]
    # Its page answers 200 to every path: by none of them is it known better than by the root.
    assert (web.command, web.ready.http) == ("python3 web.py", f"http://127.0.0.1:{ports.web}/")
    assert set(app.serve.writes) == {"logs", "data/live"}
    assert app.signals is not None
    assert app.signals.files == "logs/live/trade_*.jsonl"
    assert app.signals.map["coverage"] == "data.components.ml_bull_prob"
    assert app.flag is not None
    assert (app.flag.name, app.flag.where) == ("ML_ENABLE_STACKING", "dropin")
    text = inventory.path.read_text()
    assert "s3cret" not in text + said[1]  # names of variables, never values
    # Looking changed nothing, and the service goes on.
    assert {p: p.read_bytes() for p in before} == before
    assert by_hand.pid
    # A second init replaces nothing.
    again = _type(root, *typed)
    assert again[0] == 2
    assert "--force" in again[1]
    assert inventory.path.read_text() == text


@pytest.mark.parametrize("place", ["nobody@127.0.0.1:1", "no-such-alias"])
def test_a_host_that_can_not_be_looked_at_leaves_nothing_behind(
    place: str, lab: LabState, tmp_path: Path
) -> None:
    root, keys = _root(tmp_path, lab), tmp_path / "keys"
    typed = ["init", "--name", "ours", "--prod", place, "--keys", str(keys), "--yes"]
    code, said = _type(root, *typed, "--ssh-config", str(lab.ssh_config))
    assert code, said
    assert "nothing was written" in said
    assert "--offline" in said
    assert "--inventory ours" not in said  # there is none
    assert not keys.exists()
    assert not [*(root / "inventory").iterdir()]


def test_an_inventory_can_be_written_without_its_host(lab: LabState, tmp_path: Path) -> None:
    root = _root(tmp_path, lab)
    typed = [
        "init",
        "--name",
        "ours",
        "--prod",
        "nobody@127.0.0.1:1",
        "--keys",
        "../keys",
        "--yes",
        "--offline",
    ]
    code, said = _type(root, *typed)
    assert code == 0, said
    assert "was not inspected" in said
    assert "  found " not in said
    assert "invoke host.trust prod" in said
    inventory = load("ours", root=root)
    assert "# found" not in inventory.path.read_text()
    assert inventory.app is None  # the built-in application
    signers = (root / "inventory/allowed_signers").read_text()
    assert 'namespaces="release-manifest@macd"' in signers
    assert 'namespaces="gate-report@macd"' in signers
    key = (tmp_path / "keys/id_ed25519_release").read_bytes()
    assert _type(root, *typed, "--force")[0] == 0
    assert (tmp_path / "keys/id_ed25519_release").read_bytes() == key
    assert (root / "inventory/allowed_signers").read_text() == signers


def test_what_machines_read(lab: LabState, tmp_path: Path) -> None:
    root = _root(tmp_path, lab)
    there = their_app.repository(tmp_path / "ml-signals", models=True)
    typed = [
        "init",
        "--source",
        str(there),
        "--train",
        "gpu",
        "--jump",
        "j",
        "--keys",
        str(tmp_path),
    ]
    done = commands.run(root, *typed, "--json", "--yes", env=_env(root))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    items = {item["key"]: item["value"] for item in answer["items"]}
    assert items["app.train.stages.lstm"].startswith("python3 train_gpu.py --mode lstm --tf {tf}")
    assert items["train.symbol"] == "ETHUSDT"
    assert answer["next"][1:] == [
        "invoke host.trust gpu",
        "invoke train --host gpu",
        "invoke release",
        "invoke provision --dry-run",
        "invoke plan",
    ]


def _root(tmp_path: Path, lab: LabState) -> Path:
    root = tmp_path / "project"
    (root / "inventory").mkdir(parents=True)
    (root / "tasks.py").write_text((project_root() / "tasks.py").read_text())
    (root / "templates").symlink_to(project_root() / "templates")
    return root


def _env(root: Path) -> dict[str, str]:
    return {**os.environ, "MACD_ROOT": str(root)}


def _type(root: Path, *words: str) -> tuple[int, str]:
    done = commands.run(root, *words, env=_env(root))
    return done.returncode, done.stdout + done.stderr
