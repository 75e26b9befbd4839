"""What a service wrote, against what its own code says on final bars: read and compared.

Pure: no clock, file or socket. A line is equal when the release says the same on the bars as they
are now. Where it doesn't, and the service had other bars then, the release is asked again with
those. If it says the same on them, the corrected bars explain the difference. Anything else is a
difference that nothing explains.

What the service had is read from its own lines. A signal line holds its bar and those of the cross
symbols, and how far the others had come. `history_until` is the last bar that came at once, at a
start: up to there the bars were final, as far as no later line says otherwise. Behind it `gap`
names bars that never came, and `corrected` a bar that became another one.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from macd.host.judge.parse import SIGNAL, WARN, Line, clean, parse, step_ms

TOLERANCE = 1e-6
EQUAL, EXPLAINED, DIFFERENT, NOTHING = "equal", "explained", "different", "nothing"
NAMES = ("open", "high", "low", "close", "volume")
_SLACK = 1e-9  # ml_heads has six digits, and 0.515028 - 0.515027 is a little more than 1e-6
_PROBABILITIES = ("ml_lgb_prob", "ml_lstm_prob", "ml_tft_prob", "ml_avg_prob")
_REFUSED = ("bad_bar", "duplicate", "out_of_order", "not_closed", "unknown_symbol")
_MOST_NAMED = 20

Values = tuple[float, ...]
Rows = Mapping[int, Values]  # a symbol's bars by their open in epoch milliseconds, oldest first
Key = tuple[str, int]


@dataclass(frozen=True)
class Said:
    """A signal line with a row of features: what it says, and on which bars.

    life: which history of the service it belongs to, counted from 0. cross: the cross symbols' bars
    of the same time. cross_last: of the others the open of the last bar that there was.
    """

    seq: int
    life: int
    bar_ms: int
    bar: Values
    cross: Mapping[str, Values]
    fields: Mapping[str, Any]
    cross_last: Mapping[str, int] = field(default_factory=dict)

    def reaches(self, symbol: str) -> int:
        """The open of a cross symbol's last bar for this line; -1: there was none."""
        return self.bar_ms if symbol in self.cross else self.cross_last.get(symbol, -1)


@dataclass(frozen=True)
class _Change:
    """A bar came (before: None), or became another one; known to the service from `seq` on."""

    life: int
    seq: int
    before: Values | None
    after: Values


@dataclass(frozen=True)
class _Hole:
    """Bars of a symbol that never came, from `first` to `last`."""

    life: int
    seq: int
    symbol: str
    first: int
    last: int


@dataclass
class Written:
    """The lines of one release. left_out: why signal lines can't be compared, and how many."""

    symbol: str
    lines: list[Said] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    changes: dict[Key, list[_Change]] = field(default_factory=lambda: defaultdict(list))
    holes: list[_Hole] = field(default_factory=list)

    def had(self, line: Said, symbol: str, ms: int, final: Values | None) -> Values | None:
        """The bar of that time as the service had it for this line; None: it had none."""
        if symbol != self.symbol and ms > line.reaches(symbol):
            return None
        if ms == line.bar_ms:
            return line.bar if symbol == self.symbol else line.cross.get(symbol)
        changes = [c for c in self.changes.get((symbol, ms), ()) if c.life == line.life]
        known = [change.after for change in changes if change.seq <= line.seq]
        if known:
            return known[-1]
        later = [change.before for change in changes if change.before is not None]
        if later:
            return later[0]
        for hole in self.holes:
            same = (hole.life, hole.symbol) == (line.life, symbol) and hole.seq <= line.seq
            if same and hole.first <= ms <= hole.last:
                return None
        return final

    def doubtful(self, finals: Mapping[str, Rows], lines: Iterable[Said]) -> dict[str, list[int]]:
        """By symbol the bars of which a service may have had another than the final one."""
        times: dict[str, set[int]] = {symbol: set() for symbol in finals}
        for (symbol, ms), changes in self.changes.items():
            final = finals.get(symbol, {}).get(ms)
            values = [v for c in changes for v in (c.before, c.after) if v is not None]
            if symbol in times and any(value != final for value in values):
                times[symbol].add(ms)
        for hole in self.holes:
            rows = finals.get(hole.symbol, {})
            if hole.symbol in times:
                times[hole.symbol] |= {ms for ms in rows if hole.first <= ms <= hole.last}
        for line in lines:
            for symbol in finals.keys() - {self.symbol}:
                reached = line.reaches(symbol)
                if reached < line.bar_ms:
                    rows = finals[symbol]
                    times[symbol] |= {ms for ms in rows if reached < ms <= line.bar_ms}
        return {symbol: sorted(bars) for symbol, bars in times.items()}


