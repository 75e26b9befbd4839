"""The service as a process: real models, real sockets, real signals; killed, it loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from macd.host.deploy import health
from tests.support.deployed_app import App, make_app
from tests.support.sweeps import sweep

PATIENCE_S = 180


@pytest.fixture
def app() -> Iterator[App]:
    root = Path(tempfile.mkdtemp(prefix="macd-s-"))  # short: sockets' paths are limited
    yield make_app(root, speed=100)
    shutil.rmtree(root)


@contextlib.contextmanager
def running(app: App, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "macd.app.service", "--root", str(app.root)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := true():
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended: {process.returncode} {process.communicate()[1]}")
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def answer(app: App) -> dict[str, Any]:
    try:
        return health.ask(app.endpoint)
    except health.ProbeError:
        return {}


def answered(app: App) -> dict[str, Any]:
    """The same, however long a busy machine takes to answer."""
    return dict(until(lambda: answer(app)))


def raw_lines(app: App) -> list[bytes]:
    paths = sorted((app.root / "data/live").glob("trades_*.jsonl"))
    return [line for path in paths for line in path.read_bytes().split(b"\n") if line]


def check(app: App, *words: str, **environment: str) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, "-m", "macd.app.service", "--root", str(app.root), "--check", *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


@contextlib.contextmanager
def heard(path: Path) -> Iterator[socket.socket]:
    """What the service says to systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as said:
        said.bind(str(path))
        said.settimeout(PATIENCE_S)
        yield said


def test_from_the_start_to_sigterm(app: App) -> None:
    """Ready is said after everything stands, and signs of life follow."""
    with heard(app.root / "notify") as said:
        environment = {"ML_ENABLE_STACKING": "1", "NOTIFY_SOCKET": str(app.root / "notify")}
        with running(app, **environment) as process:
            first = said.recv(1000).decode()
            ready = answered(app)
            assert first.startswith("READY=1")
            assert (ready["status"], ready["golden"]["ok"]) == ("ok", True)
            assert said.recv(1000) == b"WATCHDOG=1"
            while answered(app)["seq"] <= 20:
                assert said.recv(1000) == b"WATCHDOG=1"
            told = answered(app)
            status = Path(f"/proc/{process.pid}/status")
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
            process.send_signal(signal.SIGTERM)
            while said.recv(1000) != b"STOPPING=1":
                pass
            assert process.wait(PATIENCE_S) == 0
    assert found is None or int(found[1]) < 300_000  # what docs/service.md promises
    assert told["status"] == "ok"
    assert told["release"] == app.release.name
    assert told["pid"] == process.pid
    assert told["golden"]["ok"] is True
    assert told["flags"] == {"ML_ENABLE_STACKING": "1"}
    assert told["models"] == dict.fromkeys(("lgbm", "lstm", "tft", "stacking"), "ok")
    lines = app.lines
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["level"] for line in lines} == {"SIGNAL"}
    assert {line["data"]["components"]["ml_stacking_mode"] for line in lines} == {"live"}
    assert {line["data"]["components"]["ml_error"] for line in lines} == {None}
    assert not Path(app.endpoint.removeprefix("unix:")).exists()


@pytest.mark.parametrize("times", [2, pytest.param(5, marks=pytest.mark.full)])
def test_ended_again_and_again_no_bar_and_no_seq_is_lost_or_repeated(app: App, times: int) -> None:
    app.settings(speed=0)
    chance = random.Random(7)
    for end in [signal.SIGKILL, signal.SIGTERM] * times:
        before = len(raw_lines(app))
        with running(app) as process:
            until(lambda before=before: len(raw_lines(app)) > before, process)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.05))
            process.send_signal(end)
            if end == signal.SIGTERM:
                assert process.wait(PATIENCE_S) == 0
                newest = max((app.root / "data/live").glob("trades_*.jsonl"))
                assert newest.read_bytes().endswith(b"\n")
    with running(app) as process:
        until(lambda: answer(app).get("status") == "ok", process)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    whole = []
    for line in raw_lines(app):
        with contextlib.suppress(ValueError):  # a torn line stands alone, whatever it holds
            whole.append(json.loads(line))
    assert [line["seq"] for line in whole] == list(range(1, len(whole) + 1))
    opened = [line["bar_time"] for line in whole if line["level"] == "SIGNAL"]
    assert opened == sorted(set(opened))
    moments = [datetime.fromisoformat(text) for text in opened]
    assert {b - a for a, b in pairwise(moments)} == {timedelta(hours=1)}


