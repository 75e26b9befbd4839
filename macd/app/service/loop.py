"""Bar after bar: judge it, ask the models, decide, write the line. The one place that acts.

One loop serves one symbol or many. Bars of one time are all put into their histories before the
first of them is scored, so that symbols which are each other's cross assets see the same market.

Only a signal line that can't be written holds the loop up, and then no bar is lost: it is tried
again until the disk takes it, and a process killed meanwhile finds the bar again by its last line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Any

import polars as pl

from macd.app.market import features
from macd.app.market.bars import COLUMNS
from macd.app.predict.policy import FLAT, Position, base, decide, read_position
from macd.app.predict.scoring import SEQ
from macd.app.service.challenger import Challenger
from macd.app.service.feed import Bar, Corrected, Feed, Fresh, Item, Trouble
from macd.app.service.health import Status
from macd.app.service.history import History, closes_later
from macd.app.service.predictor import Prediction, Predictor, no_models
from macd.app.service.settings import Settings
from macd.app.service.signal_log import Last, SignalLog, bar_time
from macd.errors import MacdError
from macd.host.store.age import TOO_OLD, Age, age_of

NEED = features.bars_needed(SEQ)
_TURN_S = 0.5
_RETRY_S = 2.0
_LONGEST = 200  # characters of an error in the state of a symbol
_BARS_BEHIND = 2  # of others that came, until a symbol's own count as stopped


class StoppedError(Exception):
    """Asked to stop while a line can't be written; the next life finds its bar again."""


@dataclass
class Served:
    """A symbol that gets lines: its models, and what is held of it.

    Attributes:
        settings: of this symbol alone.
        predictor: None when no model could be loaded, `why` then says so on each line.
        bars_end: the last bar of its training; None where nobody said.
        challenger: the previous release's models, asked about each bar as well; None: nobody.
        logged_ms: the last bar that an earlier life wrote a line about; -1 for none.
        position, decided_ms: what is held, and the bar it was decided on.
    """

    settings: Settings
    predictor: Predictor | None
    why: str = ""
    bars_end: datetime | None = None
    challenger: Challenger | None = None
    logged_ms: int = -1
    position: Position = FLAT
    decided_ms: int = -1
    age_warned_on: str = ""
    has_stopped: bool = False

    @property
    def symbol(self) -> str:
        return self.settings.symbol


