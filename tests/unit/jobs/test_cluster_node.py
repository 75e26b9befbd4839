"""The job of one node of a cluster, with a program in Ray's place that listens, or dies at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from macd.host.processes import start_time
from tests.support.job_fakes import soon
from tests.support.training_run import ROOT

RAY = """
import os, socket, sys
options = dict(word[2:].split("=", 1) for word in sys.argv if "=" in word)
logs = os.path.join(options["temp-dir"], "session_latest", "logs")
os.makedirs(logs, exist_ok=True)
open(os.path.join(logs, "raylet.out"), "w").write("what Ray said")
assert os.environ["RAY_AUTH_MODE"] == "token"
assert os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777 == 0o600
if "--head" not in sys.argv:
    sys.exit(3)
with socket.create_server(("127.0.0.1", int(options["port"]))) as server:
    while True:
        server.accept()[0].close()
"""
TRAINING = """
import os, sys
assert os.environ["RAY_ADDRESS"].startswith("127.0.0.1:")
assert os.environ["MACD_RAY_NODES"] == "2"
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def laid_out(root: Path, port: int, *training: str) -> Path:
    """A run directory as job_start leaves it, and a package `ray` that is found first."""
    package = root / "code/ray/scripts"
    package.mkdir(parents=True)
    for made in (package.parent / "__init__.py", package / "__init__.py"):
        made.touch()
    (package / "scripts.py").write_text(RAY)
    run = root / "runs/20260101T000000Z-1"
    run.mkdir(parents=True)
    node = {"address": "127.0.0.1", "head": f"127.0.0.1:{port}", "nodes": 2, "ports": [1, 99]}
    (run / "node.json").write_text(json.dumps(node))
    (run / "token").write_text("t0k")
    (run / "token").chmod(0o600)
    argv = [sys.executable, "-m", "macd.host.jobs.cluster", str(run), *training]
    env = {"PYTHONPATH": f"{root / 'code'}:{ROOT}"}
    (run / "spec.json").write_text(json.dumps({"argv": argv, "env": env, "cwd": str(root)}))
    return run


def runner(run: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "macd.host.jobs.runner", str(run)]
    return subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)})


def document(run: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / name).read_text())
    return read


@pytest.mark.parametrize("code", [0, 7])
def test_the_head_ends_as_its_training_does(tmp_path: Path, port: int, code: int) -> None:
    run = laid_out(tmp_path, port, sys.executable, "-c", TRAINING, str(code))
    assert runner(run).wait(60) == code, (run / "log").read_text()
    assert not (run / "token").exists()
    assert not (tmp_path / "ray").exists()
    assert (run / "ray-logs/raylet.out").exists() == bool(code)  # for whoever asks why
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_worker_on_which_ray_dies_again_and_again_says_so(tmp_path: Path, port: int) -> None:
    run = laid_out(tmp_path, port)
    with socket.create_server(("127.0.0.1", port)):
        assert runner(run).wait(60) == 1
    result = document(run, "result.json")
    assert result["what"] == "Ray ended 5 times on this worker of the cluster"
    assert result["why"] == "ray start ended with 3"
    assert (run / "ray-logs/raylet.out").read_text() == "what Ray said"


def test_nothing_outlives_a_runner_that_is_killed(tmp_path: Path, port: int) -> None:
    run = laid_out(tmp_path, port, sys.executable, "-c", "import time; time.sleep(600)")
    owner = runner(run)

    def up() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    soon(up)
    child = document(run, "process.json")["child"]["pid"]
    owner.send_signal(signal.SIGKILL)
    owner.wait(60)
    soon(lambda: not start_time(child))
    soon(lambda: not up())
    assert not (run / "token").exists()
