"""The exchange feed: real ccxt against the local server that speaks Binance's klines API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from macd.app.market import empty
from macd.app.market.exchange import _Pace
from macd.app.service.asking import OPENS_AFTER
from macd.app.service.feed import Bar, Corrected, Trouble, open_feed
from macd.app.service.feed_ccxt import CcxtFeed
from macd.app.service.settings import Settings
from macd.errors import MacdError
from tests.unit.app.market.test_fetch import HOUR, LISTED, Handler, Server, kline


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


def changing(hour: int, close: float) -> Any:
    """An answer in which the bar of that hour closed elsewhere."""

    def fault(handler: Handler) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        rows = handler.klines(query)
        for row in rows:
            if row[0] == LISTED + hour * HOUR:
                row[2], row[4] = str(max(float(row[2]), close)), str(close)
        handler.answer(200, rows)

    return fault


@pytest.mark.parametrize("hour", [698, 699])  # the last two of the history
def test_a_bar_that_was_corrected_is_said_once(tmp_path: Path, exchange: Server, hour: int) -> None:
    feed = feed_of(tmp_path, exchange)
    history = feed.begin(5, None)["ETHUSDT"]
    asked = len(exchange.asked)
    exchange.faults = {asked + n: changing(hour, 2500.0) for n in range(50)}
    came = until(feed, 1)
    (correction,) = (item for item in came if isinstance(item, Corrected))
    assert (correction.was,) == tuple(bar for bar in history if hours([bar]) == [hour])
    assert (correction.bar.close, correction.bar.open_ms) == (2500.0, correction.was.open_ms)
    assert f"close {correction.was.close:g} -> 2500" in correction.detail
    assert came.index(correction) < len(came) - 1  # before the bar that it changes the features of
    again = until(feed, 2)
    assert not [item for item in again if isinstance(item, Corrected)]
    assert hours([*came, *again]) == [700, 701, 702]


def test_the_bars_asked_again_cost_no_request(tmp_path: Path, exchange: Server) -> None:
    feed = feed_of(tmp_path, exchange)
    feed.begin(5, None)
    asked = len(exchange.asked)
    until(feed, 1)
    assert set(exchange.asked[asked:]) == {LISTED + 698 * HOUR}


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


def test_a_clock_that_is_hours_ahead_has_all_of_its_history(
    tmp_path: Path, exchange: Server
) -> None:
    feed = feed_of(tmp_path, exchange)
    feed._now = lambda: exchange.now / 1000 + 5 * 3600
    assert hours(feed.begin(10, None)["ETHUSDT"]) == list(range(690, 700))


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
    assert "asked again in 300 s" in troubles[-2].detail
    assert troubles[-1].detail == "it answers again"
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
    assert pauses == [
        *("1 s", "2 s", "4 s", "8 s"),
        "300 s and so on; said no more until it answers",
    ]
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


@pytest.mark.parametrize("time_answer", [{}, [], {"serverTime": None}, {"serverTime": "soon"}])
def test_an_odd_clock_is_trouble_and_no_crash(
    tmp_path: Path, exchange: Server, time_answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feed_of(tmp_path, exchange)
    feed.begin(5, None)
    answer = Handler.answer
    odd = [True]

    def answering(handler: Handler, status: int, body: Any, **headers: str) -> None:
        answer(
            handler, status, time_answer if odd[0] and "/time" in handler.path else body, **headers
        )

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
        exchange.pairs = [("BTC", "USDT")]
        feed_of(tmp_path, exchange).begin(5, None)
    assert "spot markets" in str(caught.value)


@pytest.mark.parametrize(("every", "empty_ones"), [(3, {2}), (5, {1, 2, 3, 4})])
def test_candles_that_the_exchange_left_out_are_filled_as_soon_as_that_is_proven(
    tmp_path: Path,
    exchange: Server,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    empty_ones: set[int],
) -> None:
    """The first trade of a later hour proves it, a minute after that hour began."""
    monkeypatch.setattr(empty, "LEAVES_OUT", {"binance": "for the test"})
    traded = [hour for hour in range(760) if hour % every not in empty_ones]

    def klines(_: Handler, query: dict[str, str]) -> list[list[Any]]:
        since, now = int(query["startTime"]), exchange.now - 60_000  # first trade after a minute
        rows = [kline(LISTED + hour * HOUR) for hour in traded]
        return [row for row in rows if since <= row[0] <= now][: int(query["limit"])]

    monkeypatch.setattr(Handler, "klines", klines)
    feed = feed_of(tmp_path, exchange)
    history = feed.begin(527, None)["ETHUSDT"]
    first, newest = hours(history)[0], hours(history)[-1]
    assert hours(history) == list(range(first, newest + 1))
    assert len(history) > 520
    assert [bar.filled for bar in history] == [h % every in empty_ones for h in hours(history)]
    came: list[Any] = []
    while len(came) < 8:
        new = [item for item in feed.wait(60.0) if isinstance(item, Bar)]
        came += new
        for bar in new:
            late = exchange.now - (bar.open_ms + HOUR)
            assert late < len(empty_ones) * HOUR - HOUR + 125_000, "as soon as it could be known"
    assert hours(came) == list(range(newest + 1, newest + 1 + len(came)))
    flat = [bar for bar in came if bar.filled]
    assert {hour % every for hour in hours(flat)} == empty_ones
    assert {bar.volume for bar in flat} == {0.0}


def test_a_hole_while_the_feed_was_down_is_no_empty_candle(
    tmp_path: Path, exchange: Server
) -> None:
    """Binance has a candle for every hour, traded or not: nothing is made up there."""
    exchange.rows = [kline(LISTED + hour * HOUR) for hour in range(700) if hour not in (650, 690)]
    feed = feed_of(tmp_path, exchange)
    came = hours(feed.begin(527, None)["ETHUSDT"])
    assert 650 not in came
    assert 690 not in came
    assert came[-1] == 699


def test_a_cross_market_that_is_gone_keeps_no_main_bar_back(
    tmp_path: Path, exchange: Server
) -> None:
    exchange.pairs = [("ETH", "USDT")]
    feed = feed_of(tmp_path, exchange, ("BTCUSDT",))
    history = feed.begin(5, None)
    assert list(history) == ["ETHUSDT"]
    came = until(feed, 2)
    assert [item.event for item in came if isinstance(item, Trouble)] == ["feed"]
    assert "has no such spot market" in came[0].detail
    assert hours(came) == [700, 701]


def test_a_cross_market_that_is_refused_is_told_until_its_circuit_opens_and_when_it_answers(
    tmp_path: Path, exchange: Server
) -> None:
    feed = feed_of(tmp_path, exchange, ("BTCUSDT",))
    exchange.faults = {n: only_for("BTCUSDT", 400) for n in range(10_000)}
    history = feed.begin(5, None)
    assert (hours(history["ETHUSDT"]), history["BTCUSDT"]) == (list(range(695, 700)), [])
    came = until(feed, OPENS_AFTER + 3)
    troubles = [item for item in came if isinstance(item, Trouble)]
    assert len(troubles) == OPENS_AFTER, "hours of failures have no more lines"
    assert {item.symbol for item in troubles} == {"BTCUSDT"}
    assert troubles[-1].detail.endswith("said no more until it answers")
    exchange.faults = {}
    came = until(feed, 8)
    assert [item.detail for item in came if isinstance(item, Trouble)] == ["it answers again"]
    late = hours(bar for bar in came if getattr(bar, "symbol", "") == "BTCUSDT")
    assert late == list(range(late[0], late[-1] + 1))
    assert late[-1] >= 700 + OPENS_AFTER + 2, "all that it missed"


def several(
    root: Path,
    server: Server,
    cross: tuple[str, ...],
    names: Sequence[str] = ("ETHUSDT", "BTCUSDT", "SOLUSDT"),
) -> CcxtFeed:
    """A feed of the exchange's first three markets, all of them served."""
    feed_of(root, server, cross)
    document = json.loads((root / "service.json").read_text())
    document |= {"symbol": names[0], "symbols": list(names)}
    (root / "service.json").write_text(json.dumps(document))
    time = Time(server)
    feed = CcxtFeed(Settings.read(root), now=time.now, sleep=time.sleep, jitter=lambda: 0.5)
    feed._exchange.enableRateLimit = False  # type: ignore[attr-defined]
    return feed


