"""Rows and columns out of JSON: bars as exchanges' interfaces, ccxt and freqtrade write them.

Understood are a list of lists, [[time, open, high, low, close, volume], ...], and a list of objects
that all have the same names. Which column is which is asked elsewhere, as for every other table.
"""

from __future__ import annotations

import json
from typing import Any


def looks_json(text: str) -> bool:
    """No table begins with a bracket."""
    return text.lstrip()[:1] in ("[", "{")


def rows_of(text: str) -> tuple[list[str], list[list[str | None]]]:
    """Names ([] where there are none) and rows, each cell as it is written.

    Raises ValueError with the reason for anything that is no list of bars.
    """
    try:
        document = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError:
        raise ValueError("it is nested far too deep") from None
    if isinstance(document, dict):
        raise ValueError(f"it is one object with the keys {', '.join(list(document)[:10])}")
    if not isinstance(document, list) or not document:
        raise ValueError("the list is empty" if document == [] else "it is one single value")
    if isinstance(document[0], dict):
        names = list(document[0])
        return names, [_cells(bar, at, names) for at, bar in enumerate(document, 1)]
    if not isinstance(document[0], list):
        raise ValueError("it is a list of numbers or words, not of bars")
    width = len(document[0])
    return [], [_cells(bar, at, width) for at, bar in enumerate(document, 1)]


def _cells(bar: Any, at: int, shape: list[str] | int) -> list[str | None]:
    if isinstance(shape, int):
        alike = isinstance(bar, list) and len(bar) == shape
        cells = bar
    else:
        alike = isinstance(bar, dict) and bar.keys() == set(shape)
        cells = [bar[name] for name in shape] if alike else []
    if not alike:
        raise ValueError(f"bar {at} has another form than the first one")
    if any(isinstance(cell, list | dict) for cell in cells):
        raise ValueError(f"bar {at} holds a list or an object where a number should be")
    return [cell if cell is None or isinstance(cell, str) else str(cell) for cell in cells]
