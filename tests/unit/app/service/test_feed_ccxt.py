"""The exchange feed: real ccxt against the local server that speaks Binance's klines API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from macd.app.service.feed import Bar, Trouble, open_feed
from macd.app.service.feed_ccxt import OPENS_AFTER, CcxtFeed
from macd.app.service.settings import Settings
from macd.errors import MacdError
from tests.unit.app.market.test_fetch import HOUR, LISTED, Handler, Server


class Time:
    """The feed's and the server's clock: sleeping moves both."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def now(self) -> float:
        return self.server.now / 1000

    def sleep(self, seconds: float) -> None:
        self.server.now += int(seconds * 1000)


@pytest.fixture
def exchange() -> Iterator[Server]:
    made = Server()
    made.now = LISTED + 700 * HOUR + 10_000  # the bar that opened at 700 is not closed
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def feed_of(root: Path, server: Server, cross: tuple[str, ...] = ()) -> CcxtFeed:
    document = {
        "symbol": "ETHUSDT", "tf": "1h", "cross": cross, "endpoint": "127.0.0.1:1",
        "feed": {"kind": "ccxt", "exchange": "binance", "api_url": server.url},
    }  # fmt: skip
    (root / "service.json").write_text(json.dumps(document))
    time = Time(server)
    feed = CcxtFeed(Settings.read(root), now=time.now, sleep=time.sleep, jitter=lambda: 0.5)
    feed._exchange.enableRateLimit = False  # type: ignore[attr-defined]
    return feed


