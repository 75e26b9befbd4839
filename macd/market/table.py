"""Get rows and columns out of a file somebody else wrote, before anybody says what they mean.

Knows text (comma, semicolon, tab or bar between the cells; comment lines; any of the usual
encodings; plain, .gz or .zip as exchanges publish them) and parquet. Doesn't interpret a value.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from macd.errors import MacdError, UsageError

_DELIMITERS = (",", ";", "\t", "|")
_LOOK = 200  # lines looked at to find delimiter and header
_NUMBER = re.compile(r'^"?[+-]?[$€£¥]?\d[\d.,:/ TZ+-]*([eE][+-]?\d+)?"?$')


@dataclass(frozen=True)
class Table:
    """What a file holds. Text stays text; a column without a name has its number, from 1."""

    path: Path
    frame: pl.DataFrame
    header: bool
    lines: Sequence[int]  # where each row is in the file, from 1; () where there are no lines

    def sample(self, row: int = 0) -> str:
        """One row as `name=value, ...`, for messages."""
        cells = self.frame.row(row) if self.frame.height > row else ()
        return ", ".join(
            f"{name}={value}" for name, value in zip(self.frame.columns, cells, strict=False)
        )

    def where(self, row: int) -> str:
        """How a person finds this row again."""
        return f"line {self.lines[row]}" if self.lines else f"row {row}"

    def unclear(self, what: str, *, why: str = "", example: str = "") -> UsageError:
        """The question to ask when a file isn't understood: what is there, and how to answer."""
        shown = f"columns: {', '.join(self.frame.columns)}\nfirst row: {self.sample()}"
        command = f"invoke data.import {self.path}"
        return UsageError(
            what,
            why=f"{why}\n{shown}" if why else shown,
            hint=f"{command} {example}" if example else command,
        )


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
    if raw[:4] == b"PAR1":
        return _parquet(path, raw)
    return _text(path, _decode(path, _unpack(path, raw)))


def _parquet(path: Path, raw: bytes) -> Table:
    try:
        frame = pl.read_parquet(io.BytesIO(raw))
    except pl.exceptions.PolarsError as error:
        raise MacdError(
            f"{path} is a damaged parquet file",
            why=str(error).splitlines()[0],
            hint="get the file again from where it came",
        ) from error
    return Table(path, frame, header=True, lines=())


def _unpack(path: Path, raw: bytes) -> bytes:
    try:
        if raw[:2] == b"\x1f\x8b":
            return gzip.decompress(raw)
        if raw[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(raw)) as packed:
                names = [name for name in packed.namelist() if not name.endswith("/")]
                if len(names) == 1:
                    return packed.read(names[0])
            raise UsageError(
                f"{path} holds {len(names)} files, and only one can be imported at a time",
                why=", ".join(names[:10]),
                hint="unzip it and import them one by one; bars of one market are put together",
            )
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise MacdError(
            f"{path} is a damaged archive", why=str(error), hint="get the file again"
        ) from error
    return raw


def _decode(path: Path, raw: bytes) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16")
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
            f"{path} has two columns named {', '.join(twice)}",
            why=f"header: {lines[first]}",
            hint="give every column its own name in the first line, and import again",
        )
    kept = [at for at in range(start, len(lines)) if lines[at].strip() and lines[at][0] != "#"]
    body = "\n".join(lines[at] for at in kept)
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
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"{path}: not every line has the same number of cells",
            why=str(error).splitlines()[0],
            hint=f"the lines should have {width} cells, as line {first + 1}: {lines[first]}",
        ) from error
    frame = frame.with_columns(pl.all().str.strip_chars())
    return Table(path, frame, header=header, lines=[at + 1 for at in kept])


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
        start = "\n".join(lines[:3]) or "nothing"
        raise UsageError(
            f"{path} doesn't look like bars",
            why="there must be at least a time, open, high, low, close and volume on each line, "
            f"with , ; tab or | between them; it begins with:\n{start}",
            hint="invoke data.import FILE, where FILE is CSV or parquet",
        )
    _, width, delimiter, _ = best
    for at, line in enumerate(lines):
        if len(_cells(line, delimiter)) == width and not line.startswith("#"):
            return delimiter, width, at
    raise UsageError(f"{path} has nothing but comments", hint="import a file that holds bars")


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
