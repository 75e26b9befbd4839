"""The one value every model is fitted on, so that no model can see more than its fold allows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from macd.app.market.labels import HORIZONS
from macd.errors import MacdError
from macd.heads import GUIDE

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Report = Callable[[dict[str, Any]], None]
Facts = Mapping[str, Any]


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
            return "stop_rows overlap the training rows: early stopping would judge what it learnt"
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
        """SHA-256 of all that a fit may look at; later bars, which it may not, don't change it."""
        seen = self.rows if self.stop_rows is None else np.concatenate([self.rows, self.stop_rows])
        stop = np.empty(0, np.int64) if self.stop_rows is None else self.stop_rows
        ours = hashlib.sha256(repr((self.X.shape[1], self.features)).encode())
        for part in (self.X[: seen.max() + 1], self.rows, stop, self.y[seen]):
            ours.update(str(part.shape).encode())
            ours.update(np.ascontiguousarray(part).tobytes())
        return ours.hexdigest()
