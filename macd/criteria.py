"""The criteria of a training: names, default thresholds, titles, and which of them are met.

The inventory sets thresholds and levels; the training measures and evaluates; the release judges. A
criterion that is not met is a result, not an error: the training succeeds either way. The
thresholds here are the team's guide. Standard library alone: a training host needs it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

CriterionName = Literal[
    "lstm_val_auc",
    "test_val_gap",
    "stacking_oof_auc",
    "n_oof",
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


@dataclass(frozen=True)
class Rule:
    """One criterion as the guide has it.

    wanted: how a value must stand to the threshold: "at least", "below", "at most" or "above"; ""
    for one that holds (1) or doesn't (0). level: where an inventory says nothing else.
    """

    title: str
    threshold: float
    wanted: str = ""
    level: Level = "block"


GUIDE: dict[CriterionName, Rule] = {
    "lstm_val_auc": Rule("best LSTM head, validation AUC", 0.57, "at least"),
    "test_val_gap": Rule("|test AUC - validation AUC| of that head", 0.02, "below"),
    "stacking_oof_auc": Rule("stacking, out-of-fold AUC", 0.58, "at least"),
    "n_oof": Rule("out-of-fold samples", 10_000, "at least"),
    "stacking_vs_mean": Rule("stacking minus the mean of the models, AUC, at best", 0, "at least"),
    "stacking_vs_best": Rule(
        "stacking minus the best base model, AUC, at best", 0, "at least", level="warn"
    ),
    "files_exist": Rule("all model files exist", 1),
    "onnx_test": Rule("ONNX models agree with torch", 1),
    "leak_audit": Rule("leak audit", 1),
    "flag_matters": Rule(
        "share of actions that the stacking flag changes", 0.01, "at least", "warn"
    ),
    "net_edge": Rule("net edge of a trade in bp, lower bound", 0, "above", "warn"),
}
_SIGNS = {"at least": ">=", "below": "<", "at most": "<=", "above": ">"}
_MET: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
    "above": operator.gt,
    "": operator.ge,
}


def rule_of(name: str) -> Rule:
    """The guide's rule of this criterion."""
    return GUIDE[cast(CriterionName, name)]


def is_met(name: str, value: float, threshold: float) -> bool:
    """Whether a measured value meets the criterion."""
    return _MET[rule_of(name).wanted](value, threshold)


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
        mark = "✓" if self.ok else ("✗" if self.level == "block" else "⚠")
        shown = "not measured"
        if self.value is not None:
            shown = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:.4g}"
        rest = f"  {self.detail}" if self.detail else ""
        missed = (
            "" if self.ok else ("  (blocks a release)" if self.level == "block" else "  (warns)")
        )
        return f"{mark} {self.title}: {shown}{missed}{rest}"


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
    values: Mapping[str, float | None],
    details: Mapping[str, str],
) -> list[Outcome]:
    """Each criterion against its measured value; what was not measured is not met."""
    outcomes = []
    for name, criterion in criteria.items():
        value = values.get(name)
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
                detail=details.get(name, ""),
            )
        )
    return outcomes


def _title(name: str, threshold: float) -> str:
    """The title with what is asked for."""
    rule = rule_of(name)
    if not rule.wanted:
        return rule.title
    asked = f"{threshold:,.0f}" if threshold >= 1000 else f"{threshold:g}"
    return f"{rule.title} {_SIGNS[rule.wanted]} {asked}"
