"""`invoke dashboard` on the embedded lab: before a deploy, after it, and beside a lost host."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from macd.lab import LabState
from tests.support import signal_lines
from tests.support.lab_project import Project, project

TASKS = """
from invoke import Collection
from macd.cli import dashboard, deploy, logs, provision, usage
usage.install()
namespace = Collection(deploy.deploy, provision.provision, dashboard.dashboard, logs.logs)
"""
LOST = "{role: serve, env: staging, ssh: 127.0.0.1, port: 1, app_dir: ~/dash-c, unit: dash-c}"


@pytest.fixture(scope="module")
def place(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = project(lab, tmp_path_factory.mktemp("dash"), "dash-a")
    (made.root / "tasks.py").write_text(TASKS)
    return made


def once(place: Project, name: str, *words: str, code: int = 0) -> tuple[str, str]:
    """What was said, and the page."""
    path = place.root / name
    said = place.invoke("dashboard", "--once", str(path), *words, code=code)
    return said, path.read_text()


def test_from_nothing_to_a_release_that_serves(place: Project) -> None:
    said, page = once(place, "one.html")
    assert "1 of 1 host answered" in said
    assert "not provisioned" in page
    assert "invoke provision" in page
    place.invoke("provision", "--yes")
    release = place.release(1)
    place.invoke("deploy", "--yes")
    said, page = once(place, "two.html")
    assert f">{release}</b> since " in page
    assert "lab@macd" in page
    assert "No line of this release has been pulled yet." in page
    assert f"deploy of {release}" in page
    signal_lines.write(
        place.app / "data/live",
        signal_lines.lines(
            40, end=datetime.now(UTC), release=release, every=timedelta(milliseconds=1)
        ),
    )
    said, page = once(place, "three.html")
    assert "Coverage and activation" in page
    assert "40 of 40" in page
    assert "/live.js" not in page
    assert "<script" not in page
    document = place.json("dashboard")
    [row] = document["hosts"]
    assert (row["live"], row["service"], row["stacking"]) == (release, "ok", "shadow")
    assert row["way"]["signed as"] == "lab@macd"


def test_the_lines_as_parquet(place: Project) -> None:
    """Of the 40 lines that the release wrote, and of damage in between."""
    [log] = (place.app / "data/live").glob("trades_*.jsonl")
    log.write_bytes(log.read_bytes() + b"{damaged\n")
    said = place.invoke("logs", "--parquet", str(place.root / "out"))
    assert "prod: 40 lines in 1 file:" in said
    assert "1 line in no file: can't be read" in said
    assert "line 41 of signals_prod_" in said
    document = place.json("logs", "--parquet", str(place.root / "out"))
    [table] = document["hosts"][0]["files"]
    frame = pl.read_parquet(place.root / "out" / "*.parquet")
    assert len(frame) == table["rows"] == 40
    assert table["damaged"] == [[41, "not JSON"]]
    assert frame["seq"].to_list() == list(range(1, 41))
    assert "no line matches zzz" in place.invoke("logs", "--grep", "zzz")
    assert "0 or more" in place.invoke("logs", "--lines=-1", code=2)
    assert "neither --follow" in place.invoke("logs", "--parquet", "x", "--follow", code=2)
    assert "no directory" in place.invoke("logs", "--parquet", str(log), code=2)
    blocked = str(log / "below")
    assert "could not be written" in place.invoke("logs", "--parquet", blocked, code=1)


def test_a_lost_host_is_shown_and_hides_nobody(place: Project) -> None:
    path = place.root / "inventory" / "lab.yml"
    text = path.read_text()
    path.write_text(text.replace("  prod:\n", f"  far: {LOST}\n  prod:\n"))
    said, page = once(place, "lost.html", code=5)
    assert "1 of 2 hosts answered" in said
    assert "✗ far" in said
    assert "It was never reached from here" in page
    assert "Environment staging" in page
    said, page = once(place, "narrow.html", "--env", "prod")
    assert "Environment staging" not in page
    assert "1 of 1 host answered" in said
    once(place, "far.html", "--host", "far", code=1)
    path.write_text(text)


def test_it_is_served_until_ctrl_c(place: Project) -> None:
    with place.start("dashboard", "--every", "5") as typed:
        assert typed.stdout is not None
        address = typed.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urllib.request.urlopen(address, timeout=180) as answer:
            page = answer.read().decode()
            assert answer.headers["Cache-Control"] == "no-store"
        assert "Environment prod" in page
        assert "/live.js" in page
        typed.send_signal(signal.SIGINT)
        out, err = typed.communicate(timeout=180)
    assert typed.returncode == 0, out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--every", "1"), "--every 1: at least 5 seconds"),
        (("--days", "0"), "--days 0: not a number of days"),
        (("--port", "70000"), "--port 70000: no port"),
        (("--env", "none"), "has no host that serves env 'none'"),
        (("--host", "none"), "has no host 'none'"),
        (("--host", "h800"), "h800"),
        (("--once", "/nowhere/at/all.html"), "can't be written"),
    ],
)
def test_wrong_usage_is_named(place: Project, words: tuple[str, str], said: str) -> None:
    assert said in place.invoke("dashboard", *words, code=2)


def test_last_answers_are_private_files(place: Project) -> None:
    stored = place.inventory.state_dir / "dashboard" / "prod.json"
    document = json.loads(Path(stored).read_bytes())
    assert document["state"]["env"] is None
    assert document["state"]["units"] == {}
