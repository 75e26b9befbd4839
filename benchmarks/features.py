"""How fast bars become features: 28k bars in one go, and one bar at a time, on one core.

    python benchmarks/features.py [BARS]

Goal: 28,000 bars x 80 features in under 0.3 s; live, well under 10 ms a bar.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

SAMPLE = Path(__file__).parent.parent / "data/sample/BTCUSD_1h_2017-2019.parquet"


def main(wanted: int = 28_000, repeat: int = 7) -> None:
    """Print seconds and rates; the best of several runs, and all of them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["POLARS_MAX_THREADS"] = "1"  # read when polars is imported, so only now
    import polars as pl  # noqa: PLC0415

    from macd.app.market.bars import read_bars  # noqa: PLC0415
    from macd.app.market.features import (  # noqa: PLC0415
        bars_needed,
        compute,
        latest,
    )

    sample = read_bars(SAMPLE)
    tiles = pl.concat([sample] * -(-wanted // len(sample)))[:wanted]
    hours = pl.datetime_range(
        sample["timestamp"][0],
        sample["timestamp"][0] + pl.duration(hours=wanted - 1),
        "1h",
        time_unit="ms",
        eager=True,
    )
    bars = tiles.with_columns(hours.alias("timestamp"))
    for title, cross in (
        ("own bars", {}),
        ("with three other assets", {"A": bars, "B": bars, "C": bars}),
    ):
        seconds = []
        for _ in range(repeat):
            start = time.perf_counter()
            table = compute(bars, cross)
            seconds.append(time.perf_counter() - start)
        best = min(seconds)
        print(
            f"{title}: {len(table):,} bars x {table.width - 1} features in {best:.3f} s "
            f"({len(table) / best:,.0f} bars/s; all runs: "
            + " ".join(f"{s:.3f}" for s in seconds)
            + ")"
        )
        memory = bars[: bars_needed()]
        live = []
        for _ in range(100):
            start = time.perf_counter()
            latest(memory, cross)
            live.append(1000 * (time.perf_counter() - start))
        live.sort()
        print(f"{title}: one bar live in {live[50]:.1f} ms (median; p99 {live[98]:.1f} ms)")


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:2]))
