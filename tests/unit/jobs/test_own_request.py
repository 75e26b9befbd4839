"""What is sent of an own application and asked of its host; refused before any contact."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from macd.errors import UsageError
from macd.inventory import Inventory, load
from macd.jobs import own, preflight, remedies
from macd.jobs.preflight import Check
from macd.jobs.progress import Progress
from macd.jobs.transfer import checked, variables
from tests.support import their_app
from tests.unit.jobs.test_jobs_preflight import FACTS, TRAIN, probe

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EXAMPLE = Path(__file__).parents[3] / "inventory" / "own-app.example.yml"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return their_app.repository(tmp_path / "their", bars=20)


def inventory(source: Path, **train: Any) -> Inventory:
    root = source.parent / "project"
    (root / "inventory").mkdir(parents=True, exist_ok=True)
    document = yaml.safe_load(EXAMPLE.read_text())
    section = their_app.app_section(their_app.Ports(1, 2))
    document["app"] = {**section, "source": str(source), "train": {**section["train"], **train}}
    (root / "inventory/ours.yml").write_text(yaml.safe_dump(document, sort_keys=False))
    return load("ours", root=root)


def request(inv: Inventory, symbol: str = "", stage: str = "") -> own.OwnRequest:
    assert inv.app is not None
    return own.make(inv, inv.app, python="python3", symbol=symbol, stage=stage, now=NOW)


def by_name(made: own.OwnRequest) -> dict[str, Check]:
    return {check.name: check for check in own.checks(made)}


def test_its_log_is_utf_8_whatever_the_locale_there_is(source: Path) -> None:
    assert variables(request(inventory(source)))["PYTHONIOENCODING"] == "utf-8"


def test_source_data_and_the_host_half_travel(source: Path) -> None:
    made = request(inventory(source))
    files = made.tree.files
    assert {"macd/host/jobs/stages.py", "source/train_gpu.py"} <= files.keys()
    assert "source/data/klines/ETHUSDT_1h.csv" in files, "git doesn't track it"
    rooms = {path.split("/")[1] for path in files if path.startswith("macd/")}
    assert rooms == {"__init__.py", "heads.py", "host"}
    assert made.raw["stages"][1] == ["lgb", "python3 train_gpu.py --mode lgb --tf 1h"]
    assert made.raw["complete"]
    assert "deploy.sh" in made.raw["executable"]
    assert {check.level for check in own.checks(made)} == {"ok"}
    assert made.run == request(inventory(source)).run
    assert made.run != request(inventory(source, env={"SEED": "8"})).run


def test_a_changed_source_is_named(source: Path) -> None:
    (source / "common.py").write_text("# changed\n")
    check = by_name(request(inventory(source)))["source"]
    assert check.level == "warn"
    assert "changed since: common.py" in check.detail


def test_files_that_are_not_sent_are_named(source: Path) -> None:
    (source / "calibration.json").write_text("{}")
    (source / ".env").write_text("TOKEN=1")
    (source / "more").mkdir()
    (source / "more/extra.csv").write_text("x")
    (source / "data/ml_models").mkdir(exist_ok=True)
    (source / "data/ml_models/old.txt").write_text("made anew")
    check = by_name(request(inventory(source)))["left out"]
    assert check.level == "warn"
    assert "calibration.json (git doesn't track it" in check.detail
    assert "more/ (git" in check.detail
    assert "ml_models" not in check.detail
    assert "klines" not in check.detail
    sent = by_name(request(inventory(source, data=["data/klines", "more"])))["left out"]
    assert "more/" not in sent.detail


@pytest.mark.parametrize(
    ("train", "name", "word"),
    [
        ({"data": ["data/nothing"]}, "data", "nothing is at data/nothing"),
        ({"data": ["data"]}, "data", "can't travel: data/-x"),
        ({"stages": {"go": "python3 -u x.py"}}, "stages", "no such file is sent"),
        ({"stages": {"go": "bash ./deploy.sh"}}, "stages", ""),
        ({"stages": {"go": "sh -x lib/../new.sh"}}, "stages", "no such file is sent"),
        ({"stages": {"go": "python3 new.py"}}, "stages", "git doesn't track it"),
        ({"stages": {"go": "./new.sh -v"}}, "stages", "no such file is sent"),
        ({"stages": {"go": "python3 -m lib.train"}}, "stages", ""),
        ({"stages": {"go": "torchrun train_gpu.py"}}, "stages", ""),
        ({"setup": "none.txt"}, "setup", "none.txt is not among"),
        ({"setup": "requirements-gpu.txt"}, "setup", ""),
    ],
)
def test_what_cannot_work_is_said(
    source: Path, train: dict[str, Any], name: str, word: str
) -> None:
    (source / "new.py").write_text("")
    (source / "data/-x").write_text("")
    check = by_name(request(inventory(source, **train)))[name]
    assert check.level == ("error" if word else "ok"), check
    assert word in check.detail


def test_one_stage_and_another_symbol(source: Path) -> None:
    made = request(inventory(source), symbol="SOLUSDT", stage="verify")
    assert [name for name, _ in made.raw["stages"]] == ["verify"]
    assert not made.raw["complete"]
    assert made.title == "ml-signals: verify, SOLUSDT 1h"
    assert made.recorded["dirty"] is False
    for wrong in ({"stage": "tft"}, {"symbol": "../x"}):
        with pytest.raises(UsageError):
            request(inventory(source), **wrong)


@pytest.mark.parametrize("path", [".", "", "a/../b"])
def test_the_whole_directory_is_no_data(source: Path, path: str) -> None:
    with pytest.raises(UsageError):
        inventory(source, data=[path])


def test_an_own_application_needs_none_of_our_packages(source: Path) -> None:
    app = inventory(source).app
    assert app is not None
    needs = preflight.needs_of(app)
    assert needs.packages == {}
    bare = probe({"packages": {}, "cuda": None})
    checks = preflight.check_host(FACTS, bare, None, TRAIN, needs)
    assert {check.level for check in checks} == {"ok"}
    assert checks[-1].detail == "NVIDIA H800"
    none = preflight.check_host(replace(FACTS, gpus=()), bare, None, TRAIN, needs)
    assert [check.name for check in none if check.level == "error"] == ["gpu"]
    [full] = [
        c
        for c in preflight.check_host(FACTS, bare, None, TRAIN, needs, 10**12)
        if c.level == "error"
    ]
    assert "1,000 GB wanted" in full.detail
    wants = preflight.needs_of(inventory(source, setup="requirements-gpu.txt").app)
    assert "ensurepip" in wants.packages
    lacks = probe({"errors": {"ensurepip": "ModuleNotFoundError"}, "cuda": None})
    [check] = [
        c for c in preflight.check_host(FACTS, lacks, None, TRAIN, wants) if c.level == "error"
    ]
    assert "apt-get install python3-venv" in check.hint


def test_its_failures_are_explained_without_options_it_has_not() -> None:
    for text in ("CUDA out of memory", "No module named 'x.y'", "killed by signal 9", "ENOSPC"):
        status = {"reason": text, "spec": {"about": {"own": "theirs"}}, "result": {"stage": "go"}}
        failure = remedies.explain(status, [], "")
        assert failure.remedy
        assert "profile" not in failure.remedy
        assert "--settings" not in failure.remedy


def test_the_newest_line_of_a_stage_is_its_progress() -> None:
    events = [{"event": "stage_started", "stage": "lstm"}, {"event": "line", "text": "epoch 3/50"}]
    now = Progress().after(events)
    assert now.line() == "[lstm]  epoch 3/50"
    assert Progress().after([*events, {"event": "stage_started", "stage": "x"}]).line() == "[x]"


def test_artefacts_are_called_as_they_like_and_stay_inside() -> None:
    sha256 = "0" * 64
    assert checked([["artefacts/模型/lstm 1h.onnx", 1, sha256]])
    for path in ("artefacts/../x", "artefacts//x", "artefacts/", "模型", "artefacts/a\nb"):
        with pytest.raises(Exception, match="can't be taken"):
            checked([[path, 1, sha256]])
