"""What the models must answer on known bars: golden predictions, and those of the training itself.

Golden predictions are made once from the run's own bars, signed with the release, and recomputed on
every machine that serves it. They are made by the code that checks them. So there is a second
witness: the training stored what its models said on the bars that it held out, computed by its own
libraries from all of its bars. Pure but for running the models and reading files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from macd.app.market import features
from macd.app.market.bars import COLUMNS, SCHEMA, bars_path, digest_of_all, read_bars, step_ms
from macd.app.predict.scoring import SEQ, Floats, Scorer, window_at
from macd.errors import MacdError, UsageError
from macd.heads import BASES, MEAN, in_order, kind_of
from macd.run_directory import FILES
from macd.symbols import symbol_name

Bars = tuple[pl.DataFrame, dict[str, pl.DataFrame]]

ROWS = 8
TOLERANCE = 1e-4  # other processors round differently; a wrong feature moves far more
BARS = features.WARMUP + SEQ + 240
FILE = Path("golden/golden.json")
HOLDOUT = -1  # the `fold` of rows that the shipped models judged
# LightGBM computes the same everywhere. Nets are fitted and judged on a GPU, in its precision, and
# stacking takes their probabilities; another model than the trained one is off by more than either.
HOLDOUT_TOLERANCES = {"lgbm": 1e-4, "lstm": 0.02, "tft": 0.02, "stacking": 0.02, MEAN: 0.02}


@dataclass(frozen=True)
class Outcome:
    """Whether this machine computes what the training machine did, and how far off at most."""

    ok: bool
    max_diff: float
    detail: str


@dataclass(frozen=True)
class Comparison:
    """How many stored predictions were found for the bars asked, and where models say otherwise.

    worst: the largest difference there is. off: output -> its median difference, where too large.
    """

    bars: int
    values: int
    worst: float
    families: tuple[str, ...]
    off: Mapping[str, float]


def make(bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame], scorer: Scorer) -> dict[str, Any]:
    """The golden document from the newest bars; its rows spread over the last ten days.

    Raises:
        MacdError: too few bars, or a model fails on them: such a release must not be made.
    """
    document = inputs(bars, cross)
    expected = _on_all_assets(document, scorer)
    broken = [name for name, values in expected.items() if not all(map(math.isfinite, values))]
    lacking = sorted(
        {f"{f}_{h}" for f in (*scorer.families, "stacking") for h in scorer.heads} - set(expected)
    )
    if broken or lacking or scorer.errors:
        raise MacdError(
            "the models don't run on the newest bars",
            why=str(scorer.errors or f"no usable output of {', '.join(broken + lacking)}"),
            hint="invoke health shows each model; then train again",
        )
    return {
        **document,
        "tf": scorer.tf,
        "features_schema": scorer.schema,
        "expected": expected,
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
    newest = bars.tail(BARS)
    start = newest["timestamp"][0]
    others = {name: frame.filter(pl.col("timestamp") >= start) for name, frame in cross.items()}
    return {
        "bars": _plain(newest),
        "cross": {name: _plain(frame) for name, frame in sorted(others.items())},
        "rows": [int(r) for r in np.linspace(BARS - 240, BARS - 1, ROWS)],
    }


def check(document: Mapping[str, Any], scorer: Scorer) -> Outcome:
    """Recompute the golden predictions here, features included. Never raises."""
    try:
        computed = _on_all_assets(document, scorer)
        expected, tolerance = document["expected"], float(document["tolerance"])
    except Exception as error:  # this runs where anything may be broken; the answer is "not ok"
        return Outcome(False, math.inf, f"{type(error).__name__}: {error}")
    worst, where = 0.0, ""
    for name, values in expected.items():
        got = computed.get(name)
        if got is None:
            why = scorer.errors.get(name.rpartition("_")[0], "no output")
            return Outcome(False, math.inf, f"{name}: {why}")
        differences = [_apart(a, b) for a, b in zip(values, got, strict=True)]
        if max(differences) > worst:
            worst, where = max(differences), name
    if worst > tolerance:
        return Outcome(False, worst, f"{where} is off by {worst:.3g}, allowed {tolerance:g}")
    return Outcome(True, worst, f"{len(expected)} outputs on {len(document['rows'])} bars agree")


def read(top: Path) -> Mapping[str, Any] | None:
    """The golden document of a release; None where there is none that can be read."""
    try:
        document = json.loads((top / FILE).read_bytes())
        return document if isinstance(document, dict) else None
    except (OSError, ValueError):
        return None


def compare_with_training(
    table: Path, inputs: Mapping[str, Any], predicted: Mapping[str, Sequence[float]]
) -> Comparison:
    """Hold `predicted` (output -> value for each of the rows asked) to the stored predictions.

    An output is off by its median over the bars: a feature that rounds otherwise may turn one
    split of one tree, another model differs nearly everywhere.

    Raises whatever is wrong with the table.
    """
    stored = pl.read_parquet(table).filter(pl.col("fold") == HOLDOUT)
    times = [int(inputs["bars"][row][0]) for row in inputs["rows"]]
    place = {ms: n for n, ms in enumerate(stored["bar_time"].dt.epoch("ms").to_list())}
    compared = [(n, place[ms]) for n, ms in enumerate(times) if ms in place]
    off, worst, count = {}, 0.0, 0
    families: dict[str, None] = {}
    for family in (*BASES, MEAN, "stacking"):
        for head in in_order(name.removeprefix(f"{family}_") for name in predicted):
            name, column = f"{family}_{head}", f"p_{family}_{head}"
            if name not in predicted or column not in stored.columns:
                continue
            then = stored[column].to_list()
            pairs = [(predicted[name][n], then[at]) for n, at in compared if then[at] is not None]
            if not pairs:
                continue
            apart = np.array([abs(now - before) for now, before in pairs])
            apart[~np.isfinite(apart)] = np.inf
            families[family], count = None, count + len(pairs)
            worst = max(worst, float(apart.max()))
            if float(np.median(apart)) > HOLDOUT_TOLERANCES[kind_of(family)]:
                off[name] = float(np.median(apart))
    return Comparison(len(compared), count, worst, tuple(families), off)


def windows(document: Mapping[str, Any], scorer: Scorer) -> Floats:
    """The golden windows (N, 48, F), features computed here. Raises whatever is wrong with them."""
    computed = table(document, scorer)
    return np.stack([window_at(computed, row) for row in document["rows"]])


def table(document: Mapping[str, Any], scorer: Scorer) -> Floats:
    """Features of the golden bars as float32 (bars, F) in the order the models want, computed here.

    Raises:
        MacdError: the models want features this code does not compute.
        Exception: whatever else is wrong with the document.
    """
    cross = {name: _frame(rows) for name, rows in document["cross"].items()}
    computed = features.compute(_frame(document["bars"]), cross, tf=scorer.tf)
    unknown = [name for name in scorer.computed if name not in computed.columns]
    if unknown:
        raise MacdError(
            "the models want features this code does not compute",
            why=", ".join(unknown[:5]),
            hint="code and models must come from one release",
        )
    return scorer.rows(computed)


def predictions(document: Mapping[str, Any], scorer: Scorer) -> dict[str, list[float]]:
    """What every model says on the rows asked: "lgbm_5h" -> a value for each. Raises whatever."""
    computed, rows = table(document, scorer), document["rows"]
    base, _ = scorer.score_batch(np.stack([window_at(computed, row) for row in rows]))
    predictions = {
        f"{family}_{head}": [float(v) for v in p[:, k]]
        for family, p in base.items()
        for k, head in enumerate(scorer.heads)
    }
    for k, head in enumerate(scorer.heads if base else ()):
        predictions[f"{MEAN}_{head}"] = scorer.mean((p[:, k] for p in base.values()), head).tolist()
    for n, row in enumerate(rows):
        by_family = {
            family: dict(zip(scorer.heads, map(float, p[n]), strict=True))
            for family, p in base.items()
        }
        context = dict(zip(scorer.features, map(float, computed[row]), strict=True))
        stacked, _ = scorer.stack(by_family, context)
        for head in stacked:
            predictions.setdefault(f"stacking_{head}", [math.nan] * len(rows))[n] = stacked[head]
    return predictions


def _on_all_assets(document: Mapping[str, Any], scorer: Scorer) -> dict[str, list[float]]:
    """`predictions`, and what a panel says of the same bars as if they were another asset's."""
    said = predictions(document, scorer)
    if len(scorer.serves) > 1:
        other = scorer.on(scorer.serves[1])
        also = predictions(document, other)
        said |= {f"{other.symbol} {name}": values for name, values in also.items()}
    return said


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


