"""What the signal lines of late say of the models: no output, too few samples, a constant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from macd.gate.case import Case, Finding, short

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
                f"in service.env of the inventory, invoke provision, {case.restart}"
            )
            return Finding(name, False, short(told), remedy)
    one = _criterion(case.report, "stacking_activation")
    if not one["trials"]:
        return Finding(name, None, "no covered bar in the window")
    told = f"stacking was active on {one['successes']} of {one['trials']} covered bars"
    return Finding(name, True, told)


@dataclass(frozen=True)
class _Model:
    """name: in the analysis. mode: of `invoke train`, which makes it again. least: so many equal
    answers are a constant; a tree, unlike a net, gives neighbouring bars the same leaf."""

    title: str
    name: str
    mode: str
    least: int = 2


_MODELS = (
    _Model("TFT output", "tft", "tft"),
    _Model("LSTM output", "lstm", "lstm"),
    _Model("LightGBM output", "lgb", "lgbm", least=20),
)


def outputs(case: Case) -> Iterator[Finding]:
    """Of each model: the same answer whatever comes in, or none."""
    for model in _MODELS:
        yield _no_report(model.title, case) if case.report is None else _output(model, case.report)


def _output(model: _Model, report: Mapping[str, Any]) -> Finding:
    name, said = model.title, report["findings"]["models"][model.name]
    remedy = (
        f"invoke health shows what the file says here; invoke train --mode {model.mode}, "
        "invoke release, invoke deploy; until then invoke disable-stacking, or invoke rollback"
    )
    if said["answers"] >= model.least and said["min"] == said["max"]:
        told = f"{said['answers']} answers, every one of them {said['min']:g}"
        return Finding(name, False, told, remedy)
    silent = said["missing"] + said["not_finite"]
    if not said["answers"]:
        if silent:
            return Finding(name, False, f"no number on any of {silent} bars", remedy)
        return Finding(name, None, "it was never asked in the window")
    spread = f"{said['min']:.3g} to {said['max']:.3g} in {said['answers']} answers"
    if said["stuck"]:
        return Finding(name, False, f"{said['stuck']} answers are stuck; {spread}", remedy)
    return Finding(name, True, spread)


def _criterion(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(one for one in report["criteria"] if one["name"] == name)
    return found


def _no_report(name: str, case: Case) -> Finding:
    return Finding(name, None, case.no_report or "no logs were analysed")
