"""Do enough bars move more than min_move to be learnt from? Told before any fit. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from macd.app.market.labels import HORIZONS, direction
from macd.app.train.dataset import Dataset, Plan
from macd.app.train.stacking import MIN_SAMPLES
from macd.errors import RefusedError, UsageError

EACH_WAY = 10  # ups, and downs, in every part that is learnt from or judged; fewer is no figure


def require(data: Dataset, plan: Plan, min_move: float, *, stacking: int) -> None:
    """Raise UsageError naming a min_move that works, where this one leaves too little.

    RefusedError where only stacking can't have enough, whatever min_move is.
    stacking: how many out-of-fold moves the meta-model asks for; 0 where none is trained.
    """
    lacking = _lacking(data.returns, plan, min_move, stacking)
    if not lacking:
        return
    bars, why = lacking
    moves = np.abs(data.returns[data.first :, HORIZONS.index(bars)])
    known = moves[np.isfinite(moves)]
    count, median = int((known > min_move).sum()), float(np.median(known)) if len(known) else 0.0
    what = (
        f"only {count:,} of {len(known):,} bars moved more than min_move {100 * min_move:g} % "
        f"within {bars} bars (median move {100 * median:.2g} %)"
    )
    working = _working(data.returns, plan, min(min_move, median), stacking)
    if working is not None:
        raise UsageError(
            what, why=why, hint=f"--min-move {_typed(working)} (train.min_move in an inventory)"
        )
    _, least = _lacking(data.returns, plan, 0.0, stacking) or (bars, why)
    enough = not _lacking(data.returns, plan, min_move, 0)
    alone = min_move if enough else _working(data.returns, plan, min(min_move, median), 0)
    if alone is not None:
        most = min(_judged(direction(data.returns, alone), plan, k) for k in range(len(HORIZONS)))
        fewer = f"set {MIN_SAMPLES} to at most {most}"
        if not enough:
            hint = f"--min-move {_typed(alone)}, and {fewer} or bring more bars"
            raise UsageError(what, why=f"with --min-move 0: {least}", hint=hint)
        raise RefusedError(
            f"stacking needs {stacking} out-of-fold samples, and these bars don't hold as many",
            why=f"{what}\nwith all moves, which is --min-move 0: {least}",
            hint=f"train on more bars, or {fewer}",
        )
    raise UsageError(
        f"{len(data) - data.first:,} bars are too few to train on, or they stand still",
        why=f"{what}\nwith all moves, which is --min-move 0: {least}",
        hint="bring more bars: invoke data.import, or invoke data.fetch",
    )


def _lacking(
    returns: NDArray[np.float64], plan: Plan, min_move: float, stacking: int
) -> tuple[int, str] | None:
    """The horizon in bars that has too little at this min_move, and what is too little; or None."""
    y = direction(returns, min_move)
    parts = [(f"fold {fold.index}", fold) for fold in plan.folds] + [("the holdout", plan.holdout)]
    for k, bars in enumerate(HORIZONS):
        for name, fold in parts:
            for doing, rows in (("trains on", fold.train), ("is judged on", fold.test)):
                ups, downs = (int((y[rows, k] == way).sum()) for way in (1.0, 0.0))
                if min(ups, downs) < EACH_WAY:
                    text = f"{name} {doing} {ups:,} ups and {downs:,} downs, and {EACH_WAY} of each"
                    return bars, f"{text} are the least"
        judged = _judged(y, plan, k)
        if judged < stacking:
            return bars, f"stacking asks for {stacking:,} out-of-fold moves, there are {judged:,}"
    return None


def _judged(y: NDArray[np.float64], plan: Plan, k: int) -> int:
    """Out-of-fold moves of one head: those that stacking is fitted on."""
    return sum(int(np.isfinite(y[fold.test, k]).sum()) for fold in plan.folds)


def _working(returns: NDArray[np.float64], plan: Plan, start: float, stacking: int) -> float | None:
    """The largest round number, from `start` down, at which nothing lacks; 0 is the last one."""
    size = 10.0 ** math.floor(math.log10(start)) if start > 0 else 0.0
    tried = [round(step * size / scale, 12) for scale in (1, 10, 100) for step in range(9, 0, -1)]
    for value in [*(value for value in tried if 0 < value <= start), 0.0]:
        if not _lacking(returns, plan, value, stacking):
            return value
    return None


def _typed(value: float) -> str:
    """Without an exponent, which nobody types."""
    return f"{value:.12f}".rstrip("0").rstrip(".") or "0"
