"""The gate judges no bars of an asset that the live release's models don't know."""

from __future__ import annotations

import pytest

from macd.deploy.state import HostState
from macd.gate.report import _unknown_symbols
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.parse import Line, parse
from tests.support.signal_lines import RELEASE

LINE = (
    b'{"level":"SIGNAL","timestamp":"2026-01-01T01:00:01.000Z","seq":1,"release":"%s",'
    b'"symbol":"%s","tf":"1h","bar_time":"2026-01-01T00:00:00.000Z","data":{"components":{}}}'
)


def problems(symbol: bytes, details: dict[str, object]) -> list[str]:
    line = parse(LINE % (RELEASE.encode(), symbol))
    assert isinstance(line, Line)
    analysis = Analysis(Window(line.time - 7_200_000, line.time + 7_200_000, RELEASE))
    analysis.add(line, "trades_20260101.jsonl", 1)
    assert analysis.symbols == {symbol.decode()}
    live = HostState("/opt/x", True, {}, "", live=RELEASE, details=details)
    return _unknown_symbols(live, analysis)


@pytest.mark.parametrize(
    ("symbol", "details"),
    [
        (b"BTCUSD", {"symbol": "BTCUSD"}),
        (b"ETHUSD", {"symbol": "BTCUSD", "panel": ["ETHUSD", "SOLUSD"]}),
        (b"ETHUSD", {}),  # a release from before details named it
    ],
)
def test_known_assets_are_judged(symbol: bytes, details: dict[str, object]) -> None:
    assert problems(symbol, details) == []


def test_an_unknown_asset_is_named_with_what_to_do() -> None:
    (why,) = problems(b"DOGEUSD", {"symbol": "BTCUSD", "panel": ["ETHUSD"]})
    assert f"watches DOGEUSD, and the models of {RELEASE} know BTCUSD, ETHUSD" in why
    assert "it gives the base signal" in why
    assert "service.symbol" in why
