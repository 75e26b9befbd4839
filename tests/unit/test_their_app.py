"""What the other tests take for an application of one's own works by itself, without macd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from macd.inventory import load
from tests.support import their_app


def run(directory: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def test_it_serves_writes_lines_and_is_checked(tmp_path: Path) -> None:
    there = their_app.repository(tmp_path / "their", models=True)
    assert "data/" not in their_app.git(there, "ls-files")
    checked = run(there, "check_ml_health.py", "--skip-live-check")
    assert checked.returncode == 0, checked.stdout
    port = str(their_app.free_ports().health)
    environment = {**os.environ, "HEALTH_PORT": port, "BAR_SECONDS": "0.1"}
    with subprocess.Popen([sys.executable, "live_runner.py"], cwd=there, env=environment) as engine:
        try:
            until = time.monotonic() + 120
            while not (lines := list((there / "logs/live").glob("*.jsonl"))):
                assert time.monotonic() < until
                time.sleep(0.05)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                assert json.load(answer)["status"] in ("ok", "starting")
        finally:
            engine.kill()
    line = json.loads(lines[0].read_text().splitlines()[0])
    assert line["level"] == "SIGNAL"
    assert 0 < line["data"]["components"]["ml_bull_prob"] < 1


@pytest.mark.parametrize(("fault", "code"), [("exit", 3), ("unhealthy", 1)])
def test_its_faults_are_real(tmp_path: Path, fault: str, code: int) -> None:
    there = their_app.repository(tmp_path / "their", models=True)
    done = run(there, "check_ml_health.py", "--skip-live-check", FAULT=fault)
    assert done.returncode == code


def test_its_inventory_loads(tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    document = {
        "hosts": {"prod": {"role": "serve", "env": "prod", "ssh": "prod", "app_dir": "/opt/x"}},
        "app": their_app.app_section(their_app.free_ports(), serve__more=their_app.WEB),
    }
    (tmp_path / "inventory/ours.yml").write_text(yaml.safe_dump(document))
    assert load("ours", root=tmp_path).release.app == "ml-signals"
