"""Files of bars become bars; what has two readings is asked, with an example."""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.market import bars
from macd.app.market.columns import parse_mapping
from macd.app.market.importing import Answers, merge, read_file
from macd.app.market.volumes import parse_unit
from macd.errors import MacdError, RefusedError, UsageError

DIALECTS = Path(__file__).parents[3] / "cases" / "bars" / "dialects"
TRUTH = DIALECTS / "truth_BTCUSD.csv"


def truth() -> pl.DataFrame:
    frame = pl.read_csv(TRUTH, try_parse_dates=False, infer_schema=False)
    return bars.canonical(
        frame.select(
            pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC"),
            *(pl.col(name).cast(pl.Float64) for name in bars.COLUMNS[1:]),
        )
    )


def asked(path: Path, answers: Answers | None = None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_file(path, answers)
    assert caught.value.exit_code == 2
    assert caught.value.hint.startswith(f"invoke data.import {shlex.quote(str(path))}")
    return caught.value


def test_what_was_done_and_assumed_is_said() -> None:
    imported = read_file(DIALECTS / "cryptodatadownload_am_BTCUSD.csv")
    assert "newest first" in " ".join(imported.notes)
    assert "taken as UTC" in " ".join(imported.notes)
    assert "volume=Volume BTC" in imported.columns
    imported = read_file(DIALECTS / "shuffled_with_repeats_BTCUSD.csv")
    assert "3 rows repeat a bar exactly" in " ".join(imported.notes)
    assert read_file(TRUTH).notes == ()


def test_archives_as_exchanges_publish_them(tmp_path: Path) -> None:
    raw = (DIALECTS / "BTCUSD-1h-2019-10.csv").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("BTCUSD-1h-2019-10.csv", raw)
    (tmp_path / "BTCUSD-1h-2019-10.zip").write_bytes(packed.getvalue())
    (tmp_path / "BTCUSD-1h-2019-10.csv.gz").write_bytes(gzip.compress(raw))
    for path in tmp_path.iterdir():
        assert read_file(path).bars.equals(truth())
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(raw)[:-20])
    with pytest.raises(MacdError, match="damaged"):
        read_file(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda df: df.with_columns(pl.col("timestamp").dt.cast_time_unit("ns")), ""),
        (lambda df: df.with_columns(pl.col("timestamp").dt.replace_time_zone(None)), "as UTC"),
        (lambda df: df.with_columns(pl.col("timestamp").dt.convert_time_zone("Asia/Tokyo")), ""),
        (lambda df: df.with_columns(pl.col("timestamp").dt.epoch("s")), ""),
        (lambda df: df.rename({"timestamp": "open_time"}).reverse(), "newest first"),
        (lambda df: df.rename({"timestamp": "__index_level_0__"}), ""),
        (lambda df: df.with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%d %H:%M")), "as UTC"),
        (lambda df: df.with_columns(pl.lit("btc-usd").alias("symbol")), ""),
    ],
    ids=["ns", "naive", "tokyo", "seconds", "open_time", "pandas index", "text", "symbol"],
)
def test_parquet(tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], note: str) -> None:
    path = tmp_path / "BTCUSD.parquet"
    change(truth()).write_parquet(path)
    imported = read_file(path)
    assert imported.bars.equals(truth())
    assert (imported.symbol, imported.tf) == ("BTCUSD", "1h")
    assert note in " ".join(imported.notes)
    assert bool(note) == bool(imported.notes)


def write(path: Path, header: str, row: Callable[[datetime], str], n: int = 30) -> Path:
    values = truth().drop("timestamp").rows()
    start = datetime(2019, 10, 16, 4, tzinfo=UTC)
    lines = [header] if header else []
    for i in range(n):
        cells = ",".join(map(str, values[i % 30]))
        lines.append(f"{row(start + timedelta(hours=i))},{cells}")
    path.write_text("\n".join(lines) + "\n")
    return path


