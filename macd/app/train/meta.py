"""The side file of every model: what it was fed, in which order, and how it was fitted."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from macd.app.market.features import schema_hash
from macd.app.market.labels import HORIZONS
from macd.app.train.fitdata import Facts
from macd.heads import head_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def meta_json(
    model: str, tf: str, params: DataclassInstance, features: tuple[str, ...], facts: Facts
) -> bytes:
    """Canonical JSON; `facts` may add best_head, seed, digests and the like."""
    known: dict[str, Any] = {
        "model": model,
        "tf": tf,
        "seq_len": 1 if model == "lgbm" else 48,
        "heads": list(head_names(tf)),
        "horizons": list(HORIZONS),
        "features": list(features),
        "schema_hash": schema_hash(features),
        "params": dataclasses.asdict(params),
    }
    text = json.dumps({**known, **facts}, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()
