"""Get rows and columns out of a file somebody else wrote, before anybody says what they mean.

Knows text (comma, semicolon, tab or bar between the cells; comment lines; any of the usual
encodings; plain, .gz or .zip as exchanges publish them), JSON, parquet and feather. Doesn't
interpret a value.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import shlex
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import polars as pl

from macd.app.market import excel, foreign
from macd.errors import MacdError, UsageError, first_line

_DELIMITERS = (",", ";", "\t", "|")
_NARROWEST = 5  # columns: a time and four prices
_LOOK = 200  # lines looked at to find delimiter and header
_BLOCK = 1 << 20
_ZIP, _WORKBOOK = b"PK\x03\x04", "xl/workbook.xml"
_TABLES = (".csv", ".json", ".jsonl", ".parquet", ".feather", ".xlsx", ".zip", ".gz")
_OTHER_ARCHIVES = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
}
_LARGEST = 2 << 30  # bytes, unpacked: ten years of bars of a minute take half of it
_NUMBER = re.compile(r'^"?[+-]?[$€£¥]?[0-9][0-9.,:/ TZ+-]*([eE][+-]?[0-9]+)?"?$')
_NEEDED = ("time", "date", "open", "high", "low", "close", "volume")
_REMARK = "[A-Za-z]{3}"
_HEADERS = (
    "open high low close",
    "priceopen pricehigh pricelow priceclose",
    "开盘价 最高价 最低价 收盘价",
)
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
    above: tuple[str, ...] = ()  # lines that are no rows: comments, second headers
    notes: tuple[str, ...] = ()
    member: str = ""  # of a zip of several files: which one
    packed: str = ""  # of a zip of one file: its name there

    @property
    def name(self) -> str:
        """The file's own name, which may say what it holds."""
        return PurePosixPath(self.member or self.packed).name or self.path.name

    def sample(self, row: int = 0) -> str:
        """One row as `name=value, ...`, for messages."""
        return listed([f"{name}={self.cell(name, row)}" for name in self.frame.columns])

    def cell(self, name: str, row: int) -> str:
        try:
            value = self.frame[name][row] if self.frame.height > row else ""
        except (
            *BROKEN,
            ValueError,
            OverflowError,
        ):  # a date in the year 300,000 is none of Python's
            return "?"
        return shortened(
            " ".join(str(value).split()) if isinstance(value, pl.Series) else str(value)
        )

    def where(self, row: int) -> str:
        of = f" of {shortened(self.member)}" if self.member else ""
        return (f"line {self.lines[row]}" if self.lines else f"row {row}") + of

    def unclear(self, what: str, *, why: str = "", example: str = "") -> UsageError:
        """The question to ask when a file isn't understood: what is there, and how to answer."""
        shown = f"columns: {listed(self.frame.columns)}\nfirst row: {self.sample()}"
        shown = f"in {shortened(self.member)}\n{shown}" if self.member else shown
        others = [name for name in self.frame.columns if name not in what]
        if "time=COLUMN" in example:
            others = [name for name in others if looks_time(self.cell(name, 0))]
            example = example if others else "after writing the times in a form that is understood"
        other = next(iter(others), "COLUMN")
        example = example.replace("=COLUMN", f"={shortened(other)}")
        command = f"invoke data.import {shlex.quote(str(self.path))}"
        return UsageError(
            what,
            why=f"{why}\n{shown}" if why else shown,
            hint=f"{command} {example}" if example else command,
        )


def looks_time(cell: str) -> bool:
    """Whether a cell may be a time, by its form."""
    return bool(
        re.match(r"[0-9]{10,19}$|[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}|[0-9]{8}\b", cell)
    )


def one_cell(wrong: pl.Series) -> str:
    """What helps where most cells of a column are right; "" where it is the wrong column."""
    few = int(wrong.sum()) * 2 < wrong.len()
    return "after correcting or deleting that line" if few else ""


