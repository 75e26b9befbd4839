"""How figures are written, on every page: places, signs, units, and intervals.

An AUC and a difference of AUCs have three places, basis points one, shares are in percent, counts
have their thousands apart. What is not known is a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

UNKNOWN = "–"
Form = Callable[[float | None], str]


def decimal(value: float | None, places: int, *, signed: bool = False) -> str:
    """`0.567`, or with its sign `+0.012` and `−0.012`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    rounded = round(value, places) + 0.0  # never "-0.000"
    return f"{rounded:{'+' if signed and rounded else ''},.{places}f}".replace("-", "−")


def auc(value: float | None) -> str:
    return decimal(value, 3)


def difference(value: float | None) -> str:
    """Of AUCs."""
    return decimal(value, 3, signed=True)


def basis_points(value: float | None) -> str:
    return decimal(value, 1, signed=True)


def share(value: float | None) -> str:
    """A fraction as a percentage: 0.4213 is `42.1 %`."""
    return UNKNOWN if value is None else _percent(decimal(100 * value, 1))


def gain(value: float | None) -> str:
    """A fraction won or lost as a percentage, with its sign."""
    return UNKNOWN if value is None else _percent(decimal(100 * value, 1, signed=True))


def count(value: float | None) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.0f}"


def counted(number: float, word: str) -> str:
    """`1 log`, `1,084 lines`, `2.5 days`."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {word}{'' if number == 1 else 's'}"


def interval(value: float | None, low: float | None, high: float | None, form: Form = auc) -> str:
    """`0.567 [0.544, 0.589]`; the value alone where there is no interval."""
    shown, first, last = (form(number) for number in (value, low, high))
    if shown == UNKNOWN:
        return "not known"
    return shown if UNKNOWN in (first, last) else f"{shown} [{first}, {last}]"


def typeset(words: str) -> str:
    """A file's sentence with the signs of print: `>= -0.5` is `≥ −0.5`, `-0.000` is `0.000`."""
    for plain, sign in ((">=", "≥"), ("<=", "≤")):
        words = words.replace(plain, sign)
    words = re.sub(r"(?<![\w\-])-(?=[0-9.])", "−", words)
    return re.sub(r"(?<!\w)[−+](0\.0+)(?![0-9])", r"\1", words)


def _percent(number: str) -> str:
    return number if number == UNKNOWN else f"{number} %"