NAMED = "time,open,high,low,close,volume"
UTC_TIME = "{:%Y-%m-%dT%H:%M:%SZ}".format


def test_unknown_columns_are_asked_with_the_columns_a_row_and_an_example(tmp_path: Path) -> None:
    iso = "{:%Y-%m-%dT%H:%M:%SZ}".format
    path = write(tmp_path / "BTCUSD.csv", "when,first,top,bottom,end price,traded", iso)
    error = asked(path)
    assert "which column is time and which is open" in error.what
    assert "columns: when, first, top, bottom, end price, traded" in error.why
    assert "when=2019-10-16T04:00:00Z, first=8171.5" in error.why
    order = "time=when,open=first,high=top,low=bottom,close=end price,volume=traded"
    assert f'--columns "{order}"' in error.hint  # names that are there
    given = parse_mapping("time=when,open=first,high=top,low=bottom,close=end price,volume=TRADED")
    assert read_file(path, Answers(columns=given)).bars.equals(truth())
    assert "no column 'x' for open" in asked(path, Answers(columns={"open": "x"})).what
    for wrong in ("when", "date=when", "time="):
        with pytest.raises(UsageError):
            parse_mapping(wrong)


@pytest.mark.parametrize("twin", ["Time", "VOLUME", "1. close"])
def test_two_columns_with_one_name_in_other_letters_are_asked(tmp_path: Path, twin: str) -> None:
    """The later of the two was taken: a close as the open, the takers' volume as the volume."""
    path = write(tmp_path / "BTCUSD.csv", NAMED, "{:%Y-%m-%dT%H:%M:%SZ}".format)
    header, *rows = path.read_text().splitlines()
    odd = [f"{header},{twin}", *(f"{row},1" for row in rows)]
    path.write_text("\n".join(odd))
    role = twin.lower().removeprefix("1. ")
    assert asked(path).what == f"which column is {role}: {role} or {twin}?"
    assert asked(path).hint.endswith(f'--columns "{role}={role}"')
    assert read_file(path, Answers(columns={role: role})).bars.equals(truth())
    path.write_text(
        "\n".join([f"{twin},{header}", *(f"1,{row}" for row in rows)])
    )  # the other first
    assert read_file(path, Answers(columns={role: role})).bars.equals(truth())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("volume_contracts", "what does the volume (volume_contracts) count?"),
        ("Volume (Lots)", "what does the volume (Volume (Lots)) count?"),
        ("amount", "what does the volume (amount) count?"),
        ("dollar_volume", ""),
        ("notional", ""),
    ],
)
def test_a_volume_that_is_no_count_of_the_asset_by_its_name_is_not_taken_for_one(
    tmp_path: Path, name: str, says: str
) -> None:
    path = write(tmp_path / "BTCUSD.csv", NAMED.replace("volume", name), UTC_TIME)
    given = Answers(columns={"volume": name})
    if says:
        assert asked(path, given).what == says
        sized = Answers(columns={"volume": name}, volume_is=parse_unit("base=0.01"))
        assert read_file(path, sized).bars["volume"][0] == pytest.approx(5.8186)
    else:
        assert asked(path).hint.partition("    ")[0].endswith(f'={name}" --volume-is quote')
        assert "divided by the mean" in " ".join(read_file(path, given).notes)