# What zipfile raises on a password, on a way to pack that it doesn't know, on nonsense in a header.
_UNZIPPABLE = (RuntimeError, NotImplementedError, ValueError, UnicodeError, struct.error)


def read_table(path: Path, *, skip: int = 0, sheet: str = "", member: str = "") -> Table:
    """The file as a table; MacdError when it can't be read, UsageError when it isn't a table.

    skip: lines at the beginning that are no part of the table. sheet: of a workbook, by its name.
    member: of a zip of several files, by its name there; "" for a file that is one.
    """
    content = _content(path)
    raw = _unpack(path, content, member)
    shown = path / member if member else path
    if raw[:4] == _ZIP:
        table = _text(shown, excel.as_text(shown, raw, sheet), skip)
    elif raw[:4] == b"PAR1":
        table = _columnar(shown, raw, "parquet", pl.read_parquet)
    elif raw[:6] == b"ARROW1":
        table = _columnar(shown, raw, "feather", pl.read_ipc)
    else:
        text = _decode(shown, raw)
        table = _json(shown, text) if looks_json(text) and not skip else _text(shown, text, skip)
    packed = "" if member else next(iter(_packed(path, content)), "")
    return replace(table, path=path, member=member, packed=packed)


def members(path: Path) -> dict[str, int]:
    """The files in a zip by name, with their sizes; {} for a workbook and every other file."""
    return _packed(path, _content(path))


def _packed(path: Path, raw: bytes) -> dict[str, int]:
    if raw[:4] != _ZIP:
        return {}
    with _archive(path), zipfile.ZipFile(io.BytesIO(raw)) as several:
        names = _held(several)
        table = _WORKBOOK not in names
        return {name: several.getinfo(name).file_size for name in names if table}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        kind = UsageError if isinstance(error, FileNotFoundError) else MacdError
        raise kind(
            f"{path} can't be read",
            why=error.strerror or str(error),
            hint="invoke data.import FILE, where FILE is CSV or parquet",
        ) from error


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
    if content := foreign.list_of(pl.DataFrame(schema=columns), header=bool(names)):
        raise foreign.refusal(path, content)
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String()), orient="row")
    frame = frame.with_columns(pl.all().str.strip_chars())
    return Table(path, frame, header=bool(names), lines=())


def listed(names: Sequence[str]) -> str:
    """Names or cells for a message: not all of a thousand columns, and no cell of a page."""
    more = len(names) - _SHOWN_COLUMNS
    listed = ", ".join(shortened(name) for name in names[:_SHOWN_COLUMNS])
    return listed + (f", and {more:,} more" if more > 0 else "")


def shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[None]:
    """What a damaged archive makes of its reader, in words."""
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, *_UNZIPPABLE) as error:
        raise MacdError(
            f"{path} is a damaged archive, or one with a password",
            why=first_line(error),
            hint="get the file again, or unpack it and import what was in it",
        ) from error


