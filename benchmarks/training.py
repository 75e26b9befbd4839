"""How long a training takes and where: all of it on the sample, demo profile, from nothing.

    python benchmarks/training.py [--profile demo] [--workers 2]

Goal: under 4 minutes of wall time on 2 idle cores. CPU seconds are printed too, because they say
the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from macd.app.train import dataset
from macd.app.train.events import read_events
from macd.app.train.pipeline import run
from macd.app.train.settings import settings_from

SAMPLE = Path(__file__).parent.parent / "data/sample"


def main() -> None:
    """Train into a temporary directory and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="macd-benchmark-") as name:
        settings = settings_from(
            {
                "data": str(SAMPLE),
                "out": name,
                "profile": given.profile,
                "workers": given.workers,
            }
        )
        started, worked = time.perf_counter(), time.process_time()
        run(settings, clock=time.time, environment=os.environ, echo=False)
        wall, cpu = time.perf_counter() - started, time.process_time() - worked
        metrics = json.loads((Path(name) / "metrics.json").read_text())
        flips = [e for e in read_events(Path(name) / "events.jsonl") if e["event"] == "flip_done"]
        bars = dataset.read(settings)
        features = min(_seconds(bars) for _ in range(5))
    show(metrics, flips, wall, cpu, len(bars.main) / features)


def show(
    metrics: dict[str, Any], flips: list[dict[str, Any]], wall: float, cpu: float, rate: float
) -> None:
    """Print the table."""
    work: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for fit in metrics["fits"]:
        work[fit["family"]][0] += fit["samples"]
        work[fit["family"]][1] += fit["cpu_s"]
    fits = sum(seconds for _, seconds in work.values())
    audit = sum(flip["cpu_s"] for flip in flips)
    print(f"features   {rate:12,.0f} bars/s, labels included, one core mostly")
    for family, (samples, seconds) in work.items():
        print(
            f"{family:<10} {samples / seconds:12,.0f} samples/s  {seconds:7.1f} CPU s in all fits"
        )
    print(f"surrogates {'':12}            {audit:7.1f} CPU s in {len(flips)} series")
    for stage, spent in metrics["stages"].items():
        print(f"stage {stage:<9} {spent['seconds']:7.1f} s")
    peak = max(fit["peak_mb"] for fit in metrics["fits"])
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {own:,.0f} MiB in the pipeline, {peak:,} MiB in its largest worker")
    print(f"wall {wall:.0f} s; CPU {fits + audit + cpu:.0f} s, of which {cpu:.0f} in the pipeline")
    print(f"load now {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _seconds(bars: dataset.Bars) -> float:
    started = time.perf_counter()
    dataset.build(bars, 0.003)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
