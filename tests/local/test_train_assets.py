"""A training with other assets beside it, end to end, on real bars that may not be committed.

MACD_TEST_BARS names a directory with ETHUSDT, BTCUSDT, SOLUSDT and BNBUSDT, canonical 1h parquet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
BARS = os.environ.get("MACD_TEST_BARS", "")


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not BARS, reason="MACD_TEST_BARS names no directory of bars")
def test_eth_with_cross_assets_end_to_end_says_honestly_what_was_reached(tmp_path: Path) -> None:
    out = tmp_path / "eth"
    made = subprocess.run(
        [
            *(sys.executable, "-m", "macd.app.train", "--symbol", "ETHUSDT"),
            *("--cross", "BTCUSDT,SOLUSDT,BNBUSDT", "--data", BARS, "--out", str(out)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["complete"] is True
    assert json.loads((out / "leak_audit.json").read_text())["ok"] is True
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["cross"] == ["BNBUSDT", "BTCUSDT", "SOLUSDT"]
    for heads in metrics["models"].values():
        assert all(0.4 < head["val"]["value"] < 0.62 for head in heads.values())
    meta = json.loads((out / "data/ml_models/lstm_1h_meta.json").read_text())
    assert any("btcusdt" in name.lower() for name in meta["features"])
    assert len(pl.read_parquet(out / "data/gpu_results/oof_1h.parquet")) > 15_000
    for name, ok in result["criteria"].items():
        title = next(
            c for c in json.loads((out / "criteria.json").read_text()) if c["name"] == name
        )
        assert title["ok"] is ok
