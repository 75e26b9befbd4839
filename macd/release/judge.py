"""May this run become a release? Findings from its record and the inventory's criteria. Pure.

The inventory of today decides thresholds and levels, not the copy the run was started with. Two
things no level softens: a failed leak audit, and results too good to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from macd.criteria import is_met, rule_of
from macd.heads import HORIZONS, bars_ahead, in_order
from macd.inventory import Criterion

_PARTS = ("val", "val_all", "test", "test_all")


@dataclass(frozen=True)
class Finding:
    """One criterion as it came out for a release; `note` says by how much.

    level: block or warn. value: None where not measured. threshold: None where there is none.
    """

    name: str
    title: str
    ok: bool
    level: str
    note: str
    value: float | None = None
    threshold: float | None = None

    def line(self) -> str:
        mark = "✓" if self.ok else ("✗" if self.level == "block" else "⚠")
        return f"{mark} {self.title}: {self.note}"


def judge(
    measured: tuple[Mapping[str, Any], ...],
    criteria: Mapping[Any, Criterion],
    audit: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
) -> list[Finding]:
    """All findings about a run, met ones included.

    Args:
        measured: the run's criteria.json. models: figures by model and head from metrics.json.
        audit: the run's leak_audit.json.
    """
    by_name = {str(outcome["name"]): outcome for outcome in measured}
    findings = [
        _criterion(name, criterion, by_name.get(name, {}))
        for name, criterion in criteria.items()
        if name != "leak_audit"
    ]
    return [*findings, _audit(audit), _too_good(models, audit.get("allowed") or {})]


def blocking(findings: list[Finding]) -> list[Finding]:
    """Those that forbid a release unless somebody accepts them with a reason."""
    return [finding for finding in findings if not finding.ok and finding.level == "block"]


def _criterion(name: str, criterion: Criterion, measured: Mapping[str, Any]) -> Finding:
    value, threshold = measured.get("value"), criterion.threshold
    rule, detail = rule_of(name), str(measured.get("detail") or "")
    title = rule.title
    if not _number(value):
        return Finding(name, title, False, criterion.level, "not measured", None, threshold)
    ok = is_met(name, value, threshold)
    if not rule.wanted:
        note = ("yes" if ok else "no") + (f" ({detail})" if detail else "")
        return Finding(name, title, ok, criterion.level, note, value, threshold)
    wanted = f"{rule.wanted} {_shown(threshold)} is asked for"
    missed = abs(value - threshold)
    by = ""
    if not ok:
        by = f", missed by {_shown(missed)}" if missed else ", narrowly missed: it is equal"
    where = f" {detail}" if detail else ""
    note = f"{_shown(value)}{where}; {wanted}{by}"
    return Finding(name, title, ok, criterion.level, note, value, threshold)


def _audit(audit: Mapping[str, Any]) -> Finding:
    failed = [c for c in audit.get("checks", []) if not c.get("ok")]
    ok = audit.get("ok") is True and not failed
    note = f"passed, {len(audit.get('checks', []))} checks"
    if not ok:
        note = "; ".join(f"{c.get('name')}: {c.get('detail')}" for c in failed) or "there is none"
    return Finding("leak_audit", rule_of("leak_audit").title, ok, "block", note)


def _too_good(models: Mapping[str, Mapping[str, Any]], allowed: Mapping[str, float]) -> Finding:
    """Checked again here: the audit that came with the run may be forged or older."""
    title = "no result too good to be believed"
    limited = in_order(name for name in allowed if _number(allowed[name]))
    if [bars_ahead(head) for head in limited] != list(HORIZONS):
        return Finding("too_good", title, False, "block", "the run names no limits to believe")
    problems = []
    for model, heads in models.items():
        for head, figures in heads.items():
            if head not in limited:
                problems.append(f"{model} {head}: an unknown head, so no limit holds for it")
                continue
            highest, what = max(
                (_believed(figures.get(part) or {}) for part in _PARTS), default=(0.0, "")
            )
            if highest > allowed[head]:
                by = f"above {allowed[head]:.3f} by {highest - allowed[head]:.3f}"
                problems.append(f"{model} {head}: {what} {highest:.3f}, {by}")
    limits = ", ".join(f"{head} {allowed[head]:.3f}" for head in limited)
    note = "; ".join(problems) or f"no interval lies above {limits}"
    return Finding("too_good", title, not problems, "block", note)


def _believed(figures: Mapping[str, Any]) -> tuple[float, str]:
    """What is held to the limit: where the interval begins, or the value where there is none."""
    low, value = figures.get("low"), figures.get("value")
    if _number(low):
        return float(low), "interval from"
    return (float(value), "without an interval") if _number(value) else (0.0, "")


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
