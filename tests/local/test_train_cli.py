"""`python -m macd.app.train` as people and job runners meet it: words, exit codes, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.train.events import read_events
from tests.support.training_run import SMALLEST

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data/sample/BTCUSD_1h_2017-2019.parquet"
ENVIRONMENT = {**os.environ, "ML_STACKING_MIN_SAMPLES": "100", "OMP_NUM_THREADS": "1"}
SMALL: dict[str, Any] = SMALLEST | {
    "stages": ["verify", "lgbm", "lstm", "tft", "stacking"],
    "params": SMALLEST["params"] | {"lstm": SMALLEST["params"]["lstm"] | {"epochs": 2}},
}
LIMIT_S = 400.0
# Dies by itself: right after the n-th checkpoint or finished fit that it puts down in stage lstm,
# or as another stage begins. These are over before anybody outside could kill it.
DIES = """
import os, signal
from pathlib import Path
where, at = os.environ.get("DIES_IN"), os.environ.get("DIES_AT", "")
left = int(at) if at.isdigit() else 0
def put(source, target, rename=os.rename, **more):
    global left
    made = rename(source, target, **more)
    if Path(target).suffix in (".ckpt", ".fit"):
        from macd.app.train.events import read_events
        if read_events(Path(where, "events.jsonl"))[-1].get("stage") == "lstm":
            left -= 1
            if left == 0:
                os.killpg(0, signal.SIGKILL)
    return made
def told(descriptor, data, write=os.write):
    made = write(descriptor, data)
    if b'"stage_started"' in data and f'"stage": "{at}"'.encode() in data:
        os.killpg(0, signal.SIGKILL)
    return made
if left:
    os.rename = put
elif where:
    os.write = told
"""


NOT_THERE = """
import sys
NAMES = {"pydantic", "yaml", "invoke", "fabric", "paramiko", "asyncssh", "rich", "ccxt", "ray",
         "torch", "macd.inventory", "macd.ssh", "macd.cli"}
class Without:
    @staticmethod
    def find_spec(name, *_):
        if name in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("small")
    write_bars(read_bars(SAMPLE)[:2600], where / "BTCUSD_1h.parquet")
    path = where / "settings.json"
    path.write_text(json.dumps({**SMALL, "data": str(where)}))
    return path


@pytest.fixture(scope="module")
def trees(settings: Path) -> Path:
    """Settings for LightGBM alone, which needs no torch."""
    path = settings.with_name("trees.json")
    params = {"lgbm": SMALL["params"]["lgbm"]}
    path.write_text(json.dumps({**json.loads(settings.read_text()), "params": params}))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "macd.app.train", *map(str, arguments)]