def read(raws: Iterable[bytes], *, release: str, symbol: str, tf: str, since_ms: int) -> Written:
    """The lines of `release` about `symbol`; those written before `since_ms` only as history."""
    written = Written(symbol)
    life, until, last_bar = -1, "", -1
    waiting: list[tuple[Line, Mapping[str, Any]]] = []  # they belong to the signal line to come
    for raw in raws:
        line = parse(raw)
        if not isinstance(line, Line) or line.release != release or line.tf != tf:
            continue
        data = json.loads(raw).get("data")
        if not isinstance(data, dict) or line.seq is None or line.bar is None:
            continue
        if line.kind == WARN:
            waiting.append((line, data))
            continue
        parts = data.get("components")
        if line.kind != SIGNAL or line.symbol != symbol or not isinstance(parts, dict):
            continue
        began = str(parts.get("history_until"))
        if began != until or line.bar <= last_bar:
            life, until = life + 1, began
        last_bar = line.bar
        for warning, said in waiting:
            _note(written, warning, said, life)
        waiting.clear()
        _take(written, line, parts, life, since_ms)
    for warning, said in waiting:
        _note(written, warning, said, life)
    return written


def _take(written: Written, line: Line, parts: Mapping[str, Any], life: int, since_ms: int) -> None:
    seq, at = line.seq or 0, line.bar or 0
    bar, others = _values(parts.get("bar")), parts.get("cross_bars")
    cross = {
        str(name): values
        for name, given in (others.items() if isinstance(others, dict) else ())
        if (values := _values(given)) is not None
    }
    last = parts.get("cross_last")
    lasts = {
        str(name): ms
        for name, moment in (last.items() if isinstance(last, dict) else ())
        if (ms := _epoch_ms(moment)) is not None
    }
    came = {written.symbol: bar, **cross}
    for symbol, values in came.items():
        if values is not None:
            written.changes[symbol, at].append(_Change(life, seq, None, values))
    if line.time < since_ms:
        return
    why = _not_comparable(line, bar, parts.get("ml_features"))
    if why or bar is None:
        written.left_out[why] += 1
        return
    written.lines.append(Said(seq, life, at, bar, cross, parts, lasts))


def _not_comparable(line: Line, bar: Values | None, row: Any) -> str:
    if isinstance(row, list) and bar is not None:
        return ""
    if line.error:
        return f"the models were not asked: {clean(line.error.partition(';')[0])}"
    return "it holds no row of features: written by an earlier version"


def _note(written: Written, line: Line, data: Mapping[str, Any], life: int) -> None:
    seq, at = line.seq or 0, line.bar or 0
    event, bar = data.get("event"), _values(data.get("bar"))
    if event in _REFUSED or bar is None:
        return
    if event == "gap":
        missing, step = data.get("missing"), step_ms(line.tf)
        if type(missing) is int and missing > 0 and step:
            first, last = at - missing * step, at - step
            written.holes.append(_Hole(life, seq, line.symbol, first, last))
    elif event == "corrected":
        was = _values(data.get("was"))
        after = bar if data.get("taken") is True else was
        if was is not None and after is not None:
            written.changes[line.symbol, at].append(_Change(life, seq, was, after))
        return
    written.changes[line.symbol, at].append(_Change(life, seq, None, bar))


def _values(bar: Any) -> Values | None:
    if not isinstance(bar, dict):
        return None
    given = [_number(bar.get(name)) for name in NAMES]
    values = tuple(value for value in given if value is not None)
    return values if len(values) == len(NAMES) else None


