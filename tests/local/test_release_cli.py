"""`invoke release` and its verbs as typed, from a real training, for the lab's prod host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from macd.inventory import project_root
from macd.journal import Journal
from macd.lab import LabState
from tests.support import commands, wheels
from tests.support.training_run import bars_directory, trained_run

RUN = "20260301T120000Z-0badcafe"
TASKS = """
from invoke import Collection
from macd.cli import health, release, usage
usage.install()
namespace = Collection(
    health.health,
    Collection("release", release.release, release.list_, release.show, release.verify),
)
"""
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def project(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in small: the shipped inventory on the session's lab, one run, its bars.

    The service's requirements are cut to one small package, so that tests send no 200 MB around.
    """
    top = tmp_path_factory.mktemp("project")
    junk = shutil.ignore_patterns("__pycache__")
    for name in ("macd", "templates"):
        shutil.copytree(project_root() / name, top / name, ignore=junk)
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
    path = top / "macd/release/wheelhouse.py"
    source = path.read_text()
    wanted = "    return sorted(set(wanted))\n"
    assert wanted in source
    path.write_text(source.replace(wanted, '    return ["prometheus-client"]\n'))
    return top


def invoke(project: Path, *argv: str, **environment: str) -> Done:
    """Type it; the project has a macd of its own, so this is the script itself."""
    ours = {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    return commands.run(project, *argv, env={**os.environ, **ours, **environment})


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


def test_it_is_listed_shown_verified_and_healthy(project: Path, made: dict[str, Any]) -> None:
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
    healthy = invoke(project, "health")
    assert healthy.returncode == 0, healthy.stdout
    assert healthy.stdout.count("✓") == 10
    assert invoke(project, "health", "--run", RUN).returncode == 0


def test_the_next_one_has_a_higher_serial_and_needs_neither_host_nor_network(
    project: Path, made: dict[str, Any]
) -> None:
    (project / ".lab").rename(project / ".lab.away")
    away = project / ".lab.away"
    try:
        (project / ".lab").mkdir()
        for name in ("keys", "allowed_signers", "known_hosts", "ssh_config"):
            (project / ".lab" / name).symlink_to(away / name)
        (project / ".lab/ssh_config").unlink()
        (project / ".lab/ssh_config").write_text(
            (away / "ssh_config").read_text().replace("    Port ", "    Port 1\n    #")
        )
        gone = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_NO_CACHE_DIR": "1"}
        done = invoke(project, "release", **gone)
    finally:
        shutil.rmtree(project / ".lab")
        away.rename(project / ".lab")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prod can't be reached; its Python is as of" in done.stdout
    second = json.loads(invoke(project, "release.show", "--json").stdout)
    assert second["serial"] > made["serial"]
    shutil.rmtree(second["directory"])


def strict(project: Path) -> None:
    """An inventory whose criteria block, beside the lab's."""
    text = (project / "inventory/lab.yml").read_text()
    assert "lstm_val_auc: {level: warn}" in text
    text = text.replace("lstm_val_auc: {level: warn}", "lstm_val_auc: {level: block}")
    text = text.replace("service:\n", 'service:\n  env: {ML_STACKING_MIN_SAMPLES: "1000000"}\n')
    (project / "inventory/strict.yml").write_text(text)


def test_a_blocking_criterion_refuses_and_a_reason_overrides(project: Path) -> None:
    strict(project)
    done = invoke(project, "release", "--inventory", "strict")
    assert done.returncode == 6
    assert "missed by" in done.stderr
    assert "⚠ stacking will stay off: it was trained on" in done.stdout
    assert "ML_STACKING_MIN_SAMPLES=1000000" in done.stdout
    assert "--accept" in done.stderr
    dry = invoke(
        project, "release", "--inventory", "strict", "--accept", "a drill", "--dry-run", "--json"
    )
    if "can't be had" in dry.stdout:
        wheels.none_to_be_had(dry.stdout)
    assert dry.returncode == 0, dry.stdout
    assert json.loads(dry.stdout)["accepted"] == "a drill"
    journal = project / ".macd/strict/journal.jsonl"
    assert not journal.exists()

    done = invoke(project, "release", "--inventory", "strict", "--accept", "a drill", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    place = Path(json.loads(done.stdout)["directory"])
    signed = json.loads((place / "manifest.json").read_text())
    shutil.rmtree(place)
    assert signed["details"]["accepted"] == "a drill"
    (record,) = [r for r in Journal(journal).records() if r.kind == "release.made"]
    assert (record.fields["release"], record.fields["accepted"]) == (place.name, "a drill")


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
    shutil.copytree(project / ".macd/lab/facts", project / ".macd/foreign/facts")
    wheels.share(project / ".macd/foreign")
    before = sorted(path.name for path in (project / "releases").iterdir())
    done = invoke(project, "release", "--inventory", "foreign")
    assert done.returncode == 6
    assert "hosts would refuse what this key signs" in done.stderr
    assert sorted(path.name for path in (project / "releases").iterdir()) == before


def test_code_of_another_tree_goes_in_and_is_told(project: Path, made: dict[str, Any]) -> None:
    tree = project / "elsewhere"
    tree.mkdir()
    shutil.copytree(project / "macd", tree / "macd")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(project / name, tree)
    with (tree / "macd/app/service/loop.py").open("a") as out:
        out.write("# another\n")
    done = invoke(project, "release", "--source", "elsewhere")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"not this clone's but that of {tree}" in done.stdout
    assert "stacking will stay off" not in done.stdout
    other = json.loads(invoke(project, "release.show", "--json").stdout)
    before = json.loads(invoke(project, "release.show", made["id"], "--json").stdout)
    wheel = "app/macd-0.1.0-py3-none-any.whl"
    hashes = [[f["sha256"] for f in one["files"] if f["path"] == wheel] for one in (other, before)]
    assert hashes[0] != hashes[1]
    assert other["details"]["code"]["commit"] is None
    gone = invoke(project, "release", "--source", "nowhere")
    assert gone.returncode == 2
    assert "no source of macd" in gone.stdout + gone.stderr


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
        env={**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
    )
    while child.poll() is None and not list(releases.glob(".building-*/app")):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 1
    assert sorted(path.name for path in releases.iterdir()) == before
    assert journal.records() == told
