"""`invoke audit` as typed, on the embedded lab: a real service's lines, repeated on its host."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.inventory import load, project_root
from macd.journal import Journal
from macd.lab import LabState
from tests.support import small_releases
from tests.support.constant_model import make_constant
from tests.support.lab_project import Project, project
from tests.support.training_run import SAMPLE
from tests.unit.app.market.test_fetch import HOUR, Server

TASKS = """
from invoke import Collection
from macd.cli import audit, deploy, gate, provision, usage
usage.install()
namespace = Collection(deploy.deploy, provision.provision, gate.shadow_gate, audit.audit)
"""
PATIENCE_S = 120
FEED = "speed: 2, start: 0.85"
BARS = read_bars(SAMPLE).height
LINES = 30
STILL_TO_COME = -20  # hours of the exchange
START = (BARS - LINES) / BARS + 1e-9  # a few bars, then it rests at the end of its file


@pytest.fixture(scope="module")
def served(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose live release is the real service, with some lines of a replay."""
    made = project(lab, tmp_path_factory.mktemp("audit"), "audit-lab")
    (made.root / "tasks.py").write_text(TASKS)
    (made.root / "data").symlink_to(project_root() / "data")
    path = made.root / "inventory/lab.yml"
    text = path.read_text()
    assert FEED in text
    path.write_text(text.replace(FEED, f"speed: 50, loop: false, start: {START}"))
    made = Project(made.root, lab, load("lab", root=made.root))
    made.invoke("provision", "--yes")
    small_releases.make_real(made.inventory, 1)
    made.invoke("deploy", "--yes")
    until_lines(made, LINES)
    return made


