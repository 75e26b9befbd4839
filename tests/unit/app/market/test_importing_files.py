"""Files that are no plain table, and cells nobody can read: each named, none a traceback."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from macd.app.market import table
from macd.app.market.columns import parse_mapping
from macd.app.market.importing import Answers, Imported, read_file
from macd.errors import MacdError, UsageError
from tests.unit.app.market.test_importing import DIALECTS, truth

ASKED = DIALECTS.parent / "asked"


def rows(change: Callable[[pl.DataFrame], pl.DataFrame] = lambda df: df) -> list[list[object]]:
    ms = truth().with_columns(pl.col("timestamp").dt.epoch("ms"))
    return [list(row) for row in change(ms).iter_rows()]


def read_text(path: Path, text: str) -> Imported:
    path.write_text(text)
    return read_file(path)


def refused(path: Path, answers: Answers | None = None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_file(path, answers)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(rows()),
        json.dumps(rows(), indent=1),
        json.dumps([[ms, *map(str, values)] for ms, *values in rows()]),
        json.dumps([[*row[:6], row[0] + 3_599_999, row[4] * row[5], 2, 3, 4, 0] for row in rows()]),
        json.dumps([dict(zip(("date", "open", "high", "low", "close", "volume"), row, strict=True))
                    for row in rows()]),
    ],
    ids=["freqtrade and ccxt", "indented", "numbers as text", "the API of Binance", "objects"],
)  # fmt: skip
def test_json_that_holds_bars_is_read(tmp_path: Path, text: str) -> None:
    imported = read_text(tmp_path / "BTC_USD-1h.json", text)
    assert imported.bars.equals(truth())
    assert (imported.symbol, imported.tf) == ("BTCUSD", "1h")


def test_many_bars_of_json_on_one_line(tmp_path: Path) -> None:
    """Python's csv module takes no cell of more than 131,072 characters."""
    many = [[1_717_372_800_000 + i * 3_600_000, 100, 101, 99, 100.5, 7] for i in range(5000)]
    assert read_text(tmp_path / "BTC_USDT-1h.json", json.dumps(many)).bars.height == 5000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"code": -1121, "msg": "Invalid symbol."}', "code, msg"),
        ('{"data": [[1, 2]]}', "data"),
        ("[1, 2, 3]", "list of numbers"),
        ("[[1717372800000, 1, 2, 3, 4, 5], [1717376400000, 1]]", "bar 2"),
        ("[[1717372800000, 1, 2, 3, 4, {}]]", "bar 1"),
        ('[[1717372800000, 1, 2, 3, 4, 5], {"a": 1}]', "bar 2"),
        ("[[1717372800000, 1, 2, 3, 4,", "line 1"),
        ("[]", "empty"),
        ("[" * 100_000, ""),
    ],
    ids=["error", "wrapped", "flat", "ragged", "nested", "mixed", "cut", "empty", "deep"],
)
def test_other_json_is_named_as_json(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "BTC_USD-1h.json").write_text(text)
    error = refused(tmp_path / "BTC_USD-1h.json")
    assert "JSON" in error.what
    assert why in error.why
    assert "[[time, open, high, low, close, volume], ...]" in error.hint


@pytest.mark.parametrize(
    "document",
    [
        {"t": [1, 2], "o": [1, 2], "h": [1, 2], "l": [1, 2], "c": [1]},
        {"columns": ["open"], "index": [1, 2], "data": [[1]]},
        {"columns": ["open", "high"], "index": [1], "data": [[1]]},
        {"open": {"1": 1}, "high": {"1": 1}, "low": {"1": 1}, "close": {"2": 1}},
        {"open": {"1": 1}, "high": {"1": 1}, "low": {"1": 1}, "close": 7},
        {"open": {}, "high": {}, "low": {}, "close": {}, "volume": {}},
    ],
)
def test_json_by_columns_that_do_not_fit_together_is_named(
    tmp_path: Path, document: object
) -> None:
    (tmp_path / "BTCUSD.json").write_text(json.dumps(document))
    assert "is JSON, and not a list of bars" in refused(tmp_path / "BTCUSD.json").what


