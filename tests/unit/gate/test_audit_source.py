"""Where an audit's final bars come from: an exchange that speaks Binance's API, and files here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from macd.app.market.bars import read_bars
from macd.errors import MacdError
from macd.gate.audit import _Source, _Watched, _with_our_exchange
from macd.inventory import load
from macd.inventory.models import FeedSettings
from tests.unit.app.market.test_fetch import HOUR, LISTED, Server


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def watched(server: Server, *cross: str) -> _Watched:
    feed = {"kind": "ccxt", "exchange": "binance", "api_url": server.url}
    return _Watched("20260301T000000Z-00000000", "ETHUSDT", cross, "1h", 527, feed)


def source(of: _Watched, here: Path | None, place: Path) -> _Source:
    return _Source(None, of, here, place, lambda _: None)  # type: ignore[arg-type] - never asked


def test_the_bars_of_an_exchange_are_fetched_once_and_stay_beside_the_audit(
    server: Server, tmp_path: Path
) -> None:
    made = source(watched(server, "BTCUSDT", "GONEUSDT"), None, tmp_path / "bars")
    assert made.name == "binance, as it gives them now"
    made.ready(LISTED + 2000 * HOUR)
    asked = len(server.asked)
    by_symbol = made.bars(LISTED + 2100 * HOUR, LISTED + 2110 * HOUR, 20)
    assert list(by_symbol["ETHUSDT"]) == [LISTED + hour * HOUR for hour in range(2080, 2111)]
    assert by_symbol["ETHUSDT"].keys() == by_symbol["BTCUSDT"].keys()
    assert by_symbol["GONEUSDT"] == {}  # the service goes on without it, too
    assert len(server.asked) == asked
    stored = read_bars(tmp_path / "bars/ETHUSDT_1h.parquet")
    at = stored["timestamp"].dt.epoch("ms").to_list().index(LISTED + 2100 * HOUR)
    assert by_symbol["ETHUSDT"][LISTED + 2100 * HOUR] == stored.row(at)[1:]


def test_bars_that_are_here_are_not_fetched(server: Server, tmp_path: Path) -> None:
    there = source(watched(server), None, tmp_path / "bars")
    there.ready(LISTED + 2000 * HOUR)
    asked = len(server.asked)
    made = source(watched(server), tmp_path / "bars", tmp_path / "other")
    made.ready(LISTED)
    assert made.bars(LISTED + 2100 * HOUR, LISTED + 2100 * HOUR, 0)["ETHUSDT"].keys() == {
        LISTED + 2100 * HOUR
    }
    assert len(server.asked) == asked


def test_without_bars_of_its_symbol_there_is_no_audit(server: Server, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    made = source(watched(server), tmp_path / "here", tmp_path / "bars")
    with pytest.raises(MacdError, match="no bars of ETHUSDT 1h"):
        made.bars(LISTED, LISTED + HOUR, 5)


@pytest.mark.parametrize(
    ("kind", "exchange", "ours"),
    [("ccxt", "kraken", "http://here"), ("replay", "kraken", None), ("directory", "", None)],
)
def test_no_host_names_the_address_that_is_asked(
    server: Server, kind: str, exchange: str, ours: str | None
) -> None:
    inventory = load("lab")
    feed = {"kind": "ccxt", "exchange": "kraken", "api_url": "http://here"}
    service = inventory.service.model_copy(update={"feed": FeedSettings(**feed)})
    inventory = inventory.model_copy(update={"service": service})
    theirs = {"kind": kind, "exchange": exchange, "api_url": "http://evil"}
    of = replace(watched(server), feed=theirs)
    corrected = _with_our_exchange(of, inventory, inventory.host("prod"))
    assert corrected.feed.get("api_url") == (ours or "http://evil")
    if kind == "ccxt":
        other = replace(of, feed={**theirs, "exchange": "binance"})
        with pytest.raises(MacdError, match="another feed than the inventory says"):
            _with_our_exchange(other, inventory, inventory.host("prod"))
