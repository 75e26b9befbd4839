"""May this run become a release? Findings from its record and the inventory's criteria. Pure.

The inventory of today decides thresholds and levels, not the copy the run was started with. Two
things no level softens: a failed leak audit, and results too good to be believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from macd.criteria import (
    MIN_SAMPLES,
    is_met,
    is_number,
    limits_text,
    mark,
    measured,
    rule_of,
    too_good,
    written,
)
from macd.host.jobs import figures
from macd.inventory import Criterion
from macd.inventory.own_app import Bound


@dataclass(frozen=True)
class Finding:
    """One criterion as it came out for a release; `note` says by how much.

    level: block or warn. value: None where not measured. threshold: None where there is none.
    symbol: whose it is, where a release is of several.
    """

    name: str
    title: str
    ok: bool
    level: str
    note: str
    value: float | None = None
    threshold: float | None = None
    symbol: str = ""

    def line(self) -> str:
        sign, whose = mark(ok=self.ok, level=self.level), f"{self.symbol}: " * bool(self.symbol)
        return f"{sign} {whose}{self.title}: {self.note}"

    def as_json(self) -> dict[str, Any]:
        """As manifests and `--json` have it; a release of one symbol names none here."""
        return {name: v for name, v in asdict(self).items() if name != "symbol" or v}


def judge(
    recorded: tuple[Mapping[str, Any], ...],
    criteria: Mapping[Any, Criterion],
    audit: Mapping[str, Any],
    metrics: Mapping[str, Any],
    stacking: Mapping[str, Any],
    *,
    samples: int = 0,
) -> list[Finding]:
    """All findings about a run, met ones included.

    Args:
        recorded: the run's criteria.json; it counts where its other documents tell nothing.
        audit: the run's leak_audit.json. metrics: its metrics.json.
        stacking: its meta-model's JSON, {} without one.
        samples: ML_STACKING_MIN_SAMPLES of the service that is to run it. With fewer out-of-fold
            samples it would skip stacking, so `n_oof` asks for as many.
    """
    values = {
        str(row["name"]): (row.get("value"), str(row.get("detail") or "")) for row in recorded
    }
    values |= measured(metrics, stacking)
    findings = []
    for name, criterion in criteria.items():
        if name == "leak_audit":
            continue
        asked = max(criterion.threshold, samples) if name == "n_oof" else criterion.threshold
        finding = _criterion(name, criterion.level, asked, *values.get(name, (None, "")))
        if asked != criterion.threshold:
            finding = replace(finding, note=f"{finding.note} ({MIN_SAMPLES} in service.env)")
        findings.append(finding)
    return [*findings, _audit(audit), _too_good(metrics["models"], audit.get("allowed") or {})]


def judge_own(metrics: Mapping[str, float | None], bounds: Mapping[str, Bound]) -> list[Finding]:
    """Findings about a run of an own application: its metrics against today's bounds."""
    measured = {name: (value, "not measured") for name, value in metrics.items()}
    asked = {name: bound.model_dump() for name, bound in bounds.items()}
    findings = []
    for row in figures.judged(asked, measured):
        finding = Finding(**row)
        if finding.value is not None and finding.threshold is not None:
            missed = abs(finding.value - finding.threshold)
            note = f"{finding.value:.6g}" + ("" if finding.ok else f", missed by {missed:.3g}")
            finding = replace(finding, note=note)
        findings.append(finding)
    return findings


def blocking(findings: list[Finding]) -> list[Finding]:
    """Those that forbid a release unless somebody accepts them with a reason."""
    return [finding for finding in findings if not finding.ok and finding.level == "block"]


def _criterion(
    name: str, level: str, threshold: float, value: float | None, detail: str
) -> Finding:
    rule = rule_of(name)
    if not is_number(value):
        return Finding(name, rule.title, False, level, "not measured", None, threshold)
    ok = is_met(name, value, threshold)
    if not rule.wanted:
        note = ("yes" if ok else "no") + (f" ({detail})" if detail else "")
        return Finding(name, rule.title, ok, level, note, value, threshold)
    missed = abs(value - threshold)
    by = ""
    if not ok:
        by = f", missed by {written(name, missed)}" if missed else ", narrowly missed: it is equal"
    where = f" ({detail})" if detail else ""
    said = f"{written(name, value)}{where}; {rule.wanted} {written(name, threshold)}"
    note = f"{said} is asked for{by}"
    return Finding(name, rule.title, ok, level, note, value, threshold)


def _audit(audit: Mapping[str, Any]) -> Finding:
    failed = [c for c in audit.get("checks", []) if not c.get("ok")]
    ok = audit.get("ok") is True and not failed
    note = f"passed, {len(audit.get('checks', []))} checks"
    if not ok:
        note = "; ".join(f"{c.get('name')}: {c.get('detail')}" for c in failed) or "there is none"
    return Finding("leak_audit", rule_of("leak_audit").title, ok, "block", note)


def _too_good(models: Mapping[str, Mapping[str, Any]], allowed: Mapping[str, float]) -> Finding:
    """Checked again here: the audit that came with the run may be older than its rule."""
    problems = too_good(models, allowed)
    note = "; ".join(problems) or limits_text(allowed)
    return Finding("too_good", "no result too good to be believed", not problems, "block", note)
