"""Heads look bars ahead: named so everywhere but at 1h, where bars are hours."""

from __future__ import annotations

import pytest

from macd import heads
from macd.host.judge.parse import parse
from macd.host.judge.realised import Prediction, realised


def test_names_by_timeframe_and_back() -> None:
    assert heads.head_names("1h") == ("5h", "12h", "24h")
    for tf in ("1m", "15m", "4h", "1d", "1w", "2h"):
        assert heads.head_names(tf) == ("h5", "h12", "h24")
    for tf in ("1h", "15m"):
        names = heads.head_names(tf)
        assert tuple(map(heads.bars_ahead, names)) == heads.HORIZONS
        assert heads.in_order(reversed([*names, "loss", "epoch"])) == list(names)
    for wrong in ("", "h", "5", "5m", "h05", "h5h", "-5h", "h５", None, 5):
        assert not heads.is_head(wrong)
    assert not heads.is_head("h6")
    with pytest.raises(ValueError, match="no head"):
        heads.bars_ahead("volatility")


@pytest.mark.parametrize(
    ("name", "tf", "text"),
    [
        ("5h", "1h", "5h"),
        ("h5", "15m", "5 bars (1h15m)"),
        ("5h", "15m", "5 bars (1h15m)"),  # as runs named it before
        ("h12", "1d", "12 bars (12d)"),
        ("h24", "1w", "24 bars (168d)"),
        ("h24", "5m", "24 bars (2h)"),
        ("h5", "4h", "5 bars (20h)"),
        ("h12", "4h", "12 bars (2d)"),
        ("unknown", "15m", "unknown"),
    ],
)
def test_a_head_for_people(name: str, tf: str, text: str) -> None:
    assert heads.shown(name, tf) == text


def test_the_names_are_explained_once() -> None:
    assert heads.explained("1h") == ""
    assert heads.explained("15m").endswith("h5 = 1h15m, h12 = 3h, h24 = 6h")
    assert heads.explained("4h").endswith("h24 = 4d")
    assert heads.explained("1d").endswith(
        "h24 = 24d. Intervals are from blocks of 4 weeks, which hold the longest head"
    )


@pytest.mark.parametrize(
    ("minutes", "weeks"), [(1, 1), (60, 1), (240, 1), (420, 1), (480, 2), (1440, 4), (10080, 24)]
)
def test_a_block_holds_the_longest_head(minutes: int, weeks: int) -> None:
    assert heads.block_weeks(minutes) == weeks


LINE = (
    '{"level":"SIGNAL","timestamp":"2026-01-01T00:15:00.000Z","seq":1,"symbol":"BTCUSD","tf":"15m",'
    '"bar_time":"2026-01-01T00:00:00.000Z","close":1.0,"ml_bull_prob":0.5,"ml_error":null,'
    '"ml_heads":{"lgbm":{%s}}}'
)


@pytest.mark.parametrize("names", [("5h", "12h", "24h"), ("h5", "h12", "h24")])
def test_signals_are_read_in_either_way(names: tuple[str, ...]) -> None:
    line = parse((LINE % ",".join(f'"{n}":0.{k}5' for k, n in enumerate(names, 1))).encode())
    assert line.heads is not None
    assert line.heads[:3] == (0.15, 0.25, 0.35)


@pytest.mark.parametrize(("tf", "nearest"), [("1h", "5h"), ("15m", "h5")])
def test_what_came_true_is_told_by_the_names_of_its_timeframe(tf: str, nearest: str) -> None:
    step = 900_000
    up = (0.9,) * len(heads.MODELS) * len(heads.HORIZONS)
    rows = realised(Prediction("BTCUSD", tf, i * step, step, 1.0 + i, up) for i in range(30))
    assert rows[0]["head"] == nearest
    assert rows[0]["n"] == 25
