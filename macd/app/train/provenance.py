"""See by structure, not by score, that no fit looked at what it is judged on.

Leaks often barely move an AUC, so each fit leaves a record of the rows it was really handed: the
record is taken from the very values that go into `fit`, never from the plan. What a fit was not
handed it can't use for scaling, selection, early stopping or calibration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from macd.app.market.splits import Fold, LeakError, assert_purged
from macd.app.train.fitdata import FitData, Rows


@dataclass(frozen=True)
class Provenance:
    """Rows handed to one fit, by first and last, and what it predicted afterwards.

    available: bars of X handed over, so the last visible row is available - 1.
    labelled_last: the last row whose label was handed over.
    outside: labels handed over on rows that are neither trained nor stopped on.
    """

    train_first: int
    train_last: int
    train_n: int
    ordered: bool
    stop_first: int | None
    stop_last: int | None
    available: int
    labelled_last: int
    outside: int
    test_first: int
    test_last: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def observe(data: FitData, test: Rows) -> Provenance:
    """The record of a fit on `data` whose predictions are made for `test`."""
    labelled = np.flatnonzero(~np.isnan(data.y).all(axis=1))
    used = data.rows if data.stop_rows is None else np.union1d(data.rows, data.stop_rows)
    stop = data.stop_rows
    return Provenance(
        train_first=int(data.rows.min()),
        train_last=int(data.rows.max()),
        train_n=len(data.rows),
        ordered=bool(np.all(np.diff(data.rows) > 0)),
        stop_first=None if stop is None else int(stop.min()),
        stop_last=None if stop is None else int(stop.max()),
        available=len(data.X),
        labelled_last=int(labelled.max()) if labelled.size else -1,
        outside=int(np.setdiff1d(labelled, used).size),
        test_first=int(test.min()),
        test_last=int(test.max()),
    )


def verify(seen: Provenance, fold: Fold, embargo: int) -> None:
    """Raise LeakError unless the fit stayed inside the training part of its purged fold."""
    assert_purged(fold, embargo=embargo)
    limit = int(fold.train[-1])
    where = "before the holdout" if fold.index < 0 else f"of fold {fold.index}"
    problems = [
        (not seen.ordered, "the training rows are not in time order"),
        (
            seen.available > limit + 1,
            f"bars up to row {seen.available - 1} were handed over, the training part ends at "
            f"{limit}: scaling or selection could learn from bars it is judged on",
        ),
        (
            seen.labelled_last > limit or seen.outside > 0,
            f"labels up to row {seen.labelled_last} were handed over",
        ),
        (
            seen.train_first < fold.train[0] or seen.train_last > limit,
            f"trained on rows {seen.train_first} to {seen.train_last}",
        ),
        (
            seen.stop_last is not None and seen.stop_last > limit,
            f"early stopping looked at rows {seen.stop_first} to {seen.stop_last}",
        ),
        (
            seen.stop_first is not None and seen.stop_first - seen.train_last <= embargo,
            f"early stopping begins at row {seen.stop_first}, {embargo} rows must lie between it "
            f"and the last row trained on, {seen.train_last}",
        ),
        (
            seen.test_first - max(seen.train_last, seen.stop_last or 0) <= embargo,
            f"judged from row {seen.test_first}, which is within the embargo of {embargo} rows",
        ),
    ]
    found = [text for wrong, text in problems if wrong]
    if found:
        raise LeakError(
            f"a fit {where} left its training part (rows {int(fold.train[0])} to {limit})",
            why="\n".join(found),
            hint="this is a defect in the pipeline: its figures would be worth nothing",
        )