def _unpack(path: Path, raw: bytes, member: str = "", *, inner: bool = False) -> bytes:
    """What is packed; also where it was packed twice, as months in zips that were put in a zip."""
    with _archive(path):
        if raw[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                return _known_form(path, _unpacked(path, packed))
        if raw[:4] == _ZIP:
            with zipfile.ZipFile(io.BytesIO(raw)) as several:
                names = _held(several)
                if _WORKBOOK in names:
                    return raw
                if not names or (inner and len(names) > 1):
                    what = "a zip of several files in a zip" if names else "an empty zip"
                    raise UsageError(f"{path} holds {what}", hint="unpack it, and import a file")
                with several.open(member or names[0]) as packed:
                    content = _unpacked(path, packed)
            return content if inner else _unpack(path, content, inner=True)
    return _known_form(path, raw)


def _known_form(path: Path, raw: bytes) -> bytes:
    kind = next((name for start, name in _OTHER_ARCHIVES.items() if raw.startswith(start)), "")
    kind = kind or ("tar" if raw[257:262] == b"ustar" else "")
    if kind:
        raise UsageError(
            f"{path} is packed by {kind}, which is not unpacked here",
            hint="unpack it, and import the files; bars of one market are put together. Several "
            "files at once: put them into a .zip",
        )
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


def _held(archive: zipfile.ZipFile) -> list[str]:
    """The files with bars: where some are named like tables, a report beside them is none."""
    names = sorted(name for name in archive.namelist() if not _carried_along(name))
    return [name for name in names if name.lower().endswith(_TABLES)] or names


def _carried_along(name: str) -> bool:
    """Folders, and what macOS and exchanges put beside the file itself."""
    hidden = name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith("._")
    return hidden or name.endswith(("/", ".CHECKSUM", ".DS_Store"))


def _decode(path: Path, raw: bytes) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    start = raw[: 2 * min(len(raw) // 2, 100)]
    for zeros, name in ((0, "utf-16-be"), (1, "utf-16-le")):  # as Windows writes it, without a mark
        if len(start) > 20 and not any(start[zeros::2]) and all(start[1 - zeros :: 2]):
            return raw.decode(name, "replace")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _of_old_code_page(raw)
    if "\0" in text[:4096]:
        raise UsageError(
            f"{path} is neither text nor parquet",
            why=f"it begins with {raw[:8]!r}",
            hint="save it as CSV or parquet first (from Excel: CSV UTF-8)",
        )
    return text


def _of_old_code_page(raw: bytes) -> str:
    """Only names and comments can be outside ASCII; Chinese sites write theirs in GBK."""
    start = raw[:2000].decode("gb18030", "ignore")
    if re.search("[开收]盘|最[高低]|时间|日期|成交|交易", start):
        return raw.decode("gb18030", "replace")
    return raw.decode("latin-1")


def plain(name: str) -> str:
    """A column's name in the form in which names are compared: "1. Open" is "open".

    Where a name is given in Latin and in Chinese letters, as open/开盘价, the Latin ones.
    """
    plain = re.sub(r"[^a-z0-9\u4e00-\u9fff]", "", name.casefold())
    plain = re.sub(r"[\u4e00-\u9fff]", "", plain) or plain
    return re.sub(r"^[0-9]+[ab]?(?=open|high|low|close|volume)", "", plain)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether these cells name the columns of bars."""
    names = {plain(cell) for cell in cells}
    return any(set(known.split()) <= names for known in _HEADERS)


def _text(path: Path, text: str, skip: int) -> Table:
    lines = text.splitlines()
    lines[:skip] = [""] * min(skip, len(lines))
    if content := foreign.page(lines):
        raise foreign.refusal(path, content)
    asked = re.fullmatch("sep=(.)", lines[0].strip(), re.IGNORECASE) if lines else None
    if asked:  # Excel's word about the delimiter
        lines[0] = ""
    delimiter, width, first = _layout(path, lines)
    head = _cells(lines[first], delimiter)
    numbered = [str(at) for at in range(1, width + 1)]
    header = sum(bool(_NUMBER.match(cell)) for cell in head) < 3
    counted = [str(at) for at in range(width)]  # pandas writes these where nobody gave names
    start = first + 1 if header or head == counted else first
    data = [at for at in range(start, len(lines)) if lines[at].strip() and lines[at][0] != "#"]
    above = [line for line in lines[:first] if line.strip()]
    data, again = _without_headers(lines, data, delimiter, head if header else [], {*above})
    if again and not header and len(again[0]) == width:
        head, header = again[0], True
    names = _names(path, head, numbered) if header else numbered
    while header and data and len(above) < first + 3 and len(data) > 1:
        cells = _cells(lines[data[0]], delimiter)
        if any(_NUMBER.match(cell) for cell in cells) or re.search(r"\d{4}|\d:\d", lines[data[0]]):
            break
        above.append(lines[data.pop(0)])  # a second line of the header, as yfinance has
    body = "\n".join(lines[at] for at in data)
    try:
        frame = pl.read_csv(
            io.StringIO(body),
            separator=delimiter,
            has_header=False,
            new_columns=names,
            infer_schema=False,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=dict.fromkeys(names, pl.String()))
    except BROKEN as error:
        raise UsageError(
            f"{path}: not every line has the same number of cells",
            why=first_line(error)[:500],
            hint=f"the lines should have {width} cells, as line {first + 1}: {listed(head)}\n"
            f"lines at the beginning that are no part of the table: --skip-lines NUMBER",
        ) from error
    frame = frame.with_columns(pl.all().str.strip_chars())
    notes = (f"the header comes again in {len(again):,} other lines: left out",) if again else ()
    frame, data, left_out = _without_blanks(frame, data)
    table = Table(path, frame, header, [at + 1 for at in data], tuple(above), notes + left_out)
    if content := foreign.list_of(frame, header=header):
        raise foreign.refusal(path, content, table)
    return table


def _without_blanks(
    frame: pl.DataFrame, data: list[int]
) -> tuple[pl.DataFrame, list[int], tuple[str, ...]]:
    """Without rows of empty cells, as Excel leaves them, and without a remark behind the last."""
    filled = frame.fill_null("") != ""
    first, *others = filled.columns
    blank = filled.select(~pl.any_horizontal(pl.all())).to_series()
    alone = filled.select(~pl.any_horizontal(others)).to_series()
    alone &= frame[first].fill_null("").str.contains(_REMARK) | blank
    kept = (~alone).arg_true()
    remark = alone & (pl.arange(frame.height, eager=True) > (kept[-1] if kept.len() else -1))
    drop = blank | remark
    if not drop.any() or drop.all():
        return frame, data, ()
    notes = (
        [f"{rows:,} lines with empty cells only: left out"] if (rows := int(blank.sum())) else []
    )
    notes += [
        f"the last line is no bar: left out ({shortened(text)})"
        for text in frame.filter(remark & ~blank)[first]
    ]
    rows_left = (~drop).arg_true().to_list()
    return frame.filter(~drop), [data[row] for row in rows_left], tuple(notes)


def _without_headers(
    lines: list[str], data: list[int], delimiter: str, head: list[str], above: set[str]
) -> tuple[list[int], list[list[str]]]:
    """The lines that hold rows, and the headers between them: months that somebody joined.

    above: what stands before the first header, and comes again with the others.
    """
    again = []
    own = [cell.casefold() for cell in head]
    for at in data:
        if lines[at][:1].isdigit():
            continue  # a row; most are
        low = lines[at].lower()
        if ("open" in low and "low" in low) or (own and own[0] and low.startswith(own[0], 0, 80)):
            cells = _cells(lines[at], delimiter)
            if [cell.casefold() for cell in cells] == own or _is_header(cells):
                again.append((at, cells))
    dropped = {at for at, _ in again} | {at for at in data if lines[at] in above}
    rows = [at for at in data if at not in dropped] if dropped else data
    return rows, [cells for _, cells in again]


def _names(path: Path, head: list[str], numbered: list[str]) -> list[str]:
    """A name for each column. One that comes twice gets a number, unless bars need it."""
    names: list[str] = []
    for name, number in zip(head, numbered, strict=True):
        again = name
        if name in names:
            if plain(name) in _NEEDED:
                raise UsageError(
                    f"{path} has two columns named {name}",
                    why=f"header: {listed(head)}",
                    hint="give every column its own name in the first line, and import again; of a "
                    "file with several markets side by side (yfinance), make one for each",
                )
            again = f"{name} ({number})"
        names.append(again or number)
    return names


def _layout(path: Path, lines: list[str]) -> tuple[str, int, int]:
    """Delimiter, number of cells, and the first line that has them (comments come before it)."""
    best: tuple[int, int, str, int] | None = None
    for delimiter in _DELIMITERS:
        widths = [len(_cells(line, delimiter)) for line in lines[:_LOOK] if line.strip()]
        if not widths:
            continue
        width = max(set(widths), key=widths.count)
        if width >= _NARROWEST and (best is None or (widths.count(width), width) > best[:2]):
            best = (widths.count(width), width, delimiter, 0)
    if best is None:
        if content := foreign.narrow(lines):
            raise foreign.refusal(path, content)
        start = "\n".join(listed([line]) for line in lines[:3]) or "nothing"
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
    except json.JSONDecodeError:
        document = _by_lines(text)
    if isinstance(document, dict):
        document = _wrapped(document)
    if not isinstance(document, list) or not document:
        raise ValueError("the list is empty" if document == [] else "it is one single value")
    if isinstance(document[0], dict):
        names = list(document[0])
        return names, [_json_cells(bar, at, names) for at, bar in enumerate(document, 1)]
    if not isinstance(document[0], list):
        raise ValueError("it is a list of numbers or words, not of bars")
    width = len(document[0])
    return [], [_json_cells(bar, at, width) for at, bar in enumerate(document, 1)]


def _by_lines(text: str) -> list[Any]:
    """JSON Lines: a bar on each line. Raises ValueError where the text is no JSON at all."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or not lines[1].lstrip().startswith(("{", "[")):
        json.loads(text)  # says what is wrong with it
    return [json.loads(line, parse_int=str, parse_float=str, parse_constant=str) for line in lines]


def _wrapped(document: dict[str, Any]) -> Any:
    """The one list of bars in an exchange's answer, as {"code": 0, "data": [[...], ...]}."""
    if {"bids", "asks"} <= document.keys():
        raise ValueError("it is an order book")
    lists: list[Any] = []
    left = [document]
    while left and len(lists) < 2:
        here = left.pop()
        if rows := _by_columns(here):
            lists.append(rows)
            continue
        for value in here.values():
            if isinstance(value, dict):
                left.append(value)
            elif isinstance(value, list) and value and isinstance(value[0], list | dict):
                lists.append(value)
    if len(lists) == 1 and len(lists[0][0]) >= _NARROWEST:
        return lists[0]
    said = [f"{key}: {value}" for key, value in document.items() if isinstance(value, str)]
    raise ValueError(
        f"it is one object with the keys {listed(list(document))}"
        + (f" ({listed(said)})" if said else "")
    )


def _by_columns(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of {"t": [...], "o": [...]}, as servers of charts answer; [] for anything else."""
    lists = {
        name: cells
        for name, cells in document.items()
        if isinstance(cells, list) and cells and not isinstance(cells[0], list | dict)
    }
    if len(lists) < _NARROWEST or len({len(cells) for cells in lists.values()}) > 1:
        return _of_pandas(document)
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _of_pandas(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a frame by its index, by its columns, or split in three; [] for anything else."""
    names, index, rows = (document.get(name) for name in ("columns", "index", "data"))
    if isinstance(names, list) and isinstance(index, list) and isinstance(rows, list):
        whole = all(isinstance(row, list) and len(row) == len(names) for row in rows)
        pairs = zip(index, rows if whole and len(index) == len(rows) else (), strict=False)
        names = list(map(str, names))
        return [{"index": key, **dict(zip(names, row, strict=True))} for key, row in pairs]
    first = next(iter(document.values()), None)
    if len(document) < _NARROWEST - 1 or not isinstance(first, dict) or not first:
        return []
    if any(
        not isinstance(cells, dict) or cells.keys() != first.keys() for cells in document.values()
    ):
        return []
    if _is_header(list(first)):
        return [{"index": key, **bar} for key, bar in document.items()]
    return [{"index": key, **{name: document[name][key] for name in document}} for key in first]


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