@dataclass(frozen=True)
class TrainedOn:
    """Symbol, timeframe and other assets of a run: of its features, and of its panel."""

    symbol: str
    tf: str
    cross: tuple[str, ...]
    panel: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, run: Path) -> TrainedOn:
        """As the run's settings.json names them. Raises MacdError when it can't be read."""
        try:
            settings = json.loads((run / FILES.settings).read_bytes())
            tf = str(settings["tf"])
            step_ms(tf)
            cross = tuple(symbol_name(name) for name in settings["cross"])
            symbol = symbol_name(settings["symbol"])
            panel = tuple(symbol_name(name) for name in settings.get("panel", ()))
            return cls(symbol, tf, cross, tuple(name for name in panel if name != symbol))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, UsageError) as error:
            raise MacdError(
                f"run {run.name} has a settings.json that can't be read",
                why=f"{type(error).__name__}: {error}".splitlines()[0],
                live="nothing was checked",
                hint=f"fetch it again: invoke train.fetch --run {run.name}",
            ) from error

    def read(self, data_dir: Path) -> Bars:
        main = read_bars(bars_path(data_dir, self.symbol, self.tf))
        return main, {n: read_bars(bars_path(data_dir, n, self.tf)) for n in self.cross}

    def read_same(self, data_dir: Path, *, run: Path, digest: str) -> Bars:
        """The same, held to the digest of the bars the run was trained on.

        Raises MacdError when the bars here are others.
        """
        main, cross = self.read(data_dir)
        panel = {n: read_bars(bars_path(data_dir, n, self.tf)) for n in self.panel}
        here = digest_of_all(self.symbol, self.tf, main, cross, panel)
        if here != digest:
            raise MacdError(
                f"the bars in {data_dir} are not those run {run.name} was trained on",
                why=f"their digest is {here[:16]}, the run's is {digest[:16]}: bars were added or "
                "corrected since",
                hint=f"put the bars of that training there, or train again on these (run: {run})",
            )
        return main, cross
