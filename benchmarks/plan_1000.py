"""What 1,000 hosts and 1,000 symbols would take, from unit costs that are measured here.

    python -m benchmarks.plan_1000 [--hosts 1000] [--symbols 1000] [--given NAME=VALUE ...] [--json]

Prints the unit costs, each measured (CPU seconds of one core of this machine, bytes) or given, then
a table with a row for each step: bytes, CPU time, memory, and how long it takes. It is arithmetic,
no test: nothing here was run at that size. What is given by default is in GIVEN, with its source;
--given changes any unit cost, such as fit_s=40 for a card that was measured.
"""

# ruff: noqa: E402 - the limits of threads are read when numpy and polars are imported

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import polars as pl

from macd.app.market.bars import read_bars
from macd.app.service import signal_table
from macd.app.train import dataset, fits, lgbm, lstm, tft
from macd.app.train.fitdata import FitData
from macd.ssh import archive
from tests.support import signal_lines

try:
    import duckdb
except ImportError:  # it is no dependency of macd
    duckdb = None

SAMPLE = Path(__file__).parents[1] / "data/sample/BTCUSD_1h_2017-2019.parquet"
FITS = 9  # of each family: the full profile's folds and the holdout
FLIPS = 8 * 8  # of the leak audit: series by folds, each LightGBM without bags and a small LSTM
GIVEN = {
    "per_process": (40, "symbols that one process serves: benchmarks/serve_symbols.py"),
    "serve_ms": (20.0, "CPU a bar and symbol: benchmarks/serve_symbols.py"),
    "serve_mb": (8.7, "memory a symbol: benchmarks/serve_symbols.py"),
    "process_mb": (150.0, "memory of a process before its models: benchmarks/serve_symbols.py"),
    "wheels_mb": (200.0, "packages of a release, once a host: docs/releases.md"),
    "code_mb": (1.0, "macd's own wheel, card, manifest and golden predictions"),
    "judge_mb_s": (24.0, "log lines judged a second and core: docs/gate.md"),
    "soak_s": (120.0, "from the switch to the commit: soak.ready_s and soak.soak_s at most"),
    "wave": (100.0, "hosts of a wave, after one alone"),
    "uplink_mbit": (100.0, "of the operator"),
    "downlink_mbit": (1000.0, "of a host that pulls from a store in its own region"),
    "store_gbit": (100.0, "of the store, to all hosts together"),
    "share": (0.9, "of ideal, over many workers: benchmarks/workers.py"),
    "cores": (1000.0, "cores of the Ray cluster"),
}


@dataclass(frozen=True)
class Row:
    """One step. bytes and core_s of all of it; memory_mb of one process; seconds: how long."""

    step: str
    engine: str
    bytes: float
    core_s: float
    memory_mb: float
    seconds: float


