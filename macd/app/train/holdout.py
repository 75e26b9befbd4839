"""How often the holdout was looked at: a ledger that goes by symbol, timeframe and time.

Choosing among several evaluations on the same stretch of the market makes its figures too high,
whatever else differs: features, parameters, other assets, or one more bar at the end. So a look is
one model's predictions on a holdout that overlaps this one in time. The very same predictions on
the same bars are the same look. The ledger lies with the cache: runs that share a cache share it,
and a fresh cache remembers nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macd.app.train.cache import key_of
from macd.app.train.events import append_line, read_events


@dataclass(frozen=True)
class Span:
    """A stretch of one market. first, last: open times of bars, UTC milliseconds, both included."""

    symbol: str
    tf: str
    first: int
    last: int

    def overlaps(self, line: Mapping[str, Any]) -> bool:
        """Whether a line of the ledger is about a stretch that shares time with this one."""
        return (
            (line.get("symbol"), line.get("tf")) == (self.symbol, self.tf)
            and line["first"] <= self.last
            and line["last"] >= self.first
        )


def look(
    ledger: Path,
    span: Span,
    data_digest: str,
    predicted: Mapping[str, NDArray[np.float64]],
    now: float,
) -> int:
    """Record that these predictions are now evaluated on the holdout; how many looks that makes.

    Args:
        data_digest: of the bars. Lines of earlier versions name their holdout by it alone.
        predicted: each model's predictions of the holdout, the meta-model's too.
        now: seconds since the epoch, UTC.

    Returns:
        The largest number of different predictions that any one of these models has had evaluated
        on bars of this stretch, this time included.
    """
    lines = read_events(ledger)
    here = [line for line in lines if span.overlaps(line)]
    same_bars = {data_digest, *(line["data"] for line in here)}
    here_too = [line for line in lines if "symbol" not in line and line["data"] in same_bars]
    most = 0
    for model, p in predicted.items():
        line = {"data": data_digest, "model": model, "recipe": key_of({"p": p}), **asdict(span)}
        if not any(line.items() <= known.items() for known in here):
            ledger.parent.mkdir(parents=True, exist_ok=True)
            append_line(ledger, json.dumps({"t": now, **line}))
        seen = {known["recipe"] for known in (*here, *here_too) if known["model"] == model}
        most = max(most, len(seen | {line["recipe"]}))
    return most
