"""What the models say of the bar that just closed, as fields of a signal line; it never raises.

The models are a candidate in an experiment (github/scientist): whatever one does, raise, answer NaN
or never answer, is an observation on the line, and the base signal goes on.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from macd.app.market import features
from macd.app.predict.combine import weighted
from macd.app.predict.reference import Outside
from macd.app.predict.scoring import SEQ, Floats, Scorer, Scores
from macd.app.predict.stacking import has_samples
from macd.app.service.settings import Flags
from macd.criteria import MIN_SAMPLES
from macd.heads import FAMILIES, MEAN, in_order, kind_of

_SURE = 0.5
_LONGEST = 500  # characters of an error on a line
_DIGITS = 9  # as many as tell two float32 apart
_SHORT = {"lgbm": "lgb", "lstm": "lstm", "tft": "tft"}


@dataclass(frozen=True)
class _Seen:
    """What the models say, the newest row of features, how far outside the training's rows it is.

    away: of other assets without a bar of this time, for how many bars, SEQ at most.
    """

    scores: Scores
    row: list[float | None]
    outside: Outside | None
    away: Mapping[str, int]


@dataclass(frozen=True)
class Prediction:
    """fields: ml_* of the signal line. p: what decides, None where nothing usable was said.

    errors: by family, or "features", "stacking", "timeout".
    away: by other asset that has no bar of this time, the models that were trained on it; None
    where the models were not asked.
    """

    p: float | None
    fields: Mapping[str, Any]
    errors: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    away: Mapping[str, tuple[str, ...]] | None = None

    def retired(self, why: str) -> Prediction:
        """The same, where the models may decide nothing: what they say stays on the line."""
        nothing = {"ml_bull_prob": None, "ml_direction": None, "ml_stacking_mode": "off"}
        return replace(
            self, p=None, fields={**self.fields, **nothing, "ml_stacking_skipped_reason": why}
        )


class Predictor:
    """The models of one release under one set of flags.

    Where another asset has no bar (its market is late, renamed, delisted), its columns are NaN, as
    in training where it had none. Models that were not trained on them speak as always. Those that
    were speak with a note in `ml_error`, as long as their window holds a return of the asset; then
    they are silent: on so little they were never judged.

    Args:
        distrust: why the models' answers are not to be used (golden predictions fail); "" normally.
        limit: seconds a bar may take; after that the signal goes on without the models.
    """

    def __init__(
        self, scorer: Scorer, flags: Flags, tf: str, *, distrust: str = "", limit: float = 10.0
    ) -> None:
        self._scorer, self._flags, self._tf = scorer, flags, tf
        self._distrust = distrust
        self._limit = limit
        self._bench = _Bench()
        self._head = scorer.stacking.headline if scorer.stacking else scorer.best_head
        self._blocked = self._why_no_stacking()
        # On another asset than the trained one only the panel's models speak; then the guide's
        # fields are theirs, and the gate's rates still mean something.
        own = set(FAMILIES) <= set(scorer.families)
        self._named = FAMILIES if own else scorer.families

    @property
    def mode(self) -> str:
        """What stacking may do at all: live, shadow, or off."""
        if self._blocked:
            return "off"
        return "live" if self._flags.weight else "shadow"

    def predict(self, bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame]) -> Prediction:
        """Run the models on the window that ends with the last of `bars`."""
        began = time.perf_counter()
        try:
            scores = self._bench.run(lambda: self._score(bars, cross), self._limit)
        except TimeoutError as error:
            return self._nothing("timeout", str(error), time.perf_counter() - began)
        except Exception as error:  # features or the models' very plumbing
            message = f"{type(error).__name__}: {error}"
            return self._nothing("features", message, time.perf_counter() - began)
        return self._read(scores, time.perf_counter() - began)

    def refuse(self, why: str) -> Prediction:
        """The fields of a bar the models are not asked about."""
        return self._nothing("input", why, 0.0)

    def _score(self, bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame]) -> _Seen:
        table = features.latest(bars, cross, tf=self._tf, rows=SEQ)
        window = self._scorer.rows(table)
        away = {name: count for name in cross if (count := features.rows_without(table, name))}
        silent = self._using({name for name, count in away.items() if count >= SEQ})
        why = {family: f"no bar of {of} for {SEQ} bars and more" for family, of in silent.items()}
        scores = self._scorer.score(window, why)
        return _Seen(scores, _as_numbers(window[-1]), self._scorer.outside(table), away)

    def _using(self, symbols: Collection[str]) -> dict[str, str]:
        """The families that were trained on one of these assets, with the names of theirs."""
        of = {
            family: ", ".join(s for s in sorted(symbols) if self._scorer.uses(family, s))
            for family in self._scorer.families
        }
        return {family: names for family, names in of.items() if names}

    def _read(self, seen: _Seen, seconds: float) -> Prediction:
        scores, outside = seen.scores, seen.outside
        errors = {name: why[:_LONGEST] for name, why in scores.errors.items()}
        for family, names in self._using(seen.away).items():
            errors.setdefault(family, f"answered without a return of {names}")
        base = {
            family: by[self._head] for family, by in scores.base.items() if _usable(by, self._head)
        }
        for family in self._scorer.families:
            if family not in base:
                errors.setdefault(family, "no usable output")
        reason = self._blocked or scores.stacking_reason
        stacked = None if reason else scores.stacking.get(self._head)
        if stacked is None or not math.isfinite(stacked):
            stacked, reason = None, reason or "no usable output"
        mode = "off" if stacked is None else self.mode
        averaged = float(self._scorer.mean(base.values(), self._head)) if base else None
        p = averaged
        if stacked is not None and mode == "live":
            mean = math.nan if averaged is None else averaged
            p = weighted(stacked, mean, self._flags.weight)
            p = p if math.isfinite(p) else None  # no mean to weigh it against
        if self._distrust:
            errors["golden"] = self._distrust[:_LONGEST]
        fields: dict[str, Any] = {
            "ml_bull_prob": p,
            "ml_direction": _direction(p),
            **{f"ml_{_SHORT[kind_of(family)]}_prob": base.get(family) for family in self._named},
            "ml_avg_prob": averaged,
            "ml_stacking_prob": stacked,
            "ml_stacking_mode": mode,
            "ml_stacking_weight": self._flags.weight,
            "ml_stacking_skipped_reason": reason[:_LONGEST] or None,
            "ml_horizon": self._head,
            "ml_heads": _finite(
                {**scores.base, "stacking": scores.stacking, MEAN: self._means(scores.base)}
            ),
            "ml_features": seen.row,
            "ml_features_outside": outside.count if outside else None,
            "ml_feature_worst": outside.worst if outside else None,
        }
        if seen.away:
            fields["ml_cross_missing"] = sorted(seen.away)
        away = {name: tuple(self._using({name})) for name in seen.away}
        made = _prediction(fields, errors, seconds, None if self._distrust else p)
        return replace(made, away=away)

    def _means(self, base: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """By head, the mean of the models that have it: what decides while the flag is 0."""
        heads = in_order({head for by in base.values() for head in by})
        said = {h: [by[h] for by in base.values() if _usable(by, h)] for h in heads}
        return {h: float(self._scorer.mean(ps, h)) if ps else math.nan for h, ps in said.items()}

    def _nothing(self, name: str, why: str, seconds: float) -> Prediction:
        weight = self._flags.weight
        return no_models(
            name, why, seconds=seconds, reason=self._blocked, head=self._head, weight=weight
        )

    def _why_no_stacking(self) -> str:
        stacking = self._scorer.stacking
        if stacking is None:
            return self._scorer.errors.get("stacking") or "the release has no stacking model"
        least = self._flags.min_samples
        if not has_samples(stacking.facts, least):
            samples = stacking.facts.get("n_oof_samples")
            return f"n_oof_samples {samples} is below {MIN_SAMPLES} {least}"
        return ""


def no_models(
    name: str,
    why: str,
    *,
    seconds: float = 0.0,
    reason: str = "",
    head: str | None = None,
    weight: int | None = None,
) -> Prediction:
    """The fields of a bar on which no model was asked or answered. reason: of no stacking.

    weight: of stacking in this process; None where no release could be loaded.
    """
    skipped = reason or f"no base predictions: {why}"
    fields: dict[str, Any] = {
        "ml_bull_prob": None,
        "ml_direction": None,
        **{f"ml_{_SHORT[family]}_prob": None for family in FAMILIES},
        "ml_avg_prob": None,
        "ml_stacking_prob": None,
        "ml_stacking_mode": "off",
        "ml_stacking_weight": weight,
        "ml_stacking_skipped_reason": skipped[:_LONGEST],
        "ml_horizon": head,
        "ml_heads": {},
        "ml_features": None,
        "ml_features_outside": None,
        "ml_feature_worst": None,
    }
    return _prediction(fields, {name: why[:_LONGEST]}, seconds, None)


def _prediction(
    fields: dict[str, Any], errors: dict[str, str], seconds: float, p: float | None
) -> Prediction:
    fields["ml_latency_ms"] = round(seconds * 1000, 3)
    fields["ml_error"] = "; ".join(f"{k}: {v}" for k, v in errors.items()) or None
    return Prediction(p, fields, errors, seconds)


class _Bench:
    """One thread for the models, so that one that hangs holds up a bar and not the service.

    A daemon, unlike an executor's: one that hangs must not hold up the end of the process either.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], _Seen], Future[_Seen]]]
        self._asked = queue.SimpleQueue()
        self._latest: Future[_Seen] | None = None
        threading.Thread(target=self._work, name="models", daemon=True).start()

    def run(self, task: Callable[[], _Seen], limit: float) -> _Seen:
        if self._latest is not None and not self._latest.done():
            raise TimeoutError("the models have not answered for an earlier bar yet")
        answer = self._latest = Future()
        self._asked.put((task, answer))
        if not wait([answer], limit).done:
            raise TimeoutError(f"the models did not answer within {limit:g} s")
        return answer.result()

    def _work(self) -> None:
        while True:
            task, answer = self._asked.get()
            try:
                answer.set_result(task())
            except Exception as error:
                answer.set_exception(error)
            except BaseException as error:  # also SystemExit: this thread must not end
                answer.set_exception(RuntimeError(repr(error)))


def _as_numbers(row: Floats) -> list[float | None]:
    """A row of features as a line has it: by the names' order, null where a value is missing."""
    return [float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None for x in row.tolist()]


def _usable(by_head: Mapping[str, float], head: str) -> bool:
    return math.isfinite(by_head.get(head, math.nan))


def _direction(p: float | None) -> str | None:
    if p is None:
        return None
    return "bull" if p > _SURE else "bear" if p < _SURE else "neutral"


def _finite(by_family: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {
        family: {head: round(p, 6) if math.isfinite(p) else None for head, p in by.items()}
        for family, by in by_family.items()
    }
