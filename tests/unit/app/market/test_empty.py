"""Candles that an exchange leaves out: put back where it documents that, and nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.market import empty
from macd.app.market.bars import SCHEMA, read_bars
from macd.app.market.exchange import open_exchange
from macd.app.market.features import WARMUP, compute
from macd.app.market.fetch import FetchRequest, fetch_bars
from macd.app.market.importing import filled, read_file
from macd.errors import UsageError
from tests.unit.app.market.test_fetch import HOUR, LISTED, NOW, START, Server, fetch, kline, wanted

ALL = int((NOW.timestamp() * 1000 - LISTED) // HOUR) + 1  # the last is still open


def bars(hours: list[int]) -> pl.DataFrame:
    rows = [kline(LISTED + hour * HOUR)[:6] for hour in hours]
    frame = pl.DataFrame(rows, schema=list(SCHEMA), orient="row")
    stamp = pl.col("timestamp").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    return frame.select(stamp, pl.exclude("timestamp").cast(pl.Float64))


def hours(frame: pl.DataFrame) -> list[int]:
    return [(ms - LISTED) // HOUR for ms in frame["timestamp"].to_physical()]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.rows = [kline(LISTED + hour * HOUR) for hour in range(ALL) if hour % 3 != 2]
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@given(st.sets(st.integers(0, 120), min_size=1))
def test_holes_are_flat_at_the_last_close_and_all_else_stays(present: set[int]) -> None:
    given_ = bars(sorted(present))
    full = empty.fill(given_, HOUR)
    assert full.schema == given_.schema
    assert full.join(given_, on=given_.columns, how="semi").equals(given_), "no bar is changed"
    new = full.join(given_, on="timestamp", how="anti")
    for row in new.iter_rows(named=True):
        last = given_.filter(pl.col("timestamp") < row["timestamp"])["close"][-1]
        values = [row[name] for name in ("open", "high", "low", "close", "volume")]
        assert values == [last, last, last, last, 0.0]
    ordered = sorted(present)
    expected = {
        hour for a, b in pairwise(ordered) for hour in range(a + 1, b) if b - a - 1 <= empty.MOST
    }
    assert hours(full) == sorted(present | expected), "nothing before the first or after the last"


def test_a_bar_off_the_grid_is_left_for_the_checks() -> None:
    odd = bars([0]).vstack(bars([3]).with_columns(pl.col("timestamp").dt.offset_by("5m")))
    assert empty.fill(odd, HOUR).equals(odd)


def test_fetch_fills_where_the_exchange_documents_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = wanted(until=START + timedelta(hours=90))  # each hole is a question of its own
    fetched = fetch(server, tmp_path / "plain.parquet", short)
    traded = [hour for hour in range(91) if hour % 3 != 2]
    assert hours(fetched.bars) == traded
    monkeypatch.setattr(empty, "LEAVES_OUT", {"binance": "for the test"})
    assert fetch(server, tmp_path / "plain.parquet", short).added == 91 - len(traded)
    assert hours(read_bars(tmp_path / "plain.parquet")) == list(range(91)), "holes of before, too"
    fetched = fetch(server, tmp_path / "filled.parquet")
    assert hours(fetched.bars) == list(range(ALL - 1)), "across the borders of pages as well"
    asked = len(server.asked)
    assert fetch(server, tmp_path / "filled.parquet").added == 0
    assert len(server.asked) == asked, "nothing is missing"


def test_import_fills_when_told_whose_file_it_is(tmp_path: Path) -> None:
    part = bars([hour for hour in range(400) if hour % 5 != 2 and not 100 < hour < 150])
    path = tmp_path / "ETHUSDT_1h.csv"
    part.write_csv(path)
    imported = read_file(path)
    assert filled(imported, "").bars.equals(part)
    whole = filled(imported, "kraken")
    assert hours(whole.bars) == [hour for hour in range(400) if not 100 < hour < 150]
    assert "flat bars put in where kraken had no trade" in whole.notes[-1]
    with pytest.raises(UsageError, match="not documented that binance"):
        filled(imported, "binance")


def test_features_of_filled_bars_are_finite() -> None:
    table = compute(empty.fill(bars([hour for hour in range(900) if hour % 3 != 2]), HOUR))
    values: Any = table[WARMUP:].drop("timestamp").to_numpy()
    assert abs(values).max() < 1e6


class Coinbase(BaseHTTPRequestHandler):
    """The few answers of Coinbase Exchange's API that are asked for; no candle without a trade."""

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        answers: dict[str, Callable[[], Any]] = {
            "/products": lambda: [COIN],
            "/currencies": lambda: [],
            "/time": lambda: {"iso": "x", "epoch": NOW.timestamp()},
            "/products/ETH-USD/candles": lambda: candles_of(query),
        }
        raw = json.dumps(answers[url.path]()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


COIN = {
    "id": "ETH-USD", "base_currency": "ETH", "quote_currency": "USD", "quote_increment": "0.01",
    "base_increment": "0.0001", "display_name": "ETH/USD", "min_market_funds": "1",
    "status": "online", "trading_disabled": False, "cancel_only": False, "post_only": False,
    "limit_only": False, "fx_stablecoin": False, "auction_mode": False,
}  # fmt: skip


def candles_of(query: dict[str, str]) -> list[list[float]]:
    """[time, low, high, open, close, volume], newest first, 300 at most."""
    start, end = (datetime.fromisoformat(query[name]).timestamp() for name in ("start", "end"))
    rows = []
    for hour in range(ALL):
        seconds = (LISTED + hour * HOUR) // 1000
        if hour % 3 != 2 and start <= seconds <= end:
            _, o, h, low, c, volume, *_ = kline(seconds * 1000)
            rows.append([seconds, *map(float, (low, h, o, c, volume))])
    return rows[:300][::-1]


def test_coinbase_exchange_as_ccxt_has_it(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Coinbase) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        exchange = open_exchange(
            "coinbaseexchange", api_url=f"http://127.0.0.1:{served.server_address[1]}"
        )
        exchange.enableRateLimit = False  # type: ignore[attr-defined]
        want = FetchRequest("ETH/USD", "1h", START, None, NOW)
        path = tmp_path / "ETHUSD_1h.parquet"
        fetched = fetch_bars(exchange, want, path, sleep=lambda _: None, report=lambda _: None)
        served.shutdown()
        thread.join()
    assert hours(fetched.bars) == list(range(ALL - 1))
    flat = fetched.bars.filter(pl.col("volume") == 0)
    assert {hour % 3 for hour in hours(flat)} == {2}
