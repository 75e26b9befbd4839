"""The loop over a feed that says what the test wants, with real models and a real log."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from macd.app.market.bars import read_bars
from macd.app.predict.policy import Policy, Thresholds
from macd.app.predict.scoring import MODELS, Scorer
from macd.app.service.feed import Bar, Feed, Fresh, Item, ReplayFeed, Trouble, bars_of
from macd.app.service.health import Status
from macd.app.service.loop import NEED, Loop, StoppedError
from macd.app.service.predictor import Predictor
from macd.app.service.settings import Settings, flags
from macd.app.service.signal_log import SignalLog, bar_time
from macd.errors import MacdError, UsageError
from tests.support.deployed_app import prepared
from tests.support.training_run import SAMPLE

pytestmark = pytest.mark.slow

HOUR = 3_600_000
BARS = bars_of("BTCUSD", read_bars(SAMPLE)[:600])


class Scripted:
    """A feed of the port's shape; it ends the loop when it has nothing more to say."""

    def __init__(self, stop: Event, items: Sequence[Item], *, live: bool = False) -> None:
        self.live, self.state = live, "scripted"
        self._stop, self._items = stop, list(items)
        self.known: Sequence[Bar] = BARS[:NEED]
        self.others: dict[str, Sequence[Bar]] = {}
        self.failures = 0

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        if self.failures:
            self.failures -= 1
            raise MacdError("the exchange is down", why="maintenance")
        self.asked = (need, after_ms)
        return {"BTCUSD": self.known, **self.others}

    def wait(self, seconds: float) -> Sequence[Item]:
        if not self._items:
            self._stop.set()
            return []
        return [self._items.pop(0)]


@dataclasses.dataclass
class Run:
    tmp: Path
    now_ms: float = 0.0

    def __post_init__(self) -> None:
        (self.tmp / "service.json").write_text(
            json.dumps(
                {
                    "symbol": "BTCUSD", "tf": "1h", "cross": [], "endpoint": "127.0.0.1:1",
                    "feed": {"kind": "replay"},
                }
            )
        )  # fmt: skip
        self.settings = Settings.read(self.tmp)
        self.status = Status({})
        self.status.set(status="ok")
        self.stop = Event()
        self.alive = 0
        self.scorer = Scorer.load(prepared() / MODELS, "1h")

    def __call__(self, feed: Feed, *, models: bool = True, log: SignalLog | None = None) -> Any:
        writer = log or SignalLog(self.settings.live)
        loop = Loop(
            self.settings,
            "20260301T000000Z-00000000",
            Predictor(self.scorer, flags({}), "1h") if models else None,
            feed,
            writer,
            self.status,
            why="no model can be loaded",
            stop=self.stop,
            alive=self._alive,
            now_ms=lambda: self.now_ms,
        )
        loop.begin()
        loop.run()
        writer.close()
        self.stop.clear()
        path = next(self.settings.live.glob("*.jsonl"), None)
        return [json.loads(line) for line in path.read_text().splitlines()] if path else []

    def _alive(self) -> None:
        self.alive += 1


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def events(lines: list[dict[str, Any]]) -> list[str]:
    return [line["data"].get("event", "signal") for line in lines]


def test_every_bar_becomes_one_line(run: Run) -> None:
    lines = run(Scripted(run.stop, BARS[NEED : NEED + 5]))
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["bar_time"] for line in lines] == [
        bar_time(bar.open_ms) for bar in BARS[NEED : NEED + 5]
    ]
    assert {line["level"] for line in lines} == {"SIGNAL"}
    assert all(line["data"]["components"]["ml_error"] is None for line in lines)
    assert {(line["symbol"], line["tf"]) for line in lines} == {("BTCUSD", "1h")}
    assert run.status.document()["last_bar"] == lines[-1]["bar_time"]
    assert run.alive > 5


