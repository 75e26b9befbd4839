"""Get rows and columns out of a file somebody else wrote, before anybody says what they mean.

Knows text (comma, semicolon, tab or bar between the cells; comment lines; any of the usual
encodings; plain, .gz or .zip as exchanges publish them), JSON, parquet and feather. Doesn't
interpret a value.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl

from macd.errors import MacdError, UsageError, first_line

_DELIMITERS = (",", ";", "\t", "|")
_LOOK = 200  # lines looked at to find delimiter and header
_BLOCK = 1 << 20
_LARGEST = 2 << 30  # bytes, unpacked: ten years of bars of a minute take half of it
_NUMBER = re.compile(r'^"?[+-]?[$€£¥]?[0-9][0-9.,:/ TZ+-]*([eE][+-]?[0-9]+)?"?$')
_SHOWN_COLUMNS, _SHOWN_CHARACTERS = 20, 60  # of a file in a message
# What polars raises on bytes it can't make sense of; a panic is no Exception of Python's.
BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


@dataclass(frozen=True)
class Table:
    """What a file holds. Text stays text; a column without a name has its number, from 1."""

    path: Path
    frame: pl.DataFrame
    header: bool
    lines: Sequence[int]  # where each row is in the file, from 1; () where there are no lines

    def sample(self, row: int = 0) -> str:
        """One row as `name=value, ...`, for messages."""
        return _listed([f"{name}={self.cell(name, row)}" for name in self.frame.columns])

    def cell(self, name: str, row: int) -> str:
        try:
            value = self.frame[name][row] if self.frame.height > row else ""
        except (
            *BROKEN,
            ValueError,
            OverflowError,
        ):  # a date in the year 300,000 is none of Python's
            return "?"
        return shortened(str(value))

    def where(self, row: int) -> str:
        return f"line {self.lines[row]}" if self.lines else f"row {row}"

    def unclear(self, what: str, *, why: str = "", example: str = "") -> UsageError:
        """The question to ask when a file isn't understood: what is there, and how to answer."""
        shown = f"columns: {_listed(self.frame.columns)}\nfirst row: {self.sample()}"
        command = f"invoke data.import {self.path}"
        return UsageError(
            what,
            why=f"{why}\n{shown}" if why else shown,
            hint=f"{command} {example}" if example else command,
        )


# What zipfile raises on a password, on a way to pack that it doesn't know, on nonsense in a header.
_UNZIPPABLE = (RuntimeError, NotImplementedError, ValueError, UnicodeError, struct.error)


