"""A panel's release on the lab, from its training to the service of another asset, as typed.

Real trainings, a real runtime, a real service: minutes, so only in `make test-full`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from macd.host.deploy import health
from macd.host.store import manifest as manifests
from macd.inventory import load, project_root
from macd.lab import LabState
from macd.release.signing import sign
from macd.run_directory import read_run
from tests.support import commands, small_panel, small_releases, wheels
from tests.support.openssh import eventually
from tests.unit.app.train.test_panel_run import SETTINGS

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
STRANGER = "EEEUSD"
SAMPLES = "100"
# What an inventory has no key for: fewer folds, fewer random series.
TINY = {key: SETTINGS[key] for key in ("folds", "initial", "surrogates", "workers", "device")}


@dataclass(frozen=True)
class Clone:
    """A project like a clone whose inventory trains a small panel."""

    root: Path
    app: Path

    @property
    def live(self) -> str:
        return (self.app / "current").readlink().name

    @property
    def runs(self) -> list[Path]:
        return sorted((self.root / "runs").glob("2*"))

    def invoke(self, *words: str, code: int = 0) -> str:
        env = {**os.environ, "MACD_ROOT": str(self.root), "ML_STACKING_MIN_SAMPLES": SAMPLES}
        done = commands.run(self.root, *words, env=env, timeout=900)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def set_service(self, **keys: Any) -> None:
        path = self.root / "inventory/lab.yml"
        document = yaml.safe_load(path.read_text())
        document["service"].update(keys)
        path.write_text(yaml.safe_dump(document))

    def answer(self) -> dict[str, Any]:
        try:
            return health.ask(json.loads((self.app / "service.json").read_text())["endpoint"])
        except health.ProbeError:
            return {}

    def signals(self) -> list[dict[str, Any]]:
        """Signal lines of what is live now."""
        files = sorted((self.app / "data/live").glob("*.jsonl"))
        lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        return [e for e in lines if e["level"] == "SIGNAL" and e["release"] == self.live]


@pytest.fixture(scope="module")
def clone(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    root = tmp_path_factory.mktemp("panel")
    for name in ("macd", "templates"):
        (root / name).symlink_to(project_root() / name)
    for name in ("pyproject.toml", "README.md", "constraints.txt", "tasks.py"):
        shutil.copy(project_root() / name, root)
    (root / ".lab").symlink_to(lab.root / ".lab")
    (root / "releases").mkdir()
    (root / "inventory").mkdir()
    document = yaml.safe_load((project_root() / "inventory/lab.yml").read_text())
    document["hosts"]["prod"] |= {"app_dir": "~/panel-lab", "unit": "panel-lab"}
    document["hosts"]["h800"]["work_dir"] = "~/panel-work"
    document["soak"] = {"ready_s": 120, "soak_s": 1, "confirm_s": 120}
    document["train"] |= {
        **{key: SETTINGS[key] for key in ("symbol", "panel", "params")},
        "accept": [
            {**found, "from": "2021-01-01", "to": "2021-12-31"} for found in SETTINGS["accept"]
        ],
        "data_dir": "../bars",
        "seeds": 2,
        "refit": True,
        "criteria": {
            name: {"level": "warn"}
            for name in (
                *("lstm_val_auc", "test_val_gap", "stacking_oof_auc", "n_oof"),
                *("stacking_vs_mean", "leak_audit"),
            )
        },
    }
    document["service"]["env"] = {"ML_STACKING_MIN_SAMPLES": SAMPLES}
    document["service"]["symbol"] = small_panel.OTHERS[0]
    (root / "inventory/lab.yml").write_text(yaml.safe_dump(document))
    (root / "tiny.json").write_text(json.dumps(TINY))
    small_panel.write(root / "bars")
    shutil.copy(root / "bars/BBBUSD_1h.parquet", root / f"bars/{STRANGER}_1h.parquet")
    wheels.share(root / ".macd/lab")
    small_releases.make_keys(load("lab", root=root))
    made = Clone(root, lab.hosts["prod"].home / "panel-lab")
    made.invoke("train", "--host", "h800", "--settings", "tiny.json")
    accepted = ("--accept", "made-up bars of a test")
    made.invoke("release", *accepted)
    made.invoke("provision", "--yes")
    made.invoke("deploy", "--yes")
    return made


def test_two_seeds_refitted_on_all_bars_are_what_was_released(clone: Clone) -> None:
    run = read_run(clone.runs[0])
    assert {each["seed"] for each in run.metrics["seeds"]["lgbm_panel"]} == {7, 8}
    assert run.metrics["refit"]["until"]
    assert all(meta["refit"] for meta in run.metas.values())
    card = (clone.root / "releases" / clone.live / "card.md").read_text()
    assert "refitted on all bars" in card
    assert "BBBUSD" in card


def test_the_service_watches_another_asset_of_the_panel(clone: Clone) -> None:
    other = small_panel.OTHERS[0]
    assert clone.answer()["status"] == "ok"
    eventually(lambda: len(clone.signals()) > 3, within=240)
    line = clone.signals()[-1]
    assert line["symbol"] == other
    components = line["data"]["components"]
    assert components["ml_error"] in (None, "")
    assert {name for name in components["ml_heads"] if name.endswith("_panel")}
    assert "lgbm" not in components["ml_heads"]  # the trained asset's own models are silent
    assert components["ml_stacking_prob"] is not None


def test_an_asset_that_no_model_knows_is_refused_before_anything_is_sent(clone: Clone) -> None:
    live = clone.live
    clone.set_service(symbol=STRANGER)
    try:
        planned = clone.invoke("plan", "--release", live)
        said = clone.invoke("deploy", "--yes", "--restart", "--release", live, code=6)
        for shown in (planned, said):
            assert f"the service is to watch {STRANGER}" in shown
            assert "train.panel" in shown
        assert clone.live == live
        assert clone.answer()["status"] == "ok"
    finally:
        clone.set_service(symbol=small_panel.OTHERS[0])


def test_a_release_that_does_not_say_what_it_knows_is_reverted_by_its_own_check(
    clone: Clone,
) -> None:
    live = clone.live
    inventory = load("lab", root=clone.root)
    silent = _without_its_assets(clone.root / "releases" / live, inventory.release.sign_key)
    clone.set_service(symbol=STRANGER)
    try:
        said = clone.invoke("deploy", "--yes", "--release", silent, code=4)
    finally:
        clone.set_service(symbol=small_panel.OTHERS[0])
    assert f"the release's models know nothing of {STRANGER}" in said
    assert clone.live == live
    assert clone.answer()["status"] == "ok"
    assert json.loads((clone.app / "service.json").read_text())["symbol"] == small_panel.OTHERS[0]


def test_a_second_training_is_compared_with_the_run_that_is_live(clone: Clone) -> None:
    clone.invoke("train", "--host", "h800", "--settings", "tiny.json", "--seed", "9")
    champion, challenger = clone.runs
    page = (challenger / "report.html").read_text()
    assert "which is live in prod" in page
    assert champion.name in page
    said = clone.invoke("train.compare", challenger.name)
    assert f"challenger {challenger.name} against champion {champion.name}" in said
    assert re.search(r"seed: 7 -> 9", said)


def _without_its_assets(release: Path, key: Path | None) -> str:
    """The same release as one of a version that named no symbols; its id."""
    assert key is not None
    known = manifests.parse((release / "manifest.json").read_bytes())
    details = {k: v for k, v in known.details.items() if k not in ("symbol", "panel")}
    raw = manifests.render(
        manifests.Manifest(
            **{
                **{name: getattr(known, name) for name in known.__dataclass_fields__},
                "serial": known.serial + 1,
                "details": details,
            }
        )
    )
    made = release.with_name(manifests.release_id(raw))
    shutil.copytree(release, made)
    (made / "manifest.json").write_bytes(raw)
    (made / "manifest.json.sig").write_bytes(sign(raw, key=key))
    return made.name
