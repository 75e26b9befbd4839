"""The stacking model as plain numbers: read from JSON, computed without a library, same anywhere.

Used by the training, the health check and the service alike, so that what was measured is what is
served. Knows nothing of how it was fitted, reads no file, and never unpickles anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from macd.errors import MacdError

FORMAT = "macd-stacking/1"
_LARGEST = 1e9  # no fitted number comes near; larger ones could overflow a score


class StackingError(MacdError):
    """The JSON is not a stacking model this code can trust."""

    def __init__(self, why: str) -> None:
        super().__init__(
            "the stacking model can't be used",
            why=why,
            hint="make it again: python -m macd.app.train --mode stacking",
        )


@dataclass(frozen=True)
class Head:
    """One horizon's logistic regression. inputs, mean, scale and weights have the same order.

    An input named like a base is that base's probability in logit space, any other a context value.
    Standardised inputs are kept within +-limit, so that no outlier decides alone.
    slope calibrates the raw score (temperature scaling): p = sigmoid(slope * score).
    """

    inputs: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    slope: float
    limit: float

    def score(self, values: Iterable[float]) -> float:
        """The uncalibrated log-odds of "up" for the inputs' values."""
        columns = zip(values, self.mean, self.scale, self.weights, strict=True)
        clipped = ((max(-self.limit, min(self.limit, (v - m) / s)), w) for v, m, s, w in columns)
        return math.fsum(w * v for v, w in clipped) + self.intercept


def has_samples(facts: Mapping[str, Any], least: int) -> bool:
    """Whether a model was fitted on at least so many out-of-fold samples; 0 asks for none.

    `n_oof_samples` of the JSON is of its headline head, by which the service decides: the bars that
    moved more than min_move, each with predictions of models that had not been trained on it. The
    criterion n_oof is the same number.
    """
    samples = facts.get("n_oof_samples")
    return not least or (isinstance(samples, int) and samples >= least)


@dataclass(frozen=True)
class StackingModel:
    """Base probabilities and context in, one probability of "up" per horizon out.

    bases: names as `MODEL_HORIZON` ("lstm_5h"). context: feature names. clip: how far base
    probabilities are kept from 0 and 1. facts: everything else in the JSON (n_oof_samples ...).
    """

    heads: dict[str, Head]
    bases: tuple[str, ...]
    context: tuple[str, ...]
    clip: float
    headline: str
    facts: dict[str, Any]

    @classmethod
    def from_json(cls, data: bytes) -> StackingModel:
        """Read and check the JSON; raises StackingError naming what is wrong."""
        try:
            raw = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise StackingError(f"not valid JSON: {error}") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise StackingError(f"not a file of format {FORMAT}")
        bases, context = _names(raw, "bases"), _names(raw, "context")
        if not bases or set(bases) & set(context):
            raise StackingError("bases are missing, or named like context values")
        clip = _number(raw, "clip")
        if not 0.0 < clip < 0.5:
            raise StackingError(f"clip must lie between 0 and 0.5, it is {clip}")
        heads = raw.get("heads")
        if not isinstance(heads, dict) or not heads or raw.get("headline") not in heads:
            raise StackingError("heads are missing, or the headline is none of them")
        slopes = raw.get("mean_slope", {})
        if not isinstance(slopes, dict) or any(_number(slopes, each) <= 0.0 for each in slopes):
            raise StackingError("mean_slope must be numbers above zero, by head")
        return cls(
            heads={name: _head(name, head, {*bases, *context}) for name, head in heads.items()},
            bases=bases,
            context=context,
            clip=clip,
            headline=raw["headline"],
            facts={k: v for k, v in raw.items() if k not in ("heads", "bases", "context", "clip")},
        )

    def equal_weights(self, families: Sequence[str]) -> StackingModel:
        """The mean of these families' log-odds in this model's place, head by head."""
        count = len(families)
        heads = {
            name: Head(
                inputs=tuple(f"{family}_{name}" for family in families),
                mean=(0.0,) * count,
                scale=(1.0,) * count,
                weights=(1.0 / count,) * count,
                intercept=0.0,
                slope=self.mean_slopes.get(name, 1.0),
                limit=_LARGEST,
            )
            for name in self.heads
        }
        bases = tuple(name for head in heads.values() for name in head.inputs)
        return replace(self, heads=heads, bases=bases, context=())

    @property
    def mean_slopes(self) -> dict[str, float]:
        """By head, what calibrates the plain mean of the models; empty in older files."""
        return {head: float(value) for head, value in self.facts.get("mean_slope", {}).items()}

    def probability(
        self, base: Mapping[str, float], context: Mapping[str, float]
    ) -> dict[str, float | None]:
        """Probability of "up" per horizon; None where an input lacks (see `skipped_reason`)."""
        return {
            name: self._head_probability(head, base, context) for name, head in self.heads.items()
        }

    def skipped_reason(self, base: Mapping[str, float], context: Mapping[str, float]) -> str:
        """Which inputs lack or aren't usable, in words; "" when every horizon can be computed."""
        needed = dict.fromkeys(name for head in self.heads.values() for name in head.inputs)
        bad = [name for name in needed if self._input(name, base, context) is None]
        return f"no usable {', '.join(bad)}" if bad else ""

    def _head_probability(
        self, head: Head, base: Mapping[str, float], context: Mapping[str, float]
    ) -> float | None:
        values = [self._input(name, base, context) for name in head.inputs]
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values):
            return None
        return sigmoid(head.slope * head.score(numbers))

    def _input(
        self, name: str, base: Mapping[str, float], context: Mapping[str, float]
    ) -> float | None:
        """A base in logit space or a context value as it is; None when it is no usable number."""
        is_base = name in self.bases
        value: Any = (base if is_base else context).get(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        if not math.isfinite(number) or (is_base and not 0.0 <= number <= 1.0):
            return None
        return logit(number, self.clip) if is_base else number


def logit(p: float, clip: float) -> float:
    """Log-odds of p kept at least `clip` away from 0 and 1."""
    clipped = min(max(p, clip), 1.0 - clip)
    return math.log(clipped) - math.log1p(-clipped)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def _head(name: str, raw: Any, allowed: set[str]) -> Head:
    if not isinstance(raw, dict):
        raise StackingError(f"head {name} is not an object")
    inputs = _names(raw, "inputs")
    unknown = [each for each in inputs if each not in allowed]
    if not inputs or unknown:
        raise StackingError(f"head {name} has no inputs, or unknown ones: {unknown}")
    head = Head(
        inputs=inputs,
        mean=_numbers(raw, "mean", len(inputs)),
        scale=_numbers(raw, "scale", len(inputs)),
        weights=_numbers(raw, "meta_coefficients", len(inputs)),
        intercept=_number(raw, "intercept"),
        slope=_number(raw, "slope"),
        limit=_number(raw, "limit"),
    )
    if min(*head.scale, head.slope, head.limit) <= 0.0:
        raise StackingError(f"head {name} has a scale, slope or limit that is not positive")
    return head


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number a model may hold")


def _names(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    value = raw.get(key)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise StackingError(f"{key} must be a list of names")
    if len(set(value)) < len(value):
        raise StackingError(f"{key} names something twice")
    return tuple(value)


def _number(raw: dict[str, Any], key: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise StackingError(f"{key} must be a finite number, it is {str(value)[:40]}")
    return float(value)


def _numbers(raw: dict[str, Any], key: str, count: int) -> tuple[float, ...]:
    value = raw.get(key)
    if not isinstance(value, list) or len(value) != count:
        raise StackingError(f"{key} must be a list of {count} numbers")
    return tuple(_number({key: each}, key) for each in value)
