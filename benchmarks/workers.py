"""What more workers are worth: the full profile's fits over 1, 2, 4 of them, as a share of ideal.

    python benchmarks/workers.py [--bars 3000] [--engine local,ray] [--workers 1,2,4]

The plan is the full profile's (8 folds and the holdout, three families) with its nets' real sizes;
each net sees few rows and one epoch, so that it ends in minutes. Two ratios, both within one call:

* wall: seconds of the fits' stages with one worker, divided by N times those with N. It is only
  worth something on an idle machine, with at least N cores; the load is printed beside it.
* CPU: what the fits' own CPU seconds allow. They grow where workers fight for caches and memory,
  and the last fits of a stage leave workers idle: CPU seconds with one worker, divided by N times
  the longest worker's in the order in which the fits are dealt out. It holds on a busy machine and
  for N above its cores, but knows nothing of starting workers and sending them data.

Ray starts its workers with a niceness of 15; here it is 0, or others on the machine would decide.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from macd.app.market.bars import read_bars, write_bars
from macd.app.train.events import read_events
from macd.app.train.pipeline import run
from macd.app.train.settings import settings_from

SAMPLE = Path(__file__).parent.parent / "data/sample/BTCUSD_1h_2017-2019.parquet"
FAMILIES = ("lgbm", "lstm", "tft")
SHORT = {
    "lgbm": {"rounds": 10},
    "lstm": {"epochs": 1, "rows_per_epoch": 256},
    "tft": {"epochs": 1, "rows_per_epoch": 256},
}


def main() -> None:
    """Train once for each engine and number of workers, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", type=int, default=3000)
    parser.add_argument("--engine", default="local,ray")
    parser.add_argument("--workers", default="1,2,4")
    given = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    counts = [int(count) for count in given.workers.split(",")]
    print(f"{os.cpu_count()} cores; {given.bars:,} bars, {len(FAMILIES)} families of 9 fits")
    print("engine  workers   wall s   CPU s  of ideal: wall   CPU  load")
    for engine in given.engine.split(","):
        alone: tuple[float, float] | None = None
        for count in counts:
            wall, fits = train(engine, count, given.bars)
            cpu = sum(sum(family) for family in fits.values())
            alone = alone or (wall, cpu)
            shares = alone[0] / (count * wall), alone[1] / (count * longest(fits, count))
            row = f"{engine:<7} {count:>7} {wall:>8.1f} {cpu:>7.1f}"
            load = os.getloadavg()[0]
            print(f"{row} {shares[0]:>15.0%} {shares[1]:>5.0%}  {load:.1f}", flush=True)


def train(engine: str, workers: int, bars: int) -> tuple[float, dict[str, list[float]]]:
    """Wall seconds of the fits' stages, and each fit's CPU seconds by family."""
    with tempfile.TemporaryDirectory(prefix="macd-benchmark-") as name:
        write_bars(read_bars(SAMPLE)[:bars], Path(name) / "BTCUSD_1h.parquet")
        settings = settings_from(
            {
                "symbol": "BTCUSD",
                "data": name,
                "out": f"{name}/run",
                "cache": f"{name}/cache",
                "profile": "full",
                "engine": engine,
                "workers": workers,
                "device": "cpu",
                "stages": ["verify", *FAMILIES],
                "params": SHORT,
            }
        )
        run(settings, clock=time.time, environment=os.environ, echo=False)
        metrics: Mapping[str, Any] = json.loads((settings.out / "metrics.json").read_text())
        events = read_events(settings.out / "events.jsonl")
    ended = [event for event in events if event["event"] == "stage_done"]
    wall = sum(event["seconds"] for event in ended if event["stage"] in FAMILIES)
    fits: dict[str, list[float]] = defaultdict(list)
    for fit in metrics["fits"]:
        fits[fit["family"]].append(fit["cpu_s"])
    return wall, fits


def longest(fits: Mapping[str, Sequence[float]], workers: int) -> float:
    """Seconds until the last fit ends: a stage after the other, its longest fits first."""
    total = 0.0
    for seconds in fits.values():
        free = [0.0] * workers
        for each in sorted(seconds, reverse=True):
            heapq.heappush(free, heapq.heappop(free) + each)
        total += max(free)
    return total


if __name__ == "__main__":
    main()
