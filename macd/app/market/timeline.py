"""Are the timestamps those of UTC bar opens, each once, in order, none missing, all in the past?

Pure: takes epoch milliseconds in file order, the step and the time now; gives findings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np

from macd.app.market.findings import Finding, Limits, Mask, Millis, moment, runs

HOUR = 3_600_000
WEEK = 604_800_000
MONDAY = 345_600_000  # the epoch was a Thursday; weekly bars open on Monday


@dataclass(frozen=True)
class _Switch:
    """When local clocks of a region jump: (month, which Sunday; -1 = the last)."""

    region: str
    zone: str
    spring: tuple[int, int]
    autumn: tuple[int, int]


_SWITCHES = (
    _Switch("the United States", "America/New_York", (3, 2), (11, 1)),
    _Switch("Europe", "Europe/Berlin", (3, -1), (10, -1)),
    _Switch("Australia", "Australia/Sydney", (10, 1), (4, 1)),
)


def check_timeline(
    stamps: Millis, *, step: int, now: datetime, same: Mask, limits: Limits
) -> list[Finding]:
    """Every finding about time. `same[i]`: row i repeats the values of the earlier row of its time.

    Shapes: stamps and same are (N,), in file order; step in milliseconds; now with a time zone.
    """
    order = np.argsort(stamps, kind="stable")
    in_time = stamps[order]
    repeated = np.zeros(len(stamps), dtype=np.bool_)
    repeated[order[1:]] = np.diff(in_time) == 0
    return [
        *_unsorted(stamps),
        *_duplicates(stamps, repeated, same),
        *_gaps(in_time, order, step, limits),
        *_misaligned(stamps, step),
        *_local_time(in_time, order, stamps[repeated & ~same], step),
        *_not_yet(stamps, step, now),
    ]


def _unsorted(stamps: Millis) -> Iterator[Finding]:
    for start, stop in runs(np.diff(stamps) < 0):
        row, last = start + 1, stop
        if last - row + 2 == len(stamps):
            detail = "the file is newest first"
        else:
            detail = f"{_rows(row, last)} earlier than the row before"
        yield Finding("unsorted", "error", row, moment(stamps[row]), detail)


def _duplicates(stamps: Millis, repeated: Mask, same: Mask) -> Iterator[Finding]:
    for row in np.flatnonzero(repeated):
        what = "the same bar again" if same[row] else "this time again with OTHER values"
        yield Finding("duplicate", "error", int(row), moment(stamps[row]), what)


def _gaps(in_time: Millis, order: Millis, step: int, limits: Limits) -> Iterator[Finding]:
    if len(in_time) < 2:
        return
    # Counted in slots of the grid, so that a bar stamped late is misaligned, and no gap as well.
    slots = (in_time - _anchor(step)) // step
    missing = np.diff(slots) - 1
    for at in np.flatnonzero(missing > 0):
        count = int(missing[at])
        yield Finding(
            "gap",
            "error" if count > limits.gap_error else "warn",
            int(order[at + 1]),
            moment(in_time[at + 1]),
            f"{count:,} bar{'s' * (count > 1)} missing after {moment(in_time[at]):%Y-%m-%d %H:%M}",
            allow=("gap_error", count),
            span=(moment(in_time[at] + step), moment(in_time[at + 1])),
        )
    expected = int(slots[-1] - slots[0]) + 1
    absent = int(missing[missing > 0].sum())
    if absent > limits.missing_error * expected:
        yield Finding(
            "missing",
            "error",
            -1,
            None,
            f"{absent:,} of {expected:,} bars ({absent / expected:.1%}) are missing between the "
            "first and the last: is the timeframe right?",
            allow=("missing_error", math.ceil(1000 * absent / expected) / 1000),
        )


def _misaligned(stamps: Millis, step: int) -> Iterator[Finding]:
    offset = (stamps - _anchor(step)) % step
    for start, stop in runs(offset != 0):
        shifts = np.unique(offset[start:stop])
        detail = f"{_rows(start, stop - 1)} not on the timeframe's grid"
        if len(shifts) == 1 and stop - start > 1:
            detail += f", all {timedelta(milliseconds=int(shifts[0]))} past it: local time?"
        yield Finding("misaligned", "error", start, moment(stamps[start]), detail)


def _local_time(in_time: Millis, order: Millis, repeats: Millis, step: int) -> Iterator[Finding]:
    """Local clocks betray themselves: an hour is missing in spring and comes twice in autumn."""
    if HOUR % step or len(in_time) < 2:
        return
    jumps = np.flatnonzero(np.diff(in_time) == HOUR + step)
    lost = {
        moment(in_time[at] + step).date(): int(at) + 1
        for at in jumps
        if 1 <= moment(in_time[at] + step).hour <= 3
    }
    twice = {moment(ms).date() for ms in repeats if moment(ms).hour <= 3}
    first, last = moment(in_time[0]).date(), moment(in_time[-1]).date()
    for switch in _SWITCHES:
        springs = _sundays(switch.spring, first, last)
        autumns = _sundays(switch.autumn, first, last)
        lost_here, twice_here = springs & lost.keys(), autumns & twice
        both = bool(lost_here and twice_here)
        every = len(lost_here) >= 2 and lost_here == springs
        every |= len(twice_here) >= 2 and twice_here == autumns
        if not (both or every):
            continue
        days = ", ".join(
            [f"an hour missing on {day}" for day in sorted(lost_here)]
            + [f"an hour twice on {day}" for day in sorted(twice_here)]
        )
        day = min(lost_here | twice_here)
        at = lost.get(day) or int(np.searchsorted(in_time, _midnight(day)))
        yield Finding(
            "local-time",
            "error",
            int(order[at]),
            moment(in_time[at]),
            f"the clock switches as in {switch.region} ({days}): import again with the file's "
            f"own zone, such as --timezone {switch.zone}",
        )


def _not_yet(stamps: Millis, step: int, now: datetime) -> Iterator[Finding]:
    clock = int(now.timestamp() * 1000)
    for start, stop in runs(stamps > clock):
        detail = f"{_rows(start, stop - 1)} in the future (now is {now:%Y-%m-%d %H:%M})"
        yield Finding("future", "error", start, moment(stamps[start]), detail)
    for row in np.flatnonzero((stamps <= clock) & (stamps + step > clock)):
        left = timedelta(milliseconds=int(stamps[row]) + step - clock)
        detail = f"this bar closes in {str(left).split('.', maxsplit=1)[0]}: its values will change"
        yield Finding("unfinished", "error", int(row), moment(stamps[row]), detail)


def _anchor(step: int) -> int:
    return MONDAY if step % WEEK == 0 else 0


def _rows(first: int, last: int) -> str:
    return "this row is" if first == last else f"rows {first} to {last} ({last - first + 1:,}) are"


def _sundays(rule: tuple[int, int], first: date, last: date) -> set[date]:
    month, which = rule
    days = {_sunday(year, month, which) for year in range(first.year, last.year + 1)}
    return {day for day in days if first <= day <= last}


def _sunday(year: int, month: int, which: int) -> date:
    if which < 0:
        after = date(year + month // 12, month % 12 + 1, 1)
        return after - timedelta(days=after.isoweekday() % 7 or 7)
    start = date(year, month, 1)
    return start + timedelta(days=(7 - start.isoweekday()) % 7 + 7 * (which - 1))


def _midnight(day: date) -> int:
    return (day - date(1970, 1, 1)).days * 86_400_000
