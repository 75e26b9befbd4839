"""One untrusted log line becomes a Line, or Bad with the reason; nothing in it can raise.

The layouts of earlier versions are read too: signal fields at the top level, in data, or in
data.components. A line without a seq or a release of macd is no evidence for a flip; it may also
have a level in lower case, and times as epoch seconds or milliseconds. Standard library alone and
pure: the guard runs this on the host.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from macd.heads import GUIDE, HORIZONS, MODELS, head_name

LONGEST = 1 << 20  # bytes; the service's lines have one or two thousand
# By hours at 1h, and in old lines of other timeframes; else by bars.
_NAMES = tuple((head_name(bars, GUIDE), head_name(bars, "")) for bars in HORIZONS)
SIGNAL, WARN, SEVERE, OTHER = range(4)
MODES = ("live", "shadow", "off")
REFUSED = ("stale", "bad_bar")  # the service's events for bars that get no signal
_STEPS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LEVELS = {
    "SIGNAL": SIGNAL,
    "WARN": WARN,
    "WARNING": WARN,
    "ERROR": SEVERE,
    "CRITICAL": SEVERE,
    "FATAL": SEVERE,
    "DEBUG": OTHER,
    "INFO": OTHER,
    "NOTICE": OTHER,
}
_RELEASE = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_TEXT = 300
_MOST_SEQ = 1 << 53
_MILLISECONDS_FROM = 1e11  # as seconds this is the year 5138: such a number is in milliseconds
FIELDS = frozenset(
    f"ml_{name}"
    for name in (
        *("bull_prob", "lgb_prob", "lstm_prob", "tft_prob", "stacking_prob", "stacking_mode"),
        *("stacking_skipped_reason", "error", "latency_ms", "heads"),
    )
) | {"close"}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\u024f\u2010-\u2027]")
_EARLIEST, _LATEST = 0, 253402300799000  # 1970 to 9999, in epoch milliseconds


class Line(NamedTuple):
    """What the analysis needs of a line. Times are epoch milliseconds; None: the line has none.

    p: ml_bull_prob; it and the models' may be NaN or infinite, as in the line. heads: per family
    and head of MODELS and HORIZONS, flat, or None. note: a warning's event or an error's text.
    foreign: its release has a name of another style. lacks_ml_error: it is a signal without the
    field ml_error, so whether there was an error is not known.
    """

    kind: int
    time: int
    seq: int | None = None
    release: str | None = None
    symbol: str = ""
    tf: str = ""
    bar: int | None = None
    p: float | None = None
    lgb: float | None = None
    lstm: float | None = None
    tft: float | None = None
    stacking: float | None = None
    mode: str = ""
    error: str = ""
    skipped: str = ""
    latency: float | None = None
    close: float | None = None
    heads: tuple[float | None, ...] | None = None
    note: str = ""
    foreign: bool = False
    lacks_ml_error: bool = False


class Bad(NamedTuple):
    """A line that can't be read, and why; it counts as a bar without evidence."""

    why: str


class _WrongError(ValueError):
    """A field is not of its type."""


def parse(raw: bytes) -> Line | Bad:
    """Read one line without its newline."""
    try:
        if len(raw) > LONGEST:
            raise _WrongError("longer than 1 MiB")
        document = _DECODER.decode(raw.decode("utf-8"))
        if type(document) is not dict:
            raise _WrongError("not an object")
        return _line(document)
    except _WrongError as error:
        return Bad(str(error))
    except UnicodeDecodeError:
        return Bad("not UTF-8")
    except RecursionError:
        return Bad("nested too deep")
    except (ValueError, OverflowError):
        return Bad("not JSON")


def is_release(name: str | None) -> bool:
    """Whether it is a release's name of our style."""
    return bool(name) and _RELEASE.fullmatch(name or "") is not None


@lru_cache(64)
def step_ms(tf: str) -> int:
    """Length of a bar in milliseconds; 0 for what is no timeframe."""
    count = tf[:-1]
    if not (count.isascii() and count.isdigit() and len(count) <= 4) or tf[-1] not in _STEPS:
        return 0
    return int(count) * _STEPS[tf[-1]]


def clean(text: str) -> str:
    """Untrusted text for a terminal or page: short, one line, no control characters."""
    text = text[:_TEXT]
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub("�", text)


