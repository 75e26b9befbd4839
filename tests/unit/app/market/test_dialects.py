"""Every entry of the table of dialects has an example in its true layout; each tells its bars.

The examples hold the 30 true bars of truth_BTCUSD.csv as their sources would have written them.
What a source can't say (a unit, a market, that there is no volume) is asked, and answered here.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import polars as pl
import pytest

from macd.app.market import bars
from macd.app.market.columns import parse_mapping
from macd.app.market.dialects import DIALECTS as TABLE
from macd.app.market.dialects import recognise
from macd.app.market.importing import Answers, read_file
from macd.app.market.table import read_table
from macd.app.market.volumes import parse_unit
from macd.errors import MacdError, UsageError
from tests.unit.app.market.test_importing import DIALECTS, asked, truth

FOREIGN = DIALECTS.parent / "foreign"
ASKED = DIALECTS.parent / "asked"


@dataclass(frozen=True)
class Example:
    """What an example tells beside the true prices, and how its one question is answered."""

    symbol: str = "BTCUSD"
    tf: str = "1h"
    first: datetime = datetime(2019, 10, 16, 4, tzinfo=UTC)
    price: float = 1.0  # times the true one
    volume: str = "same"  # same, rounded, none, or times 100
    question: str = ""
    answer: Answers = field(default_factory=Answers)
    note: str = ""


OCTOBER = datetime(2019, 10, 1, tzinfo=UTC)
EXAMPLES = {
    "BTCUSD_60_2019-10-01_2019-10-31.csv": Example(),
    "DAT_ASCII_EURUSD_M1_2019.csv": Example(
        "EURUSD", "1m", price=1 / 7400, volume="none", note="EST all the year"
    ),
    "DAT_MT_EURUSD_M1_2019.csv": Example("EURUSD", "1m", price=1 / 7400, volume="none"),
    "XBTUSD_60.csv": Example(),
    "binance_coinm_BTCUSD_PERP-1h-2019-10.csv": Example(note="contracts worth 100"),
    "binance_usdm_BTCUSD-1h-joined.csv": Example(note="the header comes again in 1 other lines"),
    "barchart_BTCUSD.csv": Example(note="the last line is no bar: left out (Downloaded from"),
    "bitmex_XBTUSD.csv": Example("XBTUSD", note="those of bar closes: moved back by 1h"),
    "bitstampUSD_1-min_data_2012-01-01_to_2021-03-31.csv": Example(tf="1m", note="without a price"),
    "bybit_inverse_BTCUSD.csv": Example(note="taken 7"),
    "coinmarketcap_Bitcoin_2019-10-01-2019-10-30_historical_data.csv": Example(
        tf="1d",
        first=OCTOBER,
        question="which market",
        answer=Answers(symbol="BTC/USD"),
        note="divided by the mean",
    ),
    "coinmarketcap_page_BTCUSD.csv": Example(
        tf="1d", first=OCTOBER, note="of the price's currency"
    ),
    "databento_BTCUSD.ohlcv-1h.csv": Example(note="whole numbers of 1e-09"),
    "dukascopy_eet_BTCUSD.csv": Example(note="read as EET"),
    "gate_BTC_USD-201910.csv": Example(
        question="what does the volume (2) count", answer=Answers(volume_is=parse_unit("base"))
    ),
    "gate_api_BTC_USD.json": Example(note="still open"),
    "mt4_BTCUSD60.csv": Example(volume="rounded", note="the broker's server"),
    "mt5_BTCUSD_H1_201910160400_201910170900.csv": Example(volume="rounded", note="ticks"),
    "mt5_daily_BTCUSD_Daily.csv": Example(tf="1d", first=OCTOBER, volume="rounded", note="ticks"),
    "okx_BTC-USD-SWAP.csv": Example(note="taken vol_ccy"),
    "okx_api_BTC-USD-SWAP.json": Example(note="still open"),
    "mt5_python_BTCUSD_H1.csv": Example(volume="rounded", note="ticks"),
    "stooq_btcusd_d.csv": Example(tf="1d", first=OCTOBER),
    "tradingview_no_volume_BTCUSD, 60.csv": Example(
        volume="none",
        question="which column is volume",
        answer=Answers(columns=parse_mapping("volume=none")),
        note="no volume",
    ),
    "yahoo_AAPL.csv": Example(
        "AAPL", "1d", OCTOBER, volume="times 100", question="which market",
        answer=Answers(symbol="AAPL"), note="without a price",
    ),
    "yahoo_adjusted_BTC-USD.csv": Example(note="of the price's currency"),
    "yfinance_BTC-USD.csv": Example(note="of the price's currency"),
    "yfinance_flat_BTC-USD.csv": Example(
        question="what does the volume (Volume) count", note="of the price's currency",
        answer=Answers(volume_is=parse_unit("quote")),
    ),
    "yfinance_history_BTC-USD.csv": Example(note="of the price's currency"),
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(DIALECTS.iterdir()), ids=lambda path: path.stem)
def test_each_example_tells_its_bars(path: Path) -> None:
    example = EXAMPLES.get(path.name, Example())
    if example.question:
        assert example.question in asked(path).what
    imported = read_file(path, example.answer)
    assert (imported.symbol, imported.tf) == (example.symbol, example.tf)
    assert example.note in " ".join(imported.notes)
    traded = imported.bars.filter((pl.col("volume") > 0) | (example.volume == "none"))
    step = timedelta(**{{"m": "minutes", "h": "hours", "d": "days"}[example.tf[-1]]: 1})
    true = truth()
    assert traded.height == true.height
    assert imported.bars["timestamp"][0] == example.first
    if imported.bars.height == true.height and path.name != "yahoo_AAPL.csv":
        expected = [example.first + i * step for i in range(true.height)]
        assert imported.bars["timestamp"].to_list() == expected
    for name in ("open", "high", "low", "close"):
        assert np.allclose(traded[name], true[name] * example.price, rtol=1e-6), name
    factor = {"none": 0.0, "times 100": 100.0}.get(example.volume, 1.0)
    if example == Example():
        assert bars.digest(imported.bars) == bars.digest(true)
    slack = 0.5 if example.volume == "rounded" else 1e-6
    assert np.allclose(traded["volume"], true["volume"] * factor, rtol=1e-6, atol=slack)
    assert imported.volume == (example.volume != "none")


def test_times_of_closes_that_somebody_moved_already_stay_where_they_are() -> None:
    imported = read_file(DIALECTS / "bitmex_XBTUSD.csv", Answers(time_is="open"))
    assert imported.bars["timestamp"][0] == datetime(2019, 10, 16, 5, tzinfo=UTC)


def test_every_entry_of_the_table_has_an_example() -> None:
    met = [recognise(read_table(path)).dialect for path in DIALECTS.iterdir()]
    lacking = [entry.name for entry in TABLE if not any(entry is one for one in met)]
    assert lacking == []


def test_bars_that_an_exchange_leaves_out_keep_the_file_s_own_timeframe(tmp_path: Path) -> None:
    """An illiquid pair of Kraken has a row now and then; its file's name says how long each is."""
    rows = (DIALECTS / "XBTUSD_60.csv").read_text().splitlines()
    kept = [line for i, line in enumerate(rows) if i % 7 in (0, 3, 5)]
    (tmp_path / "DASHUSD_60.csv").write_text("\n".join(kept))
    imported = read_file(tmp_path / "DASHUSD_60.csv")
    assert (imported.tf, imported.exchange, imported.symbol) == ("1h", "kraken", "DASHUSD")
    (tmp_path / "DASHUSD.csv").write_text("\n".join(kept))
    assert "what timeframe" in asked(tmp_path / "DASHUSD.csv").what


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("error_page_BTCUSDT-1h-2025-13.csv", "XML (NoSuchKey: The specified key does not exist.)"),
        ("cloudflare_BTCUSD.csv", "a web page (Just a moment...)"),
        ("rate_limit_BTCUSD.csv", "an error message (Edge: Too Many Requests)"),
        ("api_error_BTCUSD.csv", "Invalid symbol."),
        ("git_lfs_BTCUSD.csv", "a Git LFS pointer"),
        ("binance_trades_BTCUSDT-trades-2024-01-01.csv", "a list of single trades"),
        ("binance_aggtrades_BTCUSDT.csv", "a list of single trades"),
        ("kraken_trades_XBTUSD.csv", "a list of single trades"),
        ("okx_trades_BTC-USDT.csv", "a list of single trades"),
        ("order_book_BTCUSDT.csv", "an order book"),
        ("depth_BTCUSDT.json", "an order book"),
        ("book_ticker_BTCUSDT.csv", "quotes (bid and ask)"),
        ("dukascopy_ticks_EURUSD.csv", "quotes (bid and ask)"),
        ("funding_BTCUSDT.csv", "funding rates"),
    ],
)
def test_what_is_no_bars_is_named_as_what_it_is(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_file(FOREIGN / name)
    assert words in f"{caught.value.what} {caught.value.why}"
    assert caught.value.hint


def test_every_foreign_file_is_asked_about() -> None:
    (mark,) = (
        mark
        for mark in test_what_is_no_bars_is_named_as_what_it_is.pytestmark
        if mark.name == "parametrize"
    )
    assert {case[0] for case in mark.args[1]} == {path.name for path in FOREIGN.iterdir()}


def test_times_that_excel_rounded_are_named_as_rounded() -> None:
    error = asked(ASKED / "excel_rounded_BTCUSD.csv")
    assert "the times were rounded, probably by Excel: 1,57120E+12" in error.what


def test_a_volume_of_zeros_is_asked_and_may_be_none() -> None:
    path = ASKED / "zeros_BTCUSD.csv"
    assert "0 or empty in every row" in asked(path).what
    for answer in (Answers(volume_is=parse_unit("none")), Answers(columns={"volume": "none"})):
        imported = read_file(path, answer)
        assert not imported.volume
        assert imported.bars["volume"].sum() == 0
        assert "no volume" in " ".join(imported.notes)


def test_a_volume_that_fits_to_nothing_is_asked_and_each_answer_is_taken() -> None:
    path = ASKED / "contracts_BTCUSDT.csv"
    assert "what does the volume (volume) count?" in asked(path).what
    rows = pl.read_csv(path)
    typical = (rows["high"] + rows["low"] + rows["close"]) / 3
    expected = {
        "base": rows["volume"],
        "base=0.01": rows["volume"] * 0.01,
        "quote": rows["volume"] / typical,
        "quote=100": rows["volume"] * 100 / typical,
        "ticks": rows["volume"],
        "none": rows["volume"] * 0,
    }
    for text, values in expected.items():
        imported = read_file(path, Answers(volume_is=parse_unit(text)))
        assert np.allclose(imported.bars["volume"], values), text
        assert bool(imported.notes) == (text != "base")


@pytest.mark.parametrize("text", ["coins", "base=", "base=x", "quote=0", "ticks=3", "base=-1"])
def test_a_unit_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--volume-is"):
        parse_unit(text)


def test_lots_of_a_hundred_shares_show_themselves(tmp_path: Path) -> None:
    true = truth().with_columns((pl.col("volume") * pl.col("close")).alias("amount"))
    lots = true.with_columns(pl.col("volume") / 100, pl.col("timestamp").dt.epoch("s"))
    lots.write_csv(tmp_path / "ABCUSD.csv")
    imported = read_file(tmp_path / "ABCUSD.csv")
    assert np.allclose(imported.bars["volume"], truth()["volume"])
    assert "lots) of 100 units" in " ".join(imported.notes)


def test_lines_at_the_beginning_are_skipped_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD.csv"
    text = (DIALECTS / "truth_BTCUSD.csv").read_text()
    path.write_text("a,b,c,d,e,f\nmy,own,notes,about,these,bars\n" + text)
    asked(path)
    imported = read_file(path, Answers(skip_lines=2))
    assert imported.bars.equals(truth())
    path.write_text("a,b,c,d,e,f\n1,2,3,4,5,x\n" + text.replace("8171.50", "eight", 1))
    with pytest.raises(UsageError, match="line 4: 'eight'"):  # counted in the file as it is
        read_file(path, Answers(skip_lines=2))


def workbook(rows: list[list[object]], *, sheets: int = 1) -> bytes:
    """The least that is an Excel workbook: cells of text and of numbers."""

    def cell(value: object) -> str:
        if isinstance(value, float | int):
            return f"<c><v>{value!r}</v></c>"
        return f'<c t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'

    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    rel = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    names = range(1, sheets + 1)
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/'
        'content-types"/>',
        "_rels/.rels": f'<Relationships xmlns="{package}"><Relationship Id="r1" '
        f'Type="{rel}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{rel}"><sheets>'
        + "".join(f'<sheet name="S{n}" sheetId="{n}" r:id="r{n}"/>' for n in names)
        + "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}">'
        + "".join(
            f'<Relationship Id="r{n}" Type="{rel}/worksheet" Target="worksheets/s{n}.xml"/>'
            for n in names
        )
        + "</Relationships>",
    } | {
        f"xl/worksheets/s{n}.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData>'
        "</worksheet>"
        for n in names
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, text in parts.items():
            packed.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return out.getvalue()


def test_an_excel_workbook_is_read(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    path = tmp_path / "BTCUSD.xlsx"
    head: list[object] = ["Date", "Open", "High", "Low", "Close", "Volume"]
    rows = [[f"{time:%Y-%m-%d %H:%M}", *values] for time, *values in truth().iter_rows()]
    path.write_bytes(workbook([head, *rows]))
    assert read_file(path).bars.equals(truth())
    path.write_bytes(workbook([head, *rows], sheets=2))
    with pytest.raises(UsageError, match="2 sheets that can hold bars") as caught:
        read_file(path)
    assert caught.value.hint.endswith("--sheet S1")
    assert read_file(path, Answers(sheet="S1")).bars.equals(truth())
    with pytest.raises(UsageError, match="no sheet 'S3'"):
        read_file(path, Answers(sheet="S3"))


def test_without_the_reader_of_workbooks_it_is_a_clear_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "python_calamine", None)
    path = tmp_path / "BTCUSD.xlsx"
    path.write_bytes(workbook([["a"]]))
    with pytest.raises(UsageError, match="is an Excel workbook") as caught:
        read_file(path)
    assert "CSV UTF-8" in caught.value.hint


def test_no_answer_of_the_user_is_lost_on_a_known_dialect(tmp_path: Path) -> None:
    """A zone that the user names goes before the usual one of the source."""
    path = DIALECTS / "DAT_ASCII_EURUSD_M1_2019.csv"
    imported = read_file(path, replace(Answers(), timezone="+00:00"))
    assert imported.bars["timestamp"][0] == datetime(2019, 10, 15, 23, tzinfo=UTC)
    with pytest.raises(MacdError, match="no column 'x'"):
        read_file(path, Answers(columns={"close": "x"}))


def test_files_of_several_months_may_be_joined_with_all_their_headers(tmp_path: Path) -> None:
    lines = (DIALECTS / "cryptodatadownload_mixed_BTCUSD.csv").read_text().splitlines()
    path = tmp_path / "BTCUSD.csv"
    path.write_text("\n".join([*lines[:14], *lines[:2], *lines[14:]]))
    imported = read_file(path)
    assert imported.dialect == "CryptoDataDownload"
    assert imported.bars.equals(truth())
    assert "the header comes again" in " ".join(imported.notes)


@pytest.mark.parametrize(
    ("name", "question", "example", "answer"),
    [
        (
            "two_digit_year_BTCUSD.csv",
            "which of the three in 16/10/19 04:00:00 is the year",
            "--dates dmy",
            Answers(dates="dmy"),
        ),
        (
            "zone_word_BTCUSD.csv",
            "what zone is EST?",
            "--timezone -05:00",
            Answers(timezone="-05:00"),
        ),
        (
            "volume_usd_BTCUSD.csv",
            "which column is volume?",
            '--columns "volume=Volume USD" --volume-is quote',
            Answers(columns={"volume": "Volume USD"}, volume_is=parse_unit("quote")),
        ),
        (
            "volume_usd_BTCUSD.csv",
            "which column is volume?",
            "",
            Answers(columns={"volume": "Volume USD"}),  # what its name says is not forgotten
        ),
    ],
)
def test_the_answer_that_a_question_names_is_the_truth(
    name: str, question: str, example: str, answer: Answers
) -> None:
    error = asked(ASKED / name)
    assert question in error.what
    assert example in error.hint
    imported = read_file(ASKED / name, answer)
    for column in bars.COLUMNS:
        expected = truth()[column].to_physical().to_numpy()
        assert np.allclose(imported.bars[column].to_physical().to_numpy(), expected), column


def test_the_example_names_a_column_that_holds_times(tmp_path: Path) -> None:
    rows = [f"000001.SZ,{time:%Y-%m-%d %H:%M},{o},{h},{low},{c},{v}" for time, o, h, low, c, v in
            truth().iter_rows()]  # fmt: skip
    (tmp_path / "BTCUSD.csv").write_text(
        "ts_code,traded,open,high,low,close,vol\n" + "\n".join(rows)
    )
    assert '--columns "time=traded"' in asked(tmp_path / "BTCUSD.csv").hint


def test_an_example_for_nameless_columns_begins_at_the_time(tmp_path: Path) -> None:
    rows = [f"x,{i},{time:%s},{o},{h},{low},{c}" for i, (time, o, h, low, c, _) in
            enumerate(truth().iter_rows())]  # fmt: skip
    (tmp_path / "BTCUSD.csv").write_text("\n".join(rows))
    error = asked(tmp_path / "BTCUSD.csv")
    assert '--columns "time=3,open=4,high=5,low=6,close=7,volume=none"' in error.hint
    given = parse_mapping("time=3,open=4,high=5,low=6,close=7,volume=none")
    assert read_file(tmp_path / "BTCUSD.csv", Answers(columns=given)).bars.height == 30
