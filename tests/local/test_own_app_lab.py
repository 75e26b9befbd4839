"""An application that macd has never seen, through the whole story on the lab.

Its host was provisioned by hand. It is trained, released, taken over, deployed, reverted, judged,
let decide, watched, rolled back, and at last given back as it was.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macd.lab import LabState
from tests.support import their_app, wheels
from tests.support.lab_project import Project

NAME = "theirs"


def until(what: Callable[[], Any], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while not (seen := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    return seen


def test_the_whole_story(lab: LabState, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    ports = their_app.free_ports()
    by_hand = their_app.install_by_hand(lab, NAME, ports)
    request.addfinalizer(by_hand.remove)
    made = their_app.project(
        lab,
        tmp_path / "p",
        NAME,
        serve__more={
            "web": {
                "command": "python3 web.py",
                "ready": {"http": f"http://127.0.0.1:{ports.web}/"},
            }
        },
        serve__requirements="requirements.txt",
        flag={"name": "ML_ENABLE_STACKING", "where": "dropin"},
    )
    wheels.share(made.inventory.state_dir)
    until(lambda: len(by_hand.lines) > 2)
    there, old = snapshot(lab, by_hand.directory), by_hand.pid

    said = made.invoke("train", "--host", "h800")
    assert "lstm_val_auc" in said
    said = made.invoke("release")
    first = newest(made)
    assert "python-dotenv" in (made.root / f"releases/{first}/lock.json").read_text()
    said = made.invoke("health")
    assert "lstm_1h.onnx" in said
    assert "pkl" in said  # named, and never loaded

    # Looking changes nothing; provision keeps what was there, and the service runs on.
    made.invoke("provision", "--dry-run")
    made.invoke("plan")
    assert snapshot(lab, by_hand.directory) == there
    made.invoke("provision", "--yes", "--adopt")
    assert "0 changes" in made.invoke("provision", "--yes")
    assert by_hand.pid == old

    # The first deploy takes over.
    said = made.invoke("deploy", "--yes")
    assert (made.live, by_hand.pid != old) == (first, True)
    assert_serves(made, by_hand, ports, first)
    assert answered(ports)["dotenv"] is True  # of the release's own packages

    # One that fails its own check is no release; bad ones go back, both units together.
    commit(made, "unhealthy")
    assert "check_ml_health.py" in made.invoke("release", code=1)
    commit(made, "web_exit")
    made.invoke("release")
    assert "reverted" in made.invoke("deploy", "--yes", code=4)
    assert_serves(made, by_hand, ports, first)

    # A second one is judged by its lines, let decide, and watched.
    commit(made, "")
    made.invoke("release")
    second = newest(made)
    made.invoke("deploy", "--yes")
    assert_serves(made, by_hand, ports, second)
    assert "INCONCLUSIVE" in made.invoke("shadow-gate", code=3)
    until(lambda: health(ports).get("bars", 0) > 24)
    said = made.invoke("shadow-gate")
    assert "PASS" in said
    assert "lgb" in said  # a rate of their own
    made.invoke("enable-stacking", "--yes")
    assert answered(ports)["stacking"] is True
    made.invoke("monitor", "--once")
    said = made.invoke("doctor")
    assert "no problems found" in said
    assert "golden predictions" in said
    made.invoke("logs", "--lines", "3")

    # Back to the first, in shadow.
    made.invoke("rollback", "--yes")
    assert_serves(made, by_hand, ports, first)
    assert answered(ports)["stacking"] is False
    for verb in ("status", "why", "history"):
        made.invoke(verb)

    # What can't be had is said, and is no traceback.
    said = made.invoke("audit", code=6)
    assert "Traceback" not in said

    # And all of it given back.
    made.invoke("provision", "--undo", "--yes")
    after = snapshot(lab, by_hand.directory)
    assert {path: after.get(path) for path in there} == there
    assert not [path for path in after if path not in there and "/systemd/" in path]
    until(lambda: health(ports).get("status") == "ok")
    assert Path(f"/proc/{by_hand.pid}/cwd").readlink() == by_hand.directory


def newest(made: Project) -> str:
    return max(path.name for path in (made.root / "releases").glob("2*"))


def commit(made: Project, fault: str) -> None:
    """A change of their repository, with a fault in it or without one."""
    file = made.root / "their/FAULT"
    file.write_text(fault) if fault else file.unlink()
    their_app.commit(made.root / "their", fault or "mended")


def health(ports: their_app.Ports) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports.health}/health", timeout=5) as answer:
            return dict(json.load(answer))
    except OSError:
        return {}


def answered(ports: their_app.Ports) -> dict[str, Any]:
    """The same, however long a busy machine takes to answer."""
    return dict(until(lambda: health(ports)))


def assert_serves(
    made: Project, by_hand: their_app.ByHand, ports: their_app.Ports, release: str
) -> None:
    """Its engine runs from the release and answers, its lines go on in the same directory."""
    assert made.live == release
    assert Path(f"/proc/{by_hand.pid}/cwd").readlink().parent.name == release
    assert answered(ports)["pid"] == by_hand.pid
    count = len(by_hand.lines)
    until(lambda: len(by_hand.lines) > count)
    secret = "EXCHANGE_API_KEY=s3cret"
    assert secret in (by_hand.directory / ".env").read_text()


def snapshot(lab: LabState, directory: Path) -> dict[str, bytes | str]:
    """Every file of theirs but those that the service writes, and their units."""
    units = lab.hosts["prod"].home / ".config/systemd/user"
    files = [*directory.rglob("*"), *units.glob(f"{NAME}*"), *units.glob(f"{NAME}*/*")]
    theirs = ("/logs/", "/data/live/", "__pycache__")
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(files)
        if (path.is_file() or path.is_symlink()) and not any(p in str(path) for p in theirs)
    }
