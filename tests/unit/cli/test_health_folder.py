"""`invoke health --dir` and `--bundle`: the exit code, the words, and no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from invoke import Collection, Program

from macd import childprocess
from macd.app.predict import __main__ as predict
from macd.cli import health, usage
from macd.inventory import Inventory, load, project_root
from tests.support import small_models as made
from tests.support import their_app


def run(line: str) -> int:
    usage.install()
    with pytest.raises(SystemExit) as ended:
        Program(namespace=Collection(health.health)).run(f"invoke health {line}")
    return int(ended.value.code or 0)


def succeeded(line: str) -> bool:
    usage.install()
    Program(namespace=Collection(health.health)).run(f"invoke health {line}", exit=False)
    return True


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return made.hand_over(tmp_path / "ml_models")


@pytest.fixture
def unrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are run by the tests of modelfolder.py."""
    real = childprocess.asked

    @contextmanager
    def asked(
        command: str, question: dict[str, Any], limits: Any = childprocess.DEFAULT
    ) -> Iterator[Callable[[], Any]]:
        if command.endswith("modelrun"):
            yield lambda: {"detail": "run", "wrong": []}
        elif command == "macd.app.predict folder":
            yield lambda: predict.answer("folder", question)
        else:
            with real(command, question, limits) as answer:
                yield answer

    monkeypatch.setattr(childprocess, "asked", asked)


def test_a_healthy_folder_ends_with_0(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert succeeded(f"--dir {models}")
    output = capsys.readouterr().out
    assert f"health of {models}" in output
    assert "✓ tft_1h.onnx: x (N, 12, 6); outputs 0." in output
    assert output.rstrip().endswith("all 9 checks passed")


@pytest.mark.usefixtures("unrun")
def test_a_missing_base_model_ends_with_1(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "lgbm_1h_12h.txt").unlink()
    assert run(f"--dir {models} --json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["checked"], document["ok"]) == (str(models), False)
    wrong = [item for item in document["items"] if not item["ok"]]
    assert [item["detail"] for item in wrong] == [
        "it names lgbm_1h_12h.txt, which is not here",
        "it names lgbm_12h, which is not here",
    ]
    assert all(item["cause"] and item["remedy"] for item in wrong)


@pytest.mark.usefixtures("unrun")
def test_a_bundle_is_unpacked_checked_and_gone(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    bundle = tmp_path / "macd_models_20260301.tar.gz"
    with tarfile.open(bundle, "w:gz") as out:
        out.add(models, "ml_models")
    assert succeeded(f"--bundle {bundle}")
    output = capsys.readouterr().out
    assert f"health of {bundle}" in output
    assert "✓ ml_models/tft_1h.onnx: run" in output
    with tarfile.open(bundle, "w:gz") as out:
        (models / "link").symlink_to("/etc/passwd")
        out.add(models, "ml_models")
    assert run(f"--bundle {bundle}") == 1
    output = capsys.readouterr().out
    assert "✗ bundle: 'ml_models/link' is a link, a device or such, no plain file" in output
    assert "1 of 1 items failed" in output
    assert list(place.iterdir()) == []


@pytest.mark.usefixtures("unrun")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_bundle_with_links_is_refused_with_a_remedy_that_works(
    link: Callable[[Path, Path], None],
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = models / "tft_1h.onnx"
    link(Path(model.name) if link is os.symlink else model, models / "latest.onnx")
    bundle = tmp_path / "x.tar.gz"
    pack = ["tar", "-czf", str(bundle)]
    subprocess.run([*pack, "-C", str(models), "."], check=True)
    assert run(f"--bundle {bundle}") == 1
    said = capsys.readouterr().out
    assert "tar packs links as links" in said
    options = re.findall(r"--\S*dereference", said)
    subprocess.run([*pack, *options, "-C", str(models), "."], check=True)
    assert succeeded(f"--bundle {bundle}")
    assert "tar packs links as links" not in capsys.readouterr().out


def test_an_empty_folder_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run(f"--dir {tmp_path}/empty") == 1
    output = capsys.readouterr().out
    assert "✗ models: none" in output
    assert (
        "remedy: ONNX (.onnx), LightGBM text (.txt), XGBoost (.ubj, .json) and CatBoost" in output
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--dir . --bundle x.tar.gz", "--dir and --bundle name different models"),
        ("--dir . --release 2026", "--release and --dir name different models"),
        ("--run a --bundle b", "--run and --bundle name different models"),
        ("--release a --run b", "--release and --run name different models"),
        ("--dir /no/such", "--dir /no/such: there is no such folder"),
        ("--dir /etc/passwd", "--dir /etc/passwd: there is no such folder"),
        ("--dir /etc/passwd", "invoke health --bundle /etc/passwd checks an archive"),
        ("--bundle /no/such.tar.gz", "--bundle /no/such.tar.gz: there is no such file"),
        ("--bundle /etc", "--bundle /etc: there is no such file"),
    ],
)
def test_wrong_options_end_with_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    """A team whose own application is described by the example."""
    (tmp_path / "inventory").mkdir()
    example = (project_root() / "inventory/own-app.example.yml").read_text()
    signed = example.replace("~/.ssh/", f"{tmp_path}/keys/")
    (tmp_path / "inventory/shop.yml").write_text(signed.replace("../their-repo", "../their"))
    monkeypatch.setenv("MACD_ROOT", str(tmp_path))
    their_app.repository(tmp_path / "their", bars=50)
    return load("shop", root=tmp_path)


@pytest.mark.usefixtures("unrun")
def test_a_release_and_a_run_of_an_own_application(
    shop: Inventory, capsys: pytest.CaptureFixture[str]
) -> None:
    release = their_app.release(shop, 7)
    assert succeeded(f"--release {release} --inventory shop")
    output = capsys.readouterr().out
    assert "✓ data/ml_models/lstm_1h.onnx: run" in output
    assert "– golden predictions, feature skew: an application of one's own has none" in output
    assert "– check: not run: python3 check_ml_health.py --skip-live-check" in output
    assert "a pickle of sklearn.preprocessing._data.StandardScaler: not loaded" in output

    trained = their_app.finished_run(shop)
    assert succeeded(f"--run {trained.name} --inventory shop --json")
    document = json.loads(capsys.readouterr().out)
    names = [item["name"] for item in document["items"]]
    assert (document["checked"], document["ok"]) == (f"run {trained.name}", True)
    assert {"data/ml_models/lgb_1h.txt", "golden predictions, feature skew"} <= set(names)

    (trained / "artefacts/data/ml_models/lgb_1h.txt").write_text("")
    assert run(f"--run {trained.name} --inventory shop") == 1
    assert "✗ data/ml_models/lgb_1h.txt: it is empty" in capsys.readouterr().out
