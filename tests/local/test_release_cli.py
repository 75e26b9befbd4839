"""`invoke release` and its verbs as typed, from a real training, for the lab's prod host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from macd.app.predict import __main__ as predict
from macd.app.predict import health
from macd.checklist import Item
from macd.cli import release
from macd.errors import RefusedError
from macd.host.store.manifest import canonical
from macd.inventory import load, project_root
from macd.journal import Journal
from macd.lab import LabState
from tests.support import commands, wheels
from tests.support.training_run import bars_directory, trained_run

RUN = "20260301T120000Z-0badcafe"
TASKS = """
from invoke import Collection
from macd.cli import health, release, usage
from macd.release import wheelhouse
usage.install()
wheelhouse.requirements = lambda *_: ["prometheus-client"]
namespace = Collection(
    health.health,
    Collection("release", release.release, release.list_, release.show, release.verify),
)
"""
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def project(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in small: the shipped inventory on the test's lab, one run, its bars.

    Its tasks cut the service's requirements to one small package: no test sends 200 MB around.
    """
    top = tmp_path_factory.mktemp("project")
    for name in ("macd", "templates"):
        (top / name).symlink_to(project_root() / name)
    for name in ("pyproject.toml", "README.md", "constraints.txt"):
        shutil.copy(project_root() / name, top)
    (top / "tasks.py").write_text(TASKS)
    (top / "inventory").mkdir()
    shutil.copy(project_root() / "inventory/lab.yml", top / "inventory")
    (top / ".lab").symlink_to(lab.root / ".lab")
    for inventory in ("lab", "strict"):
        wheels.share(top / ".macd" / inventory)
    shutil.copytree(bars_directory(trained_run()), top / "data/sample")
    junk = shutil.ignore_patterns("cache")
    shutil.copytree(trained_run(), top / "runs" / RUN, ignore=junk)
    return top


