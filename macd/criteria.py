"""The criteria of a training, in one table: names, default thresholds, titles, which way they hold.

The inventory sets thresholds and levels; the training measures; the release judges. The thresholds
here are the team's guide. Standard library alone: a training host needs it.
"""

from __future__ import annotations

from typing import Literal, get_args

CriterionName = Literal[
    "lstm_val_auc",
    "test_val_gap",
    "stacking_oof_auc",
    "n_oof",
    "files_exist",
    "onnx_test",
    "leak_audit",
]
Level = Literal["block", "warn"]  # what missing a criterion does to a release
LEVELS: tuple[Level, ...] = get_args(Level)
GUIDE: dict[CriterionName, float] = {
    "lstm_val_auc": 0.57,  # best head, validation AUC, at least
    "test_val_gap": 0.02,  # |test - validation| of that head, below
    "stacking_oof_auc": 0.58,  # at least
    "n_oof": 10000,  # at least
    "files_exist": 1.0,  # the last three hold or don't
    "onnx_test": 1.0,
    "leak_audit": 1.0,
}
TITLES: dict[str, str] = {
    "lstm_val_auc": "best LSTM head, validation AUC",
    "test_val_gap": "|test AUC - validation AUC| of that head",
    "stacking_oof_auc": "stacking, out-of-fold AUC",
    "n_oof": "out-of-fold samples",
    "files_exist": "all model files exist",
    "onnx_test": "ONNX models agree with torch",
    "leak_audit": "leak audit",
}
YES_OR_NO = frozenset({"files_exist", "onnx_test", "leak_audit"})
_BELOW = frozenset({"test_val_gap"})


def below(name: str) -> bool:
    """True for a criterion met when strictly below its threshold; others: at or above."""
    return name in _BELOW


def is_met(name: str, value: float, threshold: float) -> bool:
    """Whether a measured value meets the criterion."""
    return value < threshold if below(name) else value >= threshold
