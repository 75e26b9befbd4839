"""A release of several symbols out of the shared tiny training: each symbol's models differ.

They are the tiny training's models under other names. What LightGBM says is calibrated otherwise
for each symbol, so golden predictions of one symbol fail on the models of another.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from macd.app.market.bars import read_bars, write_bars
from macd.app.predict import golden
from macd.app.predict.scoring import MODELS, Scorer
from macd.host.store.manifest import canonical
from tests.support.deployed_app import described, prepared
from tests.support.training_run import SAMPLE, bars_directory, trained_run

SYMBOLS = ("BTCUSD", "ETHUSD", "LTCUSD")


def bars_of(symbol: str, bars: pl.DataFrame) -> pl.DataFrame:
    """The bars as those of another symbol: prices on another scale, and moves of other sizes."""
    if symbol == SYMBOLS[0]:
        return bars
    drawn = int.from_bytes(hashlib.sha256(symbol.encode()).digest()[:2], "big") / 65_535
    prices = [pl.col(name).pow(0.8 + 0.4 * drawn) for name in ("open", "high", "low", "close")]
    return bars.with_columns(prices)


def write_replay(directory: Path, symbols: Sequence[str] = SYMBOLS) -> None:
    """The whole sample as bars of each symbol."""
    for symbol in symbols:
        write_bars(bars_of(symbol, read_bars(SAMPLE)), directory / f"{symbol}_1h.parquet")


def trees(symbols: Sequence[str] = SYMBOLS) -> Path:
    """A directory that holds `symbols/<SYMBOL>/`, as a release does; made once. Don't change it."""
    made = trained_run().parent / ("several-" + "-".join(symbols))
    if not made.is_dir():
        building = Path(tempfile.mkdtemp(dir=trained_run().parent))
        for place, symbol in enumerate(symbols):
            _tree(building / "symbols" / symbol, symbol, slope=1 + place / 2)
        building.chmod(0o755)
        try:
            building.rename(made)
        except OSError:  # another test process was faster
            shutil.rmtree(building)
    return made


def _tree(tree: Path, symbol: str, slope: float) -> None:
    shutil.copytree(prepared(), tree)
    for path in (tree / MODELS).glob("*.json"):
        document = json.loads(path.read_bytes())
        document["symbol"] = symbol
        if path.name == "lgbm_1h_meta.json":
            document["calibration"] = {
                head: slope * value for head, value in document["calibration"].items()
            }
        path.write_text(json.dumps(document))
    bars = bars_of(symbol, read_bars(bars_directory(trained_run()) / "BTCUSD_1h.parquet"))
    made = golden.make(bars, {}, Scorer.load(tree / MODELS, "1h"))
    (tree / golden.FILE).write_bytes(canonical({"symbol": symbol, **made}))


def details_of(symbols: Sequence[str] = SYMBOLS) -> dict[str, Any]:
    """What the manifest of such a release says; figures are left out."""
    of_each = {
        symbol: {
            "cross": [],
            "panel": [],
            "metrics": {},
            "best_head": {"stacking": "5h"},
            "criteria": [],
            "data_digest": "d" * 64,
            "golden": f"symbols/{symbol}/{golden.FILE.as_posix()}",
        }
        for symbol in symbols
    }
    return {"tf": "1h", "symbol": symbols[0], "cross": [], "symbols": of_each, "replay": 1}


def add_release(
    root: Path,
    serial: int = 1,
    symbols: Sequence[str] = SYMBOLS,
    *,
    more: Mapping[str, bytes] | None = None,
    **details: Any,
) -> str:
    """Put such a release into releases/ of an application's directory; returns its id.

    more: other files of the release by path. details: of its manifest, over `details_of`.
    """
    release = root / "releases" / "new"
    shutil.copytree(trees(symbols), release)
    for path, content in (more or {}).items():
        (release / path).parent.mkdir(parents=True, exist_ok=True)
        (release / path).write_bytes(content)
    return described(release, serial, {**details_of(symbols), **details})
