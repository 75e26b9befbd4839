"""The leak audit: a sign-randomised null test, provenance, look-ahead, and results too good.

Runs with every training and goes into its record. Four questions, each a check with numbers:
does the pipeline score 0.5 on bars whose returns have random signs; did every fit stay inside its
training part; do features computed on a cut-off series equal those on the whole one; is any result
too good to be believed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import polars as pl

from macd.app.market.audit import causality_violations, cut_points
from macd.app.market.features import feature_names
from macd.app.market.splits import LeakError
from macd.app.train import cards, dataset, engine, fits
from macd.app.train import panel as panels
from macd.app.train.cache import Cache, Entry, code_digest, key_of, library_versions
from macd.app.train.dataset import Bars, Dataset, Plan
from macd.app.train.events import Events
from macd.app.train.fitdata import observe
from macd.app.train.fits import Task, training_data
from macd.app.train.metrics import auc_by_head
from macd.app.train.panel import Panel
from macd.criteria import limits_text, too_good
from macd.heads import PANEL, bars_ahead, head_names, in_order

# How far the mean pooled AUC on sign-randomised bars may be from 0.5. At 24 bars labels overlap
# most, so chance moves it most.
BANDS = {5: 0.02, 12: 0.03, 24: 0.035}  # by bars ahead

# Features are compared as the models get them, in float32.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Check:
    """One question and its answer; `detail` carries the numbers."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Audit:
    """The audit's outcome. `allowed`: per head, the AUC above which a result is not believed."""

    checks: tuple[Check, ...]
    surrogates: dict[str, dict[str, Any]]
    allowed: dict[str, float]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "surrogates": self.surrogates,
            "allowed": self.allowed,
            "bands": BANDS,
        }


@dataclass(frozen=True)
class Flip:
    """One sign-randomised series: its seed, the models fitted on it, and its split."""

    seed: int
    families: tuple[str, ...]
    params: Mapping[str, Any]
    fit_seed: int
    folds: int
    initial: float
    holdout: float
    embargo: int
    min_move: float


def run_flip(flip: Flip, shared: tuple[Bars, Events], device: str) -> Entry:
    """Randomise the signs and run the walk-forward on them with the pipeline's own code."""
    bars, events = shared
    started, worked = time.monotonic(), time.process_time()
    flipped = sign_flipped(bars, flip.seed)
    made = dataset.build(flipped, flip.min_move)
    split = dataset.plan_rows(
        len(made),
        made.first,
        folds=flip.folds,
        initial=flip.initial,
        holdout=flip.holdout,
        embargo=flip.embargo,
    )
    arrays = {}
    rows = np.concatenate([fold.test for fold in split.folds])
    for name in flip.families:
        family = import_module(f"macd.app.train.{name}")
        panel = _flipped_panel(flipped, made, flip.params[name], flip) if name in PANEL else None
        seen = made.seen_by(flip.params[name]) if panel is None else panel.tested
        parts = []
        for fold in split.folds:
            task = Task(name, fold, fold.train, flip.params[name], flip.fit_seed)
            if panel is None:
                data = training_data(task, seen.X, seen.y, seen.features)
            else:
                data = panel.training_data(task.rows, None)
            fits.check_record(observe(data, fold.test), task, flip.embargo, panel)
            model = family.fit(data, task.params, seed=task.seed, device=device)
            end = int(fold.test[-1]) + 1
            parts.append(family.predict(model, np.ascontiguousarray(seen.X[:end]), fold.test))
            events.emit("audit_fit", stage="audit", model=name, fold=fold.index, flip=flip.seed)
        arrays[name] = np.concatenate(parts)
    heads = head_names(bars.tf)
    facts = {name: auc_by_head(made.y[rows], p, heads) for name, p in arrays.items()}
    seconds, cpu_s = time.monotonic() - started, time.process_time() - worked
    return Entry({}, facts={"auc": facts, "seconds": round(seconds, 3), "cpu_s": round(cpu_s, 3)})


def _flipped_panel(bars: Bars, made: Dataset, params: Any, flip: Flip) -> Panel:
    others = {name: dataset.build(own, flip.min_move) for name, own in bars.alone().items()}
    return panels.of(bars.symbol, made, others, params)


@dataclass(frozen=True)
class FlipBatch:
    """The sign-randomised series of one symbol. events: where its fits report."""

    flips: Sequence[Flip]
    bars: Bars
    events: Events


