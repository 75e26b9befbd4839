"""The names of models and of their heads; a head predicts a number of BARS ahead.

At 1h the guide's names hold, in files, documents and signals: 5h, 12h, 24h. At any other
timeframe a head is named by its bars: h5, h12, h24. Readers know both. Standard library
alone: the guard on production asks it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

HORIZONS = (5, 12, 24)  # bars
FAMILIES = ("lgbm", "lstm", "tft")  # the base models of one asset
PANEL = ("lgbm_panel", "lstm_panel", "tft_panel")  # the same kinds, trained on a panel of assets
BASES = (*FAMILIES, *PANEL)  # a run without a panel has the first three
MODELS = (*BASES, "stacking")
MEAN = "mean"  # of the base models' logits: what decides while the flag is 0
BASELINE, RIDGE = "volatility", "ridge"
BASELINES = (BASELINE, RIDGE)  # what a model must beat to have learnt anything
COMPARED = (*MODELS, MEAN, *BASELINES)  # in tables, as people expect them
NAMES = {
    "lgbm": "LightGBM",
    "lstm": "LSTM",
    "tft": "TFT",
    "lgbm_panel": "LightGBM, panel",
    "lstm_panel": "LSTM, panel",
    "tft_panel": "TFT, panel",
    "stacking": "Stacking",
    MEAN: "Mean of models",
    BASELINE: "Volatility only",
    RIDGE: "Ridge on returns",
}
LOGGED = {  # by what log lines call them
    "p": "Decision",
    "lgb": NAMES["lgbm"],
    "lstm": NAMES["lstm"],
    "tft": NAMES["tft"],
    "stacking": NAMES["stacking"],
}
GUIDE = "1h"  # the timeframe at which bars are hours
_NAME = re.compile(r"h([1-9][0-9]{0,3})|([1-9][0-9]{0,3})h")
_MINUTES = {"m": 1, "h": 60, "d": 1440, "w": 10080}


def headline_of(models: Iterable[str]) -> str:
    """The model the first numbers are of: what production decides by, as far as it was trained."""
    made = set(models)
    return next((name for name in ("stacking", "lstm", "tft", "lgbm") if name in made), "")


def kind_of(family: str) -> str:
    """Which kind of model a family is: lgbm, lstm or tft."""
    return family.removesuffix("_panel")


def head_name(bars: int, tf: str) -> str:
    """The name of the head that looks `bars` ahead at this timeframe: 5h at 1h, h5 at 15m."""
    return f"{bars}h" if tf == GUIDE else f"h{bars}"


def head_names(tf: str) -> tuple[str, ...]:
    """The names of all heads at this timeframe, the nearest first."""
    return tuple(head_name(bars, tf) for bars in HORIZONS)


def bars_ahead(name: str) -> int:
    """How many bars a head looks ahead, from either kind of name. ValueError for no head's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no head: it is h5, or 5h at 1h")
    return int(match[1] or match[2])


def is_head(name: object) -> bool:
    """Whether this names one of our heads, in either way."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and bars_ahead(name) in HORIZONS


def in_order(names: Iterable[str]) -> list[str]:
    """The heads among these names, the nearest first."""
    return sorted(filter(is_head, names), key=bars_ahead)


def span(bars: int, tf: str) -> str:
    """How long so many bars last: 5 bars of 15m are 1h15m."""
    minutes = bars * minutes_of(tf)
    parts = []
    for unit in ("d", "h", "m"):
        count, minutes = divmod(minutes, _MINUTES[unit])
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts)


def minutes_of(tf: str) -> int:
    """How long a bar of this timeframe is."""
    return int(tf[:-1]) * _MINUTES[tf[-1]]


def shown(name: str, tf: str) -> str:
    """A head for people: 5h at 1h, otherwise "5 bars (1h15m)"; what is no head's name, as it is."""
    if tf == GUIDE or not is_head(name):
        return name
    bars = bars_ahead(name)
    return f"{bars} bars ({span(bars, tf)})"


def explained(tf: str) -> str:
    """One sentence on what the names mean; "" at 1h, where they say it."""
    if tf == GUIDE:
        return ""
    spans = ", ".join(f"{head_name(bars, tf)} = {span(bars, tf)}" for bars in HORIZONS)
    said = f"Heads look 5, 12 and 24 bars of {tf} ahead, not hours: {spans}"
    weeks = block_weeks(minutes_of(tf))
    if weeks > 1:
        said += f". Intervals are from blocks of {weeks} weeks, which hold the longest head"
    return said


def block_weeks(step_minutes: float) -> int:
    """How many weeks the blocks last that intervals are drawn from, at bars of so many minutes.

    One, or as many as the longest head looks ahead: labels that overlap belong into one block.
    """
    return max(1, math.ceil(HORIZONS[-1] * step_minutes / _MINUTES["w"]))
