"""A training on 15-minute bars speaks of bars from its files to its card; none of hours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.pages import training as report
from macd.app.predict.__main__ import check_run
from macd.app.predict.scoring import Scorer
from macd.app.service.loop import NEED
from macd.app.service.predictor import Predictor
from macd.app.service.settings import flags
from macd.app.train import pipeline
from macd.app.train.events import read_events
from macd.app.train.settings import settings_from
from macd.host.judge.parse import parse
from macd.release.judge import judge
from tests.unit.app.train.test_pipeline import ENVIRONMENT, NOW, QUICK, SAMPLE, SMALL

pytestmark = pytest.mark.slow
HEADS = ("h5", "h12", "h24")
SHADOW = flags({})
HOURS = re.compile(r"(?<![0-9m+(a-z])(5h|12h|24h)(?![0-9])")  # a head's name, not a span of 1h15m


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's hourly bars set down every 15 minutes: the numbers are as good as any."""
    where = tmp_path_factory.mktemp("quarter")
    bars = read_bars(SAMPLE)[:3200]
    first = bars["timestamp"][0].replace(minute=0)
    ticks = pl.Series([first]).dt.epoch("ms")[0] + pl.Series(range(3200)) * 900_000
    stamps = ticks.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    write_bars(bars.with_columns(stamps.alias("timestamp")), where / "bars" / "T15USD_15m.parquet")
    own = {"symbol": "T15USD", "tf": "15m", "data": str(where / "bars"), "out": str(where / "out")}
    settings = settings_from({**SMALL, "folds": 2, "params": QUICK, **own})
    pipeline.run(settings, clock=lambda: NOW, environment=ENVIRONMENT, echo=False)
    return where / "out"


def test_files_and_documents(run: Path) -> None:
    models = run / "data/ml_models"
    assert {path.name for path in models.glob("*.txt")} == {
        "lgbm_15m_h5.txt", "lgbm_15m_h12.txt", "lgbm_15m_h24.txt"
    }  # fmt: skip
    for path in [*models.glob("*.json"), *run.glob("*.json")]:
        assert not HOURS.findall(path.read_text()), path.name
    assert json.loads((models / "lstm_15m_meta.json").read_text())["heads"] == ["h5", "h12", "h24"]
    table = pl.read_parquet(run / "data/gpu_results/oof_15m.parquet")
    assert {"ret_h5", "y_h12", "p_stacking_h24"} <= set(table.columns)


def test_what_is_said(run: Path) -> None:
    events = read_events(run / "events.jsonl")
    assert not HOURS.findall(json.dumps(events))
    said = "\n".join(event["note"] for event in events if event["event"] == "summary")
    assert "Heads look 5, 12 and 24 bars of 15m ahead, not hours: h5 = 1h15m" in said
    assert "LightGBM 5 bars (1h15m) val AUC" in said
    assert re.search(r"Best head: \d+ bars \(", said)
    page = report.write(run).read_text()
    words = re.sub(r"<[^>]*>", " ", page)
    assert "5 bars (1h15m) ahead, validation" in words
    assert not HOURS.findall(words)


def test_the_service_writes_them_and_the_gate_reads_them(run: Path) -> None:
    bars = read_bars(run.parent / "bars" / "T15USD_15m.parquet")
    scorer = Scorer.load(run / "data/ml_models", "15m")
    written = Predictor(scorer, SHADOW, "15m").predict(bars.tail(NEED), {}).fields
    assert written["ml_error"] is None
    assert written["ml_horizon"] in HEADS
    assert {"lgbm", "lstm", "tft", "stacking"} <= written["ml_heads"].keys()
    assert all(set(by_head) == set(HEADS) for by_head in written["ml_heads"].values())
    about = {"level": "SIGNAL", "timestamp": "2026-01-01T00:15:00.000Z", "seq": 1, "tf": "15m",
             "symbol": "T15USD", "bar_time": "2026-01-01T00:00:00.000Z", "close": 1.0}  # fmt: skip
    line = parse(json.dumps({**about, **written}).encode())
    assert line.heads is not None
    probabilities = [p for p in line.heads if p is not None]
    assert probabilities[:3] == pytest.approx([written["ml_heads"]["lgbm"][head] for head in HEADS])
    assert len(probabilities) >= 12


def test_every_check_of_the_run_passes(run: Path) -> None:
    items = check_run({"run": str(run), "data": str(run.parent / "bars")})["items"]
    assert [item for item in items if not item["ok"]] == []
    assert {item["done"] for item in items} == {True}
    assert not HOURS.findall(json.dumps(items))


def test_a_release_reads_them_and_those_named_before(run: Path, tmp_path: Path) -> None:
    models = run / "data/ml_models"
    assert Scorer.load(models, "15m").heads == ("h5", "h12", "h24")
    metrics, audit = (
        json.loads((run / f"{name}.json").read_text()) for name in ("metrics", "leak_audit")
    )
    by_bars = judge((), {}, audit, metrics, {})[-1]
    assert "h5 0." in by_bars.note or by_bars.note.startswith("no interval lies above h5")

    for path in models.iterdir():  # as trainings of 15m wrote them before
        name = re.sub(r"_h(\d+)\.txt", r"_\1h.txt", path.name)
        raw = path.read_bytes()
        if path.suffix == ".json":
            raw = re.sub(rb'"((?:[a-z]+_)?)h(5|12|24)"', rb'"\g<1>\g<2>h"', raw)
        (tmp_path / name).write_bytes(raw)
    before = Scorer.load(tmp_path, "15m")
    assert before.heads == ("5h", "12h", "24h")
    assert before.errors == {}
    assert before.best_head.endswith("h")
