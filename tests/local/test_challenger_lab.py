"""The previous release beside the live one, on the lab: the real service, all verbs typed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.app.market.bars import read_bars
from macd.app.predict.scoring import MODELS, Scorer
from macd.app.service.loop import NEED
from macd.app.service.predictor import Predictor
from macd.app.service.settings import flags
from macd.inventory import load
from macd.lab import LabState
from tests.support import small_releases
from tests.support.deployed_app import bolder
from tests.support.lab_project import Project, project
from tests.support.training_run import SAMPLE

PATIENCE_S = 180


@pytest.fixture
def bench(lab: LabState, tmp_path: Path) -> Iterator[Project]:
    made = project(lab, tmp_path / "p", "c")
    book = made.root / "inventory" / "lab.yml"
    text = book.read_text()
    for old, new in (
        ("speed: 2, start: 0.85}", "speed: 3, start: 0.85}"),
        ("  watchdog_s: 0\n", "  watchdog_s: 0\n  challenger: true\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    book.write_text(text)
    made.invoke("provision", "--yes")
    replayed = made.app / "data/replay"
    replayed.mkdir(parents=True, exist_ok=True)
    shutil.copy(SAMPLE, replayed / "BTCUSD_1h.parquet")
    env = made.app / ".env"
    env.write_text(env.read_text() + "ML_STACKING_MIN_SAMPLES=0\n")
    yield Project(made.root, made.lab, load("lab", root=made.root))
    made.systemctl("stop", "c.service")


def lines(bench: Project, of: str, count: int, after: int = 0) -> list[dict[str, Any]]:
    """The last signal lines of a release, once there are so many whose challenger is settled.

    after: a seq; lines up to it don't count.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        logs = sorted((bench.app / "data/live").glob("trades_*.jsonl"))
        whole = [line for log in logs for line in log.read_bytes().split(b"\n")[:-1]]
        read = [json.loads(line) for line in whole]
        signals = [line for line in read if line["level"] == "SIGNAL" and line["seq"] > after]
        own = [line for line in signals if line["release"] == of]
        settled = [line for line in own if "still being loaded" not in json.dumps(line)]
        if len(settled) >= count:
            return settled[-count:]
        assert time.monotonic() < deadline, (len(own), own[-1:])
        time.sleep(0.2)


def challenger(line: dict[str, Any]) -> Any:
    return line["data"]["components"].get("ml_challenger")


def test_lines_of_a_release_carry_what_the_one_before_it_says(bench: Project) -> None:
    first = small_releases.make_real(bench.inventory, 1, bolder)
    bench.invoke("deploy", "--yes")
    assert json.loads((bench.app / "service.json").read_text())["challenger"] is True
    assert {challenger(line) for line in lines(bench, first, 5)} == {None}

    second = small_releases.make_real(bench.inventory, 2)
    bench.invoke("deploy", "--yes")
    carried = lines(bench, second, 5)
    bars = read_bars(SAMPLE)
    times = bars["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ").to_list()
    own = Predictor(Scorer.load(bench.app / "releases" / first / MODELS, "1h"), flags({}), "1h")
    for line in carried:
        said = challenger(line)
        assert said.keys() == {"release", "avg", "stacking"}, said
        assert said["release"] == first
        at = times.index(line["bar_time"])
        fields = own.predict(bars[at + 1 - NEED : at + 1], {}).fields
        assert said["avg"] == pytest.approx(fields["ml_avg_prob"], abs=2e-6)
        assert said["stacking"] == pytest.approx(fields["ml_stacking_prob"], abs=2e-6)
        parts = line["data"]["components"]
        assert said["avg"] != pytest.approx(parts["ml_avg_prob"], abs=2e-6)
        assert parts["ml_error"] is None

    damaged = bench.app / "releases" / first / MODELS / "lgbm_1h_meta.json"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes() + b" ")
    bench.invoke("deploy", "--yes", "--restart", "--release", second)
    last = lines(bench, second, 1)[-1]["seq"]
    refused = lines(bench, second, 5, after=last)[-1]
    assert "not as signed" in challenger(refused)["error"]
    assert refused["data"]["components"]["ml_error"] is None

    damaged.write_bytes(damaged.read_bytes()[:-1])
    bench.invoke("rollback", "--yes")
    last = lines(bench, second, 1)[-1]["seq"]
    assert {challenger(line) for line in lines(bench, first, 5, after=last)} == {None}
