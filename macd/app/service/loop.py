"""Bar after bar: judge it, ask the models, decide, write the line. The one place that acts.

Only a signal line that can't be written holds the loop up, and then no bar is lost: it is tried
again until the disk takes it, and a process killed meanwhile finds the bar again by its last line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from threading import Event
from typing import Any

from macd.app.market import features
from macd.app.predict.policy import FLAT, Position, base, decide, read_position
from macd.app.predict.scoring import SEQ
from macd.app.service.feed import Bar, Feed, Fresh, Item, Trouble
from macd.app.service.health import Status
from macd.app.service.history import History, closes_later
from macd.app.service.predictor import Prediction, Predictor, no_models
from macd.app.service.settings import Settings
from macd.app.service.signal_log import SignalLog, bar_time
from macd.errors import MacdError

NEED = features.bars_needed(SEQ)
_TURN_S = 0.5
_RETRY_S = 2.0


class StoppedError(Exception):
    """Asked to stop while a line can't be written; the next life finds its bar again."""


class Loop:
    """The service between its start and SIGTERM.

    Args:
        release: the id every line carries.
        predictor: None when no model could be loaded, `why` then says so on each line.
        alive: called at each turn: the watchdog's sign of life.
        now_ms: the clock, epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        release: str,
        predictor: Predictor | None,
        feed: Feed,
        log: SignalLog,
        status: Status,
        *,
        why: str = "",
        stop: Event,
        alive: Callable[[], None] = lambda: None,
        now_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._settings, self._release = settings, release
        self._predictor, self._why = predictor, why
        self._feed, self._log, self._status = feed, log, status
        self._stop, self._alive, self._now_ms = stop, alive, now_ms
        self._histories: dict[str, History] = {}
        self._position, self._decided_ms = FLAT, -1  # what is held, and the bar it was decided on

    def begin(self) -> None:
        """Get the history of every symbol; a feed that is down is asked again until it is not."""
        while not self._stop.is_set():
            try:
                self._remember(self._feed.begin(NEED, self._last_logged()))
                self._take_up_position()
                self._status.feed(self._feed.state)
                return
            except MacdError as error:
                self._status.error(f"{error.what}: {error.why}")
                self._status.feed(error.what)
                self._alive()
                self._stop.wait(_RETRY_S)

    def _last_logged(self) -> int | None:
        """The bar after which to go on; None where the log says nothing about this feed.

        Years of bars lie between a replay and the exchange that follows it: each would be reported
        as late.
        """
        last = self._log.last_bar_ms
        if last is None or not self._feed.live:
            return last
        return last if self._now_ms() - last <= NEED * self._settings.step else None

    def _take_up_position(self) -> None:
        """Go on with the position of the last line, where the bars go on behind it."""
        last, line = self._last_logged(), self._log.last_signal
        s, data = self._settings, line.get("data")
        if last is None or (line.get("symbol"), line.get("tf")) != (s.symbol, s.tf):
            return
        raw = data.get("position") if isinstance(data, dict) else None
        self._position, self._decided_ms = read_position(raw), last

    def run(self) -> None:
        """Until `stop` is set; what had arrived by then is finished first."""
        while not self._stop.is_set():
            self._alive()
            for item in self._feed.wait(_TURN_S):
                self._take(item)
                self._alive()
                if self._stop.is_set():  # the next process reads again what is not logged now
                    return
            self._status.feed(self._feed.state)

    def say(self, event: str, detail: str) -> None:
        """Write a line that is about no bar."""
        self._warn(self._settings.symbol, None, event, detail)

    def _remember(self, history: Any) -> None:
        for symbol in (self._settings.symbol, *self._settings.cross):
            # One stored bar of the future would make every bar to come one of the past.
            bars = [bar for bar in history.get(symbol, ()) if not self._in_the_future(bar)]
            self._histories[symbol] = History(symbol, self._settings.step, NEED, bars)

    def _take(self, item: Item) -> None:
        if isinstance(item, Fresh):
            self._remember(item.history)
            self._position, self._decided_ms = FLAT, -1
        elif isinstance(item, Trouble):
            self._warn(item.symbol, None, item.event, item.detail)
        else:
            self._take_bar(item)

    def _take_bar(self, bar: Bar) -> None:
        history = self._histories.get(bar.symbol)
        if history is None:
            self._warn(bar.symbol, bar, "unknown_symbol", "it is not in the settings")
            return
        is_main = bar.symbol == self._settings.symbol
        self._status.feed(self._feed.state)
        if self._in_the_future(bar):
            self._warn(bar.symbol, bar, "not_closed", "it closes in the future")
            return
        verdict = history.accept(bar)
        if verdict.refused is not None:
            self._warn(bar.symbol, bar, *verdict.refused)
            return
        if verdict.missing:
            self._warn(bar.symbol, bar, "gap", f"{verdict.missing} bars are missing before it")
        if is_main:
            self._status.bar()
            late = self._late_by(bar)
            if late:
                self._warn(bar.symbol, bar, "stale", late)
            else:
                self._status.feed(self._feed.state, arrived=True)  # the same old bars are no sign
                self._signal(bar, history)

    def _in_the_future(self, bar: Bar) -> bool:
        return self._feed.live and closes_later(bar, self._settings.step, self._now_ms())

    def _late_by(self, bar: Bar) -> str:
        if not self._feed.live:
            return ""
        step, allowed = self._settings.step, self._settings.feed.stale_bars
        age = self._now_ms() - (bar.open_ms + step)
        if age <= allowed * step:
            return ""
        return f"it closed {age / 60_000:.0f} min ago; no signal is given on it"

    def _signal(self, bar: Bar, history: History) -> None:
        began = time.perf_counter()
        prediction = self._predict(bar, history)
        closes = history.frame["close"]
        components: dict[str, Any] = {"close": bar.close}
        data: dict[str, Any] = {"action_taken": "HOLD", "sell_score": 0.0, "buy_score": 0.0}
        decision = None
        if len(closes) > 1:
            signal = base(closes)
            terms = self._settings.policy.at(prediction.fields["ml_horizon"])
            held, elapsed = self._held(bar, history)
            decision = decide(terms, signal.buy, signal.sell, prediction.p, held, elapsed)
            data = {
                "action_taken": decision.action,
                "sell_score": round(decision.sell, 3),
                "buy_score": round(decision.buy, 3),
                "position": decision.position.as_json(self._settings.policy.size),
            }
            components |= {
                "policy": terms.kind,
                **({} if terms.kind == "tilt" else {"long": terms.long, "short": terms.short}),
                "macd": signal.macd,
                "macd_signal": signal.signal,
                "macd_hist": signal.hist,
                "macd_buy_score": signal.buy,
                "macd_sell_score": signal.sell,
            }
        data["components"] = {**components, **prediction.fields}
        for name, why in prediction.errors.items():
            self._status.model_error(name)
            self._status.error(f"{bar_time(bar.open_ms)} {name}: {why}")
        seconds = time.perf_counter() - began
        seq = self._write("SIGNAL", bar.symbol, bar, data)
        if decision is not None:
            self._position, self._decided_ms = decision.position, bar.open_ms
        self._status.signalled(bar_time(bar.open_ms), seq, prediction.fields, seconds)

    def _held(self, bar: Bar, history: History) -> tuple[Position, int]:
        """The position held until now, and how many bars ago it was decided on.

        Bars that came too late for a signal count, bars that never came do not.
        """
        if self._decided_ms >= bar.open_ms:  # a replay that begins again
            return FLAT, 1
        return self._position, history.count_after(self._decided_ms)

    def _predict(self, bar: Bar, history: History) -> Prediction:
        if self._predictor is None:
            return no_models("models", self._why)
        cross = {name: self._histories[name] for name in self._settings.cross}
        for name, asked in {bar.symbol: history, **cross}.items():
            why = _unfit(asked, bar)
            if why:
                return self._predictor.refuse(f"{name}: {why}" if asked is not history else why)
        return self._predictor.predict(history.frame, {n: h.frame for n, h in cross.items()})

    def _warn(self, symbol: str, bar: Bar | None, event: str, detail: str) -> None:
        shown = {k: _plain(v) for k, v in asdict(bar).items() if k != "symbol"} if bar else {}
        data = {"event": event, "detail": detail, **({"bar": shown} if shown else {})}
        self._status.warned(event)
        self._status.error(f"{event}: {detail}")
        seq = self._write("WARN", symbol, bar, data)
        self._status.set(seq=seq)

    def _write(self, level: str, symbol: str, bar: Bar | None, data: dict[str, Any]) -> int:
        line = {
            "release": self._release,
            "symbol": symbol,
            "tf": self._settings.tf,
            "bar_time": _bar_time(bar),
            "data": data,
        }
        healthy = self._status.document()["status"]
        while True:
            try:
                seq = self._log.write(level, line)
            except OSError as error:
                self._status.set(status="failed")
                self._status.error(f"a line can't be written: {error}")
                self._alive()
                if self._stop.wait(_RETRY_S):
                    raise StoppedError from error
                continue
            self._status.set(status=healthy)
            return seq


def _unfit(history: History, bar: Bar) -> str:
    """Why no feature of `bar` may be computed from it; empty when one may be."""
    if not history.holds(bar.open_ms):
        return "no bar of this time"
    if not history.warm:
        return f"{len(history.frame)} of {NEED} bars of history so far"
    if history.doubtful:
        return f"a gap before it; {history.doubtful} bars to go"
    return ""


def _bar_time(bar: Bar | None) -> str | None:
    if bar is None:
        return None
    try:
        return bar_time(bar.open_ms)
    except (OverflowError, ValueError, OSError):
        return None


def _plain(value: Any) -> Any:
    """A number as JSON may hold it; what is not finite as a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value
