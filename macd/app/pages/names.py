"""What people call the things that files know by keys: features, checks, stages, parameters."""

from __future__ import annotations

import re

from macd.heads import NAMES, is_head

_WORDS = {
    **{"ret": "return", "vol": "volatility", "z": "z-score", "di": "DI", "hist": "histogram"},
    **{name: name.upper() for name in ("macd", "rsi", "kdj", "cci", "adx", "obv", "cmf", "atr")},
    **{"bb": "Bollinger", "sin": "sine", "cos": "cosine", "htf4": "4-bar candle"},
    **{"htf24": "24-bar candle", "onnx": "ONNX", "lr": "learning rate"},
}
_COUNTED = {
    "lag": "return {} bars ago",
    "path": "4 bars' return {} bars ago",
    "yesterday": "next {} bars, a day before",
    "span": "span {} bars ago",
    "ret": "return of {} bars",
    "ret_scaled": "scaled return of {} bars",
}
_CHECKS = {
    "provenance": "Only training rows were used",
    "no_look_ahead": "Features don't look ahead",
    "not_too_good": "No result is too good to be believed",
}
_STAGES = {**NAMES, "onnx": "ONNX export", "verify": "check of the bars", "audit": "leak audit"}


def feature(name: str) -> str:
    """A column of docs/features.md or an input of the meta-model: ret_24 is `return of 24 bars`."""
    other = re.fullmatch(r"x_([a-z0-9]+?)_(.+)", name)
    if other is not None:
        return f"{other[1].upper()}: {feature(other[2])}"
    family, _, head = name.rpartition("_")
    if family in NAMES and is_head(head):
        return f"{NAMES[family]} {head}"
    stem, _, number = name.rpartition("_")
    if stem in _COUNTED and number.isdigit():
        return _COUNTED[stem].format(number).replace(" 1 bars", " 1 bar")
    return re.sub(r" (\d+) (\d+)$", r", \1 to \2 bars", words(name))


def words(name: str) -> str:
    """Any other key: underscores are spaces, abbreviations are written as the field does."""
    return " ".join(_WORDS.get(part, part) for part in name.split("_"))


def check(name: str) -> str:
    """A check of the leak audit."""
    family = name.removeprefix("sign_flipped_")
    if family != name:
        return f"No signal on sign-randomised bars, {NAMES.get(family, family)}"
    return _CHECKS.get(name, words(name).capitalize())


def stage(name: str) -> str:
    return _STAGES.get(name, words(name))
