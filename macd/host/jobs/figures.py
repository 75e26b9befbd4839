"""Figures of an own application's training: found in what it wrote, held against criteria. Pure.

A figure that is not there, or no finite number, is None with a reason. It never meets a criterion.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

Figure = tuple[float | None, str]  # the number, or None and why
_INDEX = re.compile(r"(0|[1-9][0-9]{0,8})\Z")


def extract(where: str, text: str) -> Figure:
    """The number that `where` names in the text of a file.

    where: a JSON pointer (RFC 6901; it begins with /), or a regular expression with one group, of
    whose matches the last counts.
    """
    return _pointed(where, text) if where.startswith("/") else _matched(where, text)


def pointed(document: Any, pointer: str) -> Any:
    """What a JSON pointer names in a document. Raises LookupError naming what is not there."""
    here = document
    for part in pointer.split("/")[1:]:
        if re.search("~(?![01])", part):
            raise LookupError(f"{pointer} is no JSON pointer: ~ is written ~0, / is written ~1")
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict) and name in here:
            here = here[name]
        elif isinstance(here, list) and _INDEX.match(name) and int(name) < len(here):
            here = here[int(name)]
        else:
            raise LookupError(f"it has no {pointer}")
    return here


def _pointed(pointer: str, text: str) -> Figure:
    try:
        value = pointed(json.loads(text), pointer)
    except LookupError as error:
        return None, str(error.args[0])
    except (ValueError, RecursionError) as error:
        return None, f"it is no JSON: {error}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"{pointer} is no number"
    return _finite(value, pointer)


def _matched(pattern: str, text: str) -> Figure:
    matches = deque(re.finditer(pattern, text, re.MULTILINE), maxlen=1)
    if not matches:
        return None, f"no line of it matches {pattern}"
    said = matches[0].group(1) or ""
    try:
        return _finite(float(said), said)
    except ValueError:
        return None, f"{said[:40]!r} is no number"


def _finite(value: float, named: str) -> Figure:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return (number, "") if math.isfinite(number) else (None, f"{named} is not finite")


def judged(
    criteria: Mapping[str, Mapping[str, Any]], figures: Mapping[str, Figure]
) -> list[dict[str, Any]]:
    """Each criterion against its figure, as findings for criteria.json.

    criteria: by metric, min and max (None: no bound) and level. `threshold` of a finding is the
    bound that was missed, or the first one.
    """
    findings = []
    for name, bound in criteria.items():
        value, why = figures.get(name, (None, ""))
        low, high = bound.get("min"), bound.get("max")
        above = value is not None and high is not None and value > high
        below = value is not None and low is not None and value < low
        asked = [f"{sign} {_shown(x)}" for sign, x in ((">=", low), ("<=", high)) if x is not None]
        findings.append(
            {
                "name": name,
                "title": f"{name} {' and '.join(asked)}",
                "ok": value is not None and not above and not below,
                "level": bound.get("level", "block"),
                "note": why,
                "value": value,
                "threshold": high if above or low is None else low,
            }
        )
    return findings


def lines(figures: Mapping[str, Figure], findings: list[dict[str, Any]]) -> list[str]:
    """Figures and criteria for people."""
    said = []
    for name, (value, why) in figures.items():
        said.append(f"{name}: {'not measured, ' + why if value is None else _shown(value)}")
    said += ["", "Criteria"] if findings else []
    for finding in findings:
        block = finding["level"] == "block"
        measured = "not measured" if finding["value"] is None else _shown(finding["value"])
        missed = "" if finding["ok"] else f"  ({'blocks a release' if block else 'warns'})"
        mark = "✓" if finding["ok"] else ("✗" if block else "⚠")
        said.append(f"{mark} {finding['title']}: {measured}{missed}")
    return said


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