def first_needed(line: Said, rows: Rows, need: int) -> int | None:
    """The open of the first of `need` bars up to a line's; None where there are fewer."""
    before = [ms for ms in rows if ms <= line.bar_ms]
    return before[-need] if len(before) >= need else None


def covered(line: Said, symbol: str, finals: Mapping[str, Rows]) -> bool:
    """Whether the final bars reach a line: else its own bars would stand in for them."""
    return all(
        max(finals[name], default=-1) >= line.bar_ms
        for name in (symbol, *line.cross)
        if name in finals
    )


@dataclass(frozen=True)
class Case:
    """A bar to repeat: with which bars in the place of the final ones (`[open_ms]`: with none).

    corrected: the bars among them whose values are others now.
    """

    at: int
    seen: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    corrected: tuple[Key, ...] = ()

    @property
    def key(self) -> str:
        """Equal for cases that ask the same."""
        return json.dumps([self.at, self.seen], sort_keys=True)

    def document(self) -> dict[str, Any]:
        return {"at": self.at, "seen": self.seen}


def cases(
    written: Written,
    line: Said,
    finals: Mapping[str, Rows],
    doubtful: Mapping[str, Sequence[int]],
    first: int,
) -> tuple[Case, Case]:
    """The bar of a line on final bars, and on those that the service had; mostly they are the same.

    Bars that never came are left out of both, and those that no longer exist are put into both.

    Args:
        doubtful: see `Written.doubtful`.
        first: the open of the earliest bar that matters for this line.
    """
    kept: dict[str, list[Sequence[float]]] = {}
    seen: dict[str, list[Sequence[float]]] = {}
    corrected: list[Key] = []
    for symbol, times in doubtful.items():
        for ms in times[bisect_left(times, first) : bisect_right(times, line.bar_ms)]:
            final = finals[symbol].get(ms)
            had = written.had(line, symbol, ms, final)
            if had == final:
                continue
            row = [ms, *(had or ())]
            seen.setdefault(symbol, []).append(row)
            if had is None or final is None:
                kept.setdefault(symbol, []).append(row)
            else:
                corrected.append((symbol, ms))
    return Case(line.bar_ms, kept), Case(line.bar_ms, seen, tuple(corrected))


@dataclass(frozen=True)
class Difference:
    """One number of a line. replayed: what the release says of it now; None: nothing."""

    name: str
    written: float | None
    replayed: float | None

    @property
    def size(self) -> float:
        """How far apart; infinite where one of them is missing."""
        if self.written is None or self.replayed is None:
            return math.inf
        return abs(self.written - self.replayed)

    def document(self) -> dict[str, Any]:
        size = self.size if math.isfinite(self.size) else None
        return {
            "name": self.name,
            "written": self.written,
            "replayed": self.replayed,
            "difference": size,
        }


def differences(
    written: Mapping[str, Any], replayed: Mapping[str, Any], names: Sequence[str]
) -> list[Difference]:
    """What is not equal between a line's fields and a replay's, the largest of the features first.

    names: of the features, in their order.
    """
    rows = [_list(written.get("ml_features")), _list(replayed.get("ml_features"))]
    if len(rows[0]) != len(rows[1]):
        features = [Difference("number of features", float(len(rows[0])), float(len(rows[1])))]
    else:
        shown = [*names, *(f"feature {n}" for n in range(len(names), len(rows[0])))]
        pairs = zip(shown, *rows, strict=False)
        features = [Difference(clean(name), ours, theirs) for name, ours, theirs in pairs]
    apart = sorted(filter(_apart, features), key=lambda difference: -difference.size)
    return [*apart, *filter(_apart, _probabilities(written, replayed))]


