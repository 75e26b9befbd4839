"""Say how good a score is without flattering it: pooled AUC, block-bootstrap interval, effective n.

Labels that look h bars ahead overlap, so hourly rows are far from independent. Two consequences:
the interval comes from resampling whole calendar weeks, and next to n stands the effective n, the
number of distinct bars the labels cover divided by h (average uniqueness, Lopez de Prado,
"Advances in Financial Machine Learning", 2018, ch. 4). AUC is always pooled over folds: the mean
of short windows is biased upward. Nothing here reads a file, a clock or a random state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macd.heads import block_weeks

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

WEEK_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True)
class Auc:
    """A pooled AUC with its 95 % interval; `low` and `high` are NaN with fewer than two weeks."""

    value: float
    low: float
    high: float
    n: int
    effective_n: float
    base_rate: float
    brier: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.2f}, {self.high:.2f}]"


def auc(y: Floats, p: Floats) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN when a class is missing."""
    positive = np.asarray(y) == 1
    n_pos = int(positive.sum())
    n_neg = int(positive.size - n_pos)
    if n_pos == 0 or n_neg == 0:
        return float("nan")
    _, at, times = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[at]  # from 1; ties get the mean of theirs
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def auc_by_head(y: Floats, p: Floats, heads: Iterable[str]) -> dict[str, float]:
    """`auc` of each head, on the rows where both its label and its prediction are known."""
    values = {}
    for k, head in enumerate(heads):
        finite = np.isfinite(y[:, k]) & np.isfinite(p[:, k])
        values[head] = auc(y[finite, k], p[finite, k])
    return values


def rounded(aucs: Mapping[str, float]) -> dict[str, float | None]:
    """AUCs for a JSON document: four places, NaN as null."""
    return {head: round(v, 4) if np.isfinite(v) else None for head, v in aucs.items()}


def score(
    y: Floats,
    p: Floats,
    times_ms: Ints,
    rows: Ints,
    horizon: int,
    *,
    reps: int = 1000,
    seed: int = 0,
) -> Auc:
    """Score predictions p of labels y (1, 0, NaN = not counted), all aligned with bars `rows`.

    Args:
        times_ms: bar-open times, UTC milliseconds; weeks are cut at multiples of 7 days.
        rows: positions of the bars in the series; label i covers bars rows[i]+1 .. rows[i]+horizon.
    """
    finite = np.isfinite(y) & np.isfinite(p)
    y, p, times_ms, rows = y[finite], p[finite], times_ms[finite], rows[finite]
    if y.size == 0:
        nan = float("nan")
        return Auc(nan, nan, nan, 0, 0.0, nan, nan)
    low, high = week_interval(y, p, times_ms, reps=reps, seed=seed)
    return Auc(
        value=auc(y, p),
        low=low,
        high=high,
        n=int(y.size),
        effective_n=effective_n(rows, horizon),
        base_rate=float(y.mean()),
        brier=float(np.mean((p.astype(np.float64) - y) ** 2)),
    )