def test_json_whose_columns_nobody_can_tell_is_asked_shortly(tmp_path: Path) -> None:
    swapped = rows(lambda df: df.select("timestamp", "low", "close", "open", "high", "volume"))
    (tmp_path / "BTCUSD_1h.json").write_text(json.dumps(swapped))
    error = refused(tmp_path / "BTCUSD_1h.json")
    given = parse_mapping("time=1,low=2,close=3,open=4,high=5,volume=6")
    assert "which column is" in error.what
    assert read_file(tmp_path / "BTCUSD_1h.json", Answers(columns=given)).bars.equals(truth())


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_is_read(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "BTC_USD-1h.feather"
    truth().rename({"timestamp": "date"}).write_ipc(path, compression=compression)  # type: ignore[arg-type]
    assert read_file(path).bars.equals(truth())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MacdError, match="damaged feather"):
        read_file(path)


def test_a_broken_workbook_is_named_and_what_archives_carry_along_is_passed_over(
    tmp_path: Path,
) -> None:
    book = tmp_path / "BTCUSD.xlsx"
    with zipfile.ZipFile(book, "w") as out:
        out.writestr("[Content_Types].xml", "<Types/>")
        out.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(MacdError, match="Excel workbook") as caught:
        read_file(book)
    assert "CSV UTF-8" in caught.value.hint

    text = (DIALECTS / "BTCUSD-1h-2019-10.csv").read_text()
    with zipfile.ZipFile(tmp_path / "BTCUSD-1h-2019-10.zip", "w") as out:
        out.writestr("BTCUSD-1h-2019-10.csv", text)
        out.writestr("__MACOSX/._BTCUSD-1h-2019-10.csv", "\0\0")
        out.writestr("BTCUSD-1h-2019-10.csv.CHECKSUM", "00ff BTCUSD-1h-2019-10.csv")
    assert read_file(tmp_path / "BTCUSD-1h-2019-10.zip").bars.equals(truth())


def zipped(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(name, content)
    return path


def months(header: bool = False) -> tuple[str, str]:
    """The bars as two files of Binance, the later one with a header if wanted."""
    lines = (DIALECTS / "BTCUSD-1h-2019-10.csv").read_text().splitlines()
    names = (DIALECTS / "BTCUSD-1h-header.csv").read_text().splitlines()[:1]
    return "\n".join(lines[:-1]), "\n".join([*(names if header else []), *lines[-1:]])


def test_months_in_one_zip_are_one_series(tmp_path: Path) -> None:
    """The later one holds a single bar; beside them what sites put there; also zips in a zip."""
    early, late = months(header=True)
    files: dict[str, str | bytes] = {
        "data/BTCUSD-1h-2019-09.csv": early,
        "data/BTCUSD-1h-2019-10.csv": late,
        "data/BTCUSD-1h-2019-10.csv.CHECKSUM": "00ff",
        "README.txt": "gaps: none",
    }
    imported = read_file(zipped(tmp_path / "all.zip", files))
    assert (imported.bars.equals(truth()), imported.symbol, imported.tf) == (True, "BTCUSD", "1h")
    assert imported.notes[0].startswith("2 files, data/BTCUSD-1h-2019-09.csv to ")
    inner = {
        f"{name}.zip": zipped(tmp_path / "inner.zip", {name: text}).read_bytes()
        for name, text in (("BTCUSD-1h-1.csv", early), ("BTCUSD-1h-2.csv", late))
    }
    assert read_file(zipped(tmp_path / "zips.zip", dict(inner))).bars.equals(truth())


def test_files_of_several_markets_in_one_zip_are_asked_for(tmp_path: Path) -> None:
    early, late = months()
    path = zipped(tmp_path / "both.zip", {"BTCUSD-1h.csv": early, "ETHUSD-1h.csv": late})
    error = refused(path)
    assert error.what == f"which of the 2 files in {path}?"
    assert "--member BTCUSD-1h.csv" in error.hint
    assert read_file(path, Answers(member="BTC*")).bars.equals(truth()[:-1])
    assert read_file(path, Answers(symbol="ETH/USD", tf="1h")).bars.equals(truth()[-1:])
    with pytest.raises(UsageError, match=r"no file in .* is named X\*"):
        read_file(path, Answers(member="X*"))


def test_files_of_one_zip_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    early, late = months()
    four_hours = "\n".join(early.splitlines()[::4])
    path = zipped(tmp_path / "tf.zip", {"BTCUSD-1h.csv": early, "BTCUSD-4h.csv": four_hours})
    error = refused(path)
    assert "BTCUSD-4h.csv" in error.what and "the one: BTCUSD 4h, Binance" in error.why
    stamp = early.splitlines()[-1].partition(",")[0]
    other = stamp + late[len(stamp) :]  # another bar at that time
    path = zipped(tmp_path / "2.zip", {"BTCUSD-1.csv": early, "BTCUSD-2.csv": f"{other}\n{late}"})
    assert "1 times are in several of its files with different values" in refused(path).what
    spoilt = late.replace(late.split(",")[4], "abc")
    path = zipped(tmp_path / "BTCUSD.zip", {"a.csv": early, "b.csv": spoilt})
    assert "in b.csv" in refused(path).why


@pytest.mark.parametrize("kind", ["bzip2", "xz", "tar"])
def test_other_archives_are_named(tmp_path: Path, kind: str) -> None:
    raw = (DIALECTS / "BTCUSD-1h-2019-10.csv").read_bytes()
    packed = {"bzip2": bz2.compress(raw), "xz": lzma.compress(raw), "tar": b""}[kind]
    if kind == "tar":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("BTCUSD.csv"), io.BytesIO())
        packed = out.getvalue()
    (tmp_path / "BTCUSD-1h.gz").write_bytes(packed)
    assert f"is packed by {kind}" in refused(tmp_path / "BTCUSD-1h.gz").what


