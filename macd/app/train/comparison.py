"""Models side by side, on the bars where all of them speak, and whether their differences are real.

Stacking says nothing in its first fold, so its AUC beside another model's is of other bars. Here
all are scored on the same ones. A difference gets its interval from paired resamples: the same
weeks are drawn for both models, so what both find easy or hard cancels. The best base model is
chosen on validation bars alone, for each head; on these bars, having been chosen, it is flattered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.labels import HORIZONS
from macd.app.predict.combine import CLIP
from macd.app.train import oof
from macd.app.train.metrics import auc, effective_n, finite_or_none, resampled_aucs, with_interval
from macd.criteria import difference_text
from macd.heads import BASES, COMPARED, MEAN, NAMES, shown

Doubles = NDArray[np.float64]

MODEL = "stacking"


def compare(frame: pl.DataFrame, min_move: float, seed: int) -> dict[str, Any]:
    """metrics["comparison"]: by head and part (val, val_all, test, test_all) n, effective_n,
    base_rate (share that rose), models: {name: value (AUC), low, high, brier, log_loss} and
    differences of AUCs: {name: value, low, high}, with `best` where it is to the best base model.
    What is not known is null.
    """
    names = oof.models_in(frame, COMPARED)
    p = {name: oof.columns(frame, f"p_{name}") for name in names}
    tested = frame["fold"].to_numpy() == oof.HOLDOUT
    parts = oof.parts(tested, oof.columns(frame, "ret"), min_move)
    times, rows = frame["bar_time"].dt.epoch("ms").to_numpy(), frame["row"].to_numpy()
    compared: dict[str, Any] = {}
    for k, head in enumerate(oof.heads_in(frame)):
        speak = np.all([np.isfinite(each[:, k]) for each in p.values()], axis=0)
        best = ""
        for part, (lines, labels) in parts.items():
            y = labels[:, k]
            on = lines & speak & np.isfinite(y)
            said = {name: each[on, k] for name, each in p.items()}
            best = best or _best(y[on], said)
            compared.setdefault(head, {})[part] = {
                "n": int(on.sum()),
                "effective_n": effective_n(rows[on], HORIZONS[k]),
                "base_rate": finite_or_none(y[on].mean() if on.any() else math.nan),
                **_scored(y[on], said, best, times[on], seed),
            }
    return compared


def _best(y: Doubles, said: Mapping[str, Doubles]) -> str:
    """The base model with the highest AUC; "" where there is none to choose from."""
    aucs = {name: auc(y, p) for name, p in said.items() if name in BASES}
    return max(aucs, key=lambda name: np.nan_to_num(aucs[name])) if aucs else ""


def _scored(
    y: Doubles, said: Mapping[str, Doubles], best: str, times: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    drawn = resampled_aucs(y, list(said.values()), times, seed=seed)
    values = {name: auc(y, p) for name, p in said.items()}
    resampled = dict(zip(said, drawn.T, strict=True))
    models = {
        name: {
            **with_interval(values[name], resampled[name]),
            "brier": finite_or_none(float(np.mean((p - y) ** 2)) if len(y) else math.nan),
            "log_loss": finite_or_none(_log_loss(y, p)),
        }
        for name, p in said.items()
    }
    pairs = {
        "stacking_minus_mean": (MODEL, MEAN),
        "stacking_minus_best": (MODEL, best),
        "mean_minus_best": (MEAN, best),
    }
    differences = {
        name: {
            **with_interval(values[one] - values[other], resampled[one] - resampled[other]),
            **({"best": best} if other == best else {}),
        }
        for name, (one, other) in pairs.items()
        if one in said and other in said
    }
    return {"models": models, "differences": differences}


def log_losses(y: Doubles, p: Doubles) -> Doubles:
    """The log loss of each prediction; p is kept off 0 and 1."""
    kept = np.clip(p, CLIP, 1.0 - CLIP)
    return np.where(y == 1, -np.log(kept), -np.log1p(-kept))


def _log_loss(y: Doubles, p: Doubles) -> float:
    return float(log_losses(y, p).mean()) if len(y) else math.nan


def difference_lines(metrics: Mapping[str, Any]) -> list[str]:
    """How stacking stands to the mean and to the best base model, two lines a head."""
    tf, lines = str(metrics["tf"]), []
    for head, parts in metrics["comparison"].items():
        for name in ("stacking_minus_mean", "stacking_minus_best"):
            made = {part: parts[part]["differences"].get(name) for part in parts}
            if (val := made["val"]) is None:
                continue
            other = NAMES[val.get("best", MEAN)] + (" (best)" if "best" in val else "")
            lines.append(
                f"{shown(head, tf):<4} Stacking minus {other}: val {difference_text(val)}  "
                f"test {difference_text(made['test'])}  all bars "
                f"{difference_text(made['val_all'])} | {difference_text(made['test_all'])}"
            )
    about = "Differences of AUC on the same bars; in brackets 95 % of paired week-block resamples"
    return ["", about, *lines] if lines else []


def worth(metrics: Mapping[str, Any]) -> str:
    """One sentence: what stacking is worth beside the mean, at its best head; "" without it."""
    name = metrics["best_head"].get(MODEL)
    if name is None or MEAN not in metrics["models"]:
        return ""
    head, parts = shown(name, str(metrics["tf"])), metrics["comparison"][name]
    val, test = parts["val"], parts["test"]
    made = val["differences"]["stacking_minus_mean"]
    low, high = made["low"], made["high"]
    outcome = "which chance explains"
    if low is not None and low > 0:
        outcome = "better than chance explains"
    elif high is not None and high < 0:
        outcome = "worse than chance explains"
    one, other = (val["models"][name]["value"] for name in (MODEL, MEAN))
    if one is None or other is None:
        return f"What stacking is worth beside the plain mean of the models at {head} is not known"
    return (
        f"Stacking beside the plain mean of the models at {head}, on the same {val['n']:,} bars: "
        f"AUC {one:.3f} against {other:.3f}, {difference_text(made)}, {outcome}; on the holdout "
        f"{difference_text(test['differences']['stacking_minus_mean'])}"
    )