def week_interval(
    y: Floats, p: Floats, times_ms: Ints, *, reps: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the AUC when whole weeks are drawn with replacement."""
    return interval(resampled_aucs(y, [p], times_ms, reps=reps, seed=seed)[:, 0])


def interval(values: Floats) -> tuple[float, float]:
    """95 % percentile interval of resampled values; NaN where there are none."""
    if values.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def with_interval(value: float, resampled: Floats) -> dict[str, float | None]:
    """A figure with its `interval`, for a JSON document: value, low, high."""
    low, high = interval(resampled)
    return {
        "value": finite_or_none(value),
        "low": finite_or_none(low),
        "high": finite_or_none(high),
    }


def finite_or_none(value: float) -> float | None:
    """A number for a JSON document: NaN and infinity are null."""
    return float(value) if math.isfinite(value) else None


def resampled_aucs(
    y: Floats, predictions: Sequence[Floats], times_ms: Ints, *, reps: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """AUCs (reps, models) of models on the same rows when whole weeks are drawn with replacement.

    A line holds all models on one and the same draw, so their differences are paired. Draws with
    one class only are left out; there are none at all with fewer than two weeks. The wins of
    positives of week a over negatives of week b are counted once; each resample is then a
    quadratic form in the week counts: exact, and quick for years of bars.
    """
    week, weeks = _blocks(times_ms, block_ms(times_ms))
    if weeks < 2 or not predictions:
        return np.empty((0, len(predictions)))
    counts = _drawn(weeks, reps, seed)
    values = np.column_stack([_aucs_of(y, p, week, counts) for p in predictions])
    return values[np.isfinite(values).all(axis=1)]


def _drawn(weeks: int, reps: int, seed: int) -> NDArray[np.float64]:
    """How often each week is in each resample: (reps, weeks)."""
    draws = np.random.default_rng(seed).integers(0, weeks, size=(reps, weeks))
    counts = np.zeros((reps, weeks))
    np.add.at(counts, (np.arange(reps)[:, None], draws), 1.0)
    return counts


def _aucs_of(
    y: Floats, p: Floats, week: NDArray[np.intp], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A model's AUC in each resample: (reps,), NaN where one has one class only."""
    positive, weeks = np.asarray(y) == 1, counts.shape[1]
    n_pos = np.bincount(week[positive], minlength=weeks).astype(np.float64)
    n_neg = np.bincount(week[~positive], minlength=weeks).astype(np.float64)
    pairs = (counts @ n_pos) * (counts @ n_neg)
    wins = _wins_between_weeks(positive, np.asarray(p), week, weeks)
    won = ((counts @ wins) * counts).sum(axis=1)
    aucs: NDArray[np.float64] = np.full(len(pairs), np.nan)
    np.divide(won, pairs, out=aucs, where=pairs > 0)
    return aucs


def luck_of_the_best(
    y: Floats, p: Floats, times_ms: Ints, *, reps: int = 1000, seed: int = 0
) -> float:
    """By how much choosing the head with the highest AUC flatters that AUC.

    In resamples of whole weeks, the same for all heads: the winner's AUC there less the winner's
    AUC here, on average (the optimism of Efron and Tibshirani, "An Introduction to the Bootstrap",
    1993, ch. 17). 0 where there is nothing to resample.

    Args:
        y, p: (rows, heads) labels and predictions, as in `score`.
    """
    week, weeks = _blocks(times_ms, block_ms(times_ms))
    if weeks < 2:
        return 0.0
    counts, drawn, values = _drawn(weeks, reps, seed), [], []
    for k in range(y.shape[1]):
        finite = np.isfinite(y[:, k]) & np.isfinite(p[:, k])
        known, said = y[finite, k], p[finite, k]
        drawn.append(_aucs_of(known, said, week[finite], counts))
        values.append(auc(known, said))
    resamples = np.column_stack(drawn)
    resamples = resamples[np.isfinite(resamples).all(axis=1)]
    if not len(resamples):
        return 0.0
    winner = resamples.argmax(axis=1)
    luck = resamples[np.arange(len(resamples)), winner] - np.array(values)[winner]
    return max(0.0, float(luck.mean()))


def resampled_means(
    values: NDArray[Any], times_ms: Ints, block: int = 0, *, reps: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Means (reps,) of values when whole weeks are drawn with replacement; none below two weeks.

    With the same times and seed as `resampled_aucs` the same weeks are drawn. block: `block_ms` of
    all bars, where `times_ms` are only those of few.
    """
    week, weeks = _blocks(times_ms, block or block_ms(times_ms))
    if weeks < 2:
        return np.empty(0)
    sums, sizes = np.bincount(week, weights=values, minlength=weeks), np.bincount(week)
    draws = np.random.default_rng(seed).integers(0, weeks, size=(reps, weeks))
    means: NDArray[np.float64] = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    return means


def block_ms(times_ms: Ints) -> int:
    """How long the blocks are: a week, or as many weeks as 24 bars last. times_ms: ascending; their
    shortest step is taken for that of the bars.
    """
    steps = np.diff(times_ms)
    steps = steps[steps > 0]
    return WEEK_MS * (block_weeks(int(steps.min()) / 60_000) if steps.size else 1)


def _blocks(times_ms: Ints, block: int) -> tuple[NDArray[np.intp], int]:
    """Which block each row belongs to, from 0, and how many there are."""
    _, index = np.unique(times_ms // block, return_inverse=True)
    return index, int(index.max()) + 1 if index.size else 0


def _wins_between_weeks(
    positive: NDArray[np.bool_], p: Floats, week: NDArray[np.intp], weeks: int
) -> NDArray[np.float64]:
    order = np.argsort(p[positive], kind="stable")  # sorted queries keep searchsorted in cache
    p_pos, week_pos = p[positive][order], week[positive][order]
    p_neg, week_neg = p[~positive], week[~positive]
    wins = np.zeros((weeks, weeks))
    for b in range(weeks):
        losers = np.sort(p_neg[week_neg == b])
        beaten = np.searchsorted(losers, p_pos, "left") + np.searchsorted(losers, p_pos, "right")
        wins[:, b] = np.bincount(week_pos, weights=beaten / 2, minlength=weeks)
    return wins


def effective_n(rows: Ints, horizon: int) -> float:
    """Sum of the labels' average uniqueness: distinct bars covered by the labels / horizon."""
    if len(rows) == 0:
        return 0.0
    fresh = np.minimum(np.diff(np.sort(rows)), horizon)  # bars that no earlier label covers
    return float((horizon + fresh.sum()) / horizon)


def reliability(y: Floats, p: Floats, *, bins: int = 10) -> list[dict[str, float]]:
    """Points of the reliability curve: equally filled bins with mean p, frequency of 1, count."""
    finite = np.isfinite(y) & np.isfinite(p)
    y, p = y[finite], p[finite]
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    return [
        {"p": float(p[part].mean()), "y": float(y[part].mean()), "n": int(part.size)}
        for part in parts
    ]


def roc(y: Floats, p: Floats, *, points: int = 33) -> list[list[float]]:
    """[false positive rate, true positive rate] from (0, 0) to (1, 1), at most `points` of them.

    Equal predictions are one step. [] where a class is missing.
    """
    finite = np.isfinite(y) & np.isfinite(p)
    p, rose = np.asarray(p)[finite], np.asarray(y)[finite] == 1
    if rose.all() or not rose.any():
        return []
    order = np.argsort(-p, kind="stable")
    last = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)
    up = np.append(0.0, np.cumsum(rose[order])[last] / rose.sum())
    down = np.append(0.0, np.cumsum(~rose[order])[last] / (~rose).sum())
    along = (down + up) / 2  # rises from point to point
    kept = np.unique(np.searchsorted(along, np.linspace(0.0, 1.0, points)).clip(max=len(up) - 1))
    return [[round(float(down[k]), 4), round(float(up[k]), 4)] for k in kept]


def by_confidence(
    y: Floats, p: Floats, times_ms: Ints, *, bins: int = 5, reps: int = 1000, seed: int = 0
) -> list[dict[str, float | int | None]]:
    """How often the side of 0.5 was right, by equally filled bins of |p - 0.5|, least sure first.

    Each with from and to (of |p - 0.5|), value, n, and low and high from resampling whole weeks
    (null with fewer than two). p = 0.5 takes no side and isn't counted.
    """
    known = np.isfinite(y) & np.isfinite(p) & (p != 0.5)
    y, p, times_ms = y[known], p[known], times_ms[known]
    sure, right = np.abs(p.astype(np.float64) - 0.5), (p > 0.5) == (y == 1)
    block = block_ms(times_ms)
    made: list[dict[str, float | int | None]] = []
    for part in np.array_split(np.argsort(sure, kind="stable"), bins):
        if part.size:
            drawn = resampled_means(right[part], times_ms[part], block, reps=reps, seed=seed)
            ends = {"from": float(sure[part].min()), "to": float(sure[part].max())}
            hit = with_interval(float(right[part].mean()), drawn)
            made.append({**ends, **hit, "n": int(part.size)})
    return made
