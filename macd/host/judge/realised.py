"""How good the predictions were, once their horizons have passed: AUC per horizon.

Labels h bars ahead overlap, so the interval counts every h-th bar only: Hanley and McNeil 1982 with
the numbers of ups and downs divided by h. So it is wide. Standard library alone and pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from macd.heads import GUIDE, HORIZONS, MODELS, PANEL, head_name

MOST = 5000  # newest bars that count
_Z = 1.959963984540054


class Prediction(NamedTuple):
    """A bar and its predictions: its open and length in (epoch) milliseconds, close and heads."""

    symbol: str
    tf: str
    bar: int
    step: int
    close: float
    heads: tuple[float | None, ...]

    def key(self, ahead: int = 0) -> tuple[str, str, int]:
        """The bar so many steps later of the same symbol and timeframe."""
        return self.symbol, self.tf, self.bar + ahead * self.step


def realised(bars: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Per family and horizon: bars whose label is known, AUC and its 95 % interval, or None.

    A label is the close h bars later, of the same symbol and timeframe, against the bar's own;
    equal closes have none.
    """
    by_bar = {prediction.key(): prediction for prediction in bars}
    rows = []
    tf = next((prediction.tf for prediction in by_bar.values()), GUIDE)
    for at, ahead in enumerate(HORIZONS):
        head = head_name(ahead, tf)
        ups = {}
        for prediction in by_bar.values():
            later = by_bar.get(prediction.key(ahead))
            if later is not None and later.close != prediction.close:
                ups[prediction.key()] = later.close > prediction.close
        for row, family in enumerate(MODELS):
            pairs = []
            for bar, up in ups.items():
                p = by_bar[bar].heads[row * len(HORIZONS) + at]
                if p is not None and math.isfinite(p):
                    pairs.append((p, up))
            if pairs or family not in PANEL:  # most releases have no models of a panel
                rows.append({"model": family, "head": head, **auc(pairs, ahead)})
    return rows


def auc(pairs: Sequence[tuple[float, bool]], overlap: int = 1) -> dict[str, Any]:
    """Area under the ROC curve of (prediction, outcome), ties counted half, with its interval."""
    ups = sum(up for _, up in pairs)
    downs = len(pairs) - ups
    counts: dict[str, Any] = {"n": len(pairs), "effective_n": len(pairs) / overlap}
    if not ups or not downs:
        return {**counts, "value": None, "low": None, "high": None}
    ordered = sorted(pairs)
    ranks = at = 0.0
    start = 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and ordered[end][0] == ordered[start][0]:
            end += 1
        at = (start + 1 + end) / 2
        ranks += at * sum(up for _, up in ordered[start:end])
        start = end
    value = (ranks - ups * (ups + 1) / 2) / (ups * downs)
    if value in (0.0, 1.0):  # where the formula below has no width, however few they are
        most = _Z * _Z / (counts["effective_n"] + _Z * _Z)
        return {**counts, "value": value, "low": value * (1 - most), "high": max(value, most)}
    few, many = max(1.0, ups / overlap), max(1.0, downs / overlap)
    q1, q2 = value / (2 - value), 2 * value * value / (1 + value)
    square = value * value
    variance = value - square + (few - 1) * (q1 - square) + (many - 1) * (q2 - square)
    half = _Z * math.sqrt(max(0.0, variance) / (few * many))
    return {**counts, "value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}