def test_a_torn_line_is_ended_and_told(app: App) -> None:
    live = app.root / "data/live"
    live.mkdir(parents=True)
    (live / "trades_20260301.jsonl").write_bytes(b'{"seq":41,"level":"SIGNAL"}\n{"seq":42,"lev')
    with running(app) as process:
        until(lambda: answer(app).get("seq", 0) > 45, process)
    lines = raw_lines(app)
    assert lines[1] == b'{"seq":42,"lev'
    told = json.loads(lines[2])
    assert (told["seq"], told["level"], told["data"]["event"]) == (42, "WARN", "torn_line")
    assert json.loads(lines[3])["seq"] == 43


def spoil(app: App, name: str) -> None:
    path = app.models / name
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


BROKEN = ["tft_1h.onnx", "lgbm_1h_5h.txt", "stacking_meta_1h.json"]


@pytest.mark.parametrize("name", sweep(BROKEN, "lgbm_1h_5h.txt", "stacking_meta_1h.json"))
def test_a_broken_model_is_told_everywhere_and_the_signal_goes_on(app: App, name: str) -> None:
    spoil(app, name)
    code, told = check(app, "--release", str(app.release))
    assert (code, told["ok"], told["golden"]["ok"]) == (1, False, False)
    assert name in told["detail"]
    with running(app) as process:
        until(lambda: answer(app).get("seq", 0) > 3, process)
        told = answered(app)
    assert told["status"] == "failed"
    assert told["golden"]["ok"] is False
    assert told["models"][name.partition("_")[0]] != "ok"
    for line in app.lines:
        assert line["level"] == "SIGNAL"
        assert "golden" in line["data"]["components"]["ml_error"]


def test_a_runtime_that_lacks_what_the_feed_needs_is_told_before_a_switch(app: App) -> None:
    app.settings(kind="ccxt")
    assert check(app)[0] == 0
    hiding = app.root / "hiding"
    hiding.mkdir()
    (hiding / "ccxt.py").write_text("raise ImportError('no such package')")
    code, told = check(app, PYTHONPATH=str(hiding))
    assert code == 1
    assert "needs ccxt" in told["detail"]


def test_with_no_model_left_the_base_signal_is_written(app: App) -> None:
    shutil.rmtree(app.models)
    assert check(app)[0] == 1
    with running(app) as process:
        until(lambda: answer(app).get("seq", 0) > 3, process)
        assert answered(app)["status"] == "failed"
    assert all(isinstance(line["data"]["components"]["macd"], float) for line in app.lines)


def test_neither_a_second_service_nor_a_switch_of_current_touches_the_first(app: App) -> None:
    with running(app) as process:
        until(lambda: answer(app).get("status") == "ok", process)
        document = json.loads((app.root / "service.json").read_text())
        document["endpoint"] = f"unix:{app.root}/other.sock"
        (app.root / "service.json").write_text(json.dumps(document))
        with running(app) as second:
            said = second.communicate(timeout=PATIENCE_S)[1]
        assert second.returncode == 6
        assert "another process writes signals" in said
        before = answered(app)
        assert before["pid"] == process.pid
        (app.root / "current").unlink()
        (app.root / "current").symlink_to("releases/gone")
        until(lambda: answer(app).get("seq", 0) > before["seq"] + 20, process)
        assert answered(app)["release"] == before["release"]
        assert answered(app)["golden"]["ok"] is True


def test_what_is_no_release_stops_it_with_words(app: App) -> None:
    (app.root / "current").unlink()
    with running(app) as process:
        said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 1
    assert "holds no release" in said
    renamed = app.root / "releases" / "20200101T000000Z-00000000"
    next((app.root / "releases").iterdir()).rename(renamed)
    assert check(app, "--release", str(renamed))[1]["ok"] is False
