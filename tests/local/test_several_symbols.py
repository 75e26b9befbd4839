"""Three symbols: one run trains them, one release holds them, each part as of one symbol alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from macd import application
from macd.app.market.bars import read_bars, write_bars
from macd.app.predict import __main__ as predict
from macd.app.predict import golden
from macd.app.predict.scoring import MODELS, Scorer
from macd.app.train import compare_runs
from macd.app.train.events import read_events
from macd.cli.compare import several_lines
from macd.errors import RefusedError
from macd.release import judge, verify
from macd.release import run as runs
from macd.release.build import BuildRequest
from macd.run_directory import FILES
from tests.support.several_symbols import SYMBOLS, bars_of
from tests.support.training_run import ROOT, SAMPLE, SMALLEST
from tests.unit.release.making import WARNS, Workshop, workshop

pytestmark = pytest.mark.slow
BARS = 3_000
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains into a directory of that name, with one cache for all; returns it."""
    top = tmp_path_factory.mktemp("several")
    for symbol in SYMBOLS:
        bars = bars_of(symbol, read_bars(SAMPLE)[:BARS])
        write_bars(bars, top / f"bars/{symbol}_1h.parquet")
    (top / "settings.json").write_text(json.dumps(SMALLEST))

    def trained(name: str, *more: str) -> Path:
        argv = [sys.executable, "-m", "macd.app.train", "--settings", str(top / "settings.json")]
        argv += ["--data", str(top / "bars"), "--cache", str(top / "cache")]
        argv += ["--out", str(top / name), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ML_STACKING_MIN_SAMPLES": "100"}
        done = subprocess.run(
            argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        (top / f"{name}.log").write_text(done.stdout)
        return top / name

    return trained


@pytest.fixture(scope="module")
def several(train: Train) -> Path:
    return train("several", "--symbols", ",".join(SYMBOLS))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return workshop(tmp_path_factory.mktemp("shop"))


def request(shop: Workshop, run: Path, *, accepted: str, keep: tuple[str, ...]) -> BuildRequest:
    whole = runs.read(run)
    parts = {name: part for name, part in whole.parts.items() if name in keep}
    findings = [
        replace(finding, symbol=name)
        for name, part in parts.items()
        for finding in judge.judge(part.criteria, WARNS, part.audit, part.metrics, part.stacking)
    ]
    return replace(
        shop.request(),
        run=whole,
        symbols=parts,
        findings=findings,
        accepted=accepted,
        data_dir=run.parent / "bars",
    )


def test_one_run_trains_them_all_in_one_pool(several: Path) -> None:
    result = json.loads((several / "result.json").read_text())
    assert result["state"] == "done"
    assert result["complete"]
    assert result["symbols"] == list(SYMBOLS)
    listed = {file["path"] for file in result["files"]}
    for name in SYMBOLS:
        assert f"symbols/{name}/data/ml_models/stacking_meta_1h.json" in listed
        assert f"symbols/{name}/result.json" in listed
    fits = [e for e in read_events(several / "events.jsonl") if e["event"] == "fit_done"]
    assert {e["symbol"] for e in fits} == set(SYMBOLS)
    lgbm = [e for e in fits if e["model"] == "lgbm"]
    assert len(lgbm) == 9  # 2 folds and the one before the holdout, of each
    assert fits[: len(lgbm)] == lgbm  # the family of all symbols before the next
    stages = [e for e in read_events(several / "events.jsonl") if e["event"] == "stage_started"]
    assert [e["stage"] for e in stages].count("lgbm") == 1
    progress = [e["progress"] for e in fits]
    assert progress == sorted(progress)
    assert progress[-1] < 1  # the audit is still to come
    criteria = json.loads((several / "criteria.json").read_text())
    assert {row["symbol"] for row in criteria} == set(SYMBOLS)
    assert len(criteria) == 3 * len([row for row in criteria if row["symbol"] == "BTCUSD"])


def test_a_row_for_each_symbol_closes_it(several: Path) -> None:
    lines = several.with_suffix(".log").read_text().splitlines()
    rows = [line for line in lines if line.startswith(SYMBOLS) and "Stacking" in line]
    assert [row.split()[0] for row in rows] == list(SYMBOLS)
    assert all(" of 12 met; blocked by " in row for row in rows)


def test_each_symbol_is_trained_as_by_itself(several: Path, train: Train) -> None:
    """The same bytes but for what took time; and its fits are found in the cache."""
    alone = train("alone", "--symbol", "ETHUSD")
    part = several / "symbols/ETHUSD"
    fits = [e for e in read_events(alone / "events.jsonl") if e["event"] == "fit_done"]
    assert all(e["cached"] for e in fits)
    of_alone, of_part = (
        {p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        for top in (alone, part)
    )
    del of_alone[Path("events.jsonl")], of_alone[Path(".lock")]
    assert set(of_alone) == set(of_part)
    differ = {path.name for path, content in of_part.items() if content != of_alone[path]}
    assert differ <= {"settings.json", "metrics.json", "result.json"}
    timed = {"stages", "out", "cache", "seconds", "peak_mb", "files"}
    for name in differ:
        documents = [json.loads((top / name).read_text()) for top in (alone, part)]
        one, other = ({k: v for k, v in d.items() if k not in timed} for d in documents)
        assert one == other, name


def test_a_page_links_to_a_page_of_each(several: Path) -> None:
    page = application.write_training_page(several, host="h800", others={})
    text = page.read_text()
    for name in SYMBOLS:
        assert f'<a href="symbols/{name}/report.html">{name}</a>' in text
        own = (several / f"symbols/{name}/report.html").read_text()
        assert f"<h1>Training {name} 1h</h1>" in own
        assert f"Run several, {name}" in own
    assert "0 of 3 symbols may be released" in text


def test_the_models_of_each_are_run_and_a_damaged_one_is_named(several: Path) -> None:
    question = {"run": str(several), "data": str(several.parent / "bars")}
    items = predict.check_run(question)["items"]
    assert [item["name"] for item in items] == list(SYMBOLS)
    assert all(item["ok"] for item in items)
    spoiled = several / "symbols/ETHUSD/data/ml_models/lstm_1h.onnx"
    content = spoiled.read_bytes()
    spoiled.write_bytes(content[:-50])
    try:
        failed = [item for item in predict.check_run(question)["items"] if not item["ok"]]
    finally:
        spoiled.write_bytes(content)
    assert failed
    assert all(item["name"].startswith("ETHUSD, ") for item in failed)


def test_runs_are_compared_symbol_by_symbol(several: Path) -> None:
    part = several / "symbols/LTCUSD"
    made = compare_runs.answer({"champion": str(part), "challenger": str(several)})
    assert list(made["symbols"]) == ["LTCUSD"]
    assert made["symbols"]["LTCUSD"]["verdict"]["outcome"] == "not shown"
    assert made["only"] == {"champion": [], "challenger": ["BTCUSD", "ETHUSD"]}
    said = "\n".join(several_lines(made))
    assert "only in the challenger: BTCUSD, ETHUSD" in said


@pytest.mark.full
def test_the_same_command_goes_on_where_it_was(several: Path, train: Train) -> None:
    (several / "result.json").unlink()
    before = len(read_events(several / "events.jsonl"))
    train("several", "--symbols", ",".join(SYMBOLS))
    again = read_events(several / "events.jsonl")[before:]
    fits = [e for e in again if e["event"] == "fit_done"]
    assert len(fits) == 27
    assert all(e["cached"] for e in fits)
    assert not [e for e in again if e["event"] == "flip_done"]


def test_one_release_holds_them_all(shop: Workshop, several: Path) -> None:
    made = shop.make(request(shop, several, accepted="a test", keep=SYMBOLS))
    details = made.manifest.details
    assert made.manifest.serves == SYMBOLS
    assert details["symbol"] == "BTCUSD"
    assert list(details["symbols"]) == sorted(SYMBOLS)
    for name, own in details["symbols"].items():
        tree = FILES.of_symbol(made.directory, name)
        scorer = Scorer.load(tree / MODELS, "1h")
        document = golden.read(tree)
        assert document is not None
        assert golden.check(document, scorer).ok
        assert (scorer.symbol, document["symbol"], own["symbol"]) == (name, name, name)
        assert (made.directory / own["golden"]).is_file()
        assert own["metrics"]["stacking"]
        assert own["best_head"]["stacking"]
        assert "symbol" not in own["criteria"][0]
    assert verify.directory(made.directory, shop.signers).ok
    assert verify.bundle(made.bundle, shop.signers).ok
    text = (made.directory / "card.md").read_text()
    assert all(f"| {name} | Stacking |" in text for name in SYMBOLS)
    assert "BTCUSD: " in text
    # 40 symbols stay far below what a manifest may hold.
    assert len(made.raw) * 40 / len(SYMBOLS) < 2 << 20


def test_a_symbol_that_blocks_is_named_and_may_be_left_out(shop: Workshop, several: Path) -> None:
    asked = request(shop, several, accepted="", keep=SYMBOLS)
    spoiled = [
        finding if finding.symbol == "ETHUSD" else replace(finding, ok=True)
        for finding in asked.findings
    ]
    with pytest.raises(RefusedError) as caught:
        shop.make(replace(asked, findings=spoiled))
    assert "ETHUSD: " in caught.value.why
    assert "BTCUSD" not in caught.value.why
    assert "invoke release --without ETHUSD," in caught.value.hint
    kept = ("BTCUSD", "LTCUSD")
    made = shop.make(request(shop, several, accepted="a test", keep=kept))
    assert made.manifest.serves == kept
    assert not (made.directory / "symbols/ETHUSD").exists()
