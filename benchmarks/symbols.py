"""What 1, 4 and 16 symbols cost in one run, as shares of one symbol times their number.

    python benchmarks/symbols.py [--counts 1,4,16] [--bars 6000] [--workers 2] [--nets]
    python benchmarks/symbols.py --data DIR --tf 1h --counts 1,4 --settings '{"surrogates": 1}'

Without --data each symbol gets the sample's bars under another name, on another scale of prices.
LightGBM alone unless --nets: nets are trained for one epoch then. 1.00 in a column says that N
symbols cost N times one. CPU counts all worker processes, and says the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macd.app.market.bars import read_bars, write_bars
from macd.app.train.pipeline import run
from macd.app.train.settings import settings_from

SAMPLE = Path(__file__).parent.parent / "data/sample/BTCUSD_1h_2017-2019.parquet"
QUICK: dict[str, Any] = {
    "lstm": {"hidden": 8, "projection": 8, "epochs": 1, "rows_per_epoch": 256},
    "tft": {"width": 8, "attention_heads": 2, "epochs": 1, "rows_per_epoch": 256},
}


@dataclass(frozen=True)
class Cost:
    """What one run took. peak_mb: of the pipeline's own process. run_mb: its files."""

    symbols: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    run_mb: float


def main() -> None:
    """Train each number of symbols in a process of its own, from nothing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1,4,16")
    parser.add_argument("--bars", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--nets", action="store_true")
    parser.add_argument("--data", type=Path, help="directory of bars, by default the sample's")
    parser.add_argument("--tf", default="1h")
    parser.add_argument("--settings", default="{}", help="more settings of the training, as JSON")
    given = parser.parse_args()
    counts = [int(count) for count in given.counts.split(",")]
    with tempfile.TemporaryDirectory(prefix="macd-benchmark-") as name:
        data = given.data or made_up(Path(name) / "bars", max(counts), given.bars)
        names = sorted({path.name.split("_")[0] for path in data.glob(f"*_{given.tf}*.parquet")})
        if len(names) < max(counts):
            parser.error(f"{data} has bars of {len(names)} symbols, {max(counts)} are asked for")
        settings: dict[str, Any] = {
            "data": str(data),
            "tf": given.tf,
            "workers": given.workers,
            "stages": ["verify", "lgbm"],
            "mode": "all",
        }
        if given.nets:
            settings |= {"params": QUICK, "stages": ["verify", "lgbm", "lstm", "tft", "onnx"]}
        settings |= json.loads(given.settings)
        costs = [alone(settings, names[:count], Path(name) / str(count)) for count in counts]
    show(costs)


def made_up(directory: Path, symbols: int, bars: int) -> Path:
    """The sample's newest bars as those of so many symbols: prices to powers from 0.8 to 1.2."""
    frame = read_bars(SAMPLE).tail(bars)
    for number in range(symbols):
        power = 0.8 + 0.4 * number / max(1, symbols - 1)
        prices = [pl.col(name).pow(power) for name in ("open", "high", "low", "close")]
        write_bars(frame.with_columns(prices), directory / f"S{number:02d}USD_1h.parquet")
    return directory


def alone(settings: dict[str, Any], names: Sequence[str], out: Path) -> Cost:
    """Train in a process of its own, whose workers and memory are then nobody else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, settings, list(names), out).result()


def train(settings: dict[str, Any], names: Sequence[str], out: Path) -> Cost:
    """What a run of these symbols takes."""
    asked = settings_from({**settings, "symbols": list(names), "out": str(out)})
    environment = {**os.environ, "ML_STACKING_MIN_SAMPLES": "100"}
    started = time.perf_counter()
    run(asked, clock=time.time, environment=environment, echo=False)
    wall = time.perf_counter() - started
    shutdown_workers()
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    files = [path for path in out.rglob("*") if path.is_file() and "cache" not in path.parts]
    return Cost(
        symbols=len(names),
        wall_s=wall,
        cpu_s=sum(each.ru_utime + each.ru_stime for each in spent),
        peak_mb=spent[0].ru_maxrss / 1024,
        run_mb=sum(path.stat().st_size for path in files) / 1e6,
    )


def shutdown_workers() -> None:
    """End the pool, so that what its processes took is counted."""
    from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415 - slow to import

    get_reusable_executor().shutdown(wait=True)


def show(costs: Sequence[Cost]) -> None:
    """Print the table; the first row is the unit of the ratios."""
    unit = costs[0]
    print("symbols     wall s      CPU s    peak MiB    run MB   wall/ideal   CPU/ideal")
    for cost in costs:
        times = cost.symbols / unit.symbols
        ratios = cost.wall_s / (times * unit.wall_s), cost.cpu_s / (times * unit.cpu_s)
        print(
            f"{cost.symbols:>7} {cost.wall_s:>10.1f} {cost.cpu_s:>10.1f} {cost.peak_mb:>11,.0f} "
            f"{cost.run_mb:>9.1f} {ratios[0]:>12.2f} {ratios[1]:>11.2f}"
        )


if __name__ == "__main__":
    main()
