"""A team's own application deployed on the lab with the verbs, as a user types them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from macd import lab as lab_room
from macd.lab import Fault, LabState
from tests.support import their_app
from tests.support.lab_project import Project
from tests.support.openssh import eventually


@contextlib.contextmanager
def small_disk(path: Path, size_mb: int) -> Iterator[bool]:
    """An empty disk of that size over the directory, while it lasts; False where none may be."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "tmpfs", str(path)]
    mounted = not subprocess.run(mount, check=False, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:  # a session that just ends may hold a file there
            subprocess.run(["umount", "--lazy", str(path)], check=True)


UNITS = ["own-serve.service", "own-serve-web.service"]


@pytest.fixture(scope="module")
def project(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("own") / "macd"
    # Other tests run the same application beside: words of its own tell its processes apart.
    engine = "python3 live_runner.py --phase paper --tf 1h --symbol ETHUSDT"
    page = {**their_app.WEB["web"], "command": "python3 web.py of-own-serve"}
    more = {"serve__command": engine, "serve__more": {"web": page}}
    made = their_app.project(lab, root, "own-serve", **more)
    assert made.invoke("provision", "--dry-run").count(f"new, as {UNITS[0]} but for:") == 1
    made.invoke("provision", "--yes")
    yield made
    for unit in UNITS:
        path = lab.hosts["prod"].home / ".config/systemd/user" / unit
        path.unlink(missing_ok=True)


def test_what_is_live_and_what_it_can_not_say(project: Project) -> None:
    first = their_app.release(project.inventory, 1)
    assert "would be refused" not in project.invoke("plan", "--release", first)
    project.invoke("deploy", "--yes", "--release", first)
    said = project.invoke("status")
    for unit in UNITS:
        assert f"unit      {unit}: pid" in said
    assert said.count("✓ from this release, and ready") == 2
    assert "flags     ML_ENABLE_STACKING: in shadow" in said
    assert "run       run-1, lstm_val_auc 0.634" in said
    assert "it has no golden predictions to compare" in said
    assert "drift     none" in said
    said = project.invoke("why")
    assert "metrics       lstm_val_auc 0.634" in said
    assert "not known     its predictions (golden)" in said
    assert "nothing to do" in project.invoke("plan", "--release", first)
    document = project.json("status")["hosts"][0]
    assert (document["healthy"], document["health"]["release"]) == (True, first)


@pytest.mark.parametrize(
    ("serial", "fault", "why"),
    [
        (2, "exit", "its own check failed here: FATAL: chaos says exit"),
        (3, "web_exit", "own-serve-web.service: it does not start"),
        (4, "fork", "own-serve.service: it did not stay up"),
    ],
)
def test_a_bad_release_goes_back_with_all_units(
    project: Project, serial: int, fault: str, why: str
) -> None:
    before = project.live
    bad = their_app.release(project.inventory, serial, fault)
    said = project.invoke("deploy", "--yes", "--release", bad, code=4)
    assert why in said
    assert project.live == before
    assert project.invoke("status").count("✓ from this release, and ready") == 2


def test_an_inventory_that_the_release_was_not_made_for_is_refused(project: Project) -> None:
    release = their_app.release(project.inventory, 5)
    path = project.root / "inventory/lab.yml"
    text = path.read_text()
    document = yaml.safe_load(text)
    document["app"]["serve"]["writes"] = ["logs", "data/live", "cache"]
    del document["app"]["serve"]["more"]
    path.write_text(yaml.safe_dump(document))
    try:
        said = project.invoke("deploy", "--yes", "--release", release, code=6)
    finally:
        path.write_text(text)
    assert "serve.writes: the inventory has cache, data/live, logs; the release was made" in said
    assert "serve.more: the inventory has none; the release was made with web" in said
    assert "cache: not a directory of" in said


def test_back_to_the_one_before(project: Project) -> None:
    first = project.live
    second = their_app.release(project.inventory, 6)
    project.invoke("deploy", "--yes", "--release", second)
    project.invoke("rollback", "--yes")
    assert project.live == first
    said = project.invoke("status")
    assert said.count("✓ from this release, and ready") == 2
    assert "rolled back" in said or "rollback" in said


def test_a_line_that_is_cut_and_a_client_that_is_killed_lose_nothing(
    project: Project, clean_links: LabState
) -> None:
    """The host ends what it began: confirmed over a new line, or back by itself."""
    release = their_app.release(project.inventory, 7)
    with project.start("deploy", "--yes", "--release", release) as typed:
        assert typed.stdout is not None
        assert any("restarting" in line for line in typed.stdout)
        lab_room.set_fault(project.lab.root, "prod", Fault(cut_after=0, cut_on="present"))
        lab_room.set_fault(project.lab.root, "prod", Fault())
        out, err = typed.communicate(timeout=240)
    assert typed.returncode == 0, out + err
    assert project.live == release

    inventory = project.root / "inventory/lab.yml"
    whole = inventory.read_text()
    inventory.write_text(whole.replace("confirm_s: 30", "confirm_s: 3"))
    newer = their_app.release(project.inventory, 8)
    try:
        with project.start("deploy", "--yes", "--release", newer) as typed:
            assert typed.stdout is not None
            assert any("restarting" in line for line in typed.stdout)
            typed.kill()
            typed.wait(240)
    finally:
        inventory.write_text(whole)
    record = project.app / "state/pending.json"
    eventually(lambda: not record.exists(), within=240)  # nobody confirms: it goes back
    assert project.live == release
    assert project.invoke("status").count("✓ from this release, and ready") == 2


def test_a_full_disk_is_told_before_anything_is_sent_and_the_old_one_serves(
    project: Project,
) -> None:
    before = project.live
    large = {"source/data/large.bin": os.urandom(8 << 20)}  # nothing that packs well
    release = their_app.release(project.inventory, 9, more=large)
    with small_disk(project.app / "blobs", 4) as mounted:
        if not mounted:
            pytest.skip("only root may mount a small disk")
        said = project.invoke("deploy", "--yes", "--release", release, code=6)
        assert "blobs, a file system of its own" in said
        files = [path for path in (project.app / "blobs").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) == 0  # one may wait for its first byte
    assert project.live == before
    assert project.invoke("status").count("✓ from this release, and ready") == 2
    project.invoke("deploy", "--yes", "--release", release)
    assert project.live == release
