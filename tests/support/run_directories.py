"""Directories of finished trainings without a training: tables of known skill, written as trainings
write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from macd.app.market.bars import step_ms
from macd.app.train import oof, results
from macd.heads import head_names
from macd.run_directory import FILES

START = 1_500_000_000_000 // 3_600_000 * 3_600_000
MODELS = ("lgbm", "lstm", "tft", "stacking")


def write_run(
    directory: Path,
    *,
    skill: Mapping[str, float] | float = 0.5,
    bars: tuple[int, int] = (0, 2_000),
    tf: str = "1h",
    symbol: str = "BTCUSD",
    noise: int = 1,
    settings: Mapping[str, Any] | None = None,
    metas: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    heads: tuple[str, ...] | None = None,
) -> Path:
    """A run of 4 folds over bars[0] .. bars[1] of one and the same market, holdout the last fifth.

    skill: how much of the truth the models know, 0 nothing. noise: seed of what they get wrong.
    """
    first, end = bars
    step, names = step_ms(tf), heads or head_names(tf)
    rows = np.arange(first, end, dtype=np.int64)
    market = np.random.default_rng(0).normal(size=(10_000, 3))
    returns = 0.01 * market + 0.01 * np.random.default_rng(1).normal(size=(10_000, 3))
    at = START + rows * step
    tested = np.arange(len(rows) * 2 // 10, len(rows))
    held = len(rows) * 8 // 10
    folds = np.array_split(tested[tested < held], 4)
    fold = np.full(len(rows), oof.HOLDOUT, dtype=np.int32)
    for index, part in enumerate(folds):
        fold[part] = index
    frame = pl.DataFrame(
        {
            "row": rows[tested],
            "bar_time": pl.Series(at[tested]).cast(pl.Datetime("ms", "UTC")),
            "fold": fold[tested],
            **{f"y_{h}": (returns[rows, k] > 0)[tested].astype(float) for k, h in enumerate(names)},
            **{f"ret_{h}": returns[rows, k][tested] for k, h in enumerate(names)},
        }
    )
    for number, name in enumerate(MODELS):
        share = skill if isinstance(skill, float) else skill.get(name, 0.5)
        wrong = np.random.default_rng([99, noise, number]).normal(size=(10_000, 3))
        logits = (share * market + 0.4 * wrong)[rows][tested]
        p = 1 / (1 + np.exp(-logits))
        if name == "stacking":
            p[fold[tested] == 0] = np.nan
        frame = oof.with_model(frame, name, p)

    def when(row: int) -> str:
        return datetime.fromtimestamp(int(at[row]) / 1000, UTC).isoformat()

    document: dict[str, Any] = {
        "symbol": symbol,
        "tf": tf,
        "profile": "demo",
        "seed": 7,
        "min_move": 0.003,
        "bars": {"rows": len(rows), "first": when(0), "last": when(-1)},
        "data_digest": f"of {first} to {end}",
        "code_digest": "abc",
        "libraries": {"numpy": "2"},
        "devices": ["cpu"],
        "folds": [
            {
                "fold": index,
                "train": [when(0), when(int(part[0]) - 49)],
                "test": [when(int(part[0])), when(int(part[-1]))],
            }
            for index, part in enumerate(folds)
        ],
        "holdout": {"from": when(held), "to": when(-1), "looks": 1},
        "models": {},
        "best_head": {"stacking": names[0]},
        **(metrics or {}),
    }
    own = {"symbol": symbol, "tf": tf, "cross": [], "embargo": 48, "out": str(directory)}
    oof.write(frame, directory / FILES.out_of_fold(tf))
    results.write_json(directory / FILES.settings, {**own, **(settings or {})})
    results.write_json(directory / FILES.metrics, document)
    results.write_json(directory / FILES.criteria, [])
    results.write_json(directory / FILES.audit, {"ok": True})
    until = {"trained_until_ms": int(at[held - 49]), "features": ["a", "b"]}
    for family in ("lgbm", "lstm", "tft"):
        results.write_json(directory / FILES.meta(family, tf), {**until, **(metas or {})})
    kept = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    about = {"complete": True, "data_digest": document["data_digest"]}
    results.write_result(directory, [path for path in kept if path != Path(FILES.result)], about)
    return directory
