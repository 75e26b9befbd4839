"""Markets that rest, and crashes that were: what is no error of the bars, and what still is one."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macd.app.market import bars, calendars, checks
from macd.app.market.importing import read_file
from macd.train_options import EXCHANGES, Market

MARKETS = Path(__file__).parents[3] / "cases" / "bars" / "markets"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR, DAY = 3_600_000, 86_400_000
# As the calendar XNYS of exchange_calendars 4.13 has them, 1998 to 2027.
SESSIONS = (
    *(252, 252, 252, 248, 252, 252, 252, 252, 251, 251, 253, 252, 252, 252, 250),
    *(252, 252, 252, 252, 251, 251, 252, 253, 252, 251, 250, 252, 250, 251, 251),
)
SHORT = (
    *(2, 2, 2, 3, 3, 4, 1, 1, 2, 3, 3, 2, 1, 1, 3),
    *(3, 3, 2, 1, 2, 3, 3, 2, 1, 1, 2, 3, 3, 2, 1),
)


def test_sessions_of_new_york_are_those_of_the_exchange() -> None:
    first = (date(1998, 1, 1) - date(1970, 1, 1)).days
    last = (date(2028, 1, 1) - date(1970, 1, 1)).days
    days = np.arange(first, last, dtype=np.int64)
    closes = calendars.exchange("stocks").sessions(days)[:, 1]
    years = [(date(1970, 1, 1) + timedelta(days=int(day))).year for day in days]
    whole = Counter(year for year, close in zip(years, closes, strict=True) if close >= 0)
    short = Counter(year for year, close in zip(years, closes, strict=True) if close == 13 * 60)
    assert tuple(whole[year] for year in range(1998, 2028)) == SESSIONS
    assert tuple(short[year] for year in range(1998, 2028)) == SHORT


@pytest.mark.parametrize(
    "day",
    [
        "2024-03-29", "2021-06-18", "2022-06-20", "2021-12-24", "2023-01-02", "2012-10-29",
        "2001-09-14", "2025-01-09", "2024-11-28", "2024-07-04", "2020-07-03",
    ],
)  # fmt: skip
def test_days_on_which_stocks_rest(day: str) -> None:
    closed = day != "2021-06-18"  # Juneteenth came a year later
    opens = np.array([ms(f"{day}T15:00")])
    assert calendars.due(opens, HOUR, "stocks")[0] != closed


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("market", "time", "there"),
    [
        ("crypto", "2024-12-25T03:00", True),
        ("fx", "2024-01-05T20:00", True),  # Friday, 15:00 in New York
        ("fx", "2024-01-05T22:00", False),
        ("fx", "2024-01-06T12:00", False),
        ("fx", "2024-01-07T23:00", True),  # Sunday, 18:00 in New York
        ("fx", "2024-07-05T20:00", False),  # Friday, 16:00 in summer: some brokers end
        ("fx", "2024-07-07T22:00", True),
        ("fx", "2024-12-25T12:00", False),
        ("stocks", "2024-01-05T14:30", True),  # 9:30 in winter
        ("stocks", "2024-07-05T13:30", True),  # 9:30 in summer
        ("stocks", "2024-01-05T13:30", False),
        ("stocks", "2024-01-05T20:00", True),
        ("stocks", "2024-01-05T20:30", False),  # ends half an hour after the session
        ("stocks", "2024-11-29T19:00", False),  # the day after Thanksgiving ends at 13:00
        ("stocks", "2024-11-29T17:00", True),
    ],
)
def test_what_is_due_by_the_hour(market: Market, time: str, there: bool) -> None:
    assert calendars.due(np.array([ms(time)]), HOUR, market)[0] == there


@pytest.mark.parametrize(
    ("market", "time", "there"),
    [
        ("XHKG", "2024-02-09T02:00", True),  # the last half day before the new year of the moon
        ("XHKG", "2024-02-09T05:00", False),
        ("XHKG", "2024-02-12T02:00", False),
        ("XHKG", "2024-02-14T04:00", False),  # 12:00 to 13:00 in Hong Kong
        ("XHKG", "2024-02-14T05:00", True),
        ("XLON", "2024-05-06T10:00", False),  # a bank holiday; New York trades
        ("XLON", "2024-12-24T12:00", False),  # ends at 12:30
        ("XETR", "2024-05-06T10:00", True),
        ("XTKS", "2024-11-04T01:00", False),
        ("XTKS", "2024-11-05T05:00", True),
        ("XNYS", "2024-01-05T14:30", True),
        ("XKRX", "2024-04-10T02:00", False),  # an election
    ],
)
def test_exchanges_have_their_own_days_and_hours(market: Market, time: str, there: bool) -> None:
    assert calendars.due(np.array([ms(time)]), HOUR, market)[0] == there


@pytest.mark.parametrize("time", ["2024-02-12T00:00", "2024-02-11T16:00", "2024-02-12T01:30"])
def test_a_bar_of_a_day_is_of_the_exchanges_date(time: str) -> None:
    """As a date, at midnight or at the bell in Hong Kong; Monday was a holiday, Wednesday not."""
    opens = np.array([ms(time), ms(time) + 2 * DAY])
    assert calendars.due(opens, DAY, "XHKG").tolist() == [False, True]
    assert calendars.aligned(opens, DAY, "XHKG").tolist() == [not time.endswith("T00:00")] * 2


@pytest.mark.parametrize("market", ["crypto", "stocks"])
def test_the_exchange_whose_sessions_fit_is_named(market: Market) -> None:
    days = np.arange(19_000, 19_900) * DAY
    close = 100 + np.cumsum(np.random.default_rng(4).normal(0, 1, 900)) / 10
    made = {name: close for name in bars.COLUMNS[1:]} | {
        "timestamp": pl.Series(days).cast(pl.Datetime("ms", "UTC"))
    }
    rows = bars.canonical(pl.DataFrame(made))
    rows = rows.filter(pl.Series(calendars.due(days, DAY, "XHKG")))
    by_check = {f.check: f for f in checks.check_bars(rows, tf="1d", now=NOW, market=market)}
    assert by_check["missing"].remedy.endswith("--market XHKG (train.market)")
    assert checks.check_bars(rows, tf="1d", now=NOW, market="XHKG") == []


def test_a_hole_of_years_is_no_market_that_rests() -> None:
    """Shanghai trades in few hours of a week: nearly everything lies outside of them."""
    hours = np.r_[0:3000, 60_000:63_000] * HOUR + ms("2018-01-01T00:00")
    made = {name: np.full(len(hours), 100.0) for name in bars.COLUMNS[1:]} | {
        "timestamp": pl.Series(hours).cast(pl.Datetime("ms", "UTC"))
    }
    rows = bars.canonical(pl.DataFrame(made))
    (missing,) = (f for f in checks.check_bars(rows, tf="1h", now=NOW) if f.check == "missing")
    assert "does the market rest" not in missing.detail


def test_every_exchange_has_its_sessions() -> None:
    days = np.arange(19_000, 20_000)  # 2022 to 2024
    for market in EXCHANGES:
        open_ = calendars.exchange(market).sessions(days)[:, 0] >= 0
        assert 640 < open_.sum() < 715, market


def checked(name: str, market: Market, change: pl.Expr | None = None) -> list[checks.Finding]:
    symbol, tf = name.split("_")
    rows = read_file(MARKETS / f"{name}.csv").bars
    rows = rows.filter(change) if change is not None else rows
    return checks.check_all({symbol: rows}, main=symbol, tf=tf, now=NOW, market=market)


@pytest.mark.parametrize(("name", "market"), [("EURUSD_1h", "fx"), ("AAPLUSD_1d", "stocks")])
def test_weekends_and_holidays_are_no_findings_and_days_that_lack_are(
    name: str, market: Market
) -> None:
    assert checked(name, market) == []
    crypto = [finding.check for finding in checked(name, "crypto")]
    assert "missing" in crypto
    (missing,) = (one for one in checked(name, "crypto") if one.check == "missing")
    assert "as fx does" in missing.detail  # these have a bar on each weekday
    gaps = [one for one in checked(name, "crypto") if one.check == "gap"]
    assert {gap.remedy for gap in gaps} == {missing.remedy}, "nobody has bars of a weekend"
    tf = name.split("_")[1]
    stamps = read_file(MARKETS / f"{name}.csv").bars["timestamp"]
    day = stamps[len(stamps) // 2].date()
    while day.weekday() != 1:  # a Tuesday
        day += timedelta(days=1)
    lacking = checked(name, market, pl.col("timestamp").dt.date() != day)
    (gap,) = (finding for finding in lacking if finding.check == "gap")
    assert gap.detail.startswith("1 bar missing" if tf == "1d" else "24 bars missing")


def sessions(step: int, *, until: int = 60) -> pl.DataFrame:
    """Stock bars of `step` milliseconds from 9:30 in New York on, first months of 2024."""
    opens = []
    for number in range(until):
        day = date(2024, 1, 1) + timedelta(days=number)
        start = ms(f"{day}T14:30")
        opens += [start + i * step for i in range(-(-390 * 60_000 // step))]
    there = calendars.due(np.array(opens) // DAY * DAY, DAY, "stocks")
    kept = [opened for opened, is_there in zip(opens, there, strict=True) if is_there]
    rng = np.random.default_rng(5)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, len(kept))))
    return bars.canonical(
        pl.DataFrame(
            {
                "timestamp": pl.Series(kept).cast(pl.Datetime("ms", "UTC")),
                "open": close,
                "high": close * 1.001,
                "low": close * 0.999,
                "close": close,
                "volume": rng.uniform(1, 2, len(kept)),
            }
        )
    )


@pytest.mark.parametrize(("tf", "step"), [("5m", 300_000), ("30m", 1_800_000), ("1h", HOUR)])
def test_stock_bars_count_from_the_bell(tf: str, step: int) -> None:
    rows = sessions(step)
    assert checks.check_bars(rows, tf=tf, now=NOW, market="stocks") == []
    shifted = rows.with_columns(pl.col("timestamp") + pl.duration(minutes=1))
    kinds = {
        finding.check for finding in checks.check_bars(shifted, tf=tf, now=NOW, market="stocks")
    }
    assert "misaligned" in kinds


def test_a_flat_weekend_of_a_currency_is_no_frozen_market() -> None:
    """Some sources write weekends as flat bars without volume."""
    rows = read_file(MARKETS / "EURUSD_1h.csv").bars
    grid = pl.DataFrame(
        {"timestamp": pl.datetime_range(rows["timestamp"][0], rows["timestamp"][-1], "1h",
                                        time_unit="ms", eager=True)}
    )  # fmt: skip
    full = grid.join(rows, on="timestamp", how="left").with_columns(
        pl.col("volume").fill_null(0.0), pl.col("close").forward_fill()
    )
    full = full.with_columns(pl.col(name).fill_null(pl.col("close")) for name in bars.COLUMNS[1:4])
    errors = {
        market: [f.check for f in checks.check_bars(full, tf="1h", now=NOW, market=market)]
        for market in ("fx", "crypto")
    }
    assert errors["fx"] == []
    assert {"zero-volume", "frozen"} <= set(errors["crypto"])


def test_a_crash_with_the_volume_of_one_is_only_a_warning() -> None:
    (finding,) = checked("ATOMUSDT_1h", "crypto")
    assert (finding.check, finding.level) == ("spike", "warn")
    assert "26 times the usual volume" in finding.detail


def test_a_crash_that_other_assets_saw_is_only_a_warning() -> None:
    rows = read_file(MARKETS / "ATOMUSDT_1h.csv").bars.with_columns(volume=pl.lit(1000.0))
    at = datetime(2025, 10, 10, 21, tzinfo=UTC)
    calm = rows.with_columns(
        low=pl.when(pl.col("timestamp") == at).then(pl.col("open") * 0.99).otherwise("low")
    )
    fell = rows.with_columns(
        low=pl.when(pl.col("timestamp") == at).then(pl.col("open") * 0.88).otherwise("low")
    )

    def level(other: pl.DataFrame) -> str:
        frames = {"ATOMUSDT": rows, "ETHUSDT": other}
        all_ = checks.check_all(frames, main="ATOMUSDT", tf="1h", now=NOW)
        (spike,) = (f for f in all_ if f.check == "spike" and f.symbol == "ATOMUSDT")
        assert (spike.level == "warn") == ("; ETHUSDT went -12" in spike.detail)
        return spike.level

    assert level(fell) == "warn"
    assert level(calm) == "error"


def test_bars_without_any_volume_say_so_once() -> None:
    rows = read_file(MARKETS / "EURUSD_1h.csv").bars.with_columns(volume=pl.lit(0.0))
    (finding,) = checks.check_bars(rows, tf="1h", now=NOW, market="fx")
    assert (finding.check, finding.level) == ("no-volume", "warn")


def test_bars_of_sessions_are_told_from_those_of_currencies() -> None:
    (missing,) = (
        finding
        for finding in checks.check_bars(sessions(HOUR), tf="1h", now=NOW)
        if finding.check == "missing"
    )
    assert "as stocks does" in missing.detail
    assert missing.remedy.endswith("{bars} --market stocks (train.market)")