def call(*arguments: str | Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env={**ENVIRONMENT, **changes},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def start(*arguments: str | Path, **changes: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env={**ENVIRONMENT, **changes},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(found: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """True as soon as `found` holds; False when the process ended before."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found():
            return True
        if process.poll() is not None:
            return found()
        time.sleep(0.005)
    raise AssertionError("neither the event nor the end came")


def table(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "data/gpu_results/oof_1h.parquet")


# Words and exit codes.


def test_help_is_quick_and_names_the_modes() -> None:
    made = call("--help")
    assert made.returncode == 0
    for word in (
        "--mode",
        "--symbol",
        "--cross",
        "--profile",
        "--engine",
        "--settings",
        "stacking",
    ):
        assert word in made.stdout


def full(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mode", "most"), "mode: 'most' is none of all, verify"),
        full(("--profile", "huge"), "profile: 'huge'"),
        (("--tf", "1 hour"), "timeframe '1 hour'"),
        full(("--symbol", "eth?"), "symbol 'eth?'"),
        (("--settings", "/nowhere.json"), "settings file /nowhere.json can't be read"),
        (("--seed", "x"), "invalid int value"),
        full(("--colour", "red"), "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_one_message_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    made = call("--out", tmp_path / "out", *arguments)
    assert made.returncode == 2
    assert words in made.stderr
    assert "Traceback" not in made.stderr


def test_missing_bars_are_one_message_and_exit_1(tmp_path: Path) -> None:
    made = call("--symbol", "NOPE", "--data", tmp_path, "--out", tmp_path / "out")
    assert made.returncode == 1
    assert "no bars at" in made.stderr
    assert "invoke data.import" in made.stderr
    assert "Traceback" not in made.stderr


def test_a_mode_without_the_earlier_ones_says_which(trees: Path, tmp_path: Path) -> None:
    made = call("--settings", trees, "--out", tmp_path / "out", "--mode", "stacking")
    assert made.returncode == 1
    assert "--mode lgbm" in made.stderr
    assert json.loads((tmp_path / "out/result.json").read_text())["state"] == "failed"


def test_an_unwritable_directory_is_one_message(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = call("--settings", settings, "--out", tmp_path / "file" / "out")
    assert made.returncode == 1
    assert "could not read or write" in made.stderr
    assert "Traceback" not in made.stderr


def test_nothing_but_the_train_extra_is_needed(trees: Path, tmp_path: Path) -> None:
    """The GPU host has no operator's packages (inventory, SSH, templates). Trees need no torch."""
    (tmp_path / "sitecustomize.py").write_text(NOT_THERE)
    made = call(
        "--settings", trees, "--out", tmp_path / "out", "--mode", "lgbm",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out/data/ml_models/lgbm_1h_5h.txt").stat().st_size > 0


# Kill and resume.


@pytest.fixture(scope="module")
def undisturbed(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    made = call("--settings", settings, "--out", out)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    shape = r"LSTM (5h|12h|24h) +val AUC 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]  test AUC 0\.\d{3}"
    assert pl.Series(lines).str.contains(shape).sum() == 3
    assert any(line.startswith("Best head: ") for line in lines)
    assert any(line[0] in "✓✗⚠" for line in lines if line)
    return out


# Where it dies, one start after the other: after how many files of stage lstm (in the first fit,
# when it is stored, in the next one), or in which other stage; at which epochs the fits go on then.
# Each start costs torch's anew.
KILLS = [
    pytest.param(["1", "2", "stacking"], [1], id="some"),
    pytest.param(
        ["lgbm", "1", "1", "1", "1", "tft", "stacking", "report", "audit"], [1, 2, 1], id="all",
        marks=pytest.mark.full,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("deaths", "goes_on"), KILLS)
def test_killed_at_each_checkpoint_and_in_stages_it_ends_with_the_same_numbers(
    settings: Path, undisturbed: Path, tmp_path: Path, deaths: list[str], goes_on: list[int]
) -> None:
    """SIGKILL after each epoch of a fit, after it is stored, and once inside other stages."""
    out = tmp_path / "out"
    (tmp_path / "sitecustomize.py").write_text(DIES)
    for at in deaths:
        dies = {"DIES_IN": str(out), "DIES_AT": at, "PYTHONPATH": str(tmp_path)}
        assert start("--settings", settings, "--out", out, **dies).wait(LIMIT_S) == -signal.SIGKILL
        assert read_events(out / "events.jsonl")[-1]["stage"] == ("lstm" if at.isdigit() else at)
        assert not (out / "result.json").exists(), "a killed run must not look done"
    made = call("--settings", settings, "--out", out)
    assert made.returncode == 0, made.stderr
    resumed = [e for e in read_events(out / "events.jsonl") if e["event"] == "resumed"]
    assert [e["epoch"] for e in resumed] == goes_on, "a fit goes on from its checkpoint"
    assert table(out).equals(table(undisturbed))
    ours, theirs = (json.loads((d / "metrics.json").read_text()) for d in (out, undisturbed))
    assert ours["models"] == theirs["models"]


def test_sigterm_stops_with_a_word_and_leaves_a_cancelled_result(
    settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start("--settings", settings, "--out", out)
    assert wait_for(lambda: len(read_events(out / "events.jsonl")) > 4, process)
    process.terminate()
    assert process.wait(timeout=LIMIT_S) == 1
    assert json.loads((out / "result.json").read_text())["state"] == "cancelled"
    assert read_events(out / "events.jsonl")[-1]["event"] == "run_failed"


def test_workers_end_when_the_training_itself_is_killed(trees: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = json.loads(trees.read_text())
    slow |= {"workers": 2, "params": {"lgbm": {"rounds": 250, "min_child": 20}}}
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    process = start("--settings", tmp_path / "slow.json", "--out", out, "--mode", "lgbm")

    def both_work() -> bool:
        events = read_events(out / "events.jsonl")
        return len({e["fold"] for e in events if e["event"] == "fitted"}) > 1

    assert wait_for(both_work, process)
    os.kill(process.pid, signal.SIGKILL)  # only the training, not its workers
    process.wait()
    deadline = time.monotonic() + 90
    while _session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = _session(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def _session(leader: int) -> list[int]:
    """Living processes of the session that `leader` began (setsid), by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