@pytest.mark.parametrize("half", ["cell", "name"])
def test_half_a_character_in_json_is_named(tmp_path: Path, half: str) -> None:
    """JSON can name half of a pair of surrogates, which no text holds."""
    text = json.dumps([[*row[:5], "7\ud800"] for row in rows()]) if half == "cell" else json.dumps(
        [dict(zip(("date", "open", "high", "low", "close", "vol\ud800"), row, strict=True))
         for row in rows()])  # fmt: skip
    (tmp_path / "BTC_USD-1h.json").write_text(text)
    assert "can't be made sense of" in refused(tmp_path / "BTC_USD-1h.json").what


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_an_archive_that_would_fill_the_memory_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(table, "_LARGEST", 3 << 20)
    path = tmp_path / f"BTCUSD_1h.csv.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(b"0" * (8 << 20)))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("BTCUSD_1h.csv", b"0" * (8 << 20))
    assert path.stat().st_size < 10_000
    assert "unpacks to more than 3 MiB" in refused(path).what


@pytest.mark.parametrize(
    "text",
    ["x" * 200_000, "1," * 70_000, "<html>" + "y" * 150_000, '"' + "1,2,3,4,5,6\n" * 20_000],
    ids=["one word", "one row", "html", "a quote that never ends"],
)
def test_lines_longer_than_csv_takes(tmp_path: Path, text: str) -> None:
    (tmp_path / "BTCUSD_1h.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_file(tmp_path / "BTCUSD_1h.csv")
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("name", "cell"), [("BTCUSD_bigint.csv", "9" * 23), ("BTCUSD_fullwidth.csv", "５")]
)
def test_cells_that_only_look_like_numbers_are_named(name: str, cell: str) -> None:
    error = refused(ASKED / name)
    assert error.what.startswith("line 2: ")
    assert cell in error.what
    assert error.hint.endswith("after correcting or deleting that line"), "the others are right"


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("time", "9" * 30), ("time", "٢٠٢٤-٠٦-٠٣ 00:00"), ("time", "１７１７３７２８００"),
        ("time", "1e400"),
        ("time", "2024-06-03 99:00"), ("time", "0000-06-03 00:00"), ("time", "-1717372800"),
        ("open", "1٢3"), ("volume", "1e999999999999"), ("close", "0x10"),
    ],
)  # fmt: skip
def test_relatives_of_such_cells(tmp_path: Path, column: str, cell: str) -> None:
    frame = pl.read_csv(ASKED / "BTCUSD_bigint.csv", infer_schema=False)[1:]
    names = {"time": "timestamp"}
    changed = frame.with_columns(pl.lit(cell).alias(names.get(column, column)))
    changed.write_csv(tmp_path / "BTCUSD_1h.csv")
    error = refused(tmp_path / "BTCUSD_1h.csv")
    assert "line 2" in error.what