def test_several_symbols_come_in_turn_and_cross_assets_together_and_first(
    tmp_path: Path, exchange: Server
) -> None:
    exchange.pairs = [("ETH", "USDT"), ("BTC", "USDT"), ("SOL", "USDT")]
    feed = several(tmp_path, exchange, ("BTCUSDT", "SOLUSDT"))
    history = feed.begin(5, None)
    assert set(history) == {"ETHUSDT", "BTCUSDT", "SOLUSDT"}
    assert all(hours(bars) == list(range(695, 700)) for bars in history.values())
    answers: list[list[tuple[str, int]]] = []
    for _ in range(5000):
        items = feed.wait(60.0)
        if items:
            answers.append([(i.symbol, h) for i, h in zip(items, hours(items), strict=True)])
        if len(answers) == 4:
            break
    assert answers == [
        [("BTCUSDT", 700), ("SOLUSDT", 700)], [("ETHUSDT", 700)],
        [("BTCUSDT", 701), ("SOLUSDT", 701)], [("ETHUSDT", 701)],
    ]  # fmt: skip
    assert feed.state == "polling"


def test_of_several_symbols_one_that_fails_or_is_not_traded_holds_no_other_back(
    tmp_path: Path, exchange: Server
) -> None:
    exchange.pairs = [("ETH", "USDT"), ("BTC", "USDT")]
    feed = several(tmp_path, exchange, ())
    exchange.faults = {n: only_for("ETHUSDT", 400) for n in range(10_000)}
    history = feed.begin(5, None)
    assert {name: len(bars) for name, bars in history.items()} == {"ETHUSDT": 0, "BTCUSDT": 5}
    came = until(feed, 3)
    assert {item.symbol for item in came if isinstance(item, Bar)} == {"BTCUSDT"}
    assert hours(came) == [700, 701, 702]
    troubles = [item for item in came if isinstance(item, Trouble)]
    assert "has no such spot market" in next(t.detail for t in troubles if t.symbol == "SOLUSDT")
    assert sum(item.symbol == "ETHUSDT" for item in troubles) == OPENS_AFTER
    exchange.faults = {}
    came = until(feed, 6)
    late = hours(item for item in came if getattr(item, "symbol", "") == "ETHUSDT")
    assert late, "it comes back"
    assert late == list(range(late[0], late[-1] + 1))


