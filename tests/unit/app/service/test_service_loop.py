"""The loop over a feed that says what the test wants, with real models and a real log."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from macd.app.market.bars import read_bars
from macd.app.predict.policy import Policy, Thresholds
from macd.app.predict.scoring import MODELS, Scorer
from macd.app.service.challenger import Challenger
from macd.app.service.feed import Bar, Corrected, Feed, Fresh, Item, ReplayFeed, Trouble, bars_of
from macd.app.service.health import Status
from macd.app.service.loop import NEED, Loop, Served, StoppedError
from macd.app.service.predictor import Predictor
from macd.app.service.settings import Settings, flags
from macd.app.service.signal_log import SignalLog, bar_time
from macd.errors import MacdError, UsageError
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.parse import parse
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
    bars_end: datetime | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

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

    def __call__(
        self,
        feed: Feed,
        *,
        models: bool = True,
        log: SignalLog | None = None,
        challenger: Challenger | None = None,
    ) -> Any:
        writer = log or SignalLog(self.settings.live)
        served = Served(
            self.settings,
            Predictor(self.scorer, flags(self.environment), "1h") if models else None,
            "no model can be loaded",
            self.bars_end,
            challenger,
        )
        loop = Loop(
            self.settings,
            "20260301T000000Z-00000000",
            [served],
            feed,
            writer,
            self.status,
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


def test_a_line_says_what_it_was_computed_from(run: Run) -> None:
    run.settings = dataclasses.replace(run.settings, cross=("ETHUSD",))
    other = [dataclasses.replace(bar, symbol="ETHUSD") for bar in BARS[: NEED + 1]]
    feed = Scripted(run.stop, [other[NEED], *BARS[NEED : NEED + 2]])
    feed.others = {"ETHUSD": other[:NEED]}
    first, second = parts(run(feed))
    names = ("open", "high", "low", "close", "volume")
    assert first["bar"] == {name: getattr(BARS[NEED], name) for name in names}
    assert first["cross_bars"] == {"ETHUSD": first["bar"]}
    assert first["history_until"] == second["history_until"] == bar_time(BARS[NEED - 1].open_ms)
    assert "cross_bars" not in second  # none of that time had come
    assert second["cross_last"] == {"ETHUSD": bar_time(BARS[NEED].open_ms)}


@pytest.mark.parametrize("flag", ["0", "1"])
def test_models_that_are_too_old_warn_for_a_week_and_then_decide_nothing(
    run: Run, flag: str
) -> None:
    run.settings = dataclasses.replace(run.settings, max_age_days=30)
    run.environment = {"ML_ENABLE_STACKING": flag}
    first = datetime.fromtimestamp(BARS[NEED].open_ms / 1000, UTC)
    # The first bar's close is the last moment of the grace, the bars after it are beyond it.
    run.bars_end = first + timedelta(hours=1) - timedelta(days=37)
    lines = run(Scripted(run.stop, BARS[NEED : NEED + 30]))
    signals = [line for line in lines if line["level"] == "SIGNAL"]
    details = [line["data"]["detail"] for line in lines if line["data"].get("event") == "old"]
    days = {line["bar_time"][:10] for line in lines}
    assert len(signals) == 30
    assert len(details) in (len(days), len(days) + 1)  # by the bars' closes
    assert details[0].startswith("the models' bars end ")
    assert "on they decide nothing" in details[0]
    assert details[-1].startswith("too old: the models' bars end ")
    before, after = (line["data"]["components"] for line in signals[:2])
    assert before["ml_bull_prob"] is not None
    assert before["ml_stacking_mode"] == ("live" if flag == "1" else "shadow")
    assert after["ml_bull_prob"] is None
    assert after["ml_stacking_mode"] == "off"
    assert after["ml_stacking_skipped_reason"].startswith("too old: ")
    assert after["ml_error"] is None
    assert after["ml_avg_prob"] is not None  # what they say stays on the line
    data = signals[1]["data"]
    assert (data["buy_score"], data["sell_score"]) == (
        after["macd_buy_score"],
        after["macd_sell_score"],
    )
    assert run.status.document()["age"]["state"] == "too old"
    analysis = Analysis(Window(0, 1 << 60, None, strict=False))
    for line in lines:
        analysis.add(parse(json.dumps(line).encode()), "x", 1)
    analysis.finish()
    assert analysis.tally()["ml_coverage"] == (1, 30)
    (group,) = analysis.document()["not_activated"]
    assert (group["count"], group["example"][:8]) == (29, "too old:")


def test_without_a_limit_and_on_older_bars_nothing_is_old(run: Run) -> None:
    run.bars_end = datetime(2000, 1, 1, tzinfo=UTC)
    assert events(run(Scripted(run.stop, BARS[NEED : NEED + 2]))) == ["signal"] * 2
    assert "age" not in run.status.document()
    run.settings = dataclasses.replace(run.settings, max_age_days=1)
    run.bars_end = datetime(2030, 1, 1, tzinfo=UTC)
    assert "old" not in events(run(Scripted(run.stop, BARS[NEED + 2 : NEED + 4])))
    assert run.status.document()["age"]["state"] == "fresh"


def test_a_corrected_bar_is_named_and_taken_for_the_bars_to_come(run: Run) -> None:
    was, after = BARS[NEED], BARS[NEED + 1]
    bar = dataclasses.replace(was, close=was.close * 1.01, high=was.high * 1.02)
    first, line, second = run(Scripted(run.stop, [was, Corrected(bar, was), after]))
    assert (line["level"], line["data"]["event"]) == ("WARN", "corrected")
    assert line["bar_time"] == bar_time(was.open_ms)
    assert (line["data"]["was"]["close"], line["data"]["bar"]["close"]) == (was.close, bar.close)
    assert line["data"]["taken"] is True
    assert first["data"]["components"]["bar"]["close"] == was.close  # the signal stands
    other = Run(_below(run.tmp, "as-if-it-had-been-so"))
    as_final = other(Scripted(other.stop, [bar, after]))[-1]
    for name in ("ml_features", "ml_heads", "macd"):
        assert second["data"]["components"][name] == as_final["data"]["components"][name]


def test_a_correction_that_can_not_be_computed_with_is_named_and_not_taken(run: Run) -> None:
    was = BARS[NEED]
    items = [was, Corrected(dataclasses.replace(was, low=-1.0), was), BARS[NEED + 1]]
    _, line, second = run(Scripted(run.stop, items))
    assert line["data"]["taken"] is False
    assert "not taken" in line["data"]["detail"]
    assert second["data"]["components"]["ml_error"] is None


def _below(directory: Path, name: str) -> Path:
    (directory / name).mkdir()
    return directory / name


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


def test_a_bar_without_a_trade_is_a_bar_like_others_and_marked(run: Run) -> None:
    """Every third candle is one that the exchange left out and the feed put back."""
    bars = list(BARS[NEED : NEED + 12])
    for number in range(2, 12, 3):
        last = bars[number - 1].close
        bars[number] = dataclasses.replace(
            bars[number], open=last, high=last, low=last, close=last, volume=0.0, filled=True
        )
    lines = run(Scripted(run.stop, bars))
    parts = [line["data"]["components"] for line in lines]
    assert [part.get("bar_filled") for part in parts] == 4 * [None, None, True]
    assert all(part["ml_error"] is None and part["ml_avg_prob"] for part in parts)
    assert parts[2]["bar"]["volume"] == 0
    again = run(Scripted(run.stop, [dataclasses.replace(bars[2], close=1.0)]))[-1]
    assert again["data"]["event"] in ("bad_bar", "out_of_order")
    assert again["data"]["bar"]["filled"] is True


def test_after_a_gap_the_signal_goes_on_without_the_models(run: Run) -> None:
    lines = run(Scripted(run.stop, [BARS[NEED], *BARS[NEED + 3 : NEED + 6]]))
    assert events(lines) == ["signal", "gap", "signal", "signal", "signal"]
    components = [line["data"]["components"] for line in lines if line["level"] == "SIGNAL"]
    assert ["gap" in (one["ml_error"] or "") for one in components] == [False, True, True, False]
    assert [one["ml_bull_prob"] is None for one in components] == [False, True, True, False]
    assert all(isinstance(one["macd_hist"], float) for one in components)


def test_a_late_bar_is_history_and_no_signal(run: Run) -> None:
    closed = BARS[NEED + 2].open_ms + HOUR
    run.now_ms = closed
    lines = run(Scripted(run.stop, BARS[NEED : NEED + 3], live=True))
    assert events(lines) == ["stale", "signal", "signal"]  # one bar late is not late
    assert lines[-1]["data"]["components"]["ml_error"] is None


def with_lgbm_on(scorer: Scorer, symbol: str) -> Scorer:
    """Its LightGBM trained on a column of another asset: as certain as that is finite."""
    column = f"x_{symbol.lower()}_ret_1"
    features = (*scorer.features, column)
    metas = {
        **scorer.metas,
        "lgbm": {**scorer.metas["lgbm"], "features": list(features), "calibration": None},
    }

    def lgbm(windows: Any) -> Any:
        share = np.isfinite(windows[:, :, -1]).mean(axis=1)
        return np.repeat(0.25 + share[:, None] / 2, 3, axis=1).astype(np.float32)

    models = {**scorer.models, "lgbm": lgbm}
    return dataclasses.replace(scorer, features=features, metas=metas, models=models)


def of(symbol: str, bars: Sequence[Bar]) -> list[Bar]:
    return [dataclasses.replace(bar, symbol=symbol) for bar in bars]


def parts(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line["data"]["components"] for line in lines if line["level"] == "SIGNAL"]


def test_an_asset_that_no_model_was_trained_on_silences_none(run: Run) -> None:
    """Delisted: it has no bar at all. The models are those of the path of the price."""
    run.settings = dataclasses.replace(run.settings, cross=("ETHUSD",))
    lines = run(Scripted(run.stop, BARS[NEED : NEED + 3]))
    assert events(lines) == ["cross_missing", "signal", "signal", "signal"]
    assert "no model was trained on it" in lines[0]["data"]["detail"]
    assert lines[0]["symbol"] == "ETHUSD"
    for part in parts(lines):
        assert part["ml_error"] is None
        assert part["ml_stacking_prob"] is not None
        assert part["ml_cross_missing"] == ["ETHUSD"]


def test_an_asset_whose_bars_stop_is_told_once_and_its_models_have_a_time_of_grace(
    run: Run,
) -> None:
    run.settings = dataclasses.replace(run.settings, cross=("ETHUSD",))
    run.scorer = with_lgbm_on(run.scorer, "ETHUSD")
    items: list[Item] = []
    for number, bar in enumerate(BARS[NEED : NEED + 54]):
        stopped = 2 <= number < 52
        items += ([] if stopped else of("ETHUSD", [bar])) + [bar]
    feed = Scripted(run.stop, items)
    feed.others = {"ETHUSD": of("ETHUSD", BARS[:NEED])}
    lines = run(feed)
    reported = [event for event in events(lines) if event != "signal"]
    assert reported == ["cross_missing", "gap", "cross_back"]
    of_each = parts(lines)
    whole = [part["ml_error"] is None for part in of_each]
    # Its first bar after the gap has no return yet.
    assert whole == 2 * [True] + 51 * [False] + [True]
    assert [bool(part.get("ml_cross_missing")) for part in of_each] == [not ok for ok in whole]
    assert of_each[2]["ml_error"] == "lgbm: answered without a return of ETHUSD"
    assert of_each[2]["ml_lgb_prob"] == pytest.approx(0.25 + 47 / 48 / 2)
    asked = [part["ml_lgb_prob"] is not None for part in of_each]
    assert asked == 49 * [True] + 4 * [False] + [True]
    silent = of_each[49]
    assert silent["ml_error"] == "lgbm: no bar of ETHUSD for 48 bars and more"
    assert silent["ml_avg_prob"] is not None
    assert silent["ml_tft_prob"] is not None
    assert "lgbm_5h" in silent["ml_stacking_skipped_reason"]
    covered = Analysis(Window(0, 2**60, None, strict=False))
    for number, line in enumerate(lines):
        covered.add(parse(json.dumps(line).encode()), "log", number)
    covered.finish()
    assert covered.tally()["ml_coverage"] == (3, 54), "what was asked without it is no evidence"


def test_a_restart_does_not_tell_again_of_an_asset_that_is_away(run: Run) -> None:
    run.settings = dataclasses.replace(run.settings, cross=("ETHUSD",))
    run(Scripted(run.stop, BARS[NEED : NEED + 1]))
    feed = Scripted(run.stop, BARS[NEED + 1 : NEED + 2])
    feed.known = BARS[1 : NEED + 1]
    assert events(run(feed)) == ["cross_missing", "signal", "signal"]


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
    errors = [line["data"]["components"]["ml_error"] or "" for line in run(feed)]
    assert ["gap" in error for error in errors] == [True, True, False]


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
    errors = [line["data"]["components"]["ml_error"] for line in lines]
    assert f"{NEED - 1} of {NEED} bars" in errors[0]
    assert errors[1] is None


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
    entries = [line["data"] for line in lines]
    return [
        (one["action_taken"], one["position"]["side"], one["position"]["bars_left"])
        for one in entries
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
