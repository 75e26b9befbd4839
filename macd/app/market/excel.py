"""An Excel workbook as the text that Excel itself would have saved as CSV."""

from __future__ import annotations

import csv
import io
import shlex
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from macd.errors import MacdError, UsageError, first_line

_NARROWEST = 5  # columns: a time and four prices


def as_text(path: Path, raw: bytes, sheet: str = "") -> str:
    """The sheet of this name, or the one that can hold bars, with a comma between the cells.

    Raises UsageError where it isn't one.
    """
    try:
        import python_calamine  # noqa: PLC0415 - optional, and only for workbooks
    except ImportError as error:
        raise UsageError(
            f"{path} is an Excel workbook",
            why="the package that reads workbooks is not installed",
            hint="pip install python-calamine; or in Excel: save as CSV UTF-8, "
            "then invoke data.import THAT-FILE",
        ) from error
    try:
        book = python_calamine.load_workbook(io.BytesIO(raw))
        sheets = {name: book.get_sheet_by_name(name).to_python() for name in book.sheet_names}
    except Exception as error:
        raise MacdError(
            f"{path} is a damaged Excel workbook, or one with a password",
            why=first_line(error),
            hint="in Excel: save as CSV UTF-8, then invoke data.import THAT-FILE",
        ) from error
    wide = {
        name: rows
        for name, rows in sheets.items()
        if any(sum(cell != "" for cell in row) >= _NARROWEST for row in rows)
    }
    if sheet:
        wide = {name: rows for name, rows in sheets.items() if name == sheet}
    if len(wide) != 1:
        raise UsageError(
            f"{path} has no sheet {sheet!r}"
            if sheet
            else f"{path} is an Excel workbook with {len(wide)} sheets that can hold bars",
            why=f"sheets: {', '.join(list(sheets)[:10])}",
            hint=f"invoke data.import {shlex.quote(str(path))} "
            f"--sheet {shlex.quote(next(iter(wide or sheets), 'NAME'))}",
        )
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [_cell(cell) for cell in row] for row in next(iter(wide.values()))
    )
    return out.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return _rounded(value).isoformat(sep=" ")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e18:
        return str(int(value))
    return str(value)


def _rounded(value: datetime) -> datetime:
    """Excel counts in days, and an hour is no exact fraction of one: a millisecond may lack."""
    near = value + timedelta(milliseconds=1)
    whole = near.replace(microsecond=0)
    return whole if abs(whole - value) <= timedelta(milliseconds=1) else value
