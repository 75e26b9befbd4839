"""What one fit is given, and the proof that it was given nothing else.

FitData is the only value a model is fitted on. Leaks often barely move an AUC, so each fit leaves a
record of the rows in its FitData: the record is taken from the very values that go into `fit`,
never from the plan. What a fit was not given it can't use for scaling, selection, early stopping or
calibration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from macd.app.market.labels import HORIZONS
from macd.app.market.splits import Fold, LeakError, assert_purged
from macd.errors import MacdError
from macd.heads import GUIDE

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Report = Callable[[dict[str, Any]], None]
Facts = Mapping[str, Any]

SEQ = 48  # bars in a window of the nets, the bar predicted from included


def silent(_: dict[str, Any]) -> None:
    """The report that goes nowhere."""


@dataclass(frozen=True)
class FitData:
    """Features, labels and the rows a fit may use.

    X: float32 (N, F), raw features, one row per bar, NaN in warm-up.
    rows: int64 (M,), rows to train on; a net's window ends at such a row and includes it.
    y: float32 (N, 3), 1 up, 0 down, NaN unknown or left out; columns as HORIZONS.
    stop_rows: int64, inner purged rows for early stopping, or None for fixed epochs.
    features: names of X's columns, () when nobody needs them.
    tf: the timeframe, which names the heads.
    """

    X: Floats
    rows: Rows
    y: Floats
    stop_rows: Rows | None = None
    features: tuple[str, ...] = field(default=())
    tf: str = GUIDE

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise MacdError("the training data don't fit together", why=problem)

    def _problem(self) -> str:  # noqa: PLR0911 - one return a finding
        n = len(self.X)
        if self.X.ndim != 2 or self.X.dtype != np.float32:
            return f"X must be float32 (bars, features), it is {self.X.dtype} {self.X.shape}"
        if self.y.shape != (n, len(HORIZONS)):
            return f"y must be ({n}, {len(HORIZONS)}) for {n} bars, it is {self.y.shape}"
        if self.features and len(self.features) != self.X.shape[1]:
            return f"{len(self.features)} feature names for {self.X.shape[1]} columns"
        if not np.isin(self.y[~np.isnan(self.y)], (0.0, 1.0)).all():
            return "y holds something other than 0, 1 and NaN"
        for name, rows in (("rows", self.rows), ("stop_rows", self.stop_rows)):
            if rows is not None and (len(rows) == 0 or rows.min() < 0 or rows.max() >= n):
                return f"{name} is empty or reaches outside the {n} bars"
        if self.stop_rows is not None and np.intersect1d(self.rows, self.stop_rows).size:
            return "stop_rows overlap the training rows: early stopping would use training rows"
        return ""

    def class_weights(self, rows: Rows) -> Floats:
        """float32 (2, 3): weight of a down and of an up label per head, over these rows.

        Both directions weigh the same in total. How often the market rose in the past says little
        of how often it will, and a model that carries it along ranks one fold against the next by
        it (pooled AUC -.002 to +.011 without, docs/LOG.md).
        """
        y = self.y[rows]
        up = (np.sum(y == 1, axis=0) + 1) / (np.sum(~np.isnan(y), axis=0) + 2)
        return np.stack([0.5 / (1 - up), 0.5 / up]).astype(np.float32)

    def digest(self) -> str:
        """SHA-256 of all that a fit may use; later bars, which it may not use, don't change it."""
        seen = self.rows if self.stop_rows is None else np.concatenate([self.rows, self.stop_rows])
        stop = np.empty(0, np.int64) if self.stop_rows is None else self.stop_rows
        total = hashlib.sha256(repr((self.X.shape[1], self.features)).encode())
        for part in (self.X[: seen.max() + 1], self.rows, stop, self.y[seen]):
            total.update(str(part.shape).encode())
            total.update(np.ascontiguousarray(part).tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Rows given to one fit, by first and last, and the rows it predicted afterwards.

    available: bars of X given, so the last visible row is available - 1.
    labelled_last: the last row whose label was given.
    outside: labels given on rows that are neither trained on nor used for early stopping.
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


def verify_provenance(seen: Provenance, fold: Fold, embargo: int) -> None:
    """Raise LeakError unless the fit stayed inside the training part of its purged fold."""
    assert_purged(fold, embargo=embargo)
    limit = int(fold.train[-1])
    where = "before the holdout" if fold.index < 0 else f"of fold {fold.index}"
    problems = [
        (not seen.ordered, "the training rows are not in time order"),
        (
            seen.available > limit + 1,
            f"bars up to row {seen.available - 1} were given to the fit, the training part ends at "
            f"{limit}: scaling or selection could use bars it is tested on",
        ),
        (
            seen.labelled_last > limit or seen.outside > 0,
            f"labels up to row {seen.labelled_last} were given to the fit",
        ),
        (
            seen.train_first < fold.train[0] or seen.train_last > limit,
            f"trained on rows {seen.train_first} to {seen.train_last}",
        ),
        (
            seen.stop_last is not None and seen.stop_last > limit,
            f"early stopping used rows {seen.stop_first} to {seen.stop_last}",
        ),
        (
            seen.stop_first is not None and seen.stop_first - seen.train_last <= embargo,
            f"early stopping starts at row {seen.stop_first}; at least {embargo} rows must lie "
            f"between it and the last row trained on, {seen.train_last}",
        ),
        (
            seen.test_first - max(seen.train_last, seen.stop_last or 0) <= embargo,
            f"tested from row {seen.test_first}, which is within the embargo of {embargo} rows",
        ),
    ]
    violations = [text for wrong, text in problems if wrong]
    if violations:
        raise LeakError(
            f"a fit {where} left its training part (rows {int(fold.train[0])} to {limit})",
            why="\n".join(violations),
            hint="this is a defect in the pipeline: its figures can not be trusted",
        )
