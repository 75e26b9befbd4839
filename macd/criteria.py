"""The criteria of a training: names, thresholds, how each is measured, and which of them are met.

The inventory sets thresholds and levels; the training measures and evaluates; the release measures
again from the run's own documents, so that a run of an earlier version is judged by the same rules.
A criterion that is not met is a result, not an error: the training succeeds either way. The
thresholds here are the team's guide. Standard library alone: a training host needs it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeGuard, cast, get_args

from macd.heads import HORIZONS, MEAN, NAMES, bars_ahead, block_weeks, in_order, minutes_of, shown

CriterionName = Literal[
    "lstm_val_auc",
    "test_val_gap",
    "stacking_oof_auc",
    "n_oof",
    "holdout_looks",
    "stacking_vs_mean",
    "stacking_vs_best",
    "files_exist",
    "onnx_test",
    "leak_audit",
    "flag_matters",
    "net_edge",
]
Level = Literal["block", "warn"]  # what missing a criterion does to a release
LEVELS: tuple[Level, ...] = get_args(Level)
Measured = tuple[float | None, str]  # a criterion's value, None where unknown, and details of it
MIN_SAMPLES = "ML_STACKING_MIN_SAMPLES"  # of a training and of a service, see `n_oof_samples`


@dataclass(frozen=True)
class Rule:
    """One criterion as the guide has it.

    wanted: how a value must stand to the threshold: "at least", "below", "at most" or "above"; ""
    for one that holds (1) or doesn't (0). level: where an inventory says nothing else. share: a
    fraction, which people read in percent.
    """

    title: str
    threshold: float
    wanted: str = ""
    level: Level = "block"
    share: bool = False


GUIDE: dict[CriterionName, Rule] = {
    "lstm_val_auc": Rule("best LSTM head, validation AUC", 0.57, "at least"),
    "test_val_gap": Rule("LSTM's drop from validation to test AUC, lower limit", 0, "at most"),
    "stacking_oof_auc": Rule("stacking, out-of-fold AUC", 0.58, "at least"),
    "n_oof": Rule("out-of-fold samples of stacking", 10_000, "at least"),
    "holdout_looks": Rule("looks at the holdout", 1, "at most", "warn"),
    "stacking_vs_mean": Rule(
        "AUC of stacking minus the mean of the models, upper bound", 0, "at least"
    ),
    "stacking_vs_best": Rule(
        "AUC of stacking minus the best base model, upper bound", 0, "at least", level="warn"
    ),
    "files_exist": Rule("all model files exist", 1),
    "onnx_test": Rule("ONNX models agree with torch", 1),
    "leak_audit": Rule("leak audit", 1),
    "flag_matters": Rule(
        "share of actions that the stacking flag changes", 0.01, "at least", "warn", share=True
    ),
    "net_edge": Rule("net edge of a trade in bp, lower bound", 0, "above", "warn"),
}
PARTS = ("val", "val_all", "test", "test_all")  # of a head's figures
_SIGNS = {"at least": ">=", "below": "<", "at most": "<=", "above": ">"}
_MET: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
    "above": operator.gt,
    "": operator.ge,
}


_ONE_SIDED, _TWO_SIDED = 1.645, 1.960  # standard errors: 95 % on one side, and on both


def rule_of(name: str) -> Rule:
    """The guide's rule of this criterion."""
    return GUIDE[cast(CriterionName, name)]


def written(name: str, value: float) -> str:
    """A measured value, or a threshold, of the criterion as people read it."""
    if rule_of(name).share:
        return f"{100 * value:.4g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def mark(*, ok: bool, level: str | None) -> str:
    """The sign before a criterion: met, missed, or missed and only a warning."""
    return "✓" if ok else ("⚠" if level == "warn" else "✗")


def is_met(name: str, value: float, threshold: float) -> bool:
    """Whether a measured value meets the criterion."""
    return _MET[rule_of(name).wanted](value, threshold)


def measured(metrics: Mapping[str, Any], stacking: Mapping[str, Any]) -> dict[str, Measured]:
    """What a run's own documents say of the criteria: value and details by name.

    A criterion that they don't mention is left out. metrics: metrics.json. stacking: the JSON of
    the meta-model, {} where none was trained.
    """
    values: dict[str, Measured] = {}
    models, best = metrics.get("models", {}), metrics.get("best_head", {})
    tf = str(metrics.get("tf", ""))
    if "lstm" in models and "lstm" in best:
        value = models["lstm"][best["lstm"]]["val"]["value"]
        values["lstm_val_auc"] = value, f"at {shown(best['lstm'], tf)}"
        values["test_val_gap"] = drop_of(metrics, "lstm")
    if "stacking" in models and "stacking" in best:
        value = models["stacking"][best["stacking"]]["val"]["value"]
        values["stacking_oof_auc"] = value, f"at {shown(best['stacking'], tf)}"
        if "n_oof_samples" in stacking:
            move, head = 100 * metrics["min_move"], shown(stacking["headline"], tf)
            what = f"moves above {move:g} % at {head}, predicted out of fold, that it was fitted on"
            values["n_oof"] = stacking["n_oof_samples"], what
        if compared := metrics.get("comparison", {}).get(best["stacking"]):  # not in older runs
            values |= _stacking_beside(compared["val"], shown(best["stacking"], tf))
    if looks := looks_at(metrics.get("holdout", {})):
        values["holdout_looks"] = looks, looks_meaning(looks)
    return values