def _probabilities(written: Mapping[str, Any], replayed: Mapping[str, Any]) -> Iterator[Difference]:
    for name in _PROBABILITIES:
        yield Difference(name, _number(written.get(name)), _number(replayed.get(name)))
    stacked = _number(written.get("ml_stacking_prob"))
    if stacked is not None:  # a service may leave it out, by its flags
        yield Difference("ml_stacking_prob", stacked, _number(replayed.get("ml_stacking_prob")))
    decides = _number(written.get("ml_bull_prob"))
    if decides is not None:  # models that are too old decide nothing
        yield Difference("ml_bull_prob", decides, _deciding(written, replayed))
    ours, theirs = (_dict(fields.get("ml_heads")) for fields in (written, replayed))
    for family in sorted({*ours, *theirs}):
        mine, other = _dict(ours.get(family)), _dict(theirs.get(family))
        for head in sorted({*mine, *other}):
            name = clean(f"ml_heads.{family}.{head}")
            yield Difference(name, _number(mine.get(head)), _number(other.get(head)))


def _deciding(written: Mapping[str, Any], replayed: Mapping[str, Any]) -> float | None:
    """What the replay's probabilities come to, by the flags that the line was written under."""
    mean, stacked = (_number(replayed.get(f"ml_{n}_prob")) for n in ("avg", "stacking"))
    if written.get("ml_stacking_mode") != "live" or stacked is None:
        return mean
    weight = _number(written.get("ml_stacking_weight"))
    share = 1.0 if weight is None else weight / 100
    if share == 1.0:
        return stacked
    return None if mean is None else share * stacked + (1 - share) * mean


def _apart(difference: Difference) -> bool:
    if difference.written is None and difference.replayed is None:
        return False
    largest = max(1.0, abs(difference.written or 0.0))
    return not difference.size <= TOLERANCE * largest + _SLACK


@dataclass(frozen=True)
class Outcome:
    """How a line came out. apart: how it differs from the replay on final bars."""

    line: Said
    kind: str
    apart: Sequence[Difference] = ()
    corrected: tuple[Key, ...] = ()


def outcome(
    line: Said, final: Sequence[Difference], seen: Sequence[Difference], corrected: tuple[Key, ...]
) -> Outcome:
    """final, seen: what differs from the replay on final bars, and on those that the service had.

    corrected: the bars in which the two differ.
    """
    if not final:
        return Outcome(line, EQUAL)
    if corrected and not seen:
        return Outcome(line, EXPLAINED, final, corrected)
    return Outcome(line, DIFFERENT, seen if corrected else final, corrected)


def summary(
    outcomes: Sequence[Outcome],
    left_out: Mapping[str, int],
    corrected: Mapping[Key, tuple[Values, Values]],
) -> dict[str, Any]:
    """The figures of an audit. corrected: by symbol and open a bar as it was used, and as it is."""
    counts = Counter(result.kind for result in outcomes)
    compared = len(outcomes)
    apart = [result for result in outcomes if result.kind == DIFFERENT]
    verdict = NOTHING
    if compared:
        verdict = DIFFERENT if apart else EXPLAINED if counts[EXPLAINED] else EQUAL
    return {
        "verdict": verdict,
        "tolerance": TOLERANCE,
        "lines": compared + sum(left_out.values()),
        "compared": compared,
        "equal": counts[EQUAL],
        "explained": counts[EXPLAINED],
        "different": counts[DIFFERENT],
        "share_equal": counts[EQUAL] / compared if compared else None,
        "left_out": dict(left_out),
        "corrected": [
            row for key, pair in sorted(corrected.items()) for row in _fields_of(key, *pair)
        ][:_MOST_NAMED],
        "corrected_bars": len(corrected),
        "first_difference": _shown(apart[0]) if apart else None,
        "differences": [_shown(result) for result in apart[:_MOST_NAMED]],
    }


def _shown(result: Outcome) -> dict[str, Any]:
    first = result.apart[0]
    return {"bar_time": moment(result.line.bar_ms), "seq": result.line.seq, **first.document()}


def _fields_of(key: Key, was: Values, now: Values) -> list[dict[str, Any]]:
    symbol, ms = key
    return [
        {"symbol": symbol, "time": moment(ms), "field": name, "from": old, "to": new}
        for name, old, new in zip(NAMES, was, now, strict=True)
        if old != new
    ]


def moment(ms: int) -> str:
    """A bar's open, as a line has it."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _epoch_ms(text: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError):
        return None


def _list(value: Any) -> list[float | None]:
    return [_number(item) for item in value] if isinstance(value, list) else []


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