def read_table(path: Path) -> Table:
    """The file as a table; MacdError when it can't be read, UsageError when it isn't a table."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MacdError(
            f"{path} can't be read",
            why=error.strerror or str(error),
            hint="invoke data.import FILE, where FILE is CSV or parquet",
        ) from error
    raw = _unpack(path, raw)
    if raw[:4] == b"PAR1":
        return _columnar(path, raw, "parquet", pl.read_parquet)
    if raw[:6] == b"ARROW1":
        return _columnar(path, raw, "feather", pl.read_ipc)
    text = _decode(path, raw)
    return _json(path, text) if looks_json(text) else _text(path, text)


def _columnar(
    path: Path, raw: bytes, kind: str, read: Callable[[io.BytesIO], pl.DataFrame]
) -> Table:
    try:
        frame = read(io.BytesIO(raw))
    except (*BROKEN, OSError) as error:
        raise MacdError(
            f"{path} is a damaged {kind} file",
            why=first_line(error),
            hint="get the file again from where it came",
        ) from error
    return Table(path, frame, header=True, lines=())


def _json(path: Path, text: str) -> Table:
    try:
        names, rows = rows_of(text)
    except ValueError as error:
        raise UsageError(
            f"{path} is JSON, and not a list of bars",
            why=str(error),
            hint="JSON must look like [[time, open, high, low, close, volume], ...]; anything "
            "else: save it as CSV or parquet, then invoke data.import FILE",
        ) from error
    width = len(names or rows[0])
    columns = names or [str(at) for at in range(1, width + 1)]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String()), orient="row")
    frame = frame.with_columns(pl.all().str.strip_chars())
    return Table(path, frame, header=bool(names), lines=())


def _listed(names: Sequence[str]) -> str:
    """Names or cells for a message: not all of a thousand columns, and no cell of a page."""
    more = len(names) - _SHOWN_COLUMNS
    listed = ", ".join(shortened(name) for name in names[:_SHOWN_COLUMNS])
    return listed + (f", and {more:,} more" if more > 0 else "")


def shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _unpack(path: Path, raw: bytes) -> bytes:
    try:
        if raw[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                return _unpacked(path, packed)
        if raw[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(raw)) as several:
                names = [name for name in several.namelist() if not _carried_along(name)]
                if "xl/workbook.xml" in names:
                    raise UsageError(
                        f"{path} is an Excel workbook",
                        hint="in Excel: save as CSV UTF-8, then invoke data.import THAT-FILE",
                    )
                if len(names) == 1:
                    with several.open(names[0]) as packed:
                        return _unpacked(path, packed)
            raise UsageError(
                f"{path} holds {len(names)} files, and only one can be imported at a time",
                why=", ".join(names[:10]),
                hint="unzip it and import them one by one; bars of one market are put together",
            )
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, *_UNZIPPABLE) as error:
        raise MacdError(
            f"{path} is a damaged archive, or one with a password",
            why=first_line(error),
            hint="get the file again, or unpack it and import what was in it",
        ) from error
    return raw


def _unpacked(path: Path, packed: IO[bytes] | gzip.GzipFile) -> bytes:
    """All of it, but no more than bars can be: a small archive may unpack to fill any memory."""
    parts: list[bytes] = []
    left = _LARGEST
    while part := packed.read(_BLOCK):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise UsageError(
                f"{path} unpacks to more than {_LARGEST >> 20:,} MiB",
                hint="unpack it, and import it in parts; bars of one market are put together",
            )
    return b"".join(parts)


def _carried_along(name: str) -> bool:
    """Folders, and what macOS and exchanges put beside the file itself."""
    return name.endswith(("/", ".CHECKSUM")) or name.startswith("__MACOSX/")


def _decode(path: Path, raw: bytes) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # only names and comments can be outside ASCII
    if "\0" in text[:4096]:
        raise UsageError(
            f"{path} is neither text nor parquet",
            why=f"it begins with {raw[:8]!r}",
            hint="save it as CSV or parquet first (from Excel: CSV UTF-8)",
        )
    return text


def _text(path: Path, text: str) -> Table:
    lines = text.splitlines()
    delimiter, width, first = _layout(path, lines)
    head = _cells(lines[first], delimiter)
    numbered = [str(at) for at in range(1, width + 1)]
    header = sum(bool(_NUMBER.match(cell)) for cell in head) < 3
    counted = [str(at) for at in range(width)]  # pandas writes these where nobody gave names
    start = first + 1 if header or head == counted else first
    names = [name or number for name, number in zip(head, numbered, strict=True)]
    if header and len(set(names)) != width:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UsageError(
            f"{path} has two columns named {_listed(twice)}",
            why=f"header: {_listed(head)}",
            hint="give every column its own name in the first line, and import again",
        )
    data_lines = [
        at for at in range(start, len(lines)) if lines[at].strip() and lines[at][0] != "#"
    ]
    body = "\n".join(lines[at] for at in data_lines)
    try:
        frame = pl.read_csv(
            io.StringIO(body),
            separator=delimiter,
            has_header=False,
            new_columns=names if header else numbered,
            infer_schema=False,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=dict.fromkeys(names if header else numbered, pl.String()))
    except BROKEN as error:
        raise UsageError(
            f"{path}: not every line has the same number of cells",
            why=first_line(error)[:500],
            hint=f"the lines should have {width} cells, as line {first + 1}: {_listed(head)}",
        ) from error
    frame = frame.with_columns(pl.all().str.strip_chars())
    return Table(path, frame, header=header, lines=[at + 1 for at in data_lines])


def _layout(path: Path, lines: list[str]) -> tuple[str, int, int]:
    """Delimiter, number of cells, and the first line that has them (comments come before it)."""
    best: tuple[int, int, str, int] | None = None
    for delimiter in _DELIMITERS:
        widths = [len(_cells(line, delimiter)) for line in lines[:_LOOK] if line.strip()]
        if not widths:
            continue
        width = max(set(widths), key=widths.count)
        if width >= 5 and (best is None or (widths.count(width), width) > best[:2]):
            best = (widths.count(width), width, delimiter, 0)
    if best is None:
        start = "\n".join(_listed([line]) for line in lines[:3]) or "nothing"
        raise UsageError(
            f"{path} doesn't look like bars",
            why="there must be at least a time, open, high, low, close and volume on each line, "
            f"with , ; tab or | between them; it begins with:\n{start}",
            hint="invoke data.import FILE, where FILE is CSV, JSON, parquet or feather",
        )
    _, width, delimiter, _ = best
    for at, line in enumerate(lines):
        if len(_cells(line, delimiter)) == width and not line.startswith("#"):
            return delimiter, width, at
    raise UsageError(f"{path} has nothing but comments", hint="import a file that holds bars")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # a cell longer than csv takes: nobody's number
        return [line]


def looks_json(text: str) -> bool:
    """No table begins with a bracket."""
    return text.lstrip()[:1] in ("[", "{")


def rows_of(text: str) -> tuple[list[str], list[list[str | None]]]:
    """Names ([] where there are none) and rows, each cell as it is written.

    Raises ValueError with the reason for anything that is no list of bars.
    """
    try:
        document = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError:
        raise ValueError("it is nested far too deep") from None
    if isinstance(document, dict):
        raise ValueError(f"it is one object with the keys {', '.join(list(document)[:10])}")
    if not isinstance(document, list) or not document:
        raise ValueError("the list is empty" if document == [] else "it is one single value")
    if isinstance(document[0], dict):
        names = list(document[0])
        return names, [_json_cells(bar, at, names) for at, bar in enumerate(document, 1)]
    if not isinstance(document[0], list):
        raise ValueError("it is a list of numbers or words, not of bars")
    width = len(document[0])
    return [], [_json_cells(bar, at, width) for at, bar in enumerate(document, 1)]


def _json_cells(bar: Any, at: int, shape: list[str] | int) -> list[str | None]:
    if isinstance(shape, int):
        alike = isinstance(bar, list) and len(bar) == shape
        cells = bar
    else:
        alike = isinstance(bar, dict) and bar.keys() == set(shape)
        cells = [bar[name] for name in shape] if alike else []
    if not alike:
        raise ValueError(f"bar {at} has another form than the first one")
    if any(isinstance(cell, list | dict) for cell in cells):
        raise ValueError(f"bar {at} holds a list or an object where a number should be")
    return [cell if cell is None or isinstance(cell, str) else str(cell) for cell in cells]