def hours(items: Any) -> list[int]:
    return [(item.open_ms - LISTED) // HOUR for item in items if isinstance(item, Bar)]


def until(feed: CcxtFeed, count: int, turns: int = 5000) -> list[Any]:
    """What comes until `count` bars did."""
    came: list[Any] = []
    for _ in range(turns):
        came += feed.wait(60.0)
        if len(hours(came)) >= count:
            return came
    raise AssertionError(f"only {hours(came)} of {count} bars came")


def failing(status: int) -> Any:
    def fault(handler: Handler) -> None:
        handler.answer(status, {"code": -1, "msg": "out of order"})

    return fault


def test_history_then_each_bar_once_it_has_closed(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange)
    history = feed.begin(527, None)["ETHUSDT"]
    assert hours(history) == list(range(173, 700))
    came = until(feed, 3)
    assert hours(came) == [700, 701, 702]
    assert all(isinstance(item, Bar) for item in came)
    last = came[-1]
    assert 0 <= exchange.now - (last.open_ms + HOUR) < 10_000
    assert last.close == 2000.0 + 702 % 97 + 702 / 1000 + 1  # the value at its end


def test_a_bar_counts_as_closed_by_the_exchanges_clock(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange)
    real = feed._now
    feed._now = lambda: real() + 300  # ours is 5 minutes fast
    assert hours(feed.begin(10, None)["ETHUSDT"])[-1] == 699
    assert hours(until(feed, 1)) == [700]
    assert exchange.now >= LISTED + 701 * HOUR


def test_history_longer_than_a_page_ends_where_the_log_ends(
    tmp_path: Path, exchange: Server
) -> None:
    exchange.now = LISTED + 1199 * HOUR
    feed = feed_of(tmp_path, exchange)
    history = feed.begin(1100, LISTED + 1195 * HOUR)["ETHUSDT"]
    assert hours(history) == list(range(96, 1196))
    assert hours(until(feed, 3)) == [1196, 1197, 1198]


def test_cross_bars_come_first(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange, ("BTCUSDT",))
    history = feed.begin(5, None)
    assert hours(history["BTCUSDT"]) == hours(history["ETHUSDT"]) == list(range(695, 700))
    came = until(feed, 4)
    assert [(bar.symbol, hour) for bar, hour in zip(came, hours(came), strict=True)] == [
        ("BTCUSDT", 700), ("ETHUSDT", 700), ("BTCUSDT", 701), ("ETHUSDT", 701),
    ]  # fmt: skip


def test_failures_are_told_the_circuit_opens_and_no_bar_is_lost(
    tmp_path: Path, exchange: Server
) -> None:
    feed = feed_of(tmp_path, exchange)
    feed.begin(5, None)
    asked = len(exchange.asked)
    exchange.faults = {asked + n: failing(503) for n in range(OPENS_AFTER + 1)}
    came = until(feed, 1)
    troubles = [item for item in came if isinstance(item, Trouble)]
    assert len(troubles) == OPENS_AFTER + 1
    assert "asked again in 1 s" in troubles[0].detail
    assert "asked again in 300 s" in troubles[-1].detail
    assert hours(came) == [700]
    assert feed.state == "polling"
    assert hours(until(feed, 1)) == [701]


def test_while_the_circuit_is_open_nothing_is_asked(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange)
    feed.begin(5, None)
    exchange.faults = {n: failing(500) for n in range(1000)}
    for _ in range(500):
        feed.wait(60.0)
        if feed.breaker.state == "open":
            break
    assert "circuit open" in feed.state
    asked = len(exchange.asked)
    for _ in range(4):
        assert feed.wait(60.0) == []
    assert len(exchange.asked) == asked


def only_for(symbol: str, status: int) -> Any:
    def fault(handler: Handler) -> None:
        if f"symbol={symbol}" in handler.path:
            return handler.answer(status, {"code": -1, "msg": "out of order"})
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        return handler.answer(200, handler.klines(query))

    return fault


def test_one_dead_market_is_asked_ever_less_though_the_others_live(
    tmp_path: Path, exchange: Server
) -> None:
    feed = feed_of(tmp_path, exchange, ("BTCUSDT",))
    feed.begin(5, None)
    exchange.faults = {n: only_for("ETHUSDT", 503) for n in range(1000)}
    troubles = [item for _ in range(60) for item in feed.wait(60.0) if isinstance(item, Trouble)]
    pauses = [trouble.detail.rpartition("asked again in ")[2] for trouble in troubles]
    assert pauses[: OPENS_AFTER + 1] == ["1 s", "2 s", "4 s", "8 s", "300 s", "300 s"]
    assert feed.breaker.state == "open"
    exchange.faults = {}
    assert hours(item for item in until(feed, 4) if item.symbol == "ETHUSDT")[0] == 700


def test_a_dead_cross_market_holds_the_main_one_back_for_seconds_only(
    tmp_path: Path, exchange: Server
) -> None:
    feed = feed_of(tmp_path, exchange, ("BTCUSDT",))
    feed.begin(5, None)
    exchange.faults = {n: only_for("BTCUSDT", 503) for n in range(10_000)}
    late = []
    for _ in range(3):
        (bar,) = (item for item in until(feed, 1) if isinstance(item, Bar))
        late.append(exchange.now - (bar.open_ms + HOUR))
    assert max(late) < 60_000


def test_a_cross_bar_that_is_late_is_waited_for(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange, ("BTCUSDT",))
    feed.begin(5, None)
    until(feed, 2)
    asked = len(exchange.asked)
    exchange.faults = {asked: lambda handler: handler.answer(200, [])}
    came = until(feed, 2)
    assert [bar.symbol for bar in came] == ["BTCUSDT", "ETHUSDT"]


@pytest.mark.parametrize("told", [{}, [], {"serverTime": None}, {"serverTime": "soon"}])
def test_an_odd_clock_is_trouble_and_no_crash(
    tmp_path: Path, exchange: Server, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feed_of(tmp_path, exchange)
    feed.begin(5, None)
    answer = Handler.answer
    odd = [True]

    def answering(handler: Handler, status: int, body: Any, **headers: str) -> None:
        answer(handler, status, told if odd[0] and "/time" in handler.path else body, **headers)

    monkeypatch.setattr(Handler, "answer", answering)
    assert [type(item) for item in feed.wait(60.0)] == [Trouble]
    odd[0] = False
    assert hours(until(feed, 1)) == [700]


def test_rows_that_are_no_bars_are_trouble_and_no_crash(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange)
    feed.begin(5, None)
    rows: list[Any] = [[[1, 2]], [5], {"code": 7}, [[None] * 12]]
    asked = len(exchange.asked)
    exchange.faults = {
        asked + n: lambda handler, row=row: handler.answer(200, row) for n, row in enumerate(rows)
    }
    came = until(feed, 1)
    assert isinstance(came[0], Trouble)  # what ccxt drops by itself is no bar, and asked for again
    assert hours(came) == [700]
    assert len(exchange.asked) > asked + len(rows)


def test_a_login_page_is_no_empty_list_of_bars(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange)
    feed.begin(5, None)
    exchange.faults = {len(exchange.asked): lambda handler: handler.answer(200, b"<html>log in")}
    came = until(feed, 1)
    assert isinstance(came[0], Trouble)
    assert hours(came) == [700]


def test_fetching_a_long_history_is_a_sign_of_life_at_each_question(
    tmp_path: Path, exchange: Server
) -> None:
    feed_of(tmp_path, exchange, ("BTCUSDT",))
    signs: list[int] = []
    feed = open_feed(Settings.read(tmp_path), lambda: signs.append(len(exchange.asked)))
    assert isinstance(feed, CcxtFeed)
    feed._exchange.enableRateLimit = False  # type: ignore[attr-defined]
    feed._now = lambda: exchange.now / 1000
    feed.begin(500, None)
    assert len(exchange.asked) > 1
    assert signs == list(range(len(exchange.asked)))


def test_an_exchange_that_is_down_at_the_start_is_asked_again_later(
    tmp_path: Path, exchange: Server
) -> None:
    feed = feed_of(tmp_path, exchange)
    exchange.faults = {0: failing(503), 1: failing(503)}
    for pause in ("1 s", "2 s"):
        with pytest.raises(MacdError, match=f"asked again in {pause}"):
            feed.begin(5, None)
        with pytest.raises(MacdError, match="asked again in"):
            feed.begin(5, None)  # too early: nothing is asked
        feed._sleep(5)
    assert hours(feed.begin(5, None)["ETHUSDT"]) == list(range(695, 700))
    assert len(exchange.asked) == 3


def test_a_market_that_is_not_there_is_told(tmp_path: Path, exchange: Server) -> None:
    with pytest.raises(MacdError) as caught:
        feed_of(tmp_path, exchange, ("PEPEUSDT",)).begin(5, None)
    assert "spot markets" in str(caught.value)
