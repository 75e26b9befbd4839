"""A directory feed and bars whose time can't be: they silence no other bar, of no symbol."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macd.app.service.feed import Bar, Trouble
from macd.app.service.feed_directory import DirectoryFeed
from macd.app.service.history import closes_later
from tests.unit.app.service.test_service_feeds import HOUR, T0, hours, row, settings

NOW = 8  # hours after T0: the bar that opens at 7 has just closed


def feed_of(root: Path, cross: tuple[str, ...] = (), now: float = NOW) -> DirectoryFeed:
    return DirectoryFeed(
        settings(root, cross, kind="directory"),
        sleep=lambda _: None,
        clock=lambda: 0.0,
        now=lambda: (T0 + now * HOUR) / 1000,
    )


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def renew(path: Path, text: str) -> None:
    beside = path.with_name("new")
    beside.write_text(text)
    beside.rename(path)


@pytest.mark.parametrize(
    "impossible",
    [
        row(5000),  # a clock that was ahead
        row(NOW),  # still open
        row(5).replace("000,", "500,", 1),  # off the grid, before now
        row(6, close=-3),  # no price
    ],
)
def test_an_impossible_bar_hides_none_of_a_new_file(tmp_path: Path, impossible: str) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.write_text("".join(map(row, range(3))))
    feed = feed_of(tmp_path)
    feed.begin(3, None)
    append(path, impossible)
    arrived = feed.wait(0)
    assert len(arrived) == 1, "the loop refuses it, in words"
    assert isinstance(arrived[0], Bar)
    renew(path, row(2) + row(3) + row(4))
    assert hours(feed.wait(0)) == [3, 4]
    append(path, row(5) + row(6) + row(7))
    assert hours(feed.wait(0)) == [5, 6, 7]


def test_what_was_appended_just_before_a_rotation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.write_text("".join(map(row, range(3))))
    feed = feed_of(tmp_path)
    feed.begin(3, None)
    append(path, row(3) + row(4))
    path.rename(tmp_path / "BTCUSD_1h.csv.1")
    assert hours(feed.wait(0)) == []
    path.write_text(row(5))
    assert hours(feed.wait(0)) + hours(feed.wait(0)) == [3, 4, 5]
    path.unlink()
    path.write_text("".join(map(row, range(5, 8))))  # longer, and perhaps with the same inode
    assert hours(feed.wait(0)) == [6, 7]


def test_a_bar_that_was_still_open_comes_again_once_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.write_text(row(0))
    now = [2.0]
    feed = DirectoryFeed(
        settings(tmp_path, kind="directory"),
        sleep=lambda _: None,
        now=lambda: (T0 + now[0] * HOUR) / 1000,
    )
    feed.begin(3, None)
    append(path, row(1) + row(2, close=150))
    assert hours(feed.wait(0)) == [1, 2]
    now[0] = 3.0
    renew(path, row(0) + row(1) + row(2))
    assert hours(feed.wait(0)) == [2]


def test_a_future_bar_of_a_cross_symbol_lets_no_bar_go_without_its_own(tmp_path: Path) -> None:
    main, cross = (tmp_path / f"{name}_1h.csv" for name in ("BTCUSD", "ETHUSD"))
    for path in (main, cross):
        path.write_text("".join(map(row, range(3))))
    feed = feed_of(tmp_path, ("ETHUSD",))
    feed.begin(3, None)
    append(cross, row(5000))
    assert hours(feed.wait(0)) == [5000]
    append(main, row(3))
    assert feed.wait(0) == [], "it waits for the cross symbol's bar of its time"
    append(cross, row(3))
    assert [item.symbol for item in feed.wait(0)] == ["ETHUSD", "BTCUSD"]


def test_a_future_bar_of_the_main_symbol_holds_no_later_one_up(tmp_path: Path) -> None:
    main, cross = (tmp_path / f"{name}_1h.csv" for name in ("BTCUSD", "ETHUSD"))
    for path in (main, cross):
        path.write_text("".join(map(row, range(3))))
    feed = feed_of(tmp_path, ("ETHUSD",))
    feed.begin(3, None)
    append(cross, row(3))
    append(main, row(5000) + row(3))
    assert hours(feed.wait(0)) == [3, 5000, 3]


@pytest.mark.parametrize("after", [None, T0 + 2 * HOUR])
def test_future_bars_push_none_out_of_the_history_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int | None
) -> None:
    monkeypatch.setattr("macd.app.service.feed_directory._SPARE_BARS", 2)
    future = "".join(map(row, range(5000, 5020)))
    (tmp_path / "BTCUSD_1h.csv").write_text("".join(map(row, range(3))) + future)
    feed = feed_of(tmp_path)
    assert hours(feed.begin(3, after)["BTCUSD"]) == [0, 1, 2]
    assert hours(feed.wait(0)) == list(range(5000, 5020))


@pytest.mark.parametrize(
    "write",
    [
        lambda ms: ms // 1000,
        lambda ms: ms,
        lambda ms: ms * 1000,
        lambda ms: ms * 1_000_000,
        lambda ms: f"{ms / 1000:.1f}",
        float,
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_numbers_are_understood_as_data_import_does(
    tmp_path: Path, write: Callable[[int], Any], suffix: str
) -> None:
    path = tmp_path / f"BTCUSD_1h.{suffix}"
    path.write_text(row(0) if suffix == "csv" else "")
    feed = feed_of(tmp_path)
    feed.begin(3, None)
    names = ("timestamp", "open", "high", "low", "close", "volume")
    cells = [write(T0 + HOUR), 100, 101, 99, 100.5, 5]
    csv = ",".join(map(str, cells)) + "\n"
    append(
        path, csv if suffix == "csv" else json.dumps(dict(zip(names, cells, strict=True))) + "\n"
    )
    assert hours(feed.wait(0)) == [1]
    renew(path, row(2) if suffix == "csv" else "")
    assert hours(feed.wait(0)) == ([2] if suffix == "csv" else [])


@pytest.mark.parametrize(
    "stamp", ["20191017", "99999999999999999999999", "5", "1e999", "-1700000000"]
)
def test_a_number_that_is_no_time_is_unreadable_and_told_once(tmp_path: Path, stamp: str) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.write_text(row(0))
    feed = feed_of(tmp_path)
    feed.begin(3, None)
    append(path, f"{stamp},100,101,99,100.5,5\n")
    (trouble,) = feed.wait(0)
    assert isinstance(trouble, Trouble)
    assert (trouble.event, stamp in trouble.detail) == ("unreadable", True)
    assert feed.wait(0) == []
    renew(path, row(0) + row(1))
    assert hours(feed.wait(0)) == [1]


@pytest.mark.parametrize("begin_with", [3, 4])
def test_a_clock_that_is_90_s_slow_loses_no_bar(tmp_path: Path, begin_with: int) -> None:
    """The writer appends each bar when it has closed by its own clock."""
    main, cross = (tmp_path / f"{name}_1h.csv" for name in ("BTCUSD", "ETHUSD"))
    for path in (main, cross):
        path.write_text("".join(map(row, range(begin_with))))
    real = 4 * 3600.0 + 10  # seconds after T0, by the writer's clock
    feed = DirectoryFeed(
        settings(tmp_path, ("ETHUSD",), kind="directory"),
        sleep=lambda _: None,
        clock=lambda: real,
        now=lambda: T0 / 1000 + real - 90,
    )
    assert hours(feed.begin(3, None)["BTCUSD"]) == [0, 1, 2]
    came: list[Any] = []
    for hour in range(4, 9):
        real = hour * 3600.0 + 10
        if hour > begin_with:
            for path in (main, cross):
                append(path, row(hour - 1))
        came += feed.wait(0)
        real += 60
        came += feed.wait(0)
    bars = [(item.symbol, hours([item])[0]) for item in came if isinstance(item, Bar)]
    assert bars == [(name, hour) for hour in range(3, 8) for name in ("ETHUSD", "BTCUSD")]
    troubles = [item for item in came if isinstance(item, Trouble)]
    assert [item.event for item in troubles] == ["clock"], "once, not for each bar"
    assert "closes in 80 s by this machine's clock" in troubles[0].detail


def test_of_a_bar_that_is_held_the_last_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.write_text(row(0))
    now = [3 - 90 / 3600]
    feed = DirectoryFeed(
        settings(tmp_path, kind="directory"),
        sleep=lambda _: None,
        now=lambda: (T0 + now[0] * HOUR) / 1000,
    )
    feed.begin(3, None)
    append(path, row(1) + row(2, close=150))
    assert hours(feed.wait(0)) == ["clock", 1]
    append(path, row(2, close=100))
    assert feed.wait(0) == []
    now[0] = 3.0
    came = feed.wait(0)
    assert (hours(came), came[0].close) == ([2], 100)  # type: ignore[union-attr]
    renew(path, row(0) + row(1) + row(2) + row(3))
    now[0] = 4.0
    assert hours(feed.wait(0)) == [3], "what was held is not given again"


def test_two_clocks_may_differ_by_a_minute() -> None:
    bar = Bar("BTCUSD", T0, 1, 1, 1, 1, 1)
    assert not closes_later(bar, HOUR, T0 + HOUR)
    assert not closes_later(bar, HOUR, T0 + HOUR - 60_000)
    assert closes_later(bar, HOUR, T0 + HOUR - 60_001)
