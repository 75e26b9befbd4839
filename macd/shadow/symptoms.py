"""What the signal lines of late say of the models: no output, too few samples, a constant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from macd.shadow.case import Case, Finding, short

_FEW_SAMPLES = re.compile(r"n_oof_samples .* is below ML_STACKING_MIN_SAMPLES")


def coverage(case: Case) -> Finding:
    """No bar, or too few, with a prediction and no error."""
    name = "ML coverage"
    if case.report is None:
        return _no_report(name, case)
    one = _criterion(case.report, "ml_coverage")
    if not one["trials"]:
        return Finding(name, None, "no bar of the live release in the window")
    told = f"{one['successes']} of {one['trials']} bars have a prediction and no error"
    if one["successes"] > one["threshold"] * one["trials"]:
        return Finding(name, True, told)
    errors = [
        f"{group['count']} × {group['example']}" for group in case.report["findings"]["errors"][:3]
    ]
    if errors:
        told += "; " + "; ".join(errors)
    remedy = "the error names the model: invoke health checks it here; invoke rollback goes back"
    return Finding(name, False, short(told), remedy)


def samples(case: Case) -> Finding:
    """Stacking skipped because it was fitted on fewer samples than wanted."""
    name = "stacking samples"
    if case.report is None:
        return _no_report(name, case)
    for group in case.report["findings"]["not_activated"]:
        if _FEW_SAMPLES.search(group["example"]):
            told = f"{group['count']} bars: {group['example']}"
            remedy = (
                "more bars (invoke data.fetch) and invoke train; or lower ML_STACKING_MIN_SAMPLES "
                "in service.env of the inventory, invoke provision, invoke deploy --restart"
            )
            return Finding(name, False, short(told), remedy)
    one = _criterion(case.report, "stacking_activation")
    if not one["trials"]:
        return Finding(name, None, "no covered bar in the window")
    told = f"stacking was active on {one['successes']} of {one['trials']} covered bars"
    return Finding(name, True, told)


def tft(case: Case) -> Finding:
    """The same answer whatever comes in, or none."""
    name = "TFT output"
    if case.report is None:
        return _no_report(name, case)
    model = case.report["findings"]["models"]["tft"]
    remedy = (
        "invoke health shows what the file says here; invoke train --mode tft, invoke release, "
        "invoke deploy; until then invoke disable-stacking, or invoke rollback"
    )
    if model["answers"] > 1 and model["min"] == model["max"]:
        told = f"{model['answers']} answers, every one of them {model['min']:g}"
        return Finding(name, False, told, remedy)
    silent = model["missing"] + model["not_finite"]
    if not model["answers"]:
        if silent:
            return Finding(name, False, f"no number on any of {silent} bars", remedy)
        return Finding(name, None, "it was never asked in the window")
    spread = f"{model['min']:.3g} to {model['max']:.3g} in {model['answers']} answers"
    if model["stuck"]:
        return Finding(name, False, f"{model['stuck']} answers are stuck; {spread}", remedy)
    return Finding(name, True, spread)


def _criterion(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(one for one in report["criteria"] if one["name"] == name)
    return found


def _no_report(name: str, case: Case) -> Finding:
    return Finding(name, None, case.no_report or "no logs were analysed")