def test_what_is_no_bar_to_compute_with_is_a_line_that_is_no_signal(run: Run) -> None:
    good = BARS[NEED]
    items: list[Item] = [
        good,
        good,
        BARS[NEED - 3],
        dataclasses.replace(BARS[NEED + 1], close=float("nan")),
        dataclasses.replace(BARS[NEED + 1], symbol="DOGEUSD"),
        Trouble("BTCUSD", "feed", "the exchange is down"),
        BARS[NEED + 1],
    ]
    lines = run(Scripted(run.stop, items))
    assert events(lines) == [
        "signal", "duplicate", "out_of_order", "bad_bar", "unknown_symbol", "feed", "signal",
    ]  # fmt: skip
    assert [line["seq"] for line in lines] == list(range(1, 8))
    assert [line["level"] for line in lines] == ["SIGNAL", *["WARN"] * 5, "SIGNAL"]
    assert lines[3]["data"]["bar"]["close"] == "nan"
    assert lines[-1]["data"]["components"]["ml_error"] is None
    metrics = run.status.metrics().decode()
    assert 'macd_warnings_total{event="duplicate"} 1.0' in metrics
    assert "macd_signals_total 2.0" in metrics


def test_after_a_gap_the_signal_goes_on_without_the_models(run: Run) -> None:
    lines = run(Scripted(run.stop, [BARS[NEED], *BARS[NEED + 3 : NEED + 6]]))
    assert events(lines) == ["signal", "gap", "signal", "signal", "signal"]
    told = [line["data"]["components"] for line in lines if line["level"] == "SIGNAL"]
    assert ["gap" in (one["ml_error"] or "") for one in told] == [False, True, True, False]
    assert [one["ml_bull_prob"] is None for one in told] == [False, True, True, False]
    assert all(isinstance(one["macd_hist"], float) for one in told)


def test_a_late_bar_is_history_and_no_signal(run: Run) -> None:
    closed = BARS[NEED + 2].open_ms + HOUR
    run.now_ms = closed
    lines = run(Scripted(run.stop, BARS[NEED : NEED + 3], live=True))
    assert events(lines) == ["stale", "signal", "signal"]  # one bar late is not late
    assert lines[-1]["data"]["components"]["ml_error"] is None


@pytest.mark.parametrize(
    ("cross", "told"),
    [
        (BARS[: NEED + 1], None),
        (BARS[:NEED], "input: ETHUSD: no bar of this time"),
        (BARS[3 : NEED + 1], f"input: ETHUSD: {NEED - 2} of {NEED} bars of history so far"),
        ([*BARS[: NEED - 1], BARS[NEED]], "input: ETHUSD: a gap before it; 1 bars to go"),
    ],
)
def test_no_feature_is_computed_from_a_cross_symbol_that_lacks_bars(
    run: Run, cross: list[Bar], told: str | None
) -> None:
    run.settings = dataclasses.replace(run.settings, cross=("ETHUSD",))
    other = [dataclasses.replace(bar, symbol="ETHUSD") for bar in cross]
    feed = Scripted(run.stop, [*other[-2:], BARS[NEED]])
    feed.others = {"ETHUSD": other[:-2]}
    line = run(feed)[-1]
    assert line["level"] == "SIGNAL"
    assert line["data"]["components"]["ml_error"] == told


def test_old_bars_again_and_again_are_no_sign_of_life_of_the_feed(run: Run) -> None:
    run(Scripted(run.stop, [BARS[NEED - 3], BARS[NEED - 1]]))
    assert run.status.document()["feed"]["last_arrival"] is None
    run(Scripted(run.stop, [BARS[NEED]]))
    assert run.status.document()["feed"]["last_arrival"] is not None


def test_asked_to_stop_while_the_disk_is_full_it_stops(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macd.app.service.loop._RETRY_S", 0.01)

    class Full(SignalLog):
        def write(self, level: str, fields: Mapping[str, Any]) -> int:
            run.stop.set()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoppedError):
        run(Scripted(run.stop, BARS[NEED : NEED + 3]), log=Full(run.settings.live))


def test_a_restart_behind_a_gap_does_not_forget_it(run: Run) -> None:
    feed = Scripted(run.stop, BARS[NEED + 6 : NEED + 9])
    feed.known = [*BARS[: NEED + 2], *BARS[NEED + 5 : NEED + 6]]  # 3 are missing before the last
    told = [line["data"]["components"]["ml_error"] or "" for line in run(feed)]
    assert ["gap" in error for error in told] == [True, True, False]


def test_a_stored_bar_of_the_future_silences_nothing(run: Run) -> None:
    run.now_ms = BARS[NEED].open_ms + HOUR
    later = dataclasses.replace(BARS[NEED], open_ms=BARS[NEED].open_ms + 900 * HOUR)
    feed = Scripted(run.stop, [BARS[NEED]], live=True)
    feed.known = [*BARS[:NEED], later]
    assert events(run(feed)) == ["signal"]


