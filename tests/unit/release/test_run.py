"""Only a finished run whose files are as the training left them may be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macd.app.market.bars import digest_of_all, read_bars
from macd.app.predict.golden import TrainedOn
from macd.errors import MacdError, RefusedError, UsageError
from macd.release import run as runs
from tests.support.training_run import SAMPLE, bars_directory, trained_run
from tests.unit.release.making import copy_of_run

pytestmark = pytest.mark.slow


def result(run: Path, **changes: Any) -> None:
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_run_tells_what_it_was() -> None:
    run = runs.read(trained_run())
    assert (run.symbol, run.tf, run.cross) == ("BTCUSD", "1h", ())
    assert run.digest == (trained_run() / "data_digest").read_text().strip()
    assert "data/ml_models/lstm_1h.onnx" in run.shipped
    assert "data/gpu_results/oof_1h.parquet" in run.shipped
    assert not [path for path in run.shipped if not path.startswith("data/")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "failed", "what": "out of memory"}, "out of memory"),
        ({"state": "cancelled"}, "cancelled"),
        ({"complete": False}, "not all stages"),
        ({"files": [{"path": "../x", "sha256": "0"}]}, "unsafe path"),
        ({"files": [{"path": "metrics.json"}]}, "sha256"),
    ],
)
def test_an_unfinished_run_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    run = copy_of_run(tmp_path)
    result(run, **changes)
    with pytest.raises(RefusedError) as caught:
        runs.read(run)
    assert words in caught.value.why


@pytest.mark.parametrize("name", ["result.json", "metrics.json", "data/ml_models/lstm_1h.onnx"])
@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_file_that_is_not_as_it_was_left_is_refused(
    tmp_path: Path, name: str, damage: str
) -> None:
    run = copy_of_run(tmp_path)
    if damage == "gone":
        (run / name).unlink()
    else:
        (run / name).write_bytes((run / name).read_bytes() + b" x")
    with pytest.raises(RefusedError):
        runs.read(run)


def test_the_newest_is_the_one_that_ended_last_whatever_the_files_times(tmp_path: Path) -> None:
    for name, ended, state in (
        ("a-last", 300.0, "done"),
        ("b-first", 100.0, "done"),
        ("c-failed", 900.0, "failed"),
        ("d.partial", 0.0, "running"),
    ):
        (tmp_path / name).mkdir()
        result = {"state": state, "complete": True}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        event = {"t": ended, "event": "run_done", "stage": "all"}
        (tmp_path / name / "events.jsonl").write_text(json.dumps(event) + "\n")
    os.utime(tmp_path / "a-last/result.json", (1, 1))
    assert runs.newest(tmp_path).name == "a-last"
    with pytest.raises(UsageError, match="no finished training"):
        runs.newest(tmp_path / "c-failed")


def test_the_bars_must_be_those_of_the_training(tmp_path: Path) -> None:
    run = runs.read(trained_run())
    trained_on = TrainedOn.of_run(trained_run())
    assert (trained_on.symbol, trained_on.tf, trained_on.cross) == (run.symbol, run.tf, run.cross)
    directory, digest = trained_run(), run.digest
    bars, cross = trained_on.read_same(bars_directory(trained_run()), run=directory, digest=digest)
    assert len(bars) == 4000
    assert cross == {}
    with pytest.raises(MacdError, match="are not those"):
        trained_on.read_same(SAMPLE.parent, run=directory, digest=digest)


def test_the_digest_of_all_bars_depends_on_each_name_and_frame_not_on_their_order() -> None:
    main = read_bars(SAMPLE)[:50]
    shifted = main.with_columns(pl.col("close") + 1.0)

    def of(**cross: pl.DataFrame) -> str:
        return digest_of_all("BTCUSD", "1h", main, cross)

    assert of(ZZZ=shifted, AAA=main) == of(AAA=main, ZZZ=shifted)
    assert len({of(), of(AAA=main), of(ZZZ=main), of(AAA=shifted), of(AAA=main, ZZZ=shifted)}) == 5