def _line(document: dict[str, Any]) -> Line:
    data = document.get("data", document)
    if type(data) is not dict:
        raise _WrongError("data is not an object")
    parts = data.get("components", data)
    if type(parts) is not dict:
        raise _WrongError("components is not an object")
    parts = _gathered(document, data, parts)
    seq = document.get("seq")
    if seq is not None and (type(seq) is not int or not 0 < seq < _MOST_SEQ):
        raise _WrongError("seq is not a positive whole number")
    release, symbol, tf = (_text(document, name) for name in ("release", "symbol", "tf"))
    foreign = bool(release) and not is_release(release)
    lax = foreign or not (seq and release)
    level = document.get("level")
    if level is None and any(
        "action_taken" in p or "ml_bull_prob" in p for p in (document, data, parts)
    ):
        level = "SIGNAL"  # earlier versions wrote nothing else
    kind = _kind(level, lax)
    time = _time(document.get("timestamp"), "timestamp", lax)
    if time is None:
        raise _WrongError("no timestamp")
    bar = _time(document.get("bar_time"), "bar_time", lax)
    if kind == SIGNAL:
        return Line(
            SIGNAL,
            time,
            seq,
            release or None,
            symbol,
            tf,
            bar,
            _number(parts, "ml_bull_prob"),
            _number(parts, "ml_lgb_prob"),
            _number(parts, "ml_lstm_prob"),
            _number(parts, "ml_tft_prob"),
            _number(parts, "ml_stacking_prob"),
            _text(parts, "ml_stacking_mode"),
            _error(parts.get("ml_error")),
            _text(parts, "ml_stacking_skipped_reason"),
            _number(parts, "ml_latency_ms"),
            _number(parts, "close"),
            _heads(parts.get("ml_heads")),
            foreign=foreign,
            lacks_ml_error="ml_error" not in parts,
        )
    note = ""
    if kind != OTHER:
        said = data.get("event") or data.get("message") or data.get("error") or level
        note = clean(said if type(said) is str else str(type(said).__name__))
    return Line(kind, time, seq, release or None, symbol, tf, bar, note=note, foreign=foreign)


def _kind(level: Any, lax: bool) -> int:
    kind = _LEVELS.get(level.upper() if lax else level) if type(level) is str else None
    if kind is None:
        raise _WrongError("no level that is known")
    return kind


def _gathered(
    document: dict[str, Any], data: dict[str, Any], parts: dict[str, Any]
) -> dict[str, Any]:
    """The signal fields, each from the innermost place that has it; an error anywhere counts."""
    places = [p for p in (document, data) if p is not parts and not FIELDS.isdisjoint(p)]
    if not places:
        return parts  # as the service writes them
    fields: dict[str, Any] = {}
    for place in (*places, parts):
        fields.update((name, place[name]) for name in FIELDS.intersection(place))
    for place in places:
        if _error(place.get("ml_error")):
            fields["ml_error"] = place["ml_error"]
    return fields


def _number(parts: dict[str, Any], name: str) -> float | None:
    value = parts.get(name)
    if type(value) is float or value is None:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise _WrongError(f"{name} is not a number")


def _text(parts: dict[str, Any], name: str) -> str:
    value = parts.get(name)
    if value is None:
        return ""
    if type(value) is not str:
        raise _WrongError(f"{name} is not text")
    if len(value) <= _TEXT and value.isascii() and value.isprintable():
        return value  # as clean() would, without the call: five times a line
    return clean(value)


def _error(value: Any) -> str:
    """Anything but null, false and an empty text is an error, whatever its type."""
    if value is None or value is False or value == "":
        return ""
    return clean(value) if type(value) is str else f"({type(value).__name__})"


def _heads(value: Any) -> tuple[float | None, ...] | None:
    if value is None:
        return None
    if type(value) is not dict:
        raise _WrongError("ml_heads is not an object")
    probabilities: list[float | None] = []
    for family in MODELS:
        by_head = value.get(family) or {}
        if type(by_head) is not dict:
            raise _WrongError("ml_heads is not by family and head")
        for hours, bars in _NAMES:
            p = by_head.get(hours, by_head.get(bars))
            probabilities.append(p if type(p) is float else None)
    return tuple(probabilities)


def _time(value: Any, name: str, lax: bool) -> int | None:
    if value is None:
        return None
    is_number = lax and type(value) in (int, float)
    if not is_number and type(value) is not str:
        raise _WrongError(f"{name} is not text")
    try:
        if is_number:
            epoch: int = round(value if value >= _MILLISECONDS_FROM else value * 1000)
        else:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            epoch = round(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise _WrongError(f"{name} is not a time") from None
    if not _EARLIEST <= epoch <= _LATEST:
        raise _WrongError(f"{name} is out of range")
    return epoch


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _WrongError("a key stands there twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
