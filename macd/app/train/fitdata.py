"""What one fit is given, and the proof that it was given nothing else.

FitData is the only value a model is fitted on. Leaks often barely move an AUC, so each fit leaves a
record of the rows in its FitData: the record is taken from the very values that go into `fit`,
never from the plan. What a fit was not given it can't use for scaling, selection, early stopping or
calibration.

A model of a panel is fitted on several assets, whose rows stand in X one asset after another, as
blocks. Row numbers of two assets say nothing of who came first, so there the record is of times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from macd.app.market.labels import HORIZONS
from macd.app.market.splits import LONGEST, Fold, LeakError, assert_purged
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
class Block:
    """Consecutive rows of X that hold one asset's bars.

    start: its first row. times_ms: int64 (n,), the bars' opens. ends_ms: int64 (n,), the open of
    the bar at whose close the row's longest label is known.
    """

    symbol: str
    start: int
    times_ms: Rows
    ends_ms: Rows

    @property
    def stop(self) -> int:
        """The row after its last one."""
        return self.start + len(self.times_ms)


@dataclass(frozen=True)
class FitData:
    """Features, labels and the rows a fit may use.

    X: float32 (N, F), raw features, one row per bar, NaN in warm-up.
    rows: int64 (M,), rows to train on; a net's window ends at such a row and includes it.
    y: float32 (N, 3), 1 up, 0 down, NaN unknown or left out; columns as HORIZONS.
    stop_rows: int64, inner purged rows for early stopping, or None for fixed epochs.
    features: names of X's columns, () when nobody needs them.
    tf: the timeframe, which names the heads.
    blocks: the assets of a panel, the one that is tested first; () where there is one asset.
    """

    X: Floats
    rows: Rows
    y: Floats
    stop_rows: Rows | None = None
    features: tuple[str, ...] = field(default=())
    tf: str = GUIDE
    blocks: tuple[Block, ...] = ()

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
        return self._problem_of_blocks() if self.blocks else ""

    def _problem_of_blocks(self) -> str:
        edges = [0, *(block.stop for block in self.blocks)]
        if edges[:-1] != [block.start for block in self.blocks] or edges[-1] != len(self.X):
            return f"the assets' blocks don't lie side by side in {len(self.X)} bars"
        for block in self.blocks:
            if len(block.ends_ms) != len(block.times_ms) or np.any(np.diff(block.times_ms) <= 0):
                return f"the times of {block.symbol} don't rise, or its labels' ends are lacking"
            step = np.diff(block.times_ms).min(initial=np.iinfo(np.int64).max)
            if len(block.times_ms) > 1 and np.any(block.ends_ms - block.times_ms < LONGEST * step):
                return f"the labels of {block.symbol} end later than they are said to"
            for rows in (self.rows, self.stop_rows):
                mine = _within(block, rows)
                if mine.size and mine.min() - block.start < SEQ - 1:
                    return f"a window of {block.symbol} would begin among another asset's bars"
        return ""

    def class_weights(self, rows: Rows) -> Floats:
        """float32 (len(rows), 3): the weight of each row's label, by head.

        Both directions of an asset weigh the same in total. How often a market rose in the past
        says little of how often it will, and a model that carries it along ranks one fold against
        the next by it (pooled AUC -.002 to +.011 without, docs/LOG.md); a panel's would rank the
        assets by it.
        """
        weights = np.empty((len(rows), self.y.shape[1]), np.float32)
        for mine in self._by_asset(rows):
            y = self.y[rows[mine]]
            up = (np.sum(y == 1, axis=0) + 1) / (np.sum(~np.isnan(y), axis=0) + 2)
            weights[mine] = np.where(y == 1, 0.5 / up, 0.5 / (1 - up))
        return weights

    def _by_asset(self, rows: Rows) -> Iterator[slice | npt.NDArray[np.bool_]]:
        """Which of `rows` belong to each asset."""
        if not self.blocks:
            yield slice(None)
        for block in self.blocks:
            mine = (rows >= block.start) & (rows < block.stop)
            if mine.any():
                yield mine

    def digest(self) -> str:
        """SHA-256 of all that a fit may use; later bars, which it may not use, don't change it."""
        seen = self.rows if self.stop_rows is None else np.concatenate([self.rows, self.stop_rows])
        stop = np.empty(0, np.int64) if self.stop_rows is None else self.stop_rows
        assets = [(block.symbol, block.start) for block in self.blocks]
        total = hashlib.sha256(repr((self.X.shape[1], self.features, *assets)).encode())
        for part in (self.X[: seen.max() + 1], self.rows, stop, self.y[seen]):
            total.update(str(part.shape).encode())
            total.update(np.ascontiguousarray(part).tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class Seen:
    """What a fit was given of one asset of a panel; all times are bar opens, epoch milliseconds.

    last_ms: of the last row trained on. label_ms: the last bar that a label given looks at.
    bar_ms: the last bar given at all.
    """

    symbol: str
    train_n: int
    last_ms: int
    label_ms: int
    bar_ms: int


@dataclass(frozen=True)
class Provenance:
    """Rows given to one fit, by first and last, and the rows it predicted afterwards.

    available: bars of X given, so the last visible row is available - 1.
    labelled_last: the last row whose label was given.
    outside: labels given on rows that are neither trained on nor used for early stopping.
    panel: of a panel's model, all of its assets by time; the rest is of the asset that is tested.
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
    panel: tuple[Seen, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Provenance:
        """As `dataclasses.asdict` wrote it."""
        panel = tuple(Seen(**seen) for seen in document.get("panel", ()))
        return cls(**{**document, "panel": panel})


def observe(data: FitData, test: Rows) -> Provenance:
    """The record of a fit on `data` whose predictions are made for `test`."""
    labelled = np.flatnonzero(~np.isnan(data.y).all(axis=1))
    used = data.rows if data.stop_rows is None else np.union1d(data.rows, data.stop_rows)
    tested = data.blocks[0].stop if data.blocks else len(data.X)
    rows, own, stop = data.rows[data.rows < tested], labelled[labelled < tested], data.stop_rows
    return Provenance(
        train_first=int(rows.min()),
        train_last=int(rows.max()),
        train_n=len(rows),
        ordered=bool(np.all(np.diff(data.rows) > 0)),
        stop_first=None if stop is None else int(stop.min()),
        stop_last=None if stop is None else int(stop.max()),
        available=tested,
        labelled_last=int(own.max()) if own.size else -1,
        outside=int(np.setdiff1d(labelled, used).size),
        test_first=int(test.min()),
        test_last=int(test.max()),
        panel=tuple(_seen(block, data.rows, labelled) for block in data.blocks),
    )


def _seen(block: Block, rows: Rows, labelled: Rows) -> Seen:
    trained, given = _within(block, rows), _within(block, labelled)
    return Seen(
        symbol=block.symbol,
        train_n=len(trained),
        last_ms=int(block.times_ms[trained - block.start].max()) if trained.size else 0,
        label_ms=int(block.ends_ms[given - block.start].max()) if given.size else 0,
        bar_ms=int(block.times_ms[-1]),
    )


def _within(block: Block, rows: Rows | None) -> Rows:
    if rows is None:
        return np.empty(0, np.int64)
    return rows[(rows >= block.start) & (rows < block.stop)]


def verify_provenance(
    seen: Provenance, fold: Fold, embargo: int, border_ms: int | None = None
) -> None:
    """Raise LeakError unless the fit stayed inside the training part of its purged fold.

    border_ms: of a panel's fit, the open of the bar `embargo` bars before the first one tested or
    used for early stopping; what any asset gave to it must lie before.
    """
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
    violations += _too_late(seen, border_ms)
    if violations:
        raise LeakError(
            f"a fit {where} left its training part (rows {int(fold.train[0])} to {limit})",
            why="\n".join(violations),
            hint="this is a defect in the pipeline: its figures can not be trusted",
        )


def _too_late(seen: Provenance, border_ms: int | None) -> list[str]:
    """What the assets of a panel gave to a fit at or after the border, in words."""
    if not seen.panel:
        return []
    if border_ms is None:
        return ["nothing says when the test of a panel's fit begins"]
    problems = []
    for n, asset in enumerate(seen.panel):
        times = {"trained on the bar": asset.last_ms}
        if n or seen.stop_last is None:  # the tested asset also gave the rows of early stopping
            times |= {"was given a label that looks at": asset.label_ms, "saw": asset.bar_ms}
        problems += [
            f"{asset.symbol}: it {what} of {_utc(ms)}, the border is {_utc(border_ms)}"
            for what, ms in times.items()
            if ms >= border_ms
        ]
    return problems


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"
