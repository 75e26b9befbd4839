"""Replay at a speed, a directory that grows, and when a failing peer is asked again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.market.bars import read_bars, write_bars
from macd.app.service.asking import OPEN_S, OPENS_AFTER, Breaker
from macd.app.service.feed import Bar, Fresh, ReplayFeed, Trouble, bars_of
from macd.app.service.feed_directory import DirectoryFeed
from macd.app.service.settings import Settings, flags
from macd.errors import MacdError, UsageError
from tests.support.training_run import SAMPLE

HOUR = 3_600_000
T0 = 1_700_000_000_000 // HOUR * HOUR


def settings(root: Path, cross: tuple[str, ...] = (), **feed: Any) -> Settings:
    document = {
        "symbol": "BTCUSD", "tf": "1h", "cross": cross, "endpoint": "127.0.0.1:1",
        "feed": {"directory": ".", **feed},
    }  # fmt: skip
    (root / "service.json").write_text(json.dumps(document))
    return Settings.read(root)


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def replay(root: Path, count: int = 20, **feed: Any) -> tuple[ReplayFeed, list[Bar], Time]:
    frame = read_bars(SAMPLE)[:count]
    write_bars(frame, root / "BTCUSD_1h.parquet")
    time = Time()
    made = ReplayFeed(settings(root, kind="replay", **feed), clock=time.clock, sleep=time.sleep)
    return made, bars_of("BTCUSD", frame), time


def test_a_replay_gives_bars_at_its_speed_with_the_times_they_had(tmp_path: Path) -> None:
    feed, bars, time = replay(tmp_path, speed=2, start=0.5, loop=False)
    assert feed.begin(5, None)["BTCUSD"] == bars[5:10]
    came: list[Any] = []
    while len(came) < 10:
        came += feed.wait(0.5)
    assert came == bars[10:]
    assert time.now == pytest.approx(4.5)
    assert feed.wait(0.5) == []
    assert feed.state == "at the end of its file"


def test_a_replay_that_lags_behind_catches_up_but_not_after_a_sleep(tmp_path: Path) -> None:
    feed, bars, time = replay(tmp_path, speed=10, start=0.3, loop=False)
    feed.begin(5, None)
    assert feed.wait(0.5) == [bars[6]]
    time.now += 0.35
    assert feed.wait(0.5) == bars[7:10]
    time.now += 3600
    assert feed.wait(0.5) == bars[10:11]


def test_a_lap_ends_with_the_history_of_the_first(tmp_path: Path) -> None:
    feed, bars, _ = replay(tmp_path, speed=0, start=0.5, loop=True)
    first = feed.begin(5, None)
    assert feed.wait(0) == bars[10:]
    assert feed.wait(0) == [Fresh(first)]
    assert feed.wait(0) == bars[10:]


@pytest.mark.parametrize(("after", "begins"), [(12, 13), (19, 10), (2, 10)])
def test_a_replay_goes_on_where_the_log_ends(tmp_path: Path, after: int, begins: int) -> None:
    feed, bars, _ = replay(tmp_path, speed=0, start=0.5, loop=True)
    known = feed.begin(5, bars[after].open_ms)["BTCUSD"]
    assert known == bars[begins - 5 : begins]
    assert feed.wait(0)[0] == bars[begins]


def test_cross_bars_come_before_the_main_bar_of_their_time(tmp_path: Path) -> None:
    frame = read_bars(SAMPLE)[:20]
    write_bars(frame, tmp_path / "BTCUSD_1h.parquet")
    write_bars(
        frame.filter(frame["timestamp"] != frame["timestamp"][11]), tmp_path / "ETHUSD_1h.parquet"
    )
    feed = ReplayFeed(settings(tmp_path, ("ETHUSD",), kind="replay", speed=0, start=0.5))
    history = feed.begin(5, None)
    assert [bar.open_ms for bar in history["ETHUSD"]] == [bar.open_ms for bar in history["BTCUSD"]]
    came = [bar.symbol for bar in feed.wait(0) if isinstance(bar, Bar)]
    assert came[:5] == ["ETHUSD", "BTCUSD", "BTCUSD", "ETHUSD", "BTCUSD"]


def test_no_bars_to_replay_is_told(tmp_path: Path) -> None:
    with pytest.raises(MacdError, match="no bars at"):
        ReplayFeed(settings(tmp_path)).begin(5, None)
    feed, _, _ = replay(tmp_path, count=5)
    with pytest.raises(MacdError, match="too few"):
        feed.begin(5, None)


def row(hour: int, close: float = 100.0) -> str:
    return f"{T0 + hour * HOUR},{close},{close + 1},{close - 1},{close},5\n"


def directory(root: Path, cross: tuple[str, ...] = ()) -> DirectoryFeed:
    return DirectoryFeed(settings(root, cross, kind="directory"), sleep=lambda _: None)


def hours(items: Any) -> list[Any]:
    return [
        (i.open_ms - T0) // HOUR if isinstance(i, Bar) else getattr(i, "event", i) for i in items
    ]


def test_lines_that_are_appended_arrive_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.write_text("timestamp,open,high,low,close,volume\n" + "".join(map(row, range(4))))
    feed = directory(tmp_path)
    assert hours(feed.begin(3, None)["BTCUSD"]) == [1, 2, 3]
    assert feed.wait(0) == []
    with path.open("a") as file:
        file.write(row(4) + row(5)[:9])
        file.flush()
        assert hours(feed.wait(0)) == [4]
        file.write(row(5)[9:])
        file.flush()
        assert hours(feed.wait(0)) == [5]
        file.write("rubbish\n" + row(6).replace("100.0", "nan") + "\n")
        file.flush()
        assert hours(feed.wait(0)) == ["unreadable", 6]  # whether 6 is good the history judges


def test_what_closed_since_the_last_line_comes_after_the_history(tmp_path: Path) -> None:
    (tmp_path / "BTCUSD_1h.csv").write_text("".join(map(row, range(8))))
    (tmp_path / "ETHUSD_1h.csv").write_text("".join(map(row, range(8))))
    feed = directory(tmp_path, ("ETHUSD",))
    history = feed.begin(3, T0 + 5 * HOUR)
    assert hours(history["BTCUSD"]) == hours(history["ETHUSD"]) == [3, 4, 5]
    later = feed.wait(0)
    assert hours(later) == [6, 6, 7, 7]
    assert [getattr(bar, "symbol", "") for bar in later] == ["ETHUSD", "BTCUSD"] * 2
    assert feed.wait(0) == []


def test_an_old_bar_told_again_hides_none_of_what_closed_meanwhile(tmp_path: Path) -> None:
    text = "".join(map(row, range(6))) + "rubbish\n" + row(6) + row(7) + row(2)
    (tmp_path / "BTCUSD_1h.csv").write_text("never told again\n" + text)
    feed = directory(tmp_path)
    assert hours(feed.begin(3, T0 + 5 * HOUR)["BTCUSD"]) == [3, 4, 5]
    assert hours(feed.wait(0)) == ["unreadable", 6, 7]
    assert feed.wait(0) == []


def test_a_long_pause_loses_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macd.app.service.feed_directory._SPARE_BARS", 5)
    monkeypatch.setattr("macd.app.service.feed_directory._CHUNK", 200)
    (tmp_path / "BTCUSD_1h.csv").write_text("".join(map(row, range(60))))
    feed = directory(tmp_path)
    assert hours(feed.begin(4, T0 + 19 * HOUR)["BTCUSD"]) == [16, 17, 18, 19]
    assert hours(feed.wait(0)) == list(range(20, 60))


def test_a_file_that_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.mkdir()  # as unreadable as any: this may be root
    feed = directory(tmp_path)
    assert hours(feed.begin(3, None)["BTCUSD"]) == []
    assert hours(feed.wait(0)) == ["feed"]
    assert feed.wait(0) == []
    path.rmdir()
    path.write_text(row(0))
    assert hours(feed.wait(0)) == [0]


def test_a_bar_waits_for_the_cross_bars_of_its_time_but_not_for_ever(tmp_path: Path) -> None:
    clock = [0.0]
    for name in ("BTCUSD", "ETHUSD"):
        (tmp_path / f"{name}_1h.csv").write_text("".join(map(row, range(4))))
    feed = DirectoryFeed(
        settings(tmp_path, ("ETHUSD",), kind="directory"),
        sleep=lambda _: None,
        clock=lambda: clock[0],
    )
    feed.begin(3, None)
    with (tmp_path / "BTCUSD_1h.csv").open("a") as file:
        file.write(row(4) + row(5))
    assert feed.wait(0) == []
    with (tmp_path / "ETHUSD_1h.csv").open("a") as file:
        file.write(row(4))
    came = feed.wait(0)
    assert [(bar.symbol, hour) for bar, hour in zip(came, hours(came), strict=True)] == [
        ("ETHUSD", 4),
        ("BTCUSD", 4),
    ]
    clock[0] = 11.0
    assert hours(feed.wait(0)) == [5]


def test_a_file_that_is_written_anew_is_read_from_its_start_without_repeats(
    tmp_path: Path,
) -> None:
    path = tmp_path / "BTCUSD_1h.csv"
    path.write_text("".join(map(row, range(6))))
    feed = directory(tmp_path)
    feed.begin(3, None)
    beside = tmp_path / "new"
    beside.write_text("".join(map(row, range(4, 8))))
    beside.rename(path)
    assert hours(feed.wait(0)) == [6, 7]
    path.write_text(row(7) + row(8))  # truncated in place
    assert hours(feed.wait(0)) == [8]
    path.unlink()
    assert feed.wait(0) == []
    assert feed.state == "no file of BTCUSD"


@pytest.mark.parametrize(
    "stamp", [T0, T0 // 1000, str(T0), "2023-11-14T22:00:00Z", "2023-11-14T23:00:00+01:00"]
)
def test_the_ways_a_time_is_written(tmp_path: Path, stamp: Any) -> None:
    (tmp_path / "BTCUSD_1h.jsonl").write_text(
        json.dumps({"timestamp": stamp, "open": 1, "high": 2, "low": 1, "close": "2", "volume": 0})
        + "\n"
    )
    assert hours(directory(tmp_path).begin(3, None)["BTCUSD"]) == [0]


@hypothesis.settings(deadline=None)  # a busy machine is no defect
@given(junk=st.binary(max_size=400))
def test_no_bytes_in_a_file_break_the_feed(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    root = tmp_path_factory.mktemp("feed")
    path = root / "BTCUSD_1h.jsonl"
    path.write_bytes(b"")
    feed = directory(root)
    feed.begin(3, None)
    good = json.dumps(
        {"timestamp": T0, "open": 1, "high": 1, "low": 1, "close": 1, "volume": 1}
    ).encode()
    with path.open("ab") as file:
        file.write(junk + b"\n" + good + b"\n")
    items = feed.wait(0)
    assert isinstance(items[-1], Bar)
    assert all(isinstance(item, Bar | Trouble) for item in items)


def test_pauses_grow_until_the_circuit_opens_and_one_success_closes_it() -> None:
    breaker = Breaker()
    assert breaker.wait(0.0) == 0.0
    pauses = [breaker.failed(0.0, jitter=0.5) for _ in range(OPENS_AFTER)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, OPEN_S]
    assert breaker.state == "open"
    assert breaker.wait(OPEN_S - 1) == 1.0
    assert breaker.wait(OPEN_S + 1) == 0.0  # half-open: one question may go
    assert breaker.failed(OPEN_S, jitter=0.5) == OPEN_S
    breaker.succeeded()
    assert (breaker.state, breaker.wait(OPEN_S)) == ("closed", 0.0)
    assert breaker.failed(0.0, jitter=0.0, asked=77.0) == 77.0


@pytest.mark.parametrize(
    "wrong",
    ["", "[]", "{}", '{"symbol": "BTCUSD"}', '{"symbol": 5, "tf": "1h", "feed": {}}'],
)
def test_settings_that_say_nothing_usable_are_refused(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "service.json").write_text(wrong)
    with pytest.raises(UsageError, match="can't be used"):
        Settings.read(tmp_path)


@pytest.mark.parametrize(
    "feed", [{"kind": "psychic"}, {"speed": -1}, {"start": 2}, {"stale_bars": 0}]
)
def test_a_feed_out_of_range_is_refused(tmp_path: Path, feed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="feed"):
        settings(tmp_path, **feed)


@pytest.mark.parametrize("days", ["soon", -1, None, [90]])
def test_an_age_that_is_none_is_refused(tmp_path: Path, days: Any) -> None:
    settings(tmp_path)
    document = json.loads((tmp_path / "service.json").read_bytes())
    (tmp_path / "service.json").write_text(json.dumps({**document, "max_age_days": days}))
    with pytest.raises(UsageError, match="can't be used"):
        Settings.read(tmp_path)


def test_only_a_plain_one_lets_stacking_decide() -> None:
    assert flags({"ML_ENABLE_STACKING": "1"}).weight == 100
    for value in ("0", "", "true", "01", " 1"):
        parsed = flags({"ML_ENABLE_STACKING": value})
        assert parsed.weight == 0
        assert bool(parsed.problem) == (value != "0")
    for value in ("0", "101", "25%", "half", "", "025", " 25", "2.5"):
        parsed = flags({"ML_ENABLE_STACKING": "1", "ML_STACKING_WEIGHT": value})
        assert parsed.weight == 0  # shadow is the safe side
        assert "ML_STACKING_WEIGHT is no whole number from 1 to 100" in parsed.problem
        assert parsed.shown["ML_STACKING_WEIGHT"] == "(hidden)"
    assert flags({"ML_ENABLE_STACKING": "1", "ML_STACKING_WEIGHT": "25"}).weight == 25
    assert flags({"ML_ENABLE_STACKING": "0", "ML_STACKING_WEIGHT": "25"}).weight == 0
    assert flags({"ML_STACKING_MIN_SAMPLES": "50"}).min_samples == 50
    assert flags({"ML_STACKING_MIN_SAMPLES": "many"}).problem
    assert flags({"PATH": "/bin"}).shown == {}
