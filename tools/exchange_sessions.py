"""Write macd/app/market/sessions.json: when exchanges trade, as exchange_calendars knows it.

Run by hand, about once a year: it needs exchange_calendars, which brings pandas along.

    python -m venv /tmp/sessions && /tmp/sessions/bin/pip install exchange_calendars
    /tmp/sessions/bin/python tools/exchange_sessions.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import exchange_calendars  # type: ignore[import-not-found]
import pandas  # type: ignore[import-untyped]

EXCHANGES = (
    *("BVMF", "XAMS", "XASX", "XBKK", "XBOM", "XBRU", "XCSE", "XDUB", "XETR", "XHEL", "XHKG"),
    *("XIDX", "XIST", "XJSE", "XKLS", "XKRX", "XLIS", "XLON", "XMAD", "XMEX", "XMIL", "XNYS"),
    *("XNZE", "XOSL", "XPAR", "XSES", "XSHG", "XSTO", "XSWX", "XTAI", "XTKS", "XTSE", "XWAR"),
    "XWBO",
)
FROM, UNTIL = "1990-01-01", "2035-12-31"
TARGET = Path(__file__).parents[1] / "macd/app/market/sessions.json"
EPOCH = pandas.Timestamp("1970-01-01")


def of(name: str) -> dict[str, Any]:
    """zone; hours: [first day, open, close, break's start and end] from
    that day on; odd: [day, open, close] of single days; closed: weekdays without a session.

    Days count from 1970, `closed` and `odd` each from the day before it; minutes from midnight.
    """
    kind = type(exchange_calendars.get_calendar(name))
    first = max(pandas.Timestamp(FROM), kind.bound_min() or pandas.Timestamp(FROM))
    last = min(pandas.Timestamp(UNTIL), kind.bound_max() or pandas.Timestamp(UNTIL))
    calendar = kind(start=first, end=last)
    schedule = calendar.schedule
    local = {column: schedule[column].dt.tz_convert(calendar.tz) for column in schedule}
    minutes = {column: value.dt.hour * 60 + value.dt.minute for column, value in local.items()}
    days = [(day - EPOCH).days for day in schedule.index]
    columns = [minutes[name] for name in ("open", "close", "break_start", "break_end")]
    rows = [
        tuple(-1 if pandas.isna(value) else int(value) for value in row)
        for row in zip(*columns, strict=True)
    ]
    hours, odd = split(days, rows)
    every = range((first - EPOCH).days, (last - EPOCH).days + 1)
    closed = sorted({day for day in every if (day + 3) % 7 < 5} - set(days))
    if any((day + 3) % 7 > 4 for day in days):
        raise SystemExit(f"{name} trades on weekends, which the table can't say")
    return {
        "zone": str(calendar.tz),
        "hours": hours,
        "odd": [[day - before, *row] for before, (day, *row) in deltas(odd)],
        "closed": [day - before for before, (day,) in deltas([(day,) for day in closed])],
    }


def split(days: list[int], rows: list[tuple[int, ...]]) -> tuple[list[Any], list[Any]]:
    """Hours that hold for twenty sessions or more, and the days that differ from them."""
    hours: list[Any] = []
    odd: list[Any] = []
    for at, (day, row) in enumerate(zip(days, rows, strict=True)):
        ahead = rows[at : at + 20]
        if not hours or (row != tuple(hours[-1][1:]) and ahead.count(row) > 14):
            hours.append([day, *row])
        if row != tuple(hours[-1][1:]):
            odd.append((day, row[0], row[1]))
    return hours, odd


def deltas(rows: list[Any]) -> Any:
    return zip([0, *(row[0] for row in rows[:-1])], rows, strict=True) if rows else ()


def main() -> None:
    """All of them, one exchange a line."""
    lines = []
    for name in EXCHANGES:
        found = json.dumps(of(name), separators=(",", ":"))
        lines.append(f'"{name}":{found}')
        sys.stderr.write(f"{name} {len(found)} bytes\n")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
