"""`invoke release` and its verbs as typed, for an application of the team's own."""

from __future__ import annotations

from typing import Any

import pytest

from macd.inventory import load
from macd.journal import Journal
from macd.lab import LabState
from tests.support import their_app, wheels
from tests.support.lab_project import Project


@pytest.fixture(scope="module")
def project(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Their repository with a finished training; its packages are those that they want."""
    root = tmp_path_factory.mktemp("own")
    made = their_app.project(lab, root, "own-release")
    their_app.finished_run(made.inventory)
    wheels.share(made.inventory.state_dir)
    return made


@pytest.fixture(scope="module")
def told(project: Project) -> dict[str, Any]:
    """The first release, as `--json` told of it."""
    made: dict[str, Any] = project.json("release", "--json")
    return made


def test_a_release_is_made_recorded_and_verified(project: Project, told: dict[str, Any]) -> None:
    assert told["run"] == "20260301T120000Z-theirs"
    assert not told["source"]["dirty"]
    assert told["left_out"] == []
    check, unknown = told["health"]
    assert check["ok"]
    assert "check_ml_health.py --skip-live-check exited with 0" in check["detail"]
    assert unknown["name"] == "golden predictions, feature skew"
    assert not unknown["done"]
    (record,) = [
        one
        for one in Journal(project.inventory.state_dir / "journal.jsonl").records()
        if one.kind == "release.made"
    ]
    assert record.fields["release"] == told["id"]
    assert record.fields["missed"] == ["gap"]
    assert record.fields["data_digest"] is None
    for named in ([], [told["id"]], [told["bundle"]]):
        assert "as they were signed" in project.invoke("release.verify", *named)


def test_it_is_listed_and_shown_with_what_is_not_known(
    project: Project, told: dict[str, Any]
) -> None:
    assert told["id"] in project.invoke("release.list")
    shown = project.invoke("release.show", told["id"][:20])
    for text in (
        "run       20260301T120000Z-theirs on ",
        "metric    lstm_val_auc 0.634",
        "not knownNo golden predictions",
        "check     python3 check_ml_health.py --skip-live-check",
        "writes    logs, data/live",
        "source/data/ml_models/lstm_1h.onnx",
    ):
        assert text in shown.replace("not known ", "not known")
    assert project.json("release.show", "--json")["details"]["own"]["name"] == "ml-signals"


def test_a_dry_run_says_all_and_makes_nothing(project: Project, told: dict[str, Any]) -> None:
    there = project.root / "their"
    (there / "web.py").write_text((there / "web.py").read_text() + "# other\n")
    (there / ".env").write_text("SECRET=1\n")
    their_app.git(there, "add", "-f", ".env")
    said = project.invoke("release", "--dry-run")
    their_app.git(there, "rm", "-q", "--cached", ".env")
    their_app.git(there, "checkout", "web.py")
    assert "go into the release: web.py" in said
    assert "left out: .env (it may hold secrets" in said
    assert "nothing was made" in said
    assert len(project.json("release.list", "--json")["releases"]) == 1


def test_options_that_mean_nothing_here_are_refused(project: Project) -> None:
    assert "app.source" in project.invoke("release", "--source", ".", code=2)


def test_its_own_packages_are_locked_installed_and_checked_with(project: Project) -> None:
    """The real index, once a machine: flask and python-dotenv with all that they need."""
    path = project.root / "inventory/lab.yml"
    before = path.read_text()
    path.write_text(before.replace("  serve:\n", "  serve:\n    requirements: requirements.txt\n"))
    inventory = load("lab", root=project.root)
    assert inventory.app is not None
    assert inventory.app.serve.requirements == "requirements.txt"
    try:
        said = project.invoke("release")
    except AssertionError as error:
        if "can't be had" in str(error):
            wheels.none_to_be_had(str(error))
        raise
    finally:
        path.write_text(before)
    assert "lock of requirements.txt" in said
    lock = project.json("release.show", "--json")["lock"]
    assert {"flask", "python-dotenv", "werkzeug"} <= lock["versions"].keys()
    (runtime,) = [
        one
        for one in (inventory.state_dir / "check/runtimes").iterdir()
        if one.name == lock["sha256"]
    ]
    assert list(runtime.glob("lib/python*/site-packages/flask"))