def test_a_volume_with_a_sign_of_money_is_money(tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSD.csv", NAMED, UTC_TIME)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(",$".join(row.rsplit(",", 1)) for row in rows)]))
    assert "divided by the mean" in " ".join(read_file(path).notes)


def test_of_a_volume_and_one_that_names_the_asset_the_latter_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSD.csv", "time,open,high,low,close,volume_btc", UTC_TIME)
    header, *rows = path.read_text().splitlines()
    both = [f"{header},volume", *(f"{row},{4e6 + number}" for number, row in enumerate(rows))]
    path.write_text("\n".join(both))
    assert read_file(path).bars.equals(truth())


def test_bars_of_a_length_that_is_no_timeframe_are_called_that(tmp_path: Path) -> None:
    start = datetime(2019, 10, 16, 4, tzinfo=UTC)
    for minutes, length in ((10, "10 minutes"), (1 / 60, "1 second"), (2880, "2 days")):
        path = write(
            tmp_path / "BTCUSD.csv",
            NAMED,
            lambda t, m=minutes: f"{start + (t - start) * m / 60:%Y-%m-%dT%H:%M:%SZ}",  # type: ignore[misc]
        )
        with pytest.raises(UsageError) as caught:
            read_file(path)
        assert caught.value.what == f"bars of {length} are of no timeframe that is known"
        assert "15m, 30m, 1h" in caught.value.why


def test_the_name_of_the_one_file_in_a_zip_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "download (1).zip"
    with zipfile.ZipFile(path, "w") as made:
        made.write(DIALECTS / "XBTUSD_60.csv", "data/XBTUSD_60.csv")
    imported = read_file(path)
    assert (imported.symbol, imported.dialect) == ("BTCUSD", "Kraken")
    assert imported.bars.equals(truth())


def test_a_volume_named_ticks_is_no_count_of_the_asset(tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSD.csv", NAMED.replace("volume", "tick_volume"), str)
    assert asked(path).hint.endswith('volume=tick_volume"    (volume=none where there is none)')
    imported = read_file(path, Answers(columns={"volume": "tick_volume"}))
    assert "tick_volume counts changes of the price" in " ".join(imported.notes)


def test_rows_of_empty_cells_and_a_remark_at_the_end_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSD.csv", NAMED, "{:%Y-%m-%dT%H:%M:%SZ}".format)
    whole = path.read_text()
    header, first, *rows = whole.splitlines()
    path.write_text("\n".join([header, first, ",,,,,", *rows, ",,,,,", "(30 rows)", ",,,,,", ""]))
    imported = read_file(path)
    assert imported.bars.equals(truth())
    assert "3 lines with empty cells only: left out" in imported.notes
    assert "the last line is no bar: left out ((30 rows))" in imported.notes
    path.write_text(whole.replace(rows[3], "a remark in between"))
    assert "line 6: the time 'a remark in between' is not understood" in asked(path).what
    path.write_text(whole + "2019-10-17T10")  # torn
    assert "line 32: 2019-10-17T10" in asked(path).why
    path.write_text(header + "\n,,,,,\n")
    assert "line 2 has no time" in asked(path).what


def test_the_example_of_a_question_names_columns_that_may_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "upbit_BTCUSD.json"
    bar = {"candle_date_time_kst": "2024-03-09T08:00:00", "date": "2024-03-08T23:00:00"}
    bar |= {"unit": 60, "opening_price": 1.5, "high": 2.0, "low": 1.0, "trade_price": 1.6}
    path.write_text(json.dumps([{**bar, "acc_trade_price": 3.0, "acc_trade_volume": 2.0}] * 2))
    assert "open=opening_price," in asked(path).hint
    assert 'volume=acc_trade_volume"' in asked(path).hint
    path = tmp_path / "BTCUSD.csv"
    rows = ["index,code,when,open,high,low,close,vol"]
    rows += [f"{i},AB,2019-10-{i:02} 00:00,1,1,1,1,1" for i in (3, 4)]
    path.write_text("\n".join(rows))
    assert asked(path).hint.endswith('--columns "time=when"')


def test_columns_without_names_in_another_order_are_told_by_their_values(tmp_path: Path) -> None:
    """Bitfinex writes open, close, high, low. What no source writes is asked."""
    rows = truth().select(
        pl.col("timestamp").dt.epoch("ms"), "open", "close", "high", "low", "volume"
    )
    path = tmp_path / "BTCUSD_1h.csv"
    rows.write_csv(path, include_header=False)
    assert read_file(path).bars.equals(truth())
    swapped = ("close", "open", "high", "low")  # a bar does not open at its own close
    for other in (("open", "close", "low", "high"), ("high", "open", "low", "close"), swapped):
        shuffled = rows.select("timestamp", *other, "volume")
        shuffled.write_csv(tmp_path / "ETHUSD_1h.csv", include_header=False)
        error = asked(tmp_path / "ETHUSD_1h.csv")
        assert "no names for its columns" in error.why
        assert '--columns "time=1,open=2,high=3,low=4,close=5,volume=6"' in error.hint


def test_a_price_without_the_name_close_is_asked_and_12k_is_read(tmp_path: Path) -> None:
    path = DIALECTS.parent / "investing_BTCUSD.csv"
    assert asked(path).what == "which column is close?"
    assert asked(path).hint.endswith('--columns "close=Price"')
    imported = read_file(path, Answers(columns={"close": "Price"}))
    assert bars.digest(imported.bars) == bars.digest(truth())


def test_two_volumes_nobody_can_tell_apart_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    frame = truth().with_columns(
        pl.col("timestamp").dt.epoch("s"), pl.col("volume").alias("Volume XBT")
    )
    frame.rename({"volume": "Volume BTC"}).write_csv(path)
    error = asked(path, Answers(symbol="ETHUSD"))
    assert "which column is volume" in error.what
    assert '--columns "volume=Volume BTC"' in error.hint
    assert read_file(path, Answers(symbol="BTCUSD")).columns.endswith("volume=Volume BTC")


@pytest.mark.parametrize(
    "form",
    [
        "{:%d-%b-%y %H:%M}",
        "{0.year}年{0.month}月{0.day}日 {0:%H:%M}",
        "'{:%Y-%m-%d %H:%M:%S}",
        "'{0:%Y%m%d %H:%M}",
    ],
)
def test_times_as_people_and_excel_write_them(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "BTCUSD.csv", NAMED, form.format)
    assert read_file(path).bars.equals(truth())


def test_dates_of_six_digits_beside_a_clock_are_asked_and_read(tmp_path: Path) -> None:
    header = "<TICKER>;<PER>;<DATE>;<TIME>;<OPEN>;<HIGH>;<LOW>;<CLOSE>;<VOL>"
    form = "BTCUSD,60,{:%y%m%d},{0:%H%M%S}".replace("{:", "{0:").format
    path = write(tmp_path / "finam.txt", header, form)
    path.write_text(path.read_text().replace(",", ";"))
    error = asked(path)
    assert error.what == "which of the three in 19-10-16 040000 is the year, the month, the day?"
    assert read_file(path, Answers(dates="ymd")).bars.equals(truth())


def test_a_time_that_nobody_understands_is_no_question_of_another_column(tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSD.csv", NAMED, "{:%A at %H o'clock}".format)
    assert asked(path).hint.endswith("after writing the times in a form that is understood")


def test_day_and_month_are_asked_unless_the_data_tell(tmp_path: Path) -> None:
    def on(day: datetime, form: str) -> Callable[[datetime], str]:
        return lambda t: f"{day + (t - datetime(2019, 10, 16, 4, tzinfo=UTC)):{form}}"

    march3 = datetime(2020, 3, 4, tzinfo=UTC)
    path = write(tmp_path / "BTCUSD.csv", NAMED, on(march3, "%d/%m/%Y %H:%M"), n=20)
    error = asked(path)
    assert "is 04/03/2020 00:00 the 4. of month 3, or the 3. of month 4?" in error.what
    assert "--dates dmy" in error.hint
    for dates, month, day in (("dmy", 3, 4), ("mdy", 4, 3)):
        first = read_file(path, Answers(dates=dates)).bars["timestamp"][0]
        assert (first.month, first.day) == (month, day)
    # Past midnight only one reading has bars an hour apart; past the 12th only one has a month.
    for start in (march3, march3.replace(day=14)):
        for form in ("%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M %p"):
            path = write(tmp_path / "BTCUSD.csv", NAMED, on(start, form))
            assert read_file(path).bars["timestamp"][0] == start


def test_local_time_with_an_offset_or_a_zone(tmp_path: Path) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    local = lambda t: f"{t.astimezone(berlin):%Y-%m-%d %H:%M}"  # noqa: E731
    path = write(tmp_path / "BTCUSD.csv", NAMED, local)
    for zone in ("+02:00", "+2", "+0200", "Europe/Berlin"):
        imported = read_file(path, Answers(timezone=zone))
        assert imported.bars.equals(truth()), zone
        assert imported.notes == ()
    assert read_file(path).bars["timestamp"][0].hour == 6
    west = lambda t: t.astimezone(ZoneInfo("America/St_Johns")).isoformat()  # noqa: E731
    assert read_file(write(tmp_path / "BTCEUR.csv", NAMED, west)).bars.equals(truth())
    for name in ("iso_offset_BTCUSD", "BTCUSD-1h-2019-10", "gmt_time_BTCUSD"):
        error = asked(DIALECTS / f"{name}.csv", Answers(timezone="+02:00"))
        assert "these do" in error.what
    for zone in ("Berlin", "+2h", "CEST"):
        assert "no time zone" in asked(path, Answers(timezone=zone)).what


def test_a_zone_in_a_column_of_its_own_is_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSD.csv", f"tz,{NAMED}", "+08:00,{:%Y-%m-%d %H:%M}".format)
    error = asked(path)
    assert error.what == "are the times those of the zone in column tz (+08:00)?"
    there = read_file(path, Answers(timezone="+08:00")).bars["timestamp"]
    assert there[0] == truth()["timestamp"][0] - timedelta(hours=8)
    assert read_file(path, Answers(timezone="UTC")).bars.equals(truth())
    path.write_text(path.read_text().replace("+08:00", "UTC"))
    assert read_file(path).bars.equals(truth())


@pytest.mark.parametrize("newest_first", [False, True])
def test_the_hour_that_comes_twice_is_told_apart_by_order(
    tmp_path: Path, newest_first: bool
) -> None:
    zone = ZoneInfo("America/New_York")
    start = datetime(2019, 10, 16, 4, tzinfo=UTC)
    autumn = datetime(2019, 11, 2, 20, tzinfo=UTC)
    local = lambda t: f"{(autumn + (t - start)).astimezone(zone):%Y-%m-%d %H:%M}"  # noqa: E731
    path = write(tmp_path / "BTCUSD.csv", NAMED, local)
    if newest_first:
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *rows[::-1]]))
    assert "come twice with different values" in asked(path).what
    frame = read_file(path, Answers(timezone="America/New_York")).bars
    assert frame["timestamp"].to_list() == [autumn + timedelta(hours=i) for i in range(30)]
    assert frame.drop("timestamp").equals(truth().drop("timestamp"))
    # In another zone the same times can't be: a night it knows has 01:00 once only.
    error = asked(path, Answers(timezone="Europe/Berlin"))
    assert "come twice" in error.what


def test_a_local_hour_that_never_was_names_the_wrong_zone(tmp_path: Path) -> None:
    start = datetime(2019, 10, 16, 4, tzinfo=UTC)
    spring = datetime(2019, 3, 30, 20, tzinfo=UTC)
    path = write(tmp_path / "BTCUSD.csv", NAMED, lambda t: f"{spring + (t - start):%Y-%m-%d %H:%M}")
    error = asked(path, Answers(timezone="Europe/Berlin"))
    assert "line 8: 2019-03-31 02:00:00 never was in Europe/Berlin" in error.what


def test_close_times(tmp_path: Path) -> None:
    for late, form in (
        (timedelta(hours=1), "%Y-%m-%dT%H:%M:%SZ"),
        (timedelta(minutes=59, seconds=59), "%Y-%m-%dT%H:%M:%SZ"),
        (timedelta(minutes=59, seconds=59, milliseconds=999), "%Y-%m-%dT%H:%M:%S.%fZ"),
    ):
        path = write(tmp_path / "BTCUSD.csv", NAMED, lambda t: f"{t + late:{form}}")  # noqa: B023
        imported = read_file(path, Answers(time_is="close"))
        assert imported.bars.equals(truth())
        assert "moved back by 1h" in " ".join(imported.notes)
    named = path.read_text().replace("time,", "Close Time,", 1)
    path.write_text(named)
    assert "--time-is close" in asked(path).hint
    assert read_file(path, Answers(time_is="close")).bars.equals(truth())


def test_symbol_and_timeframe_are_found_or_asked(tmp_path: Path) -> None:
    iso = "{:%Y-%m-%dT%H:%M:%SZ}".format
    names = {
        "Binance_ETHUSDT_2023_minute.csv": "ETHUSDT",
        "Coinbase_BTC_USD.csv": "BTCUSD",
        "SOL-EUR 1h.csv": "SOLEUR",
        "gemini_ETHBTC_1hr.csv": "ETHBTC",
        "prices.csv": "",
        "ETHUSDT_vs_BTCUSDT.csv": "",
    }
    for name, symbol in names.items():
        path = write(tmp_path / name, NAMED, iso)
        if symbol:
            assert read_file(path).symbol == symbol
        else:
            assert "which market" in asked(path).what
            assert read_file(path, Answers(symbol="xrp/usd")).symbol == "XRPUSD"
    path = write(tmp_path / "BTCUSD.csv", NAMED, iso)
    error = asked(path, Answers(tf="4h"))
    assert "these are not 4h bars" in error.what
    assert "1h apart" in error.why
    assert "--tf 1h" in error.hint
    assert "what timeframe" in asked(write(path, NAMED, iso, n=1)).what
    assert read_file(path, Answers(tf="15m")).tf == "15m"


def test_several_symbols_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.csv"
    btc = truth().with_columns(pl.lit("BTC/USD").alias("symbol"))
    eth = btc.with_columns(pl.lit("ETH/USD").alias("symbol"), pl.col("close") / 2)
    pl.concat([eth, btc]).sort("timestamp").with_columns(
        pl.col("timestamp").dt.epoch("ms")
    ).write_csv(path)
    assert "BTCUSD, ETHUSD" in asked(path).why
    assert read_file(path, Answers(symbol="BTC-USD")).bars.equals(truth())
    assert "no SOLUSD" in asked(path, Answers(symbol="SOLUSD")).what
    broken = path.read_text().replace("8171.5", "eight", 2)
    path.write_text(broken)
    assert "line 2: 'eight'" in asked(path, Answers(symbol="ETHUSD")).what


def test_numbers_with_two_readings_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD.csv"
    rows = [
        f"2024-01-01 {h:02}:00;1,{h + 100};1,{h + 200};1,100;1,{h + 150};2,000" for h in range(9)
    ]
    path.write_text("\n".join(["time;open;high;low;close;volume", *rows]))
    assert "is 1,100 a thousand and more" in asked(path).what
    assert read_file(path, Answers(decimal=",")).bars["open"][0] == 1.1
    assert read_file(path, Answers(decimal=".")).bars["open"][0] == 1100.0
    path.write_text(path.read_text().replace("2,000", "2,000,000"))
    assert read_file(path).bars.row(0)[1:] == (1100.0, 1200.0, 1100.0, 1150.0, 2_000_000.0)


def broken(kind: str) -> str:
    text = TRUTH.read_text()
    at = "2019-10-16T08:00:00Z"
    return {
        "a word": text.replace(at + ",", at + ",none at all"),
        "no time": text.replace(at, ""),
        "other time": text.replace(at, "yesterday"),
        "no such hour": text.replace(at, "2019-10-16T25:00:00Z"),
        "no such day": text.replace(at, "2019-02-30T08:00:00Z"),
        "mixed zones": text.replace(at, at[:-1]),
        "excel": re.sub("(?m)^2019-10-(..)T(..)[^,]*", r"437\1.\2", text),
        "13 PM": re.sub("(?m)T(..):00:00Z", r" \1:00 PM", text),
        "0 AM": text.replace("T", " ").replace(":00Z", " AM").replace("04:00", "00:00"),
        "conflict": text.replace("2019-10-16T09", "2019-10-16T08"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("a word", "line 6: 'none at all8196"),
        ("no time", "line 6 has no time"),
        ("other time", "line 6: the time 'yesterday' is not understood"),
        ("no such hour", "line 6: '2019-10-16T25:00:00Z' is no time"),
        ("no such day", "line 6: '2019-02-30T08:00:00Z' is no time"),
        ("13 PM", "line 11: '2019-10-16 13:00 PM' is no time"),
        ("0 AM", "line 2: '2019-10-16 00:00 AM' is no time"),
        ("mixed zones", "some times name their zone"),
        ("excel", "line 2: 43716.04 is not a time"),
        ("conflict", "1 times come twice with different values"),
    ],
)
def test_a_cell_that_can_not_be_read_is_named(tmp_path: Path, kind: str, what: str) -> None:
    path = tmp_path / "BTCUSD.csv"
    path.write_text(broken(kind))
    assert what in asked(path).what


def test_files_that_are_no_bars(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD.csv"
    for raw, what in (
        (b"", "doesn't look like bars"),
        (b"hello\nworld\n", "doesn't look like bars"),
        (b"# a\n# b\n", "doesn't look like bars"),
        (b"PK\x03\x04 cut", "damaged archive"),
        (b"PAR1 cut", "damaged parquet"),
        (b"\x89\x00\x01\x02,,,,,", "neither text nor parquet"),
        (NAMED.encode(), "has no rows"),
        (b"time,open,open,high,low,close,volume\n1,2,3,4,5,6,7\n", "two columns named open"),
        (NAMED.encode() + b"\n1,2,3,4,5,6\n1,2,3,4,5,6,7,8\n", "same number of cells"),
    ):
        path.write_bytes(raw)
        with pytest.raises(MacdError) as caught:
            read_file(path)
        assert what in caught.value.what, raw
        assert caught.value.hint
    with pytest.raises(UsageError, match="can't be read"):
        read_file(tmp_path / "none.csv")


def test_merging_is_a_union_and_conflicts_are_named() -> None:
    whole = truth()
    merged = merge(whole[:20], whole[10:])
    assert merged.bars.equals(whole)
    assert (merged.added, merged.same, merged.replaced) == (10, 10, 0)
    assert merge(None, whole).added == 30
    other = whole[18:].with_columns(
        pl.when(pl.col("timestamp") == whole["timestamp"][19])
        .then(9999.0)
        .otherwise(pl.col("close"))
        .alias("close")
    )
    with pytest.raises(RefusedError) as caught:
        merge(whole[:20], other)
    assert "1 bars are there already with other values" in caught.value.what
    assert caught.value.why.startswith("2019-10-16 23:00: close ")
    assert caught.value.why.endswith("-> 9999")
    merged = merge(whole[:20], other, replace=True)
    assert (merged.added, merged.same, merged.replaced) == (10, 1, 1)
    assert merged.bars["close"][19] == 9999.0


@given(cut=st.tuples(st.integers(1, 30), st.integers(0, 29)))
def test_merging_any_two_parts_that_meet_gives_the_whole(cut: tuple[int, int]) -> None:
    whole = truth()
    stop, start = max(cut[0], cut[1]), cut[1]
    for first, second in ((whole[:stop], whole[start:]), (whole[start:], whole[:stop])):
        if first.height and second.height:
            assert merge(first, second).bars.equals(whole)
