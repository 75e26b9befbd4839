"""Remember who looked at the holdout: a second look makes its figure a choice among several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from macd.train.cache import Entry, key_of
from macd.train.events import append_line, read_events


def open_holdout(ledger: Path, data_digest: str, finals: Mapping[str, Entry], now: float) -> int:
    """Note that these fits are now judged on the holdout of these bars.

    `finals`: the fit before the holdout by family. Returns the most recipes of one family that
    have been judged on these bars so far; above 1 the report has to say so. The ledger lies with
    the cache, so runs that share a cache share it.
    """
    written = read_events(ledger)
    most = 0
    for family, entry in finals.items():
        recipe = key_of({"p": entry.arrays["p"], "rows": entry.arrays["rows"]})
        seen = {
            line["recipe"]
            for line in written
            if (line["data"], line["family"]) == (data_digest, family)
        }
        if recipe not in seen:
            line = {"t": now, "data": data_digest, "family": family, "recipe": recipe}
            ledger.parent.mkdir(parents=True, exist_ok=True)
            append_line(ledger, json.dumps(line))
        most = max(most, len(seen | {recipe}))
    return most