def _stacking_beside(part: Mapping[str, Any], head: str) -> dict[str, Measured]:
    """Upper interval ends of what stacking has over others on validation moves, at its best head.

    part: of that head in metrics["comparison"] (macd/app/train/comparison.py).
    """
    values: dict[str, Measured] = {}
    for name, made in part["differences"].items():
        if name in ("stacking_minus_mean", "stacking_minus_best"):
            other, bars = NAMES[made.get("best", MEAN)], f"{part['n']:,} bars"
            what = f"against {other} at {head}: {difference_text(made)} on {bars}"
            values[name.replace("minus", "vs")] = made["high"], what
    return values


def difference_text(made: Mapping[str, Any]) -> str:
    """A difference of AUCs for people: +0.005 [-0.003, +0.013]."""
    if made["value"] is None:
        return "not known"
    ends = "" if made["low"] is None else f" [{made['low']:+.3f}, {made['high']:+.3f}]"
    return f"{made['value']:+.3f}{ends}"


def looks_at(holdout: Mapping[str, Any]) -> int:
    """Looks at a run's holdout, by its metrics.json; 0 where it doesn't say.

    Earlier versions called them openings, and counted those of exactly the same bars.
    """
    return int(holdout.get("looks") or holdout.get("openings") or 0)


def looks_meaning(looks: int) -> str:
    """What so many looks at a holdout mean for its figures."""
    if looks <= 1:
        return "no other configuration was evaluated on these bars, as far as the ledger goes back"
    return (
        f"{looks} configurations of a model were evaluated on these bars or some of them, so its "
        "figures are a choice among several, and too high"
    )


def drop_of(metrics: Mapping[str, Any], model: str) -> Measured:
    """`sure_drop` of a model's best head."""
    val, test = (metrics["models"][model][metrics["best_head"][model]][p] for p in ("val", "test"))
    luck = metrics.get("best_head_luck", {}).get(model, 0.0)
    return sure_drop(val, test, luck=luck, blocks=_blocks(metrics))


def sure_drop(
    val: Mapping[str, Any], test: Mapping[str, Any], *, luck: float = 0.0, blocks: float = math.inf
) -> Measured:
    """How far the test AUC lies below validation's at the least, with 95 % confidence; details.

    The one-sided lower limit of the difference of two independent figures, from their own 95 %
    intervals (MOVER: Zou and Donner 2008, "Construction of confidence limits about effect
    measures", Statistics in Medicine 27:1693). Of 100 models without a drop 95 have it at or
    below zero, and so has one whose test is better. None where a part has no interval.

    Args:
        val, test: figures with value, low and high.
        luck: by how much choosing the best head flatters its validation figure.
        blocks: how many (weeks, mostly) the test's interval was drawn from. From few of them it is
            too narrow.
    """
    figures = [part.get(name) for part in (val, test) for name in ("value", "low", "high")]
    if not all(is_number(figure) for figure in figures):
        return None, "no interval"
    drop = val["value"] - luck - test["value"]
    below = (val["value"] - val["low"]) * _ONE_SIDED / _TWO_SIDED
    above = (test["high"] - test["value"]) * _few(blocks) / _TWO_SIDED
    chosen = f" less {luck:.3f} for choosing the head by it" if luck else ""
    detail = f"validation {val['value']:.3f}{chosen}, test {test['value']:.3f}"
    return drop - math.hypot(below, above), detail


def _few(blocks: float) -> float:
    """Standard errors for 95 % on one side when the error itself comes from so many blocks.

    Student's t (expanded as in Abramowitz and Stegun 1964, 26.7.5), times the bias of a standard
    error that is resampled.
    """
    freedom, z = max(blocks, 2.0) - 1, _ONE_SIDED
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t * math.sqrt(1 + 1 / freedom)


def _blocks(metrics: Mapping[str, Any]) -> float:
    """How many blocks the intervals of a run's holdout were drawn from."""
    holdout = metrics.get("holdout", {})
    if "from" not in holdout:
        return math.inf
    first, last = (datetime.fromisoformat(holdout[end]) for end in ("from", "to"))
    return (last - first) / timedelta(weeks=block_weeks(minutes_of(str(metrics["tf"]))))


