"""Train/test splits in time order, purged by an embargo, and guards that prove them.

The label of row t looks at closes up to t + horizon. A training row whose label reaches into the
test rows has seen their answer, so training ends `embargo` rows before the test begins, and the
embargo is at least twice the longest horizon (Lopez de Prado, Advances in Financial Machine
Learning, 2018, chapter 7). Such leaks barely move a score when folds are long, so they are caught
here by structure and never by looking at an AUC.

Rows are positions in the frame of bars, int64 of shape (rows,), rising. Nothing here reads bars,
clocks or randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from macd.app.market.labels import HORIZONS
from macd.errors import MacdError, UsageError

EMBARGO = 48
LONGEST = max(HORIZONS)

Rows = npt.NDArray[np.int64]


class LeakError(MacdError):
    """A split would let a model see what it is tested on."""


@dataclass(frozen=True)
class Fold:
    """Rows to train on, later rows to test on: int64, shape (rows,).

    The holdout's index is -1, that of a refit on everything -2.
    """

    index: int
    train: Rows
    test: Rows


def walk_forward(
    n: int,
    *,
    folds: int,
    initial: float,
    holdout: float = 0.15,
    embargo: int = EMBARGO,
    first: int = 0,
    horizon: int = LONGEST,
) -> list[Fold]:
    """Expanding folds over the rows [first, n) before the holdout, oldest first.

    Every fold trains on all rows from `first` to `embargo` rows before its test; the tests are
    equal blocks side by side. The last test ends `embargo` rows before the holdout, so that no
    label of development reads a price of it. Purging and embargo: Lopez de Prado 2018, chapter 7.

    Args:
        n: number of bars.
        folds: how many.
        initial: fraction of the rows [first, n) before the first test.
        holdout: fraction of the rows [first, n) held out at the end.
        embargo: rows left out between training and test, at least twice `horizon`.
        first: the first usable row, behind the warm-up of the features.
        horizon: the longest label, in rows.

    Raises:
        UsageError: there are too few rows, or a fraction is out of range.
        LeakError: the embargo is too short.
    """
    _check_embargo(embargo, horizon)
    if folds < 1 or not 0 < initial < 1 or not 0 <= holdout < 1:
        raise UsageError(
            f"no walk-forward with {folds} folds, initial {initial}, holdout {holdout}",
            why="folds must be at least 1, initial between 0 and 1, holdout from 0 to below 1",
        )
    begin, end = _tested(n, first, initial, holdout, embargo)
    if begin - embargo <= first or end - begin < folds * LONGEST:
        least = n
        while (span := _tested(least, first, initial, holdout, embargo))[1] - span[0] < (
            folds * LONGEST
        ):
            least += LONGEST
        possible = max(end - begin, 0) // LONGEST if begin - embargo > first else 0
        fewer = (
            f'at most {possible} fold{"s" * (possible > 1)}: {{"folds": {possible}}} in the file'
        )
        raise UsageError(
            f"{n:,} bars are too few for {folds} folds",
            why=f"the first {first:,} warm the features up; after {initial:.0%} of the others, the "
            f"last {holdout:.0%} and the embargo of {embargo}, {max(end - begin, 0)} are left to "
            f"test on",
            hint=f"bring {least - n:,} more bars ({least:,} in all): invoke data.fetch, or "
            "invoke data.import" + (f"\nor {fewer} for --settings" if possible else ""),
        )
    edges = np.linspace(begin, end, folds + 1).round().astype(np.int64)
    made = [
        Fold(i, _rows(first, start - embargo), _rows(start, stop))
        for i, (start, stop) in enumerate(pairwise(edges))
    ]
    assert_walk_forward(made, horizon=horizon, embargo=embargo)
    return made


def _tested(n: int, first: int, initial: float, holdout: float, embargo: int) -> tuple[int, int]:
    """Where the first test of a walk-forward begins, and the last one ends."""
    begin = first + round((n - first) * initial) + embargo
    return begin, holdout_start(n, holdout, first=first) - (embargo if holdout else 0)


def holdout_start(n: int, holdout: float, *, first: int = 0) -> int:
    """The first row of the holdout: the last `holdout` part of the rows [first, n)."""
    return n - round((n - first) * holdout)


def holdout_rows(n: int, holdout: float = 0.15, embargo: int = EMBARGO, *, first: int = 0) -> Fold:
    """The rows tested once, at the end, and all rows that may be trained on before (index -1).

    Args as for `walk_forward`.

    Raises:
        UsageError: either part would be empty.
        LeakError: the embargo is too short.
    """
    start = holdout_start(n, holdout, first=first)
    if not first < start - embargo < n - embargo:
        raise UsageError(
            f"{n - first} rows are too few to hold out {holdout:.0%} behind {embargo} rows"
        )
    fold = Fold(-1, _rows(first, start - embargo), _rows(start, n))
    assert_purged(fold, embargo=embargo)
    return fold


def everything(holdout: Fold, embargo: int = EMBARGO) -> Fold:
    """All rows that can be trained on (index -2), the holdout's too, purged as for the newest bar.

    Nothing is judged by it. The last `embargo` rows are left out; labels are not known of half of
    them anyway.
    """
    last = int(holdout.test[-1])
    fold = Fold(-2, _rows(int(holdout.train[0]), last - embargo), _rows(last, last + 1))
    assert_purged(fold, embargo=embargo)
    return fold


def inner_split(train_rows: Rows, *, fraction: float, embargo: int = EMBARGO) -> tuple[Rows, Rows]:
    """Cut training rows into (fit_rows, stop_rows): early stopping and calibration on the latter.

    stop_rows are the last `fraction` in time; rows of the embargo before them are in neither.
    `train_rows` may have holes (rows left out because they have no label).

    Raises:
        UsageError: `fraction` is not between 0 and 1, or a part would be empty.
        LeakError: the embargo is too short.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the inner slice must be a fraction between 0 and 1, not {fraction}")
    cut = len(train_rows) - round(len(train_rows) * fraction)
    if cut >= len(train_rows):
        raise UsageError(f"{len(train_rows)} training rows are too few for an inner slice")
    stop = train_rows[cut:]
    fit = purge(train_rows[:cut], before=int(stop[0]), embargo=embargo)
    if not len(fit):
        raise UsageError(f"{len(train_rows)} training rows are too few for an inner slice")
    assert_purged(Fold(0, fit, stop), embargo=embargo)
    return fit, stop