class Loop:
    """The service between its start and SIGTERM.

    Args:
        release: the id every line carries.
        served: a value for each symbol of `settings.served`, in that order.
        alive: called at each turn: the watchdog's sign of life.
        now_ms: the clock, epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        release: str,
        served: Sequence[Served],
        feed: Feed,
        log: SignalLog,
        status: Status,
        *,
        stop: Event,
        alive: Callable[[], None] = lambda: None,
        now_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._settings, self._release = settings, release
        self._served = {one.symbol: one for one in served}
        self._feed, self._log, self._status = feed, log, status
        self._stop, self._alive, self._now_ms = stop, alive, now_ms
        self._histories: dict[str, History] = {}
        self._until: dict[str, int | None] = {}  # open of the last bar that a history began with
        self._away: set[str] = set()  # other assets whose bars have stopped, each reported once
        # Of one time and in the histories; their lines are still to come.
        self._arrived: list[Bar] = []

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

        Of several symbols, the one whose last line is oldest: what the others have a line about by
        then is only put into their histories. Years of bars lie between a replay and the exchange
        that follows it: each would be reported as late.
        """
        lasts = [self._log.last_bar_ms]
        if self._settings.symbols:
            lasts = [last.bar_ms for last in self._last_lines().values()]
        oldest = NEED * self._settings.step
        recent = [
            ms
            for ms in lasts
            if ms is not None and self._has_been(ms)
            if not (self._feed.live and self._now_ms() - ms > oldest)
        ]
        return min(recent, default=None)

    def _last_lines(self) -> Mapping[str, Last]:
        """By symbol, but for those that a replay left more than a history behind the others."""
        named = {
            n: last
            for n, last in self._log.last.items()
            if n in self._served and self._has_been(last.bar_ms)
        }
        newest = max((last.bar_ms for last in named.values()), default=0)
        within = NEED * self._settings.step
        return {n: last for n, last in named.items() if newest - last.bar_ms <= within}

    def _has_been(self, open_ms: int) -> bool:
        """False of a bar that is still to come, logged while a clock was ahead: it came to nothing,
        and all bars until then would seem to have been dealt with.
        """
        return not self._feed.live or open_ms <= self._now_ms()

    def _take_up_position(self) -> None:
        """Go on with the position of the last line, where the bars go on behind it."""
        last = self._last_logged()
        if last is None:
            return
        if self._settings.symbols:
            for name, line in self._last_lines().items():
                if line.bar_ms >= last:
                    self._take_up(self._served[name], line.bar_ms, line.line)
            return
        self._take_up(self._served[self._settings.symbol], last, self._log.last_signal)

    def _take_up(self, served: Served, last: int, line: Mapping[str, Any]) -> None:
        s, data = served.settings, line.get("data")
        if (line.get("symbol"), line.get("tf")) != (s.symbol, s.tf):
            return
        raw = data.get("position") if isinstance(data, dict) else None
        served.position, served.decided_ms = read_position(raw), last
        served.logged_ms = last if self._settings.symbols else -1
        parts = data.get("components") if isinstance(data, dict) else None
        away = parts.get("ml_cross_missing") if isinstance(parts, dict) else None
        if isinstance(away, list):  # an earlier life said so
            self._away |= {name for name in s.cross if name in away}

    def run(self) -> None:
        """Until `stop` is set; what had arrived by then is finished first."""
        while not self._stop.is_set():
            self._alive()
            for item in self._feed.wait(_TURN_S):
                if not self._goes_on(item):
                    return
                self._take(item)
                self._alive()
                if self._stop.is_set():  # the next process reads again what is not logged now
                    self._goes_on(None)
                    return
            if not self._goes_on(None):
                return
            self._status.feed(self._feed.state)

    def _goes_on(self, item: Item | None) -> bool:
        """Write the lines of the bars that have arrived, unless `item` is one of the same time.

        False when the service was asked to stop meanwhile.
        """
        first = self._arrived[0] if self._arrived else None
        if first is None or (
            isinstance(item, Bar)
            and item.open_ms == first.open_ms
            and all(item.symbol != bar.symbol for bar in self._arrived)
        ):
            return True
        arrived, self._arrived = self._arrived, []
        for bar in arrived:
            self._signal(self._served[bar.symbol], bar, self._histories[bar.symbol])
            self._alive()
            if self._stop.is_set():
                return False
        if self._settings.symbols:
            self._report_stopped(first)
        return True

    def say(self, event: str, detail: str) -> None:
        """Write a line that is about no bar."""
        self._warn(self._settings.symbol, None, event, detail)

    def _remember(self, history: Any) -> None:
        for symbol in self._settings.names:
            # One stored bar of the future would make every bar to come one of the past.
            bars = [bar for bar in history.get(symbol, ()) if not self._in_the_future(bar)]
            began = History(symbol, self._settings.step, NEED, bars)
            self._histories[symbol] = began
            self._until[symbol] = began.last.open_ms if began.last else None

    def _take(self, item: Item) -> None:
        if isinstance(item, Fresh):
            self._remember(item.history)
            for served in self._served.values():
                served.position, served.decided_ms, served.logged_ms = FLAT, -1, -1
        elif isinstance(item, Trouble):
            self._warn(item.symbol, None, item.event, item.detail)
        elif isinstance(item, Corrected):
            self._take_correction(item)
        else:
            self._take_bar(item)

    def _take_bar(self, bar: Bar) -> None:
        history = self._histories.get(bar.symbol)
        if history is None:
            self._warn(bar.symbol, bar, "unknown_symbol", "it is not in the settings")
            return
        served = self._served.get(bar.symbol)
        if served is not None and bar.open_ms <= served.logged_ms:
            # An earlier life has said what there was to say.
            if history.accept(bar).refused is None:
                self._until[bar.symbol] = bar.open_ms
            return
        self._status.feed(self._feed.state)
        if self._in_the_future(bar):
            self._warn(bar.symbol, bar, "not_closed", "it closes in the future")
            return
        verdict = history.accept(bar)
        if verdict.refused is not None:
            self._warn(bar.symbol, bar, *verdict.refused)
            return
        if verdict.missing:
            why, missing = f"{verdict.missing} bars are missing before it", verdict.missing
            self._warn(bar.symbol, bar, "gap", why, {"missing": missing})
        if served is not None:
            self._status.bar()
            late = self._late_by(bar)
            if late:
                self._warn(bar.symbol, bar, "stale", late)
            else:
                self._status.feed(self._feed.state, arrived=True)  # the same old bars are no sign
                self._arrived.append(bar)

    def _take_correction(self, item: Corrected) -> None:
        """The history takes it: a restart would, and the training will see it so.

        The signal that was given on the old values stands, and so does the position.
        """
        history = self._histories.get(item.bar.symbol)
        taken = history is not None and history.correct(item.bar)
        detail = item.detail if taken else f"{item.detail}; not taken"
        more = {"was": _values(item.was), "taken": taken}
        self._warn(item.bar.symbol, item.bar, "corrected", detail, more)

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

    def _signal(self, served: Served, bar: Bar, history: History) -> None:
        began = time.perf_counter()
        age = self._age(served, bar)
        prediction = self._predict(served, bar, history)
        if age.state == TOO_OLD:
            prediction = prediction.retired(age.text)
        closes = history.frame["close"]
        components: dict[str, Any] = {"close": bar.close, **self._bars(served, bar)}
        data: dict[str, Any] = {"action_taken": "HOLD", "sell_score": 0.0, "buy_score": 0.0}
        decision = None
        if len(closes) > 1:
            signal = base(closes)
            terms = self._settings.policy.at(prediction.fields["ml_horizon"])
            held, elapsed = self._held(served, bar, history)
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
        seconds = time.perf_counter() - began
        data["components"] |= self._challenged(served, prediction, history)
        for name, why in prediction.errors.items():
            self._status.model_error(name)
            self._status.error(f"{bar_time(bar.open_ms)} {name}: {why}")
        seq = self._write("SIGNAL", bar.symbol, bar, data)
        if decision is not None:
            served.position, served.decided_ms = decision.position, bar.open_ms
        self._status.signalled(bar_time(bar.open_ms), seq, prediction.fields, seconds)
        if self._settings.symbols:
            mode = prediction.fields["ml_stacking_mode"]
            error = prediction.fields["ml_error"]
            self._status.symbol(
                bar.symbol,
                last_bar=bar_time(bar.open_ms),
                stacking=mode,
                error=error and error[:_LONGEST],
            )

    def _bars(self, served: Served, bar: Bar) -> dict[str, Any]:
        """What was computed from, as it stood then: a later look may find other values.

        Behind `history_until` each bar came by itself and has a line; up to it they came at once.
        """
        others = {name: self._histories[name].last for name in served.settings.cross}
        seen = {n: _values(b) for n, b in others.items() if b and b.open_ms == bar.open_ms}
        late = {n: b and bar_time(b.open_ms) for n, b in others.items() if n not in seen}
        until = self._until.get(bar.symbol)
        return {
            "bar": _values(bar),
            **({"bar_filled": True} if bar.filled else {}),
            **({"cross_bars": seen} if seen else {}),
            **({"cross_last": late} if late else {}),
            **({} if until is None else {"history_until": bar_time(until)}),
        }

    def _age(self, served: Served, bar: Bar) -> Age:
        """The models' age at this bar, reported once a day; a replay's bars have their own time."""
        end, most = served.bars_end, self._settings.max_age_days
        if end is None or not most:
            return Age()
        closed = datetime.fromtimestamp((bar.open_ms + self._settings.step) / 1000, UTC)
        age = age_of(end, closed, most)
        said = {"bars_end": end.isoformat(), "max_age_days": most, **asdict(age)}
        if not self._settings.symbols:
            self._status.set(age=said)
        elif age.text:
            self._status.symbol(bar.symbol, age=said)
        if age.text and served.age_warned_on != f"{closed:%Y%m%d}":
            served.age_warned_on = f"{closed:%Y%m%d}"
            self._warn(bar.symbol, bar, "old", age.text)
        return age

    def _held(self, served: Served, bar: Bar, history: History) -> tuple[Position, int]:
        """The position held until now, and how many bars ago it was decided on.

        Bars that came too late for a signal count, bars that never came do not.
        """
        if served.decided_ms >= bar.open_ms:  # a replay that begins again
            return FLAT, 1
        return served.position, history.count_after(served.decided_ms)

    def _predict(self, served: Served, bar: Bar, history: History) -> Prediction:
        if served.predictor is None:
            return no_models("models", served.why)
        why = _unfit(history)
        if why:
            return served.predictor.refuse(why)
        prediction = served.predictor.predict(history.frame, self._cross(served))
        if prediction.away is not None:
            self._report_away(served, prediction.away, bar)
        return prediction

    def _cross(self, served: Served) -> dict[str, pl.DataFrame]:
        return {name: self._histories[name].frame for name in served.settings.cross}

    def _challenged(
        self, served: Served, prediction: Prediction, history: History
    ) -> dict[str, Any]:
        """What the previous release's models say of the bar: asked once all is decided."""
        if served.challenger is None:
            return {}
        why, head = _unfit(history), prediction.fields["ml_horizon"]
        said = (
            served.challenger.refuse(f"not asked: {why}")
            if why
            else served.challenger.field(head, history.frame, self._cross(served))
        )
        return {} if said is None else {"ml_challenger": said}

    def _report_away(self, served: Served, away: Mapping[str, tuple[str, ...]], bar: Bar) -> None:
        """One line when an asset's bars stop, and one when they are there again."""
        for name in sorted(away.keys() - self._away):
            using = ", ".join(away[name])
            does = (
                f"{using} answer without it for up to {SEQ} bars, then are silent; others go on"
                if using
                else "no model was trained on it: nothing changes"
            )
            self._warn(name, None, "cross_missing", f"no bar for {bar_time(bar.open_ms)}; {does}")
        back = self._away.intersection(served.settings.cross) - away.keys()
        for name in sorted(back):
            self._warn(name, None, "cross_back", f"bars again at {bar_time(bar.open_ms)}")
        self._away = (self._away | away.keys()) - back

    def _report_stopped(self, newest: Bar) -> None:
        """One line when a symbol's bars stop while others' come, and one when they are back."""
        for served in self._served.values():
            last = self._histories[served.symbol].last
            behind = newest.open_ms - (last.open_ms if last else 0)
            stopped = behind > _BARS_BEHIND * self._settings.step
            if stopped and not served.has_stopped:
                since = f"since {bar_time(last.open_ms)}" if last else "so far"
                detail = f"no bar of it {since}, while others' come; no line until it has one"
                self._warn(served.symbol, None, "bars_stopped", detail)
            elif served.has_stopped and behind <= 0:
                self._warn(served.symbol, None, "bars_back", f"at {bar_time(newest.open_ms)}")
            else:
                continue
            served.has_stopped = stopped
            self._status.symbol(served.symbol, stopped=stopped)

    def _warn(
        self,
        symbol: str,
        bar: Bar | None,
        event: str,
        detail: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        values = asdict(bar).items() if bar else ()
        shown = {k: _plain(v) for k, v in values if k != "symbol" and v is not False}
        data = {"event": event, "detail": detail, **({"bar": shown} if shown else {})}
        data |= more or {}
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


def _values(bar: Bar) -> dict[str, float]:
    return {name: getattr(bar, name) for name in COLUMNS[1:]}


def _unfit(history: History) -> str:
    """Why no feature of its last bar may be computed from it; empty when one may be."""
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