def too_good(
    models: Mapping[str, Mapping[str, Mapping[str, Any]]], allowed: Mapping[str, Any]
) -> list[str]:
    """Results that nobody should believe, in words; the one rule of leak audit and release.

    A result is too good when the lower end of its interval lies above `allowed`, or, where it has
    no interval, the value itself. Every part of every model is looked at. A head without a limit is
    not believed, and without limits nothing is.

    Args:
        models: figures by model, head and part. allowed: AUC by head, of the run's leak audit.
    """
    limited = in_order(name for name in allowed if is_number(allowed[name]))
    if [bars_ahead(head) for head in limited] != list(HORIZONS):
        return ["the run names no limits to believe"]
    problems = []
    for model, heads in models.items():
        for head, figures in heads.items():
            if head not in limited:
                problems.append(f"{model} {head}: an unknown head, so no limit holds for it")
                continue
            highest, what = max(_believed(figures.get(part) or {}) for part in PARTS)
            if highest > allowed[head]:
                by = f"above {allowed[head]:.3f} by {highest - allowed[head]:.3f}"
                problems.append(f"{model} {head}: {what} {highest:.3f}, {by}")
    return problems


def limits_text(allowed: Mapping[str, Any]) -> str:
    """What nothing lies above, for people."""
    limits = ", ".join(f"{head} {allowed[head]:.3f}" for head in in_order(allowed))
    return f"no interval lies above {limits}"


def _believed(figures: Mapping[str, Any]) -> tuple[float, str]:
    """What is held to the limit: where the interval begins, or the value where there is none."""
    low, value = figures.get("low"), figures.get("value")
    if is_number(low):
        return float(low), "interval from"
    return (float(value), "without an interval") if is_number(value) else (0.0, "")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a document's value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Criterion:
    """A threshold and what missing it means: `block` stops a release, `warn` is only shown."""

    threshold: float
    level: str = "block"


@dataclass(frozen=True)
class Outcome:
    """One criterion as it came out; `value` is None where it could not be measured."""

    name: str
    title: str
    value: float | None
    threshold: float
    ok: bool
    level: str
    detail: str = ""

    def line(self) -> str:
        sign = mark(ok=self.ok, level=self.level)
        shown = "not measured"
        if self.value is not None:
            shown = written(self.name, self.value)
        rest = f"  {self.detail}" if self.detail else ""
        missed = (
            "" if self.ok else ("  (blocks a release)" if self.level == "block" else "  (warns)")
        )
        return f"{sign} {self.title}: {shown}{missed}{rest}"


DEFAULTS: dict[str, Criterion] = {
    name: Criterion(float(rule.threshold), rule.level) for name, rule in GUIDE.items()
}


def parse_criteria(raw: Any) -> dict[str, Criterion]:
    """Criteria from plain values, on top of the defaults; a bare number keeps the level.

    Raises ValueError naming every unknown name and wrong value.
    """
    if not isinstance(raw, Mapping):
        raise ValueError('must look like {"lstm_val_auc": {"threshold": 0.57, "level": "warn"}}')
    made, problems = dict(DEFAULTS), []
    for name, value in raw.items():
        if name not in DEFAULTS:
            problems.append(f"{name} is unknown (known: {', '.join(DEFAULTS)})")
            continue
        given = value if isinstance(value, Mapping) else {"threshold": value}
        threshold = given.get("threshold", DEFAULTS[name].threshold)
        level = given.get("level", DEFAULTS[name].level)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            problems.append(f"{name}: threshold {threshold!r} is not a number")
        elif level not in LEVELS:
            problems.append(f"{name}: level {level!r} is none of {', '.join(LEVELS)}")
        elif set(given) - {"threshold", "level"}:
            problems.append(f"{name}: only threshold and level, not {', '.join(given)}")
        else:
            made[name] = Criterion(float(threshold), str(level))
    if problems:
        raise ValueError("; ".join(problems))
    return made


def evaluate(
    criteria: Mapping[str, Criterion],
    values: Mapping[str, Measured],
) -> list[Outcome]:
    """Each criterion against its measured value; what was not measured is not met.

    values: value and details by name, as `measured` gives them.
    """
    outcomes = []
    for name, criterion in criteria.items():
        value, detail = values.get(name, (None, ""))
        if value is not None and not math.isfinite(value):
            value = None
        met = value is not None and is_met(name, float(value), criterion.threshold)
        outcomes.append(
            Outcome(
                name=name,
                title=_title(name, criterion.threshold),
                value=None if value is None else float(value),
                threshold=criterion.threshold,
                ok=met,
                level=criterion.level,
                detail=detail,
            )
        )
    return outcomes


def _title(name: str, threshold: float) -> str:
    """The title with what is asked for."""
    rule = rule_of(name)
    if not rule.wanted:
        return rule.title
    return f"{rule.title} {_SIGNS[rule.wanted]} {written(name, threshold)}"
