"""No input of any kind ends in a traceback: the example files, spoilt.

Each mutation is decided by its number alone, so a failure is repeated by its number.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from macd.app.market.importing import read_file
from macd.errors import MacdError
from tests.unit.app.market.test_dialects import FOREIGN, workbook
from tests.unit.app.market.test_importing import DIALECTS, truth
from tests.unit.app.market.test_importing_files import ASKED

EXAMPLES = sorted([*DIALECTS.iterdir(), *ASKED.iterdir(), *FOREIGN.iterdir()])
CELLS = (
    *("", " ", "-", "null", "NaN", "inf", "-inf", "1e400", "-1e400", "9" * 30, "0", "-1"),
    *("1,234", "1.234,5", "１２", "٣", "²", "0x1F", "1_000", "++1", "1e", "e5", ".", ",", ";"),
    *("\t", "|", '"', "'", "\0", "2024-02-30", "2024-01-01T00:00:00+99:99", "00:00", "24:00"),
    *("99999999", "20241301", "13/13/2024", "2024-01-01 00:00 EST", "<html>", "{", "[", "[1"),
    *("#", "# x", "=1+1", "é", "\u2028", "x" * 140_000, "0000-01-01", "1e18", "253402300800"),
    *("-62135596801", "1970-01-01", "12.5K", "5M", "$5", "5%", "(5)"),
)
DTYPES = (
    *(pl.String, pl.Int8, pl.UInt64, pl.Float32, pl.Boolean, pl.Binary, pl.Date, pl.Time),
    *(pl.Categorical, pl.Null, pl.Datetime("ns"), pl.Datetime("us", "Asia/Tokyo"), pl.Int128),
    *(pl.Duration("ms"), pl.Decimal(38, 4)),
)


def spoilt_text(raw: bytes, chance: random.Random) -> bytes:
    """One to three changes to the text of a file: cells, lines, columns, or single bytes."""
    for _ in range(chance.randint(1, 3)):
        raw = chance.choice((_cell, _line, _column, _bytes))(raw, chance)
    return raw


def _cell(raw: bytes, chance: random.Random) -> bytes:
    lines = raw.split(b"\n")
    at = chance.randrange(min(len(lines), 40))
    mark = chance.choice((b",", b";", b"\t", b"|"))
    cells = lines[at].split(mark)
    cells[chance.randrange(len(cells))] = chance.choice(CELLS).encode()
    lines[at] = mark.join(cells)
    return b"\n".join(lines)


def _line(raw: bytes, chance: random.Random) -> bytes:
    lines = raw.split(b"\n")
    at = chance.randrange(len(lines))
    change = chance.randrange(5)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(at, lines[0])
    elif change == 2:
        lines[at] = lines[at][: len(lines[at]) // 2]
    elif change == 3:
        lines.insert(at, chance.choice(CELLS).encode())
    else:
        lines = lines[: at + 1]
    return b"\n".join(lines)


def _column(raw: bytes, chance: random.Random) -> bytes:
    """One cell of every line: left out, twice, or all of them the same nonsense."""
    at, change, cell = chance.randrange(8), chance.randrange(3), chance.choice(CELLS).encode()
    lines = []
    for line in raw.split(b"\n"):
        cells = line.split(b",")
        if at < len(cells):
            cells[at : at + 1] = ([], [cells[at]] * 2, [cell])[change]
        lines.append(b",".join(cells))
    return b"\n".join(lines)


def _bytes(raw: bytes, chance: random.Random) -> bytes:
    if not raw:
        return b"\0"
    at, size = chance.randrange(len(raw)), chance.choice((1, 1, 2, 50))
    change = chance.randrange(4)
    new = (b"", chance.randbytes(size), raw[at : at + size] * 2, b"\xff" * size)[change]
    return raw[:at] + new + raw[at + size :]


def spoilt_columns(number: int) -> bytes:
    """Parquet or feather: a column of another type, another name, or bytes turned over."""
    chance, frame = random.Random(number), truth()
    name = chance.choice(frame.columns)
    change = chance.randrange(4)
    if change == 0:
        values = pl.Series(name, [None] * frame.height, dtype=chance.choice(DTYPES))
        frame = frame.with_columns(values)
    elif change == 1:
        made = chance.choice(
            (pl.concat_list(name), pl.struct(name), pl.col(name).cast(pl.String), pl.lit(None),
             pl.lit("x"), pl.lit(b"x"), pl.lit(float("inf")), pl.lit(2**63, dtype=pl.UInt64),
             pl.lit(True), pl.lit(-1), pl.col(name).to_physical().cast(pl.Int128),
             pl.col(name).shift(3))
        )  # fmt: skip
        frame = frame.with_columns(made.alias(name))
    elif change == 2:
        frame = frame.rename({name: chance.choice(CELLS[:50]) or "unnamed"})
    else:
        frame = chance.choice((frame[:0], frame[:1], frame.drop(name), frame.select(name)))
    out = io.BytesIO()
    write = chance.choice((frame.write_parquet, frame.write_ipc))
    write(out)
    raw = out.getvalue()
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        raw = _bytes(raw, chance)
    return raw


def text_case(number: int) -> tuple[str, bytes]:
    chance = random.Random(number)
    example = chance.choice(EXAMPLES)
    return example.name, spoilt_text(example.read_bytes(), chance)


def holds(path: Path, number: int, raw: bytes) -> None:
    """A file is read, or refused in words; anything else names the number that shows it."""
    path.write_bytes(raw)
    try:
        read_file(path)
    except MacdError as error:
        assert "this file can't be made sense of" not in error.what, f"{number}: {error}"
        assert len(str(error)) < 4000, f"{number}: {error}"
    except BaseException as error:
        pytest.fail(f"mutation {number} of {path.name}: {type(error).__name__}: {error}")


def workbook_case(number: int) -> tuple[str, bytes]:
    """One part of a workbook spoilt inside it, or the bytes of the whole."""
    chance = random.Random(number)
    rows = [[f"{time:%Y-%m-%d %H:%M}", *values] for time, *values in truth().iter_rows()]
    whole = workbook([["Date", "Open", "High", "Low", "Close", "Volume"], *rows])
    if chance.random() < 0.5:
        return "BTCUSD.xlsx", _bytes(whole, chance)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(out, "w") as made:
        victim = chance.choice(source.namelist())
        for name in source.namelist():
            part = source.read(name)
            made.writestr(name, _bytes(part, chance) if name == victim else part)
    return "BTCUSD.xlsx", out.getvalue()


def archive_case(number: int) -> tuple[str, bytes]:
    """Two or three examples in one zip, each spoilt, or the bytes of the whole."""
    chance = random.Random(number)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for place in range(chance.choice((2, 2, 3))):
            example = chance.choice(EXAMPLES[:8])
            name = chance.choice((f"BTCUSD-1h-{place}.csv", f"{place}/{example.name}"))
            spoil = chance.random() < 0.7
            raw = example.read_bytes()
            made.writestr(name, spoilt_text(raw, chance) if spoil else raw)
    whole = out.getvalue()
    return "BTCUSD.zip", _bytes(whole, chance) if chance.random() < 0.3 else whole


Cases = Callable[[int], tuple[str, bytes]]
KINDS: dict[str, Cases] = {
    "text": text_case,
    "columns": lambda number: ("BTCUSD_1h.parquet", spoilt_columns(number)),
    "workbook": workbook_case,
    "archive": archive_case,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(4))
def test_spoilt_files_are_read_or_refused_in_words(
    kind: str, part: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even polars' core, whose panics write to descriptor 2 themselves, says anything."""
    for number in range(part * 60, part * 60 + 60):
        name, raw = KINDS[kind](number)
        holds(tmp_path / name, number, raw)
    assert capfd.readouterr() == ("", "")


def test_what_a_library_quotes_of_a_file_is_cut(tmp_path: Path) -> None:
    """A zip whose two names of a file differ by a whole file: zipfile quotes all of it."""
    name, raw = KINDS["archive"](9202)
    holds(tmp_path / name, 9202, raw)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_spoilt_files_of_each_kind(kind: str, tmp_path: Path) -> None:
    for number in range(1000, 11_000):
        name, raw = KINDS[kind](number)
        holds(tmp_path / name, number, raw)