TRUE_OPEN = (65000.0, 65196.87, 64957.04, 65089.91)


@pytest.mark.parametrize(
    ("name", "answers", "columns"),
    [
        ("BTCUSD60.csv", Answers(symbol="BTCUSD"), "time=1+2"),
        ("BTCUSD60.csv", Answers("BTCUSD", columns=parse_mapping("time=1+2")), "time=1+2"),
        ("btc.v.txt", Answers(symbol="BTC.V"), "time=<DATE>+<TIME>"),
        ("btc.v.txt", Answers(columns=parse_mapping("time=<date>+<time>")), "time=<DATE>+<TIME>"),
    ],
)
def test_a_date_and_a_clock_in_two_columns(name: str, answers: Answers, columns: str) -> None:
    imported = read_file(ASKED / name, answers)
    assert imported.columns.startswith(columns)
    assert imported.tf == "1h"
    assert f"{imported.bars['timestamp'][1]:%Y-%m-%d %H:%M}" == "2024-06-03 01:00"
    assert imported.bars.row(0)[1:5] == TRUE_OPEN


@pytest.mark.parametrize("clock", ["%H%M", "%H:%M", "%H:%M:%S", "%H%M%S"])
@pytest.mark.parametrize("date", ["%Y%m%d", "%Y.%m.%d", "%d/%m/%Y"])
@pytest.mark.parametrize("header", [True, False])
def test_every_usual_date_beside_every_usual_clock(
    tmp_path: Path, date: str, clock: str, header: bool
) -> None:
    values = ("open", "high", "low", "close", "volume")
    frame = truth().select(
        pl.col("timestamp").dt.strftime(date).alias("Date"),
        pl.col("timestamp").dt.strftime(clock).alias("Time"),
        *values,
    )
    path = tmp_path / "BTCUSD.csv"
    frame.write_csv(path, include_header=header)
    assert read_file(path).bars.equals(truth())


def test_two_columns_for_the_time_that_are_not_there_or_are_three(tmp_path: Path) -> None:
    for time, word in (("1+9", "9"), ("1+2+3", "1+2+3"), ("1+", "1+")):
        with pytest.raises(UsageError) as caught:
            read_file(ASKED / "BTCUSD60.csv", Answers(columns=parse_mapping(f"time={time}")))
        assert word in caught.value.what
    with pytest.raises(UsageError, match="no column '1\\+2' for open"):
        read_file(ASKED / "BTCUSD60.csv", Answers(columns=parse_mapping("open=1+2")))


def test_the_example_of_a_question_fits_the_file(tmp_path: Path) -> None:
    """Five columns of prices that contradict the order open, high, low, close."""
    swapped = truth().select(
        pl.col("timestamp").dt.strftime("%Y.%m.%d").alias("a"),
        pl.col("timestamp").dt.strftime("%H:%M").alias("b"),
        *("open", "close", "high", "low", "volume"),
    )
    swapped.write_csv(tmp_path / "BTCUSD.csv", include_header=False)
    error = refused(tmp_path / "BTCUSD.csv")
    assert 'time=1+2,open=3,high=4,low=5,close=6,volume=7"' in error.hint


def test_a_year_that_python_has_not_in_a_zone_with_summer_time(tmp_path: Path) -> None:
    lines = (DIALECTS / "dukascopy_eet_BTCUSD.csv").read_text().splitlines()
    lines[-1] = ",".join(["0000-01-01", *lines[-1].split(",")[1:]])
    (tmp_path / "BTCUSD_1h.csv").write_text("\n".join(lines))
    assert "0000-01-01 is no time of a bar" in refused(tmp_path / "BTCUSD_1h.csv").what
