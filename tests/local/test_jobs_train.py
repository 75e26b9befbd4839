"""`invoke train` as it is typed, with real trainings on the lab's h800, from bars to models."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import polars as pl
import pytest

from macd import lab as lab_room
from macd.app.market.bars import read_bars
from macd.lab import LabState
from tests.support import commands
from tests.support.job_fakes import inventory_of, invoke, lay_out, records
from tests.support.openssh import eventually

TINY = {
    "stages": ["verify", "lgbm", "lstm"],
    "folds": 2,
    "initial": 0.3,
    "workers": 1,
    "device": "cpu",
    "params": {
        "lgbm": {"rounds": 5},
        "lstm": {"hidden": 8, "projection": 8, "epochs": 3, "rows_per_epoch": 256},
    },
}


@pytest.fixture(scope="module")
def project(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = lay_out(lab, tmp_path_factory.mktemp("train") / "project", bars=2000)
    inventory_of(root, "train-work")
    (root / "tiny.json").write_text(json.dumps(TINY))
    return root


@pytest.fixture(scope="module")
def trained(lab: LabState, project: Path) -> tuple[str, str]:
    """A training whose jump host is killed and started again; its id, and what was printed."""
    with commands.start(
        project,
        *("train", "--host", "h800", "--settings", "tiny.json"),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("✓ started"):  # the one line that comes however quick the host is
                lab_room.kill_host(lab.root, "jump")
            if "LOST CONTACT" in line:
                lab_room.revive_host(lab.root, "jump")
        assert process.wait(timeout=180) == 0, said
    return re.findall(r"started +run (\S+)", said)[0], said


def test_a_training_comes_home_whole(project: Path, trained: tuple[str, str]) -> None:
    run, said = trained
    folder = project / "runs" / run
    result = json.loads((folder / "result.json").read_text())
    assert result["state"] == "done"
    assert {"lgbm_1h_5h.txt", "lstm_1h.pt", "lstm_1h_meta.json"} <= {
        path.name for path in (folder / "data/ml_models").iterdir()
    }
    assert all((folder / one["path"]).stat().st_size == one["size"] for one in result["files"])
    assert (folder / "report.html").stat().st_size > 1000
    for step in ("data", "free", "disk", "clock", "python", "packages", "gpu", "sync", "started"):
        assert re.search(rf"^✓ {step} ", said, re.MULTILINE), step
    assert "torch" in said
    assert "LOST CONTACT" in said
    assert "is back" in said
    assert re.search(r"LSTM 5h +val AUC", said)
    assert not list((project / "runs").glob("*.partial"))


def test_the_journal_knows_what_was_trained_and_how_it_ended(
    project: Path, trained: tuple[str, str]
) -> None:
    run, _ = trained
    [began] = [f for f in records(project, "train.started") if f["run"] == run]
    [ended] = [f for f in records(project, "train.finished") if f["run"] == run]
    assert (began["host"], began["symbol"], began["seed"]) == ("h800", "BTCUSD", 7)
    assert ended["state"] == "DONE"
    result = json.loads((project / "runs" / run / "result.json").read_text())
    assert ended["data_digest"] == result["data_digest"]
    assert invoke(project, "train.fetch", "--run", run).returncode == 0
    assert len([f for f in records(project, "train.finished") if f["run"] == run]) == 1


def test_fetching_again_transfers_nothing(project: Path, trained: tuple[str, str]) -> None:
    again = invoke(project, "train.fetch", "--run", trained[0], "--json")
    assert json.loads(again.stdout)["received"] == 0


def test_a_release_fetches_the_run_that_is_named_with_its_host(
    project: Path, trained: tuple[str, str]
) -> None:
    """This one lacks its leak audit, so no release is made of it: it was read here."""
    folder = project / "runs" / trained[0]
    shutil.rmtree(folder)
    done = invoke(project, "release", "--run", trained[0], "--host", "h800")
    assert f"run {trained[0]}: " in done.stdout and "files fetched from h800" in done.stdout
    assert done.returncode == 6, done.stdout + done.stderr
    assert (folder / "result.json").is_file()
    assert "has no leak_audit.json" in done.stderr


def test_the_same_again_sends_nothing_and_fits_nothing(
    project: Path, trained: tuple[str, str]
) -> None:
    dry = json.loads(invoke(project, *TRAIN, "--dry-run", "--json").stdout)
    assert dry["dry_run"]
    assert dry["bytes_to_send"] < dry["bytes_total"] / 10  # somebody may be editing the sources
    again = invoke(project, *TRAIN, "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["run"] != trained[0]
    events = (Path(told["folder"]) / "events.jsonl").read_text().splitlines()
    fits = [e for e in map(json.loads, events) if e["event"] == "fit_done"]
    assert fits
    assert all(fit["cached"] for fit in fits)
    first, second = (
        json.loads((project / "runs" / run / "metrics.json").read_text())["models"]
        for run in (trained[0], told["run"])
    )
    assert first == second


TRAIN = ("train", "--settings", "tiny.json")


def test_a_loss_that_is_no_number_fails_with_stage_and_remedy(
    project: Path, trained: tuple[str, str]
) -> None:
    wild = {**TINY, "stages": ["lstm"], "params": {"lstm": {**TINY["params"]["lstm"], "lr": 1e30}}}
    (project / "wild.json").write_text(json.dumps(wild))
    made = invoke(project, "train", "--settings", "wild.json")
    assert made.returncode == 1
    assert "FAILED in stage lstm" in made.stderr
    assert "the loss became" in made.stderr
    assert "learning rate" in made.stderr
    assert records(project, "train.finished")[-1]["state"] == "FAILED"


def test_one_at_a_time_and_a_killed_one_is_gone_on_with(
    lab: LabState, project: Path, trained: tuple[str, str]
) -> None:
    long = {**TINY, "params": {"lstm": {**TINY["params"]["lstm"], "epochs": 100_000}}}
    (project / "long.json").write_text(json.dumps(long))
    first = detached(project)
    at_work = lab.hosts["h800"].home / "train-work" / "runs"
    eventually(lambda: "epoch" in told(at_work / first))
    second = invoke(project, *TRAIN)
    assert second.returncode == 6
    assert first in second.stderr
    runner = json.loads((at_work / first / "process.json").read_text())["runner"]["pid"]
    os.kill(runner, signal.SIGKILL)
    over = invoke(project, "train.attach", "--run", first)
    assert over.returncode == 1
    assert "its runner was killed" in over.stderr
    assert "goes on" in over.stderr
    again = detached(project)
    eventually(lambda: "resumed" in told(at_work / again))
    assert invoke(project, "train.cancel", "--run", again, "--yes").returncode == 0
    assert records(project, "train.started")[-1]["run"] == again


def detached(project: Path) -> str:
    left = invoke(project, "train", "--settings", "long.json", "--detach", "--json")
    assert left.returncode == 0, left.stderr
    return str(json.loads(left.stdout)["run"])


def told(run: Path) -> list[str]:
    """The kinds of events a run has told so far."""
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["event"] for line in lines if line.endswith("}")]


def test_bars_with_errors_never_leave(project: Path, tmp_path: Path) -> None:
    good = read_bars(project / "data/sample/BTCUSD_1h.parquet")
    bad = good.with_columns(
        low=pl.when(pl.int_range(pl.len()) == 7).then(-1.0).otherwise(pl.col("low"))
    )
    bad.write_parquet(tmp_path / "BTCUSD_1h.parquet")
    refused = invoke(project, "train", "--data", str(tmp_path))
    assert refused.returncode == 1
    assert "data.verify" in refused.stderr
    assert "nothing was sent" in refused.stderr


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--host", "prod"], "no training host"),
        (["--host", "nowhere"], "no host"),
        (["--profile", "huge"], "profile"),
        (["--engine", "magic"], "engine"),
        (["--settings", "missing.json"], "missing.json"),
        (["--mode", "everything"], "mode"),
    ],
)
def test_wrong_options_end_with_2_before_any_host(
    project: Path, argv: list[str], word: str
) -> None:
    refused = invoke(project, "train", *argv)
    assert refused.returncode == 2
    assert word in refused.stderr
