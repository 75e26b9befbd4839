"""The gate on what the real service writes: well, and with models gone or answering a constant."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macd.app.service import signal_table
from macd.gate import report
from macd.gate.report import Judged
from macd.host.judge.parse import Line, parse
from macd.inventory import load
from tests.support import signal_lines
from tests.support.constant_model import make_constant
from tests.support.deployed_app import App, make_app
from tests.support.gate_rule import RULE

PATIENCE_S = 120


@pytest.fixture
def app() -> Iterator[App]:
    root = Path(tempfile.mkdtemp(prefix="macd-g-"))  # short: sockets' paths are limited
    yield make_app(root, speed=100)
    shutil.rmtree(root)


def write_bars(app: App, count: int = 45, *, kill: bool = False) -> None:
    """Run the service until it has written that many lines, then stop it as systemd does."""
    argv = [sys.executable, "-m", "macd.app.service", "--root", str(app.root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ML_STACKING_MIN_SAMPLES": "0"}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + PATIENCE_S
        try:
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(ValueError):  # the last line may be half written
                    if len(app.lines) >= count:
                        return
                time.sleep(0.1)
            raise AssertionError(f"{len(app.lines)} lines, status {process.poll()}")
        finally:
            process.kill() if kill else process.terminate()
            process.communicate(timeout=180)


def judged(app: App) -> Judged:
    return report.of_files(load("lab"), app.root / "data/live", RULE, None, datetime.now(UTC))


def criteria(found: Judged) -> dict[str, str]:
    return {one.name: one.outcome for one in found.decision.criteria}


def test_real_lines_pass_and_are_what_tests_write(app: App) -> None:
    write_bars(app)
    found = judged(app)
    assert found.document["release"] == app.release.name
    assert found.decision.verdict == "PASS", found.decision.reasons
    assert found.document["findings"]["malformed"]["count"] == 0
    assert found.document["findings"]["counts"] == {}
    real = next(line for line in app.lines if line["level"] == "SIGNAL")
    ours = next(signal_lines.lines(1, end=datetime.now(UTC), ml_features_outside=0))
    _same_shape(ours, real)
    line = parse(signal_lines.encode(real))
    assert isinstance(line, Line)
    assert line.held is not None
    [log] = (app.root / "data/live").glob("trades_*.jsonl")
    table = signal_table.write("prod", log, app.root / "tables")
    assert (table.rows, table.damaged) == (len(app.lines), ())
    row = pl.read_parquet(table.path).filter(pl.col("seq") == real["seq"]).row(0, named=True)
    assert row["position_side"] == real["data"]["position"]["side"]
    assert row["ml_avg_prob"] == real["data"]["components"]["ml_avg_prob"]
    # What has a part of its own stays JSON; all else has a column.
    assert all(isinstance(value, dict | list) for value in json.loads(row["more"]).values())


def _same_shape(ours: Any, real: Any, path: str = "line") -> None:
    """Every field of ours is in a real line, with a value of the same kind."""
    if isinstance(ours, dict):
        assert isinstance(real, dict), path
        for name, value in ours.items():
            assert name in real, f"{path}.{name}"
            _same_shape(value, real[name], f"{path}.{name}")
    elif ours is not None and real is not None:
        assert type(ours) is type(real), path


def test_a_service_that_is_stopped_killed_and_at_its_next_lap_leaves_no_bar_out(app: App) -> None:
    app.settings(speed=100, start=0.998, loop=True)  # laps of 41 bars
    for count, kill in ((15, True), (38, False), (75, True), (90, False)):
        write_bars(app, count, kill=kill)
    found = judged(app)
    signals = [line["bar_time"] for line in app.lines if line["level"] == "SIGNAL"]
    assert min(signals[1:]) == signals[0], "a lap began again"
    assert found.document["findings"]["holes"] == []
    assert found.decision.verdict == "PASS", found.decision.reasons


def test_a_missing_model_fails_coverage(app: App) -> None:
    (app.models / "tft_1h.onnx").unlink()
    write_bars(app)
    found = judged(app)
    assert found.decision.verdict == "FAIL"
    assert criteria(found)["ml_coverage"] == "FAIL"
    told = [one["example"] for one in found.document["findings"]["errors"]]
    assert any("tft" in words for words in told)


def test_a_model_that_answers_a_constant_fails(app: App) -> None:
    """Even where nobody noticed the file: golden predictions fail, and the answers are stuck."""
    make_constant(app.models / "tft_1h.onnx")
    write_bars(app)
    found = judged(app)
    assert found.decision.verdict == "FAIL"
    tft = found.document["findings"]["models"]["tft"]
    assert tft["answers"] == 0 or tft["stuck"] + tft["outside"] > 0