def purge(rows: Rows, *, before: int, embargo: int = EMBARGO) -> Rows:
    """The rows that may be trained on for a test that begins at row `before`."""
    return rows[rows < before - embargo]


def assert_purged(fold: Fold, horizon: int = LONGEST, embargo: int = EMBARGO) -> None:
    """Raise LeakError unless every training label was known before the test began.

    Catches random folds (not in time order), a missing or short embargo, shared rows. Use it for
    whatever was fitted: pass the rows of a scaler, of early stopping, of a meta-model as `train`.
    """
    _check_embargo(embargo, horizon)
    name = "the holdout" if fold.index < 0 else f"fold {fold.index}"
    for part, rows in (("training", fold.train), ("test", fold.test)):
        if not len(rows):
            raise LeakError(f"{name} has no {part} rows", why="an empty part proves nothing")
        if np.any(np.diff(rows) <= 0):
            raise LeakError(
                f"the {part} rows of {name} are not in time order",
                why="rows must rise; shuffled or repeated rows hide what was seen when",
            )
    last, begin = int(fold.train[-1]), int(fold.test[0])
    if last >= begin:
        raise LeakError(
            f"{name} trains on row {last}, at or after its first test row {begin}",
            why="folds drawn at random put the future into training (.554 became .802 that way)",
        )
    if begin - last <= embargo:
        raise LeakError(
            f"{name} trains up to row {last}, only {begin - last - 1} rows before its test",
            why=f"labels reach {horizon} rows ahead, and an embargo of {embargo} rows was agreed",
        )


def assert_walk_forward(
    folds: Sequence[Fold], horizon: int = LONGEST, embargo: int = EMBARGO
) -> None:
    """Raise LeakError unless each fold is purged and the tests follow one another in time."""
    for fold in folds:
        assert_purged(fold, horizon=horizon, embargo=embargo)
    for earlier, later in pairwise(folds):
        if later.test[0] <= earlier.test[-1]:
            raise LeakError(
                f"the tests of folds {earlier.index} and {later.index} overlap or run backwards",
                why="each bar is tested once, by a model trained only on what came before",
            )


def _check_embargo(embargo: int, horizon: int) -> None:
    if horizon < 1 or embargo < 2 * horizon:
        raise LeakError(
            f"an embargo of {embargo} rows is too short for labels {horizon} rows long",
            why="it must be at least twice the longest horizon",
            hint=f"use an embargo of {max(2 * horizon, EMBARGO)} rows",
        )


def _rows(start: int, stop: int) -> Rows:
    return np.arange(start, stop, dtype=np.int64)
