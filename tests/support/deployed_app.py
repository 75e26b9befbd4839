"""An application directory as a deploy leaves it, with the shared tiny training as its release."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.app.market.bars import read_bars
from macd.app.predict import golden
from macd.app.predict.scoring import MODELS, Scorer
from macd.host.store.manifest import File, Manifest, canonical, release_id, render
from tests.support.training_run import SAMPLE, bars_directory, trained_run


@dataclass(frozen=True)
class App:
    """`root` is what --root gets."""

    root: Path

    @property
    def release(self) -> Path:
        return (self.root / "current").resolve()

    @property
    def models(self) -> Path:
        return self.release / MODELS

    @property
    def endpoint(self) -> str:
        return f"unix:{self.root}/state/run/health.sock"

    def settings(self, **feed: Any) -> None:
        document = {
            "symbol": "BTCUSD",
            "tf": "1h",
            "cross": [],
            "endpoint": self.endpoint,
            "env": "prod",
            "feed": {"kind": "replay", "directory": "data/replay", "speed": 0, **feed},
        }
        (self.root / "service.json").write_text(json.dumps(document))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every line of every file, oldest first; a line that is no JSON fails."""
        files = sorted((self.root / "data/live").glob("trades_*.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def make_app(root: Path, **feed: Any) -> App:
    """`root` should be short: sockets' paths are limited."""
    identifier = add_release(root)
    (root / "current").symlink_to(f"releases/{identifier}")
    for name in ("data/replay", "state/run"):
        (root / name).mkdir(parents=True)
    os.link(_copy_of_sample(), root / "data/replay/BTCUSD_1h.parquet")
    app = App(root)
    app.settings(**feed)
    return app


def add_release(
    root: Path, serial: int = 1, change: Callable[[Path], None] | None = None, tf: str = "1h"
) -> str:
    """Put a release into releases/; returns its id. change: is given its directory before."""
    release = root / "releases" / "new"
    shutil.copytree(prepared(), release)
    if change is not None:
        change(release)
    return described(release, serial, {"tf": tf})


def described(release: Path, serial: int, details: dict[str, Any]) -> str:
    """Write the manifest of what a directory holds and name the directory by it; its id."""
    files = [_file(path, release) for path in release.rglob("*") if path.is_file()]
    manifest = Manifest(
        app="macd-analysis",
        env="prod",
        serial=serial,
        created=datetime(2026, 3, 1, tzinfo=UTC),
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        files=tuple(sorted(files, key=lambda file: file.path)),
        lock=hashlib.sha256(b"{}").hexdigest(),
        details=details,
    )
    raw = render(manifest)
    (release / "manifest.json").write_bytes(raw)
    release.rename(release.with_name(release_id(raw)))
    return release_id(raw)


def bolder(release: Path, slope: float = 3.0) -> None:
    """Change a release's models: LightGBM is so much surer of itself; golden predictions follow."""
    models = release / MODELS
    meta = json.loads((models / "lgbm_1h_meta.json").read_bytes())
    meta["calibration"] = {head: slope for head in Scorer.load(models, "1h").heads}
    (models / "lgbm_1h_meta.json").write_text(json.dumps(meta))
    bars = read_bars(bars_directory(trained_run()) / "BTCUSD_1h.parquet")
    document = {"symbol": "BTCUSD", **golden.make(bars, {}, Scorer.load(models, "1h"))}
    (release / golden.FILE).write_bytes(canonical(document))


def prepared() -> Path:
    """Models and golden predictions, made once for each training."""
    run = trained_run()
    made = run.parent / "served"
    if not made.is_dir():
        building = Path(tempfile.mkdtemp(dir=run.parent))
        models = building / MODELS
        models.mkdir(parents=True)
        for path in (run / MODELS).iterdir():
            if path.suffix in (".onnx", ".json", ".txt"):
                shutil.copy(path, models)
        bars = read_bars(bars_directory(run) / "BTCUSD_1h.parquet")
        document = {"symbol": "BTCUSD", **golden.make(bars, {}, Scorer.load(models, "1h"))}
        (building / "golden").mkdir()
        (building / "golden/golden.json").write_bytes(canonical(document))
        building.chmod(0o755)
        try:
            building.rename(made)
        except OSError:  # another test process was faster
            shutil.rmtree(building)
    return made


def _copy_of_sample() -> Path:
    path = trained_run().parent / "sample.parquet"
    if not path.exists():
        beside = path.with_suffix(f".{os.getpid()}")
        shutil.copy(SAMPLE, beside)
        beside.rename(path)
    return path


def _file(path: Path, release: Path) -> File:
    data = path.read_bytes()
    return File(path.relative_to(release).as_posix(), len(data), hashlib.sha256(data).hexdigest())