def test_a_bar_of_the_future_is_refused(run: Run) -> None:
    run.now_ms = BARS[NEED].open_ms + HOUR
    later = dataclasses.replace(BARS[NEED], open_ms=BARS[NEED].open_ms + 900 * HOUR)
    assert events(run(Scripted(run.stop, [later, BARS[NEED]], live=True))) == [
        "not_closed",
        "signal",
    ]


def test_with_too_little_history_the_models_wait(run: Run) -> None:
    feed = Scripted(run.stop, BARS[NEED - 2 : NEED])
    feed.known = BARS[: NEED - 2]
    lines = run(feed)
    told = [line["data"]["components"]["ml_error"] for line in lines]
    assert f"{NEED - 1} of {NEED} bars" in told[0]
    assert told[1] is None


def test_without_any_model_the_signal_goes_on(run: Run) -> None:
    lines = run(Scripted(run.stop, BARS[NEED : NEED + 2]), models=False)
    assert [line["level"] for line in lines] == ["SIGNAL", "SIGNAL"]
    assert "no model can be loaded" in lines[0]["data"]["components"]["ml_error"]
    assert lines[0]["data"]["action_taken"] in ("BUY", "SELL", "HOLD")


def test_a_feed_that_is_down_is_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macd.app.service.loop._RETRY_S", 0.01)
    feed = Scripted(run.stop, BARS[NEED : NEED + 1])
    feed.failures = 3
    assert events(run(feed)) == ["signal"]