def invoke(project: Path, *argv: str, **environment: str) -> Done:
    return commands.run(project, *argv, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def made(project: Path) -> dict[str, Any]:
    """The first release of the project, as `--json` told of it."""
    done = invoke(project, "release", "--json")
    if "can't be had" in done.stdout:
        wheels.none_to_be_had(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_release_is_made_and_recorded(project: Path, made: dict[str, Any]) -> None:
    assert made["run"] == RUN
    assert all(item["ok"] for item in made["health"])
    assert {"golden predictions", "ONNX against torch"} <= {i["name"] for i in made["health"]}
    assert Path(made["bundle"]).is_file()
    records = Journal(project / ".macd/lab/journal.jsonl").records()
    (record,) = [r for r in records if r.kind == "release.made"][:1]
    assert record.fields["release"] == made["id"]
    assert record.fields["accepted"] is None
    assert record.fields["missed"], "the tiny nets miss criteria that the lab only warns of"


def test_the_application_proved_it_in_a_process_of_its_own(
    project: Path, made: dict[str, Any]
) -> None:
    place, run = Path(made["directory"]), project / "runs" / RUN
    digest = json.loads((place / "manifest.json").read_bytes())["details"]["data_digest"]
    question = {"top": str(place), "run": str(run), "digest": digest, "lock": {}}
    here = predict.prove({**question, "data": str(project / "data/sample")})
    assert (place / "golden/golden.json").read_bytes() == canonical(here["golden"])


def test_it_is_listed_shown_and_verified(project: Path, made: dict[str, Any]) -> None:
    assert made["id"] in invoke(project, "release.list").stdout
    shown = invoke(project, "release.show", made["id"][:20])
    assert shown.returncode == 0, shown.stderr
    assert "runtime   Python 3." in shown.stdout
    assert "golden/golden.json" in shown.stdout
    lock = json.loads(invoke(project, "release.show", made["id"], "--json").stdout)["lock"]
    pins = (project / "constraints.txt").read_text()
    assert list(lock["versions"]) == ["prometheus-client"]
    assert f"prometheus_client=={lock['versions']['prometheus-client']}\n" in pins
    for named in ([], [made["id"]], [made["bundle"]]):
        done = invoke(project, "release.verify", *named)
        assert done.returncode == 0, done.stderr
        assert "as they were signed" in done.stdout


def test_release_and_run_are_healthy_as_processes_of_their_own_say(
    project: Path, made: dict[str, Any]
) -> None:
    lock = json.loads(invoke(project, "release.show", made["id"], "--json").stdout)["lock"]
    told = json.loads(invoke(project, "health", "--json").stdout)
    items = [Item(**item) for item in told["items"]]
    assert told["ok"]
    assert all(item.ok and item.done for item in items)
    assert [item.name for item in items][-3:] == [
        "golden predictions", "predictions of the training", "ONNX against torch",
    ]  # fmt: skip
    assert items[:-1] == health.check(Path(made["directory"]), lock=lock["versions"])
    assert [asdict(item) for item in items] == made["health"]
    run = invoke(project, "health", "--run", RUN)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("✓") == 9
    assert "✓ ONNX against torch: LSTM and TFT at batch 1, 7 and 256" in run.stdout


def strict(project: Path) -> None:
    """An inventory whose criteria block, beside the lab's."""
    text = (project / "inventory/lab.yml").read_text()
    assert "lstm_val_auc: {level: warn}" in text
    text = text.replace("lstm_val_auc: {level: warn}", "lstm_val_auc: {level: block}")
    text = text.replace("service:\n", 'service:\n  env: {ML_STACKING_MIN_SAMPLES: "1000000"}\n')
    (project / "inventory/strict.yml").write_text(text)


def elsewhere(project: Path) -> Path:
    """Another tree of the code, with a change."""
    tree = project / "elsewhere"
    junk = shutil.ignore_patterns("__pycache__")
    shutil.copytree(project / "macd", tree / "macd", ignore=junk)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(project / name, tree)
    with (tree / "macd/app/service/loop.py").open("a") as out:
        out.write("# another\n")
    return tree


def without_weights(project: Path) -> Path:
    """The run without what torch reads: comparing with torch takes most of a release's time."""
    run = Path(shutil.copytree(project / "runs" / RUN, project / "light"))
    result = json.loads((run / "result.json").read_text())
    result["files"] = [one for one in result["files"] if not one["path"].endswith(".pt")]
    (run / "result.json").write_text(json.dumps(result))
    for path in run.rglob("*.pt"):
        path.unlink()
    return run


@contextmanager
def out_of_reach(project: Path) -> Iterator[dict[str, str]]:
    """No host and no package index; with the environment to type a command in."""
    away = (project / ".lab").rename(project / ".lab.away")
    try:
        (project / ".lab").mkdir()
        for name in ("keys", "allowed_signers", "known_hosts"):
            (project / ".lab" / name).symlink_to(away / name)
        (project / ".lab/ssh_config").write_text(
            (away / "ssh_config").read_text().replace("    Port ", "    Port 1\n    #")
        )
        yield {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_NO_CACHE_DIR": "1"}
    finally:
        shutil.rmtree(project / ".lab")
        away.rename(project / ".lab")


def test_a_blocking_criterion_refuses_and_a_reason_overrides_without_host_and_network(
    project: Path, made: dict[str, Any]
) -> None:
    strict(project)
    done = invoke(project, "release", "--inventory", "strict")
    assert done.returncode == 6
    assert "missed by" in done.stderr
    assert "at least 1,000,000 is asked for" in done.stdout
    assert "(ML_STACKING_MIN_SAMPLES in service.env)" in done.stdout
    assert "--accept" in done.stderr
    run = str(without_weights(project))
    words = ("release", "--run", run, "--inventory", "strict", "--accept", "a drill")
    dry = invoke(project, *words, "--dry-run", "--json")
    if "can't be had" in dry.stdout:
        wheels.none_to_be_had(dry.stdout)
    assert dry.returncode == 0, dry.stdout
    assert json.loads(dry.stdout)["accepted"] == "a drill"
    journal = project / ".macd/strict/journal.jsonl"
    assert not journal.exists()

    tree = elsewhere(project)
    with out_of_reach(project) as gone:
        done = invoke(project, *words, "--source", "elsewhere", **gone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prod can't be reached; its Python is as of" in done.stdout
    assert "– ONNX against torch: not compared" in done.stdout
    assert f"not this clone's but that of {tree}" in done.stdout
    other = json.loads(invoke(project, "release.show", "--json").stdout)
    before = json.loads(invoke(project, "release.show", made["id"], "--json").stdout)
    place = Path(other["directory"])
    signed = json.loads((place / "manifest.json").read_text())
    shutil.rmtree(place)
    assert other["serial"] > made["serial"]
    assert other["accepted"] == signed["details"]["accepted"] == "a drill"
    (record,) = [r for r in Journal(journal).records() if r.kind == "release.made"]
    assert (record.fields["release"], record.fields["accepted"]) == (place.name, "a drill")
    wheel = "app/macd-0.1.0-py3-none-any.whl"
    hashes = [[f["sha256"] for f in one["files"] if f["path"] == wheel] for one in (other, before)]
    assert hashes[0] != hashes[1]
    assert other["details"]["code"]["commit"] is None


def test_code_of_no_tree_is_refused(project: Path) -> None:
    done = invoke(project, "release", "--source", "nowhere")
    assert done.returncode == 2
    assert "no source of macd" in done.stdout + done.stderr


def test_what_was_changed_ends_with_1_and_what_is_not_signed_with_6(
    project: Path, made: dict[str, Any]
) -> None:
    place = Path(made["directory"])
    kept = project / "kept"
    shutil.copytree(place, kept)
    try:
        (place / "app/more.py").write_text("x")
        (place / "card.md").write_text("better")
        (place / "golden/golden.json").unlink()
        done = invoke(project, "release.verify", made["id"])
        assert done.returncode == 1
        for line in ("extra    app/more.py", "missing  golden/golden.json", "changed  card.md"):
            assert line in done.stdout
        assert invoke(project, "health", "--release", made["id"]).returncode == 1
        signature = place / "manifest.json.sig"
        signature.write_bytes(signature.read_bytes()[:-80])
        assert invoke(project, "release.verify", made["id"]).returncode == 6
    finally:
        shutil.rmtree(place)
        kept.rename(place)


def test_a_key_the_hosts_do_not_know_signs_nothing(project: Path, made: dict[str, Any]) -> None:
    text = (project / "inventory/lab.yml").read_text()
    text = text.replace("sign_key: ../.lab/keys/release", "sign_key: ../.lab/keys/operator")
    (project / "inventory/foreign.yml").write_text(text)
    raw = (Path(made["directory"]) / "manifest.json").read_bytes()
    assert release.signed(load("lab", root=project), raw)
    with pytest.raises(RefusedError, match="hosts would refuse what this key signs") as caught:
        release.signed(load("foreign", root=project), raw)
    assert caught.value.exit_code == 6


def test_interrupted_it_leaves_no_half_release(project: Path, made: dict[str, Any]) -> None:
    releases = project / "releases"
    before = sorted(path.name for path in releases.iterdir())
    journal = Journal(project / ".macd/lab/journal.jsonl")
    told = journal.records()
    child = commands.start(
        project,
        "release",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while child.poll() is None and not list(releases.glob(".building-*/app")):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=240)
    assert child.returncode == 130
    assert "every file as the training left it" in said
    assert "in service.env" not in said
    assert sorted(path.name for path in releases.iterdir()) == before
    assert journal.records() == told