def main() -> None:
    """Measure, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--symbols", type=int, default=1000)
    parser.add_argument("--given", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    given = {name: float(value) for name, value in (each.split("=") for each in options.given)}
    costs = {name: value for name, (value, _) in GIVEN.items()} | measured(given) | given
    rows = list(plan(costs, options.hosts, options.symbols))
    if options.json:
        print(json.dumps({"costs": costs, "rows": [dataclasses.asdict(row) for row in rows]}))
        return
    sources = {name: source for name, (_, source) in GIVEN.items()}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; CPU seconds, not wall time\n")
    for name, value in costs.items():
        print(f"  {name:<16} {value:>12,.6g}  {sources.get(name, 'measured')}")
    print(f"\n{options.hosts:,} hosts, {options.symbols:,} symbols, bars of 1h")
    print(f"{'step':<38} {'engine':<18} {'bytes':>9} {'core time':>10} {'memory':>8} {'takes':>9}")
    for row in rows:
        memory = f"{row.memory_mb:,.0f} MB" if row.memory_mb else "-"
        print(
            f"{row.step:<38} {row.engine:<18} {_bytes(row.bytes):>9} {_time(row.core_s):>10} "
            f"{memory:>8} {_time(row.seconds):>9}"
        )


def plan(c: Mapping[str, float], hosts: int, symbols: int) -> Iterator[Row]:
    """The steps from bars to questions. Pure."""
    bars = c["bars"] * symbols
    yield Row("bars to the cluster", "Ray object store", bars * c["bar_bytes"], 0, 0, 0)
    features = bars * c["feature_s"]
    yield _on_ray("features", c, features, bars * c["feature_bytes"])
    yield _on_ray(f"{3 * FITS * symbols:,} fits, own models", c, symbols * c["fit_s"])
    yield _on_ray("leak audit", c, symbols * c["audit_s"])
    models = symbols * c["model_bytes"]
    hashed = models / c["hash_bytes_s"]
    yield Row("a release: hash, sign once", "one machine", models, hashed, 0, hashed)
    each = min(symbols, c["per_process"]) * c["model_bytes"] + c["code_mb"] * 1e6
    first = hosts * c["wheels_mb"] * 1e6
    sizes = {"its packages, first time": first, "a release to all hosts": hosts * each}
    for name, size in sizes.items():
        push = size * 8 / (c["uplink_mbit"] * 1e6)
        pull = 8 * size * max(1 / hosts / (c["downlink_mbit"] * 1e6), 1 / (c["store_gbit"] * 1e9))
        yield Row(f"{name}, pushed", "ssh (today)", size, 0, 0, push)
        yield Row(f"{name}, pulled", "store, by digest", size, 0, 0, pull)
    waves = 1 + -(-(hosts - 1) // c["wave"])
    sessions = hosts * c["agent_bytes"]
    sent = sessions * 8 / (c["uplink_mbit"] * 1e6)
    takes = waves * c["soak_s"] + sent
    yield Row(f"activate, {waves:.0f} waves", "ssh (today)", sessions, 0, 0, takes)
    served = hosts * min(symbols, c["per_process"])
    a_bar = min(symbols, c["per_process"]) * c["serve_ms"] / 1000
    memory = c["process_mb"] + min(symbols, c["per_process"]) * c["serve_mb"]
    size = served * c["line_bytes"]
    yield Row("a bar served, all hosts", "macd service", size, hosts * a_bar, memory, a_bar)
    lines = served * 24 * 365
    yield Row("lines of a year", "JSON lines", lines * c["line_bytes"], 0, 0, 0)
    written = lines * c["parquet_s"]
    size, asked = lines * c["parquet_bytes"], lines * c["question_s"]
    yield Row("the same as columns", "parquet, each host", size, written, 0, written / hosts)
    yield Row("a question over the year, one core", "DuckDB", size, asked, 0, asked)
    two_days = served * 48 * c["line_bytes"]
    judged = two_days / (c["judge_mb_s"] * 1e6)
    yield Row("gate: two days of all hosts", "macd gate", two_days, judged, 0, judged)


def _on_ray(step: str, c: Mapping[str, float], core_s: float, size: float = 0) -> Row:
    return Row(step, "Ray", size, core_s, c["fit_mb"], core_s / _cluster(c))


def _cluster(c: Mapping[str, float]) -> float:
    return c["cores"] * c["share"]


def measured(given: Mapping[str, float]) -> dict[str, float]:
    """Unit costs of this machine; what is given is not measured."""
    costs: dict[str, float] = {}
    bars = read_bars(SAMPLE)
    whole = dataset.Bars("BTCUSD", "1h", bars, {})
    data, feature_s = timed(lambda: dataset.build(whole, 0.003))
    costs |= {"bars": len(bars), "bar_bytes": SAMPLE.stat().st_size / len(bars)}
    costs |= {"feature_s": feature_s / len(bars), "feature_bytes": data.X.nbytes / len(bars)}
    if "fit_s" not in given:
        costs |= fitting(data)
    costs |= lines()
    blob = os.urandom(32 << 20)
    _, hash_s = timed(lambda: hashlib.sha256(blob).hexdigest())
    return costs | {"hash_bytes_s": len(blob) / hash_s, "agent_bytes": len(archive.build())}


def fitting(data: dataset.Dataset) -> dict[str, float]:
    """A whole symbol's fits from few steps: LightGBM at full size, a net's cost by its samples.

    Folds grow from 15 % of the rows to all of them: on average 60 % of the rows are trained on.
    """
    rows = np.flatnonzero(np.isfinite(data.y).any(axis=1) & (np.arange(len(data)) >= data.first))
    whole = 0.6 * len(rows)
    params = lgbm.Params.full()
    trees, seconds = timed(lambda: lgbm.fit(_of(data, rows, params), params, seed=7))
    tree_s = seconds / len(rows)
    total, size = FITS * tree_s * whole, _saved(lgbm, trees)
    for module in (lstm, tft):
        full: Any = module.Params.full()
        model, sample_s = _sample(module, full, data, rows)
        total += FITS * full.loop.epochs * whole * sample_s
        size += _saved(module, model)
    demo = lstm.Params.demo()
    samples = demo.loop.epochs * demo.loop.rows_per_epoch
    audit = FLIPS * (tree_s * whole / params.bags + samples * _sample(lstm, demo, data, rows)[1])
    return {"fit_s": total, "audit_s": audit, "model_bytes": size, "fit_mb": fits.peak_mb()}


def _sample(module: Any, full: Any, data: dataset.Dataset, rows: Any) -> tuple[Any, float]:
    """A net, and the CPU seconds of one of its samples: a long fit less a short one."""
    spent = []
    for count in (512, 1536):
        loop = dataclasses.replace(full.loop, epochs=1, rows_per_epoch=count)
        params = dataclasses.replace(full, loop=loop)
        given = _of(data, rows[:4000], params)
        model, seconds = timed(partial(module.fit, given, params, seed=7))
        spent.append(seconds)
    return model, (spent[1] - spent[0]) / 1024


def _of(data: dataset.Dataset, rows: Any, params: Any) -> FitData:
    seen = data.seen_by(params)
    end = int(rows.max()) + 1
    return FitData(
        X=seen.X[:end], rows=rows, y=seen.y[:end], stop_rows=None, features=seen.features
    )


def _saved(module: Any, model: Any) -> int:
    with tempfile.TemporaryDirectory() as name:
        return sum(path.stat().st_size for path in module.save(model, Path(name), "1h"))


def lines(count: int = 20_000) -> dict[str, float]:
    """What a signal line takes as JSON, as a row of parquet, to write so and to ask about."""
    release = "20260101T000000Z-aaaaaaaa"
    made = signal_lines.lines(
        count, end=datetime(2026, 3, 2, tzinfo=UTC), every=timedelta(hours=1), release=release
    )
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "trades_20260302.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in made))
        written, parquet_s = timed(lambda: signal_table.write("host", log, Path(name)))
        size = written.path.stat().st_size
        _, question_s = timed(lambda: ask(written.path), times=5)
        return {
            "line_bytes": log.stat().st_size / count,
            "parquet_bytes": size / count,
            "parquet_s": parquet_s / count,
            "question_s": question_s / count,
        }


def ask(path: Path) -> Any:
    """How often each release's mean was above one half, by day: by DuckDB where it is installed."""
    if duckdb is None:
        day = pl.col("bar_time").dt.date().alias("day")
        share = (pl.col("ml_avg_prob") > 0.5).mean()
        return pl.scan_parquet(path).group_by("release", day).agg(share).collect()
    with duckdb.connect() as database:
        database.execute("SET threads = 1")
        return database.execute(
            "SELECT release, date_trunc('day', bar_time) AS day, avg((ml_avg_prob > 0.5)::INT) "
            f"FROM '{path}' GROUP BY ALL"
        ).fetchall()


def timed(what: Callable[[], Any], times: int = 1) -> tuple[Any, float]:
    """Its answer, and the CPU seconds that it takes: of several times the fewest."""
    best, answer = float("inf"), None
    for _ in range(times):
        began = time.process_time()
        answer = what()
        best = min(best, time.process_time() - began)
    return answer, best


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.3g} {unit}" if count else "-"
        count /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    if not seconds:
        return "-"
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= (1 if unit == "s" else 2) * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds * 1000:,.3g} ms"


if __name__ == "__main__":
    main()