def run_flips(
    batches: Sequence[FlipBatch],
    *,
    cache: Cache,
    engine_name: str,
    use: engine.Resources,
    count: Callable[..., dict[str, float]],
) -> list[list[Entry]]:
    """By batch the entries of its flips, in order: from the cache, else run now, side by side.

    count: called with the batch's and the flip's place and `cached`; returns the fields that its
    event carries.
    """
    # The first fits the most families.
    families = [f"macd.app.train.{name}" for name in batches[0].flips[0].families]
    code = code_digest(["macd.app.train.leak_audit", *families])
    keys = {
        (n, i): key_of(
            {
                "code": code,
                "libraries": library_versions(("torch", "lightgbm", "numpy", "polars", "TA-Lib")),
                "device": use.devices[0].partition(":")[0],
                "arithmetic": dataclasses.asdict(
                    cards.arithmetic(use.devices[0], len(feature_names(batch.bars.cross)))
                ),
                "bars": digest,
                "flip": json.loads(json.dumps(dataclasses.asdict(flip))),
            }
        )
        for n, batch in enumerate(batches)
        for digest in [batch.bars.digest()]
        for i, flip in enumerate(batch.flips)
    }
    entries = {at: entry for at, key in keys.items() if (entry := cache.get(key))}
    for at in entries:
        count(*at, cached=True)
    todo = [at for at in keys if at not in entries]
    for position, entry in engine.run(
        run_flip,
        [batches[n].flips[i] for n, i in todo],
        [(batch.bars, batch.events) for batch in batches],
        whose=[n for n, _ in todo],
        engine=engine_name,
        use=use,
    ):
        at = todo[position]
        entries[at] = entry
        progress = count(*at, cached=False)
        batches[at[0]].events.emit("flip_done", stage="audit", **entry.facts, **progress)
        cache.put(keys[at], entry)
    return [[entries[n, i] for i in range(len(b.flips))] for n, b in enumerate(batches)]


def sign_flipped(bars: Bars, seed: int) -> Bars:
    """The bars with a random sign on each bar's log moves: the null every training is held to.

    Each bar's log moves (open, high, low, close against the close before) are mirrored or not, by a
    fair coin. Volatility, its clustering, volume and the shapes of candles survive; what predicts
    the sign of a later return on such bars can only be a leak. Assets of one training share the
    coins of a timestamp, so that their correlation survives too. The same seed gives the same bars.
    """
    frames = [bars.main, *bars.cross.values(), *bars.panel.values()]
    times = pl.concat([frame["timestamp"] for frame in frames]).unique().sort()
    coins = np.random.default_rng([seed, 8191]).choice((-1.0, 1.0), size=len(times))
    signs = pl.DataFrame({"timestamp": times, "sign": coins})
    return Bars(
        symbol=bars.symbol,
        tf=bars.tf,
        main=_flip(bars.main, signs),
        cross={name: _flip(frame, signs) for name, frame in bars.cross.items()},
        panel={name: _flip(frame, signs) for name, frame in bars.panel.items()},
    )


def _flip(frame: pl.DataFrame, signs: pl.DataFrame) -> pl.DataFrame:
    sign = frame.join(signs, on="timestamp", how="left", maintain_order="left")["sign"].to_numpy()
    close = frame["close"].to_numpy()
    before = np.concatenate(([frame["open"][0]], close[:-1]))
    moves = {name: np.log(frame[name].to_numpy() / before) for name in ("open", "high", "low")}
    step = sign * np.log(close / before)
    start = np.log(before[0])
    base = start + np.concatenate(([0.0], np.cumsum(step)[:-1]))
    high = np.where(sign > 0, moves["high"], -moves["low"])
    low = np.where(sign > 0, moves["low"], -moves["high"])
    prices = {
        "open": np.exp(base + sign * moves["open"]),
        "high": np.exp(base + high),
        "low": np.exp(base + low),
        "close": np.exp(base + step),
    }
    # Rounding in exp must not put a high just below its close.
    body = np.stack([prices["open"], prices["close"]])
    prices["high"] = np.maximum(prices["high"], body.max(axis=0))
    prices["low"] = np.minimum(prices["low"], body.min(axis=0))
    return frame.with_columns(**{name: pl.Series(values) for name, values in prices.items()})


