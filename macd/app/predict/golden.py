"""Golden predictions: real bars in, known probabilities out, to prove features and models anywhere.

Made once from the run's own bars, signed with the release, and recomputed on every machine that is
to serve it. Pure but for running the models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from macd.app.market import features
from macd.app.market.bars import COLUMNS, SCHEMA
from macd.app.predict.scoring import FAMILIES, SEQ, Floats, Scorer, window_at
from macd.errors import MacdError

ROWS = 8
TOLERANCE = 1e-4  # other processors round differently; a wrong feature moves far more
BARS = features.WARMUP + SEQ + 240


@dataclass(frozen=True)
class Outcome:
    """Whether this machine computes what the training machine did, and how far off at most."""

    ok: bool
    max_diff: float
    detail: str


def make(bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame], scorer: Scorer) -> dict[str, Any]:
    """The golden document from the newest bars; its rows spread over the last ten days.

    Raises:
        MacdError: too few bars, or a model fails on them: such a release must not be made.
    """
    told = inputs(bars, cross)
    kept, others = _frame(told["bars"]), {n: _frame(rows) for n, rows in told["cross"].items()}
    found = _predict(kept, others, told["rows"], scorer)
    broken = [name for name, values in found.items() if not all(map(math.isfinite, values))]
    lacking = sorted(
        {f"{f}_{h}" for f in (*FAMILIES, "stacking") for h in scorer.heads} - set(found)
    )
    if broken or lacking or scorer.errors:
        raise MacdError(
            "the models don't run on the newest bars",
            why=str(scorer.errors or f"no usable output of {', '.join(broken + lacking)}"),
            hint="invoke health shows each model; then train again",
        )
    return {
        **told,
        "tf": scorer.tf,
        "features_schema": scorer.schema,
        "expected": found,
        "tolerance": TOLERANCE,
    }


def inputs(bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """The part of a golden document that goes in: the newest bars, and which rows are asked.

    Raises:
        MacdError: too few bars.
    """
    if len(bars) < BARS:
        raise MacdError(
            "too few bars for golden predictions",
            why=f"{len(bars)} bars, {BARS} are needed",
            hint="invoke data.fetch, or data.import",
        )
    kept = bars.tail(BARS)
    start = kept["timestamp"][0]
    others = {name: frame.filter(pl.col("timestamp") >= start) for name, frame in cross.items()}
    return {
        "bars": _plain(kept),
        "cross": {name: _plain(frame) for name, frame in sorted(others.items())},
        "rows": [int(r) for r in np.linspace(BARS - 240, BARS - 1, ROWS)],
    }


def check(document: Mapping[str, Any], scorer: Scorer) -> Outcome:
    """Recompute the golden predictions here, features included. Never raises."""
    try:
        found = predictions(document, scorer)
        expected, tolerance = document["expected"], float(document["tolerance"])
    except Exception as error:  # this runs where anything may be broken; the answer is "not ok"
        return Outcome(False, math.inf, f"{type(error).__name__}: {error}")
    worst, where = 0.0, ""
    for name, values in expected.items():
        got = found.get(name)
        if got is None:
            why = scorer.errors.get(name.partition("_")[0], "no output")
            return Outcome(False, math.inf, f"{name}: {why}")
        differences = [_apart(a, b) for a, b in zip(values, got, strict=True)]
        if max(differences) > worst:
            worst, where = max(differences), name
    if worst > tolerance:
        return Outcome(False, worst, f"{where} is off by {worst:.3g}, allowed {tolerance:g}")
    return Outcome(True, worst, f"{len(expected)} outputs on {len(document['rows'])} bars agree")


def predictions(document: Mapping[str, Any], scorer: Scorer) -> dict[str, list[float]]:
    """What every model says on the rows asked: "lgbm_5h" -> a value for each. Raises whatever."""
    bars = _frame(document["bars"])
    cross = {name: _frame(rows) for name, rows in document["cross"].items()}
    return _predict(bars, cross, document["rows"], scorer)


def windows(document: Mapping[str, Any], scorer: Scorer) -> Floats:
    """The golden windows (N, 48, F), features computed here. Raises whatever is wrong with them."""
    computed = table(document, scorer)
    return np.stack([window_at(computed, row) for row in document["rows"]])


def table(document: Mapping[str, Any], scorer: Scorer) -> Floats:
    """Features (bars, F) of the golden bars, computed here. Raises whatever is wrong with them."""
    bars = _frame(document["bars"])
    cross = {name: _frame(rows) for name, rows in document["cross"].items()}
    return matrix(bars, cross, scorer.features, scorer.tf)


def matrix(
    bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame], names: tuple[str, ...], tf: str
) -> Floats:
    """Features as float32 (bars, F) in the order the models want.

    Raises:
        MacdError: the models want features this code does not compute.
    """
    table = features.compute(bars, cross, tf=tf)
    unknown = [name for name in names if name not in table.columns]
    if unknown:
        raise MacdError(
            "the models want features this code does not compute",
            why=", ".join(unknown[:5]),
            hint="code and models must come from one release",
        )
    return table.select(names).to_numpy().astype(np.float32)


def _predict(
    bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame], rows: list[int], scorer: Scorer
) -> dict[str, list[float]]:
    table = matrix(bars, cross, scorer.features, scorer.tf)
    windows = np.stack([window_at(table, row) for row in rows])
    base, _ = scorer.score_batch(windows)
    found = {
        f"{family}_{head}": [float(v) for v in p[:, k]]
        for family, p in base.items()
        for k, head in enumerate(scorer.heads)
    }
    for n, row in enumerate(rows):
        by_family = {
            family: dict(zip(scorer.heads, map(float, p[n]), strict=True))
            for family, p in base.items()
        }
        context = dict(zip(scorer.features, map(float, table[row]), strict=True))
        stacked, _ = scorer.stack(by_family, context)
        for head in stacked:
            found.setdefault(f"stacking_{head}", [math.nan] * len(rows))[n] = stacked[head]
    return found


def _apart(expected: float, got: float) -> float:
    difference = abs(expected - got)
    return difference if math.isfinite(difference) else math.inf


def _plain(frame: pl.DataFrame) -> list[list[float]]:
    stamps = frame["timestamp"].dt.epoch("ms").to_list()
    columns = [frame[name].to_list() for name in COLUMNS[1:]]
    return [list(row) for row in zip(stamps, *columns, strict=True)]


def _frame(rows: list[list[float]]) -> pl.DataFrame:
    columns = list(zip(*rows, strict=True))
    stamps = pl.Series("timestamp", columns[0], dtype=pl.Int64).cast(SCHEMA["timestamp"])
    values = [
        pl.Series(name, column, dtype=pl.Float64)
        for name, column in zip(COLUMNS[1:], columns[1:], strict=True)
    ]
    return pl.DataFrame([stamps, *values])
