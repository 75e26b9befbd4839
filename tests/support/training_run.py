"""A small real training, made once a machine and shared by all tests that need real models.

It is kept under the system's temporary directory, named by the code, data and settings it came
from: a change to any of them trains again (about 15 s), anything else finds it there.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from macd.app.market.bars import read_bars, write_bars

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data/sample/BTCUSD_1h_2017-2019.parquet"
BARS = 4000
SETTINGS: dict[str, Any] = {
    "folds": 3,
    "initial": 0.25,
    "surrogates": 4,  # chance moves two beyond the bands on so few bars
    "workers": 1,
    "device": "cpu",
    "params": {
        "lgbm": {"rounds": 20},
        "lstm": {  # more features than the others
            "features": "all",
            "hidden": 8,
            "projection": 8,
            "epochs": 4,
            "rows_per_epoch": 512,
        },
        "tft": {"width": 8, "attention_heads": 2, "epochs": 2, "rows_per_epoch": 256},
    },
}
# Of tests that train themselves and ask only that it goes through.
SMALLEST: dict[str, Any] = {
    "folds": 2,
    "initial": 0.3,
    "surrogates": 1,
    "workers": 1,
    "device": "cpu",
    "params": {
        "lgbm": {"rounds": 5},
        "lstm": {"hidden": 8, "projection": 8, "epochs": 1, "rows_per_epoch": 256},
        "tft": {"width": 8, "attention_heads": 2, "epochs": 1, "rows_per_epoch": 256},
    },
}
_CODE = (
    *("macd/app/train", "macd/app/market", "macd/app/predict/stacking.py"),
    *("macd/app/predict/policy.py", "macd/app/predict/combine.py"),
    "macd/app/predict/reference.py",
)


@functools.cache
def trained_run() -> Path:
    """The directory of a finished run; its bars lie in `data/`'s sibling `bars/`. Don't change it.

    Copy it (`shutil.copytree`) to spoil something.
    """
    top = Path(tempfile.gettempdir()) / f"macd-trained-{os.getuid()}"
    top.mkdir(mode=0o700, exist_ok=True)
    made = top / _key()
    with (top / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "run/result.json").is_file():
            shutil.rmtree(made, ignore_errors=True)
            _train(made)
    return made / "run"


def bars_directory(run: Path) -> Path:
    """The bars the run was trained on, as inventory.train.data_dir would hold them."""
    return run.parent / "bars"


def _train(made: Path) -> None:
    bars, run = made / "bars", made / "run"
    write_bars(read_bars(SAMPLE)[:BARS], bars / "BTCUSD_1h.parquet")
    settings = made / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    argv = [sys.executable, "-m", "macd.app.train", "--mode", "all", "--settings", str(settings)]
    argv += ["--data", str(bars), "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ML_STACKING_MIN_SAMPLES": "100"}
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"the training failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _key() -> str:
    told = hashlib.sha256(json.dumps([BARS, SETTINGS, sys.version]).encode())
    for package in ("torch", "lightgbm", "numpy", "polars", "onnx"):
        told.update(f"{package}={metadata.version(package)}".encode())
    for place in _CODE:
        path = ROOT / place
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            told.update(str(source.relative_to(ROOT)).encode() + source.read_bytes())
    told.update(SAMPLE.read_bytes())
    return told.hexdigest()[:24]