def judge_flips(flips: Sequence[Entry]) -> tuple[list[Check], dict[str, dict[str, Any]]]:
    """Is the mean pooled AUC over the randomised series inside its band, by family and head?

    A family that was fitted on only some of the series has a band wider by as much as the mean of
    fewer scatters more.
    """
    checks, by_family = [], {}
    for family in flips[0].facts["auc"]:
        heads = {}
        aucs = [flip.facts["auc"][family] for flip in flips if family in flip.facts["auc"]]
        for head in in_order(aucs[0]):
            values = np.array([by_head[head] for by_head in aucs])
            wider = math.sqrt(len(flips) / len(aucs))
            mean, band = float(values.mean()), round(BANDS[bars_ahead(head)] * wider, 4)
            spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            heads[head] = {
                "mean": mean,
                "spread": spread if np.isfinite(spread) else None,
                "values": values.tolist(),
                "band": band,
                "ok": abs(mean - 0.5) <= band,
            }
        by_family[family] = heads
        detail = ", ".join(f"{h} {v['mean']:.3f} (0.5 ± {v['band']})" for h, v in heads.items())
        detail = f"pooled AUC over {len(aucs)} sign-randomised series: {detail}"
        ok = all(v["ok"] for v in heads.values())
        checks.append(Check(f"sign_flipped_{family}", ok, detail))
    return checks, by_family


def check_provenance(
    entries: Sequence[tuple[Task, Entry]],
    plan: Plan,
    panel: Panel | None = None,
) -> Check:
    """Did every fit use rows, scaling and early stopping only inside its own training part?

    panel: the assets of the training's panel; its models are judged by time.
    """
    folds = {fold.index: fold for fold in (*plan.folds, plan.holdout, plan.everything)}
    for task, entry in entries:
        planned = dataclasses.replace(task, fold=folds[task.fold.index])
        try:
            fits.check_provenance(
                planned, entry, plan.embargo, panel if task.family in PANEL else None
            )
        except LeakError as error:
            return Check("provenance", False, f"{task.family} {task.label}: {error.why}")
    gap = min(int(fold.test[0] - fold.train[-1]) for fold in folds.values())
    detail = f"labels end at least {gap - 1} bars before the test rows"
    detail = f"{len(entries)} fits stayed inside their training part; {detail}"
    return Check("provenance", True, detail)


def check_look_ahead(
    bars: Bars, data: Dataset, others: Mapping[str, Dataset] | None = None
) -> Check:
    """Are the features of bar t the same when the bars after t do not exist yet?

    Catches a longer timeframe used before it closed, centred windows, and anything normalised over
    the whole series. `data` is what the training used; all of its making is repeated on cut bars.
    others: what it used of the panel's other assets, made by the same code; it must be just what
    this code makes of their bars.
    """

    def seen(main: pl.DataFrame, cross: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        made = dataset.build(Bars(bars.symbol, bars.tf, main, cross), 0.0)
        return pl.DataFrame(made.X, schema=list(made.features)).with_columns(main["timestamp"])

    name = "no_look_ahead"
    whole = seen(bars.main, bars.cross).drop("timestamp").to_numpy()
    strange = [] if np.array_equal(whole, data.X, equal_nan=True) else [bars.symbol]
    alone = bars.alone()
    for symbol, used in (others or {}).items():
        again = dataset.build(alone[symbol], 0.0)
        same = np.array_equal(again.X, used.X, equal_nan=True)
        if not (same and np.array_equal(again.times_ms, used.times_ms)):
            strange.append(symbol)
    if strange:
        detail = "the fits were given numbers that are not the features of the bars"
        return Check(name, False, f"{detail} ({', '.join(strange)})")
    cuts = cut_points(len(data), first=data.first)
    violations = causality_violations(seen, bars.main, cuts, cross=bars.cross, tolerance=TOLERANCE)
    if violations:
        return Check(name, False, f"{len(violations)} values, among them {violations[0]}")
    counted = f"{len(data.features)} features at {len(cuts)} bars"
    if others:
        counted += f", those of {len(others)} other assets by the same code,"
    return Check(name, True, f"{counted} do not change when later bars are cut")


def allowed_aucs(surrogates: Mapping[str, Mapping[str, Any]], edge_cap: float) -> dict[str, float]:
    """The AUC above which a result is not believed, by head.

    0.5 + edge_cap + twice the spread of the sign-randomised series.
    Results without a leak on hourly bars are 0.53 to 0.60; random folds gave 0.80, refitting
    without a purge 0.65, meta-models scored on their own rows +0.04. What is held to this limit,
    and how, is `macd.criteria.too_good`.
    """
    allowed = {}
    for head in in_order(next(iter(surrogates.values()), {})):
        spreads = [family[head]["spread"] for family in surrogates.values()]
        chance = max((s for s in spreads if s is not None), default=0.0)
        allowed[head] = round(0.5 + edge_cap + 2 * min(chance, 0.05), 4)
    return allowed


def check_too_good(models: Mapping[str, Mapping[str, Any]], allowed: Mapping[str, float]) -> Check:
    """Is any figure too good to be believed? `models`: of metrics.json."""
    problems = too_good(models, allowed)
    return Check("not_too_good", not problems, "; ".join(problems) or limits_text(allowed))
