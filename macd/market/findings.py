"""What a check says about bars, and where the line is drawn: values shared by all checks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from macd.errors import UsageError

Level = Literal["error", "warn"]
Millis = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One defect. `row` counts from 0 in file order (-1: the file as a whole), `time` is UTC."""

    check: str
    level: Level
    row: int
    time: datetime | None
    detail: str
    symbol: str = ""

    def __str__(self) -> str:
        where = f"row {self.row}, {self.time:%Y-%m-%d %H:%M}" if self.time else "the whole file"
        return f"{self.level:5} {self.check:12} {where}: {self.detail}"


@dataclass(frozen=True)
class Limits:
    """Thresholds, made for hourly bars of liquid crypto markets; `--limits name=value` changes one.

    Durations are in bars. `*_warn` is where a finding starts, `*_error` where it becomes an error.
    """

    gap_error: int = 24  # exchanges do stop for hours; longer holes break features that look back
    missing_error: float = 0.01  # share of all bars between first and last
    zero_volume_warn: int = 3
    zero_volume_error: int = 48
    frozen_warn: int = 6
    frozen_error: int = 48
    spike_z: float = 15.0  # in robust standard deviations of the bars around it ...
    spike_min: float = 0.03  # ... and at least this log return
    spike_error: float = 0.7  # twice or half the price for one bar: a wrong digit, not a market
    wick_min: float = 0.15  # log distance of high or low from everything around it
    jump: float = 0.5  # log return that does not come back: another asset, a new denomination
    overlap_warn: float = 0.95  # share of the main asset's bars that the other one has too
    overlap_error: float = 0.5
    overlap_bars: int = 1000

    def changed(self, text: str) -> Limits:
        """With "frozen_warn=12,spike_z=20" applied; UsageError names what can be set."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        given = dict(known)
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = item.partition("=")
            try:
                given[name] = type(known[name])(value)
            except (KeyError, ValueError) as error:
                raise UsageError(
                    f"limit {item!r} is not understood",
                    why="known, with their defaults: "
                    + ", ".join(f"{key}={default}" for key, default in known.items()),
                    hint="--limits frozen_warn=12,spike_z=20",
                ) from error
        return Limits(**given)


def moment(ms: int | np.int64) -> datetime:
    """UTC time of epoch milliseconds."""
    return datetime.fromtimestamp(int(ms) / 1000, tz=UTC)


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Half-open [start, stop) of every unbroken stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