class Always(dict[int, Any]):
    """The same fault for each request."""

    def __init__(self, fault: Any) -> None:
        self.fault = fault

    def get(self, _: int, default: Any = None) -> Any:
        return self.fault


def answer_well(handler: Handler) -> None:
    query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
    handler.answer(200, handler.klines(query))


def test_many_symbols_are_asked_side_by_side_and_at_one_rate(
    tmp_path: Path, exchange: Server
) -> None:
    """Nobody is answered before eight are asked, so one after the other would get no answer."""
    exchange.pairs = [(f"A{n}", "USDT") for n in range(40)]
    names = [f"A{n}USDT" for n in range(40)]
    feed = several(tmp_path, exchange, tuple(names[:8]), names)
    together, asked = threading.Barrier(8), []

    def fault(handler: Handler) -> None:
        asked.append(parse_qs(urlsplit(handler.path).query)["symbol"][0])
        together.wait(90)
        answer_well(handler)

    exchange.faults = Always(fault)
    history = feed.begin(3, None)
    assert {name: hours(bars) for name, bars in history.items()} == {
        name: [697, 698, 699] for name in names
    }
    assert len(asked) == 40
    paced: list[float] = []
    assert feed._beside is not None
    lines = [feed._beside._free.get() for _ in range(8)]
    assert len({line.exchange.throttle.__self__ for line in lines}) == 1  # type: ignore[attr-defined]
    for line in lines:
        line.exchange.enableRateLimit = True  # type: ignore[attr-defined]
        line.exchange.throttle = paced.append  # type: ignore[attr-defined]
        feed._beside._free.put(line)
    answers: list[list[str]] = []
    while sum(map(len, answers)) < 40:
        items = feed.wait(60.0)
        assert hours(items) == [700] * len(items)
        answers.append([item.symbol for item in items if isinstance(item, Bar)])
    answers = [names for names in answers if names]
    assert answers[0] == names[:8], "the cross assets, in one answer and in their order"
    assert sorted(name for some in answers for name in some) == sorted(names)
    assert set(asked[80:88]) == set(names[:8])
    assert len(asked[40:]) == len(paced) == 80, "the history's last bar again, and the next"


def test_of_several_histories_each_comes_page_by_page_and_one_that_fails_is_asked_on(
    tmp_path: Path, exchange: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macd.app.market.exchange.PAGE", 100)
    exchange.pairs = [("ETH", "USDT"), ("BTC", "USDT"), ("SOL", "USDT")]
    feed = several(tmp_path, exchange, ())
    exchange.faults = Always(only_for("BTCUSDT", 503))
    history = feed.begin(250, None)
    served = {name: hours(bars) for name, bars in history.items()}
    assert served.pop("BTCUSDT") == []
    assert served == {name: list(range(450, 700)) for name in ("ETHUSDT", "SOLUSDT")}
    exchange.faults = {}
    came = until(feed, 250)
    assert [item.symbol for item in came if isinstance(item, Trouble)] == ["BTCUSDT"]
    late = hours(item for item in came if getattr(item, "symbol", "") == "BTCUSDT")
    assert late[:250] == list(range(late[0], late[0] + len(late)))[:250]


def test_one_that_does_not_answer_holds_no_other_back(tmp_path: Path, exchange: Server) -> None:
    exchange.pairs = [(f"A{n}", "USDT") for n in range(12)]
    names = [f"A{n}USDT" for n in range(12)]
    feed = several(tmp_path, exchange, (), names)
    feed.begin(3, None)
    over = threading.Event()

    def fault(handler: Handler) -> None:
        if "symbol=A3USDT" in handler.path and exchange.now > LISTED + 701 * HOUR:
            over.wait(5)
        answer_well(handler)

    exchange.faults = Always(fault)
    try:
        came = [item.symbol for item in until(feed, 11) if isinstance(item, Bar)]
    finally:
        over.set()
    assert sorted(came) == sorted({*names} - {"A3USDT"})
    assert [item.symbol for item in until(feed, 1) if isinstance(item, Bar)] == ["A3USDT"]


def test_objects_beside_each_other_keep_one_rate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    monkeypatch.setattr("time.sleep", slept.append)
    pace = _Pace(50)
    for cost in (1, 0.4, None, 2):
        pace.throttle(cost)
    assert slept == pytest.approx([0.0, 0.02, 0.07, 0.17])
