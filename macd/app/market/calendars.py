"""When a market is open, so that a night, a weekend or a holiday is no gap in its bars.

Crypto never rests. Currencies trade from Sunday to Friday 17:00 in New York. Stocks trade in the
sessions of their exchange. A bar is *due* when all of it lies where the market surely trades; other
bars may be there (an extended session, a broker that opens an hour earlier), and their absence is
no gap.

The sessions are a table, sessions.json, made of the package exchange_calendars by
tools/exchange_sessions.py: the package itself brings pandas along, onto every training host. Before
and after the years of the table every weekday counts as a session.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
import polars as pl

from macd.train_options import Market

Millis = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_NEW_YORK = "America/New_York"
_MINUTE, _DAY = 60_000, 86_400_000
_FX_OPENS, _FX_CLOSES = (
    18 * 60,
    5 * 1440 + 16 * 60,
)  # minutes of the week from Sunday; brokers differ
_FX_ANCHOR = 17 * 60  # minute of the day that bars may count from
_FX_RESTS = ((12, 24), (12, 25), (12, 31), (1, 1))  # open for hours, closed, or thin: by broker


@dataclass(frozen=True)
class Exchange:
    """When one exchange trades; days count from 1970, minutes from midnight in `zone`.

    hours: [first day, open, close, start of the break, its end] from that day on; -1: no break.
    odd: [day, open, close] of single days. closed: weekdays without a session.
    """

    zone: str
    hours: npt.NDArray[np.int64]
    odd: npt.NDArray[np.int64]
    closed: npt.NDArray[np.int64]

    def sessions(self, days: Millis) -> npt.NDArray[np.int64]:
        """Open, close, start and end of the break of each day, shape (N, 4); -1 for what is not."""
        place = np.searchsorted(self.hours[:, 0], days, side="right") - 1
        sessions = self.hours[np.maximum(place, 0), 1:]
        is_odd = np.isin(days, self.odd[:, 0])
        sessions[is_odd, :2] = self.odd[np.searchsorted(self.odd[:, 0], days[is_odd]), 1:]
        sessions[((days + 3) % 7 > 4) | np.isin(days, self.closed)] = -1
        return sessions

    def trades(self, days: Millis, start: Millis, end: Millis) -> Mask:
        """Whether it trades on these days from one minute to the other, all the time."""
        each, where = np.unique(days, return_inverse=True)
        opens, closes, rests, resumes = self.sessions(each)[where].T
        whole = rests < 0
        before = (start >= opens) & (end <= np.where(whole, closes, np.minimum(rests, closes)))
        after = ~whole & (start >= np.maximum(resumes, opens)) & (end <= closes)
        trading: Mask = (opens >= 0) & (before | after)
        return trading


@cache
def exchange(market: Market) -> Exchange:
    """The exchange of this market; "stocks" is New York. Raises KeyError for one that is none."""
    text = resources.files("macd.app.market").joinpath("sessions.json").read_text("utf-8")
    row = json.loads(text)["XNYS" if market == "stocks" else market]
    odd = np.array(row["odd"], dtype=np.int64).reshape(-1, 3)
    odd[:, 0] = np.cumsum(odd[:, 0])
    closed = np.cumsum(np.array(row["closed"], dtype=np.int64))
    return Exchange(row["zone"], np.array(row["hours"], dtype=np.int64), odd, closed)


def due(opens: Millis, step: int, market: Market) -> Mask:
    """Which bars, by their opens in epoch milliseconds, must be there.

    Args:
        opens: of any order, shape (N,).
        step: length of a bar, milliseconds. For a day or more the date of the open counts.
        market: as in `Market`.

    Returns:
        bool of shape (N,).
    """
    if market == "crypto" or step > _DAY or not len(opens):
        return np.ones(len(opens), dtype=np.bool_)
    if market == "fx":
        return _fx_due(opens, step)
    place = exchange(market)
    local = _local(opens, place.zone)
    days, start = local // 1440, local % 1440
    if step < _DAY:
        return place.trades(days, start, start + step // _MINUTE)
    days = np.where(opens % _DAY == 0, opens // _DAY, days)  # a date, or a time at the exchange
    is_open: Mask = place.sessions(days)[:, 0] >= 0
    return is_open


def aligned(opens: Millis, step: int, market: Market) -> Mask:
    """Which bars lie on a grid that this market uses beside UTC's: from the bell, or 17:00."""
    if market == "crypto" or step > _DAY:
        return np.zeros(len(opens), dtype=np.bool_)
    zone, anchors = _NEW_YORK, [_FX_ANCHOR]
    if market != "fx":
        place = exchange(market)
        zone, anchors = place.zone, np.unique(place.hours[:, [1, 4]]).tolist()
        anchors = [anchor for anchor in anchors if anchor >= 0]
    local = _local(opens, zone)
    on: Mask = np.zeros(len(opens), dtype=np.bool_)
    for anchor in anchors:
        on |= (local - anchor) * _MINUTE % step == 0
    if step == _DAY:
        on |= local % 1440 == 0  # a day there
    on &= opens % _MINUTE == 0
    return on


def _local(opens: Millis, zone: str) -> Millis:
    """Minutes since 1970 on the clocks of `zone`."""
    stamps = pl.Series(opens).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    local = stamps.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    return local.to_physical().to_numpy() // _MINUTE


def _fx_due(opens: Millis, step: int) -> Mask:
    if step == _DAY:
        days = (opens + _DAY // 2) // _DAY  # 17:00 or midnight in New York: the day that it covers
        return ((days + 3) % 7 < 5) & ~_rests(days)
    local = _local(opens, _NEW_YORK)
    days, start = local // 1440, local % 1440
    week = (days + 4) % 7 * 1440  # 1 January 1970 was a Thursday
    end = start + step // _MINUTE
    trading: Mask = (week + start >= _FX_OPENS) & (week + end <= _FX_CLOSES)
    return trading & ~_rests(days)


def _rests(days: Millis) -> Mask:
    each, where = np.unique(days, return_inverse=True)
    dates = [date(1970, 1, 1) + timedelta(days=day) for day in each.tolist()]
    rests = np.array([(day.month, day.day) in _FX_RESTS for day in dates], dtype=np.bool_)
    return rests[where]