def test_a_full_disk_holds_the_line_back_and_loses_none(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macd.app.service.loop._RETRY_S", 0.01)
    said = []

    class Full(SignalLog):
        left = 3

        def write(self, level: str, fields: Mapping[str, Any]) -> int:
            said.append(run.status.document()["status"])
            if self.left and self.seq == 1:
                self.left -= 1
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(level, fields)

    lines = run(Scripted(run.stop, BARS[NEED : NEED + 3]), log=Full(run.settings.live))
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert said == ["ok", "ok", "failed", "failed", "failed", "ok"]
    assert run.status.document()["status"] == "ok"


def test_a_new_lap_starts_from_its_own_history(run: Run) -> None:
    items: list[Item] = [BARS[NEED + 9], Fresh({"BTCUSD": BARS[:NEED]}), BARS[NEED]]
    feed = Scripted(run.stop, items)
    feed.known = BARS[9 : NEED + 9]
    lines = run(feed)
    assert events(lines) == ["signal", "signal"]
    assert lines[1]["data"]["components"]["ml_error"] is None


def test_a_restart_goes_on_behind_the_last_line(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data/replay"
    folder.mkdir(parents=True)
    (folder / "BTCUSD_1h.parquet").symlink_to(SAMPLE)
    quick = dataclasses.replace(run.settings.feed, speed=0.0, start=0.5)
    run.settings = dataclasses.replace(run.settings, feed=quick)

    class Some(ReplayFeed):
        left = 2

        def wait(self, seconds: float) -> Sequence[Item]:
            self.left -= 1
            if self.left < 0:
                run.stop.set()
                return []
            return list(super().wait(seconds))

    run(Some(run.settings))
    lines = run(Some(run.settings))
    assert len(lines) == 200
    assert [line["seq"] for line in lines] == list(range(1, 201))
    opened = sorted({line["bar_time"] for line in lines})
    assert len(opened) == 200
    assert opened == [line["bar_time"] for line in lines]
    assert set(events(lines)) == {"signal"}


ALWAYS_LONG = Policy("threshold", {"all": Thresholds(long=1e-6, short=0.0)}, size=0.5)
NO_SIGNAL = Policy("threshold", {"all": Thresholds(long=1.0, short=0.0)}, size=0.5)


def held(lines: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    told = [line["data"] for line in lines]
    return [
        (one["action_taken"], one["position"]["side"], one["position"]["bars_left"]) for one in told
    ]


def decide_by(run: Run, policy: Policy) -> None:
    run.settings = dataclasses.replace(run.settings, policy=policy)


def test_a_restart_finds_the_position_again_and_closes_it_in_time(run: Run) -> None:
    decide_by(run, ALWAYS_LONG)
    first = run(Scripted(run.stop, BARS[NEED : NEED + 1]))[-1]["data"]
    horizon = int(first["components"]["ml_horizon"].removesuffix("h"))
    assert first["position"] == {"side": "long", "size": 0.5, "bars_left": horizon}
    assert (first["components"]["policy"], first["components"]["long"]) == ("threshold", 1e-6)
    decide_by(run, NO_SIGNAL)
    feed = Scripted(run.stop, BARS[NEED + 1 : NEED + 2 + horizon])
    feed.known = BARS[1 : NEED + 1]
    lines = run(feed)[1:]
    left = [("HOLD", "long", horizon - gone) for gone in range(1, horizon)]
    assert held(lines) == [*left, ("SELL", "flat", 0), ("HOLD", "flat", 0)]


def test_bars_that_came_too_late_count_towards_the_horizon(run: Run) -> None:
    decide_by(run, ALWAYS_LONG)
    run(Scripted(run.stop, BARS[NEED : NEED + 1]))
    decide_by(run, NO_SIGNAL)
    run.now_ms = BARS[NEED + 4].open_ms + HOUR
    feed = Scripted(run.stop, BARS[NEED + 1 : NEED + 5], live=True)
    feed.known = BARS[1 : NEED + 1]
    lines = run(feed)[1:]
    assert events(lines) == ["stale", "stale", "signal", "signal"]
    bars_left = [one["data"]["position"]["bars_left"] for one in lines[2:]]
    assert bars_left[0] - bars_left[1] == 1
    first = run_horizon(lines)
    assert bars_left[0] == first - 3


def run_horizon(lines: list[dict[str, Any]]) -> int:
    return int(lines[-1]["data"]["components"]["ml_horizon"].removesuffix("h"))


@pytest.mark.parametrize(
    "change", [{"symbol": "ETHUSD"}, {"tf": "2h"}, {"data": {"action_taken": "BUY"}}]
)
def test_another_series_and_a_line_of_an_earlier_version_begin_flat(
    run: Run, change: dict[str, Any]
) -> None:
    decide_by(run, ALWAYS_LONG)
    (line,) = run(Scripted(run.stop, BARS[NEED : NEED + 1]))
    path = next(run.settings.live.glob("*.jsonl"))
    path.write_text(json.dumps({**line, **change}) + "\n")
    decide_by(run, NO_SIGNAL)
    feed = Scripted(run.stop, BARS[NEED + 1 : NEED + 2])
    feed.known = BARS[1 : NEED + 1]
    assert held(run(feed)[1:]) == [("HOLD", "flat", 0)]


def test_a_new_lap_begins_flat(run: Run) -> None:
    decide_by(run, Policy("threshold", {"all": Thresholds(1.0, 0.0)}, hold="signal"))
    path = run.settings.live / "trades_20200101.jsonl"
    path.parent.mkdir(parents=True)
    stored = {"level": "SIGNAL", "seq": 1, "symbol": "BTCUSD", "tf": "1h"}
    stored["bar_time"] = bar_time(BARS[NEED + 8].open_ms)
    path.write_text(
        json.dumps({**stored, "data": {"position": {"side": "short", "bars_left": 3}}}) + "\n"
    )
    feed = Scripted(run.stop, [BARS[NEED + 9], Fresh({"BTCUSD": BARS[:NEED]}), BARS[NEED]])
    feed.known = BARS[9 : NEED + 9]
    run(feed)
    lines = [json.loads(line) for line in sorted(run.settings.live.glob("*"))[-1].open()]
    assert held(lines) == [("HOLD", "short", 2), ("HOLD", "flat", 0)]


def test_settings_from_before_policies_and_from_later_ones_are_read(tmp_path: Path) -> None:
    written = {"symbol": "BTCUSD", "tf": "1h", "endpoint": "127.0.0.1:1", "feed": {}}

    def read(**more: Any) -> Policy:
        (tmp_path / "service.json").write_text(json.dumps({**written, **more}))
        return Settings.read(tmp_path).policy

    assert read() == Policy()
    assert read(policy={"kind": "threshold", "size": 0.5, "of_later": 1}).kind == "threshold"
    with pytest.raises(UsageError, match=r"service\.json") as caught:
        read(policy={"kind": "of_later"})
    assert "kind: 'of_later'" in caught.value.why
