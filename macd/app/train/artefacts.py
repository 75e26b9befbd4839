"""What a finished training leaves on disk, and the proof that it is all there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from macd.app.train.cache import Entry
from macd.errors import MacdError
from macd.heads import head_names
from macd.host.durable import replace_file, sha256_of

MODELS = Path("data/ml_models")
RESULTS = Path("data/gpu_results")
RESULT = "result.json"


def oof_path(tf: str) -> Path:
    """Where the out-of-fold table lies in a run."""
    return RESULTS / f"oof_{tf}.parquet"


def expected(mode: str, stages: Iterable[str], tf: str) -> list[Path]:
    """The files a run of this mode must leave, relative to its directory."""
    by_stage = {
        "verify": [Path("verify.json")],
        "lgbm": [
            *(MODELS / f"lgbm_{tf}_{head}.txt" for head in head_names(tf)),
            MODELS / f"lgbm_{tf}_meta.json",
        ],
        "lstm": [MODELS / f"lstm_{tf}.pt", MODELS / f"lstm_{tf}_meta.json"],
        "tft": [MODELS / f"tft_{tf}.pt", MODELS / f"tft_{tf}_meta.json"],
        "onnx": [MODELS / f"lstm_{tf}.onnx", MODELS / f"tft_{tf}.onnx", Path("onnx.json")],
        "stacking": [
            MODELS / f"stacking_meta_{tf}.json",
            oof_path(tf),
            Path("leak_audit.json"),
        ],
    }
    wanted = stages if mode == "all" else [mode]
    files = [path for stage in wanted for path in by_stage[stage]]
    if mode != "verify":
        files += [Path("metrics.json"), Path("criteria.json"), Path("settings.json")]
    return files


def missing(out: Path, files: Iterable[Path]) -> list[str]:
    """Which of the files are not there or empty."""
    return [
        str(path)
        for path in files
        if not (out / path).is_file() or (out / path).stat().st_size == 0
    ]


def ship(entry: Entry, family: str, out: Path, tf: str, facts: Mapping[str, Any]) -> None:
    """Write a fitted model's files under data/ml_models, with `facts` in its meta file."""
    module = import_module(f"macd.app.train.{family}")
    module.save(model_of(entry, family, tf), out / MODELS, tf, facts=facts)


def model_of(entry: Entry, family: str, tf: str) -> Any:
    """The fitted model that an entry keeps as files."""
    module = import_module(f"macd.app.train.{family}")
    with tempfile.TemporaryDirectory(prefix="macd-model-") as name:
        for file, content in entry.files.items():
            (Path(name) / file).write_bytes(content)
        return module.load(Path(name), tf)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines, whole or not at all; NaN is refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(path, (text + "\n").encode(), parents=True)


def write_result(out: Path, files: Iterable[Path], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Check that every file is there and write result.json, last; returns what it holds.

    Raises MacdError naming the files that are missing: no run is done without its artefacts.
    """
    files = sorted(set(files))
    absent = missing(out, files)
    if absent:
        raise MacdError(
            "the training ended without its artefacts",
            why="missing or empty: " + ", ".join(absent),
            hint="free disk space and run the same command again; finished fits are kept",
        )
    listed = [
        {
            "path": str(path),
            "size": (out / path).stat().st_size,
            "sha256": sha256_of(out / path),
        }
        for path in files
    ]
    result = {"state": "done", **facts, "files": listed}
    write_json(out / RESULT, result)
    return result


def write_failure(out: Path, error: MacdError, stage: str, state: str) -> None:
    """Write result.json of a run that did not finish; the files before it stay for a resume."""
    if shutil.disk_usage(out).free < 1 << 16:
        return
    fields = {name: getattr(error, name) for name in ("what", "why", "hint")}
    write_json(out / RESULT, {"state": state, "stage": stage, **fields})
