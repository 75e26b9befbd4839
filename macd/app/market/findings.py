"""What a check says about bars, and where the line is drawn: values shared by all checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from macd.errors import UsageError

Level = Literal["error", "warn", "accepted"]
Millis = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One defect. `row` counts from 0 in file order (-1: the file as a whole), `time` is UTC.

    allow: the limit and the value that would make a warning of an error, where one does.
    remedy: what mends just this one; `{bars}` stands for the options that name these bars.
    reason: why a person accepted it (see accepted.py).
    span: the first and the last time it is about, where that is more than `time`.
    """

    check: str
    level: Level
    row: int
    time: datetime | None
    detail: str
    symbol: str = ""
    allow: tuple[str, float] | None = None
    remedy: str = ""
    reason: str = ""
    span: tuple[datetime, datetime] | None = None

    @property
    def whole(self) -> tuple[datetime, datetime] | None:
        """The first and the last time it is about; None for the file as a whole."""
        return self.span or ((self.time, self.time) if self.time else None)

    def __str__(self) -> str:
        where = f"row {self.row}, {self.time:%Y-%m-%d %H:%M}" if self.time else "the whole file"
        reason = f" (accepted: {self.reason})" if self.reason else ""
        return f"{self.level:5} {self.check:12} {where}: {self.detail}{reason}"


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
    jump: float = 0.5  # log return that does not come back ...
    jump_error: float = 1.6  # ... and by five times or to a fifth: another unit or asset
    overlap_warn: float = 0.95  # share of the main asset's bars that the other one has too
    overlap_error: float = 0.5
    overlap_bars: int = 1000

    def changed(self, given: str | Mapping[str, float]) -> Limits:
        """With "frozen_warn=12,spike_z=20" applied; UsageError names what can be set."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        made = dict(known)
        for name, value in (_pairs(given) if isinstance(given, str) else given).items():
            try:
                made[name] = type(known[name])(value)
                if isinstance(value, bool) or not 0 <= made[name] < float("inf"):
                    raise ValueError
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                shown = f"{name}={value}" if value != "" else name
                raise UsageError(
                    f"limit {shown!r} is not understood",
                    why="known, with their defaults: "
                    + ", ".join(f"{key}={default}" for key, default in known.items()),
                    hint="--limits frozen_warn=12,spike_z=20",
                ) from error
        return Limits(**made)

    def differing(self) -> dict[str, float]:
        """Those that are not the usual ones."""
        usual = Limits()
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if value != getattr(usual, name)}


def _pairs(text: str) -> dict[str, str]:
    items = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): value.strip() for name, _, value in items}


def remedy(check: str) -> str:
    """What to do about a finding of this kind; "" where only a person can judge."""
    return _REMEDIES.get(check, "")


_AGAIN = "invoke data.import THAT-FILE --overwrite"
_ORIGINAL = "invoke data.import ORIGINAL-FILE --overwrite"
_REMEDIES = {
    "duplicate": f"{_AGAIN}: it leaves exact repeats out, and names those that differ",
    "empty": "invoke data.import FILE, or invoke data.fetch --symbol BTC/USDT --since 2023-01-01",
    "future": f"{_ORIGINAL} --timezone ZONE; if they are no real bars, --until TIME",
    "gap": "import the missing bars, if anybody has them: invoke data.import THAT-FILE",
    "local-time": f"{_ORIGINAL} --timezone ZONE",
    "misaligned": f"{_ORIGINAL} --timezone OFFSET, or --time-is close",
    "missing": "if these are bars of another timeframe, put them where they belong: "
    "invoke data.import ORIGINAL-FILE --tf TIMEFRAME",
    "overlap": "bring the other asset's bars of the same time, or leave it out of train.cross",
    "shifted": f"{_ORIGINAL} --timezone OFFSET for the one that isn't UTC",
    "unfinished": f"{_AGAIN}: it leaves a bar out that is still open",
    "unsorted": f"{_AGAIN}: it sorts",
}


def moment(ms: int | np.int64) -> datetime:
    """UTC time of epoch milliseconds."""
    return datetime.fromtimestamp(int(ms) / 1000, tz=UTC)


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Half-open [start, stop) of every unbroken stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