def until_lines(place: Project, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(lines(place)) < count:
        assert time.monotonic() < deadline, lines(place)[-2:]
        time.sleep(0.2)


def lines(place: Project) -> list[str]:
    paths = sorted((place.app / "data/live").glob("trades_*.jsonl"))
    return [line for path in paths for line in path.read_text().splitlines()]


def changed_bars(place: Path, row: int) -> Any:
    """The sample with a bar that closed elsewhere; its open."""
    bars = read_bars(SAMPLE)
    close = pl.when(pl.int_range(pl.len()) == row).then(pl.col("close") * 1.0005)
    write_bars(
        bars.with_columns(close.otherwise(pl.col("close")).alias("close")),
        place / "BTCUSD_1h.parquet",
    )
    return bars["timestamp"][row]


def test_a_service_repeats_its_lines_and_the_gate_shows_it(served: Project, tmp_path: Path) -> None:
    before = served.json("shadow-gate")
    assert before["replay"] is None
    assert any("invoke audit" in note for note in before["notes"])

    found = served.json("audit", "--days", "1")
    assert (found["verdict"], found["share_equal"], found["different"]) == ("equal", 1.0, 0)
    assert found["compared"] == LINES
    assert found["release"] == served.live
    assert Path(found["path"]).is_file()

    after = served.json("shadow-gate")
    assert after["replay"]["share_equal"] == 1.0
    assert after["replay"]["bars"] == found["compared"]
    assert not any("invoke audit" in note for note in after["notes"])

    moment = changed_bars(tmp_path, BARS - LINES + 3)
    said = served.invoke("audit", "--days", "1", "--bars", str(tmp_path))
    assert "on the bars that the service had" in said
    assert f"BTCUSD {moment:%Y-%m-%dT%H:%M:%SZ} close" in said
    explained = served.json("shadow-gate")
    assert explained["replay"]["share_equal"] < 1
    assert any("audit" in note for note in explained["notes"])


def test_a_model_that_was_changed_on_the_host_ends_with_1(served: Project) -> None:
    path = served.app / "current/data/ml_models/lstm_1h.onnx"
    before = path.read_bytes()
    path.chmod(0o644)
    try:
        make_constant(path)
        said = served.invoke("audit", "--days", "1", code=1)
    finally:
        path.write_bytes(before)
    assert "ml_lstm_prob" in said
    assert "golden predictions fail" in said


def test_a_release_of_an_earlier_version_is_said_to_lack_it(served: Project) -> None:
    served.release(2)
    served.invoke("deploy", "--yes")
    said = served.invoke("audit", code=3)
    assert "made by a version that had no such command" in said
    assert "invoke release" in said


def test_on_an_exchange_the_corrected_bar_and_the_changed_line_are_both_named(
    lab: LabState, exchange: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The exchange's clock is behind ours, so that hours of bars close when the test says so."""
    made = project(lab, tmp_path_factory.mktemp("exchange"), "exchange-lab")
    (made.root / "tasks.py").write_text(TASKS)
    path = made.root / "inventory/lab.yml"
    feed = f"kind: ccxt, exchange: binance, api_url: '{exchange.url}', stale_bars: 1000"
    path.write_text(path.read_text().replace(f"kind: replay, {FEED}", feed))
    made = Project(made.root, lab, load("lab", root=made.root))
    made.invoke("provision", "--yes")
    small_releases.make_real(made.inventory, 1, package="ccxt")
    made.invoke("deploy", "--yes")
    exchange.now += 12 * HOUR
    until_lines(made, 12)

    corrected = exchange.rows[STILL_TO_COME + 6]  # the seventh line's bar; five see it later
    corrected[4] = f"{float(corrected[4]) * 1.0005:.8f}"
    moment = f"{datetime.fromtimestamp(corrected[0] / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    (log,) = (made.app / "data/live").glob("trades_*.jsonl")
    raw = log.read_text().splitlines(keepends=True)
    changed = json.loads(raw[2])
    changed["data"]["components"]["ml_lstm_prob"] += 0.01
    log.write_text("".join([*raw[:2], json.dumps(changed) + "\n", *raw[3:]]))

    said = made.invoke("audit", "--days", "1", code=1)
    assert "from binance, as it gives them now" in said
    assert "12 compared of 12 of the last" in said
    assert "equal     5, " in said and "6 more on the bars of then" in said
    assert "corrected 1 bars" in said and f"BTCUSD {moment} close" in said
    assert "differ    1 lines" in said and f"{changed['bar_time']} ml_lstm_prob: written" in said


@pytest.fixture
def exchange() -> Iterator[Server]:
    """Hours of the sample up to a few days ago, 20 of them still to come."""
    made = Server()
    made.pairs = [("BTC", "USD")]
    bars = read_bars(SAMPLE)[-1500:]
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
    for row, *cells in bars.iter_rows():
        opened = int((row - bars["timestamp"][-1] + end).timestamp() * 1000)
        end_ms = opened + HOUR - 1
        made.rows.append([opened, *map(str, cells), end_ms, "1.0", 5, "1.0", "1.0", "0"])
    made.now = made.rows[STILL_TO_COME][0] + 1
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_another_market_is_refused_until_a_person_accepts_it(
    lab: LabState, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = project(lab, tmp_path_factory.mktemp("market"), "market-lab")
    path = made.root / "inventory/lab.yml"
    text = path.read_text().replace("symbol: BTCUSD", "symbol: BTCUSDT")
    path.write_text(text.replace(f"kind: replay, {FEED}", "kind: ccxt, exchange: binance"))
    made = Project(made.root, lab, load("lab", root=made.root))
    made.invoke("provision", "--yes")
    perp = {"exchange": "binance", "market": "BTC/USDT:USDT", "type": "swap"}
    release = small_releases.make(
        made.inventory, 1, package="1", name="ccxt", details={"origin": {"BTCUSDT": perp}}
    )
    said = made.invoke("deploy", "--yes", code=6)
    assert "trained on bars of binance swap BTC/USDT:USDT" in said
    assert "--accept market" in said
    assert made.live is None
    assert "that is nothing to accept" in made.invoke("deploy", "--accept", "all", code=2)
    made.invoke("deploy", "--yes", "--accept", "market")
    assert made.live == release
    records = Journal(made.inventory.state_dir / "journal.jsonl").records()
    begun = [record.fields for record in records if record.kind == "deploy.began"]
    assert [fields.get("accept") for fields in begun] == [None, ["market"]]
