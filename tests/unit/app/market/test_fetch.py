"""Real ccxt against a real local server that speaks Binance's API, and breaks on command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke import Collection, Program

from macd.app.market import bars
from macd.app.market.exchange import open_exchange
from macd.app.market.fetch import Fetched, FetchRequest, fetch_bars, fetch_final, missing
from macd.cli import data
from macd.errors import MacdError, RefusedError, UsageError

HOUR = 3_600_000
START = datetime(2024, 1, 1, tzinfo=UTC)
LISTED = int(START.timestamp() * 1000)
NOW = START + timedelta(hours=2500, minutes=20)
OUTAGE = range(1200, 1230)  # hours after START without bars: the exchange was down
Fault = Callable[["Handler"], None]


def kline(open_ms: int, *, finished: bool = True) -> list[Any]:
    hour = (open_ms - LISTED) // HOUR
    price = 2000.0 + hour % 97 + hour / 1000
    cells = [price, price + 3, price - 2, price + (1 if finished else 0.5), 10.0 + hour % 7]
    end = open_ms + HOUR - 1
    return [open_ms, *(f"{cell:.8f}" for cell in cells), end, "1.0", 5, "1.0", "1.0", "0"]


def market(base: str, quote: str) -> dict[str, Any]:
    return {
        "symbol": base + quote, "status": "TRADING", "baseAsset": base, "quoteAsset": quote,
        "baseAssetPrecision": 8, "quotePrecision": 8, "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT"], "isSpotTradingAllowed": True, "isMarginTradingAllowed": False,
        "permissions": ["SPOT"],
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1e6",
             "tickSize": "0.01"},
            {"filterType": "LOT_SIZE", "minQty": "0.001", "maxQty": "9000", "stepSize": "0.001"},
        ],
    }  # fmt: skip


class Server(ThreadingHTTPServer):
    """Faults by number of the klines request (from 0); a fault answers instead."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.faults: dict[int, Fault] = {}
        self.asked: list[int] = []
        self.now = int(NOW.timestamp() * 1000)
        self.url = f"http://{address}:{self.server_address[1]}"
        self.pairs = [("ETH", "USDT"), ("ETH", "USDC"), ("BTC", "USDT")]
        self.rows: list[list[Any]] = []  # klines to serve instead of those made up


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def answer(self, status: int, body: Any, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/api/v3/exchangeInfo":
            self.answer(200, {"symbols": [market(*pair) for pair in self.server.pairs]})
        elif url.path == "/api/v3/time":
            self.answer(200, {"serverTime": self.server.now})
        elif url.path == "/api/v3/klines":
            number = len(self.server.asked)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            self.server.asked.append(int(query["startTime"]))
            if fault := self.server.faults.get(number):
                fault(self)
            else:
                self.answer(200, self.klines(query))
        else:
            self.answer(404, {"code": -1, "msg": f"no such path {url.path}"})

    def klines(self, query: dict[str, str]) -> list[list[Any]]:
        if self.server.rows:
            after = [row for row in self.server.rows if row[0] >= int(query["startTime"])]
            return after[: int(query["limit"])]
        first = max(int(query["startTime"]), LISTED)
        first += -first % HOUR
        stamps = range(first, self.server.now + 1, HOUR)
        open_now = self.server.now - self.server.now % HOUR
        rows = (ms for ms in stamps if (ms - LISTED) // HOUR not in OUTAGE)
        return [
            kline(ms, finished=ms < open_now)
            for ms, _ in zip(rows, range(int(query["limit"])), strict=False)
        ]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def wanted(since: datetime | None = START, **changes: Any) -> FetchRequest:
    given = {"symbol": "ETH/USDT", "tf": "1h", "since": since, "until": None, "now": NOW}
    return FetchRequest(**{**given, **changes})


def fetch(server: Server, path: Path, want: FetchRequest | None = None, **more: Any) -> Fetched:
    waits: list[float] = more.pop("waits", [])
    lines: list[str] = more.pop("lines", [])
    exchange = open_exchange("binance", symbol="ETH/USDT", api_url=server.url)
    want = want or wanted()
    return fetch_bars(exchange, want, path, sleep=waits.append, report=lines.append, **more)


def whole(last: int = 2499) -> list[int]:
    return [LISTED + hour * HOUR for hour in range(last + 1) if hour not in OUTAGE]


def stamps(df: pl.DataFrame) -> list[int]:
    return df["timestamp"].to_physical().to_list()


def test_pages_are_joined_and_the_open_bar_is_left_out(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "ETHUSDT_1h.parquet"
    fetched = fetch(server, path)
    assert stamps(fetched.bars) == whole()
    assert len(server.asked) == 3
    on_disk = bars.read_bars(path)
    assert on_disk.equals(fetched.bars)
    assert on_disk.row(5)[1:] == (2005.005, 2008.005, 2003.005, 2006.005, 15.0)
    assert pl.read_parquet_metadata(path)["source"] == "fetch binance ETH/USDT"
    # Again: only the hours without bars are asked for, nothing is written.
    before = path.stat().st_mtime_ns
    again = fetch(server, path, wanted(None))
    assert (again.added, again.bars.height) == (0, fetched.bars.height)
    assert len(server.asked) == 4
    assert path.stat().st_mtime_ns == before


def test_final_bars_come_by_the_services_names(server: Server, tmp_path: Path) -> None:
    names = ("ETHUSDT", "BTCUSDT", "DOGEUSDT")  # the last has no market there, as for the service
    since = START + timedelta(hours=2000)
    server.now = int(NOW.timestamp() * 1000)
    fetch_final("binance", server.url, names, "1h", since, tmp_path, report=print)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["BTCUSDT_1h", "ETHUSDT_1h"]
    times = stamps(bars.read_bars(tmp_path / "ETHUSDT_1h.parquet"))
    assert times[0] == LISTED + 2000 * HOUR
    assert times == [ms for ms in whole() if ms >= times[0]]
    with pytest.raises(MacdError, match="no market for DOGEUSDT"):
        fetch_final("binance", server.url, names[2:], "1h", since, tmp_path, report=print)


def test_as_a_program_it_brings_files_up_to_now(server: Server, tmp_path: Path) -> None:
    """As a schedule's host asks it: JSON in, JSON out; the newest stored bar was still open."""

    def asked(symbols: list[str]) -> dict[str, Any]:
        question = {"exchange": "binance", "api_url": server.url, "tf": "1h"}
        question |= {"symbols": symbols, "directory": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "macd.app.market.fetch"],
            input=json.dumps({"limits": {}, "question": question}),
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(json.loads(done.stdout))

    for symbol in ("ETHUSDT", "BTCUSDT"):
        fetch(server, tmp_path / f"{symbol}_1h.parquet", wanted(until=START + timedelta(hours=99)))
    path = tmp_path / "ETHUSDT_1h.parquet"
    stored = bars.read_bars(path)
    early = pl.int_range(pl.len()) == pl.len() - 1
    last = pl.when(early).then(pl.col("close") - 0.5).otherwise(pl.col("close"))
    bars.write_bars(stored.with_columns(close=last), path, metadata={})
    answer = asked(["ETHUSDT"])
    assert answer == {"bars": {"ETHUSDT": 2370}}, "less the hours of the outage"
    assert stamps(bars.read_bars(path)) == whole()
    assert bars.read_bars(path)["close"][: stored.height].equals(stored["close"])
    assert asked(["ETHUSDT"]) == {"bars": {"ETHUSDT": 0}}
    refused = asked(["BTCUSDT"])["error"]  # a file that came from another market
    assert refused["what"] == "BTCUSDT_1h.parquet holds bars of another market"
    assert asked(["NOSUCH"])["error"]["what"] == "binance has no market for NOSUCH"


def test_since_until_and_filling_in_front(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "ETHUSDT_1h.parquet"
    at = lambda hours: START + timedelta(hours=hours)  # noqa: E731
    fetch(server, path, wanted(at(100.5), until=at(150)))
    assert stamps(bars.read_bars(path)) == whole(150)[101:]
    fetch(server, path, wanted(at(-50), until=at(160)))
    assert stamps(bars.read_bars(path)) == whole(160)
    later = fetch(server, path, wanted(None))
    assert stamps(later.bars) == whole()


def cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b'[[1704067200000,"20')
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.close()


FAULTS: dict[str, tuple[Fault, float]] = {
    "429": (lambda h: h.answer(429, {"code": -1003, "msg": "Too much"}, Retry_After="17"), 17.0),
    "418": (lambda h: h.answer(418, {"code": -1003, "msg": "Banned"}, Retry_After="120"), 120.0),
    "500": (lambda h: h.answer(500, {"code": -1000, "msg": "oops"}), 1.0),
    "503": (lambda h: h.answer(503, b"<html>maintenance</html>"), 1.0),
    "a proxy's page": (lambda h: h.answer(200, b"<html>please log in</html>"), 1.0),
    "cut in mid-answer": (cut, 1.0),
    "hung up": (hang_up, 1.0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_trouble_is_told_waited_out_and_leaves_no_mark(
    server: Server, tmp_path: Path, name: str
) -> None:
    fault, pause = FAULTS[name]
    server.faults = {1: fault}
    waits: list[float] = []
    lines: list[str] = []
    fetched = fetch(server, tmp_path / "x.parquet", waits=waits, lines=lines)
    assert stamps(fetched.bars) == whole()
    assert waits == [pause]
    assert f"trying again in {pause:.0f} s" in " ".join(lines)


def test_giving_up_keeps_what_came_and_goes_on_later(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "ETHUSDT_1h.parquet"
    broken = FAULTS["500"][0]
    server.faults = {number: broken for number in range(1, 100)}
    waits: list[float] = []
    with pytest.raises(MacdError) as caught:
        fetch(server, path, waits=waits)
    assert "binance can't be reached for bars from 2024-02-11 16:00" in caught.value.what
    assert "goes on from there" in caught.value.hint
    assert waits == [1, 2, 4, 8, 16, 32]
    assert stamps(bars.read_bars(path)) == whole()[:1000]
    server.faults = {}
    server.asked.clear()
    assert stamps(fetch(server, path, wanted(None)).bars) == whole()
    assert server.asked[0] == whole()[999]  # the last bar is asked for again, and compared


def test_an_exchange_that_is_not_reached_says_why(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(MacdError) as caught:
        exchange = open_exchange("binance", symbol="ETH/USDT", api_url="http://127.0.0.1:9")
        fetch_bars(exchange, wanted(), tmp_path / "x", sleep=lambda _: None, report=lines.append)
    assert "Connection refused" in caught.value.why
    assert all("Connection refused; trying again in" in line for line in lines) and lines


def test_pages_that_wait_for_a_large_file_are_written_when_it_ends_badly(
    server: Server, tmp_path: Path
) -> None:
    """From 50,000 bars on not every page is written at once; an error mustn't lose the others."""
    path = tmp_path / "ETHUSDT_1h.parquet"
    old = [LISTED - hour * HOUR for hour in range(60_000, 0, -1)]
    values = {name: [1.0] * len(old) for name in bars.COLUMNS[1:]}
    stamp = pl.col("timestamp").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    bars.write_bars(pl.DataFrame({"timestamp": old, **values}).with_columns(stamp), path)
    server.faults = {number: FAULTS["500"][0] for number in range(1, 100)}
    with pytest.raises(MacdError, match="can't be reached"):
        fetch(server, path)
    assert stamps(bars.read_bars(path)) == old + whole()[:1000]


def test_a_long_ban_is_told_and_not_waited_out(server: Server, tmp_path: Path) -> None:
    body = {"code": -1003, "msg": "banned"}
    server.faults = {0: lambda h: h.answer(418, body, Retry_After="7200")}
    waits: list[float] = []
    with pytest.raises(MacdError) as caught:
        fetch(server, tmp_path / "x.parquet", waits=waits)
    assert "wait 7,200 s" in caught.value.hint
    assert waits == []


def test_killed_in_the_middle_it_goes_on(server: Server, tmp_path: Path) -> None:
    """SIGKILL while the third page is awaited: two pages are on disk, the rest comes later."""
    path = tmp_path / "ETHUSDT_1h.parquet"
    reached, release = threading.Event(), threading.Event()

    def stall(_: Handler) -> None:
        reached.set()
        release.wait(60)

    server.faults = {2: stall}
    script = (
        "import sys; from datetime import datetime; from pathlib import Path\n"
        "from macd.app.market.exchange import open_exchange\n"
        "from macd.app.market.fetch import FetchRequest, fetch_bars\n"
        "e = open_exchange('binance', symbol='ETH/USDT', api_url=sys.argv[1])\n"
        "w = FetchRequest('ETH/USDT', '1h', *(datetime.fromisoformat(a) if a else None\n"
        "           for a in sys.argv[3:6]))\n"
        "fetch_bars(e, w, Path(sys.argv[2]), sleep=print, report=print)\n"
    )
    times = [START.isoformat(), "", NOW.isoformat()]
    child = subprocess.Popen([sys.executable, "-c", script, server.url, str(path), *times])
    try:
        assert reached.wait(60)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        release.set()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert stamps(bars.read_bars(path)) == whole()[:2000]
    server.faults = {}
    assert stamps(fetch(server, path, wanted(None)).bars) == whole()


def test_a_bar_stored_too_early_is_refused_then_replaced(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "ETHUSDT_1h.parquet"
    fetched = fetch(server, path, wanted(until=START + timedelta(hours=20)))
    early = fetched.bars.with_columns(
        pl.when(pl.col("timestamp") == fetched.bars["timestamp"][20])
        .then(pl.col("close") - 0.5)
        .otherwise(pl.col("close"))
        .alias("close")
    )
    bars.write_bars(early, path)
    with pytest.raises(RefusedError, match="1 bars are there already with other values"):
        fetch(server, path, wanted(None))
    assert bars.read_bars(path).equals(early)
    assert stamps(fetch(server, path, wanted(None), replace=True).bars) == whole()
    assert bars.read_bars(path)[20].equals(fetched.bars[20])


def test_the_exchange_s_clock_decides_when_a_bar_is_closed(server: Server, tmp_path: Path) -> None:
    server.now -= 5 * HOUR
    fetched = fetch(server, tmp_path / "x.parquet")
    assert stamps(fetched.bars)[-1] == LISTED + 2494 * HOUR


def test_another_market_s_file_is_left_alone(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "ETHUSDT_1h.parquet"
    fetch(server, path, wanted(until=START + timedelta(hours=5)))
    before = path.read_bytes()
    with pytest.raises(RefusedError) as caught:
        fetch(server, path, wanted(None, symbol="BTC/USDT"))
    assert "came from binance ETH/USDT, these would come from binance BTC/USDT" in caught.value.why
    assert path.read_bytes() == before


def test_questions_come_back_with_an_answer_to_type(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for want, what, why, hint in (
        (wanted(symbol="ETH/USTD"), "no market 'ETH/USTD'", "ETH/USDT", "--symbol ETH/USD"),
        (wanted(symbol="ethusdt"), "no market", "ETH/USDT", "--symbol ETH/USD"),
        (wanted(tf="7h"), "no 7h bars", "1m, 3m", "--tf 1h"),
        (wanted(None), "from when on?", "no bars at", "--since 2023-01-01"),
        (wanted(NOW - timedelta(minutes=30)), "no closed bar", "a bar takes 1h", "--since"),
    ):
        with pytest.raises(UsageError) as caught:
            fetch(server, path, want)
        assert what in caught.value.what
        assert why in caught.value.why
        assert hint in caught.value.hint
    with pytest.raises(UsageError) as caught:
        open_exchange("binanse")
    assert "--exchange binance" in caught.value.hint
    with pytest.raises(UsageError):
        open_exchange("binance", api_url="localhost:8080")
    assert server.asked == []


def test_an_exchange_that_is_not_there(tmp_path: Path) -> None:
    gone = Server()
    gone.server_close()
    waits: list[float] = []
    with pytest.raises(MacdError) as caught:
        fetch(gone, tmp_path / "x.parquet", waits=waits)
    assert "can't be reached for the list of markets" in caught.value.what
    assert "HTTPS_PROXY" in caught.value.hint
    assert len(waits) == 6


def test_without_ccxt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(MacdError) as caught:
        open_exchange("binance")
    assert "ccxt is not installed" in caught.value.what
    assert "pip install 'macd[fetch]'" in caught.value.hint


def test_the_command_itself(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MACD_ROOT", str(tmp_path))
    verbs = Collection(data=Collection("data", data.fetch))
    command = ["invoke", "data.fetch", "--symbol", "ETH/USDT", "--api-url", server.url]
    for since in (["--since", "2024-01-01"], []):
        Program(namespace=verbs).run([*command, *since, "--json"], exit=False)
        answer = json.loads(capsys.readouterr().out)
    path = tmp_path / "data" / "bars" / "ETHUSDT_1h.parquet"
    assert stamps(bars.read_bars(path)) == whole()
    assert (answer["added"], answer["bars"]) == (0, 2470)
    assert answer["digest"] == bars.digest(bars.read_bars(path))


@given(st.sets(st.integers(0, 40)), st.integers(0, 40), st.integers(0, 40))
def test_missing_ranges_are_exactly_what_is_not_there(have: set[int], a: int, b: int) -> None:
    first, last = min(a, b), max(a, b)
    ranges = missing(sorted(have), first, last, 1)
    named = [at for start, stop in ranges for at in range(start, stop + 1)]
    assert named == [at for at in range(first, last + 1) if at not in have]
    assert all(start <= stop for start, stop in ranges)
