"""One untrusted log line becomes a Line, or Bad with the reason; nothing in it can raise.

The layouts of earlier versions are read too: signal fields at the top level, in data, or in
data.components. A line without a seq or a release of macd is no evidence for a flip; it may also
have a level in lower case, and a time in any usual form and by any usual name. Standard library
alone and pure: the guard runs this on the host.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from macd.heads import GUIDE, HORIZONS, MODELS, head_name, is_head

T = TypeVar("T")
LONGEST = 1 << 20  # bytes; the service's lines have two to four thousand
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
_NEWS = frozenset(name for name, kind in _LEVELS.items() if kind == OTHER)
NO_ERROR = ("None", "null")  # as other writers turn nothing into text
_RELEASE = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_TEXT = 300
_MOST_SEQ = 1 << 53
_MANY = 100_000
_SECONDS_BELOW = (1e11, 1e14, 1e17)  # above: milliseconds, microseconds, nanoseconds
# As the usual loggers name it; the service itself writes the first.
TIMES = ("timestamp", "time", "ts", "@timestamp", "datetime", "asctime")
FIELDS = frozenset(
    f"ml_{name}"
    for name in (
        *("bull_prob", "lgb_prob", "lstm_prob", "tft_prob", "stacking_prob", "stacking_mode"),
        *("stacking_skipped_reason", "error", "latency_ms", "heads"),
        *("avg_prob", "horizon", "challenger"),
        *("features_outside", "feature_worst"),
    )
) | {"close"}
_SIDES = {"long": 1.0, "short": -1.0, "flat": 0.0}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\u024f\u2010-\u2027]")
_EARLIEST, _LATEST = 0, 253402300799000  # 1970 to 9999, in epoch milliseconds


class Line(NamedTuple):
    """What the analysis needs of a line. Times are epoch milliseconds; None: the line has none.

    p: ml_bull_prob; it and the models' may be NaN or infinite, as in the line. heads: per family
    and head of MODELS and HORIZONS, flat, or None. note: a warning's event or an error's text.
    foreign: its release has a name of another style. lacks_ml_error: it is a signal without the
    field ml_error, so whether there was an error is not known. average: ml_avg_prob. head: the one
    that stacking and average are about, "" where that is not known. challenger: its release, and
    what it says at that head: stacking, or its mean where it has none. outside: how many features
    lie outside their quantiles; worst: which one furthest. held: the signed share of capital that
    is held from this bar's close on, short below 0; None where no position can be read.
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
    average: float | None = None
    head: str = ""
    challenger: tuple[str, float] | None = None
    outside: float | None = None
    worst: str = ""
    held: float | None = None


class Bad(NamedTuple):
    """A line that can't be read, and why; it counts as a bar without evidence."""

    why: str


class _WrongError(ValueError):
    """A field is not of its type."""


def parse(raw: bytes) -> Line | Bad:
    """Read one line without its newline."""
    return guarded(raw, _DECODER.decode, _line)


def guarded(
    raw: bytes, decode: Callable[[str], Any], read: Callable[[dict[str, Any]], T]
) -> T | Bad:
    """What `read` makes of an untrusted line's JSON object, or why it can't be read."""
    try:
        if len(raw) > LONGEST:
            raise _WrongError("longer than 1 MiB")
        document = decode(raw.decode("utf-8"))
        if type(document) is not dict:
            raise _WrongError("not an object")
        return read(document)
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
    if type(document.get("release")) in (int, float):  # another writer's, by a number of its own
        document["release"] = str(document["release"])
    release, symbol, tf = (_text(document, name) for name in ("release", "symbol", "tf"))
    foreign = bool(release) and not is_release(release)
    lax = foreign or not (seq and release)
    level = document.get("level")
    plain = level is None or (lax and (type(level) is int or str(level).upper() in _NEWS))
    if plain and any("action_taken" in p or "ml_bull_prob" in p for p in (document, data, parts)):
        level = "SIGNAL"  # earlier versions wrote nothing else, others have no such level
    kind = _kind(level, lax)
    time = _time(document.get("timestamp"), "timestamp", lax)
    if time is None and lax:
        time = next((t for name in TIMES if (t := moment(document.get(name))) is not None), None)
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
            "" if lax and parts.get("ml_error") in NO_ERROR else _error(parts.get("ml_error")),
            _text(parts, "ml_stacking_skipped_reason"),
            _number(parts, "ml_latency_ms"),
            _number(parts, "close"),
            _heads(parts.get("ml_heads")),
            foreign=foreign,
            lacks_ml_error="ml_error" not in parts,
            average=_probability(parts.get("ml_avg_prob")),
            head=_head(parts.get("ml_horizon")),
            challenger=_challenger(parts.get("ml_challenger")),
            outside=_count(parts.get("ml_features_outside")),
            worst=_name(parts.get("ml_feature_worst")),
            held=_held(data.get("position")),
        )
    note = ""
    if kind != OTHER:
        said = data.get("event") or data.get("message") or data.get("error") or level
        note = clean(said if type(said) is str else str(type(said).__name__))
    return Line(kind, time, seq, release or None, symbol, tf, bar, note=note, foreign=foreign)


def _kind(level: Any, lax: bool) -> int:
    kind = _LEVELS.get(level.upper() if lax else level) if type(level) is str else None
    if lax and type(level) is int:
        kind = of_number(level)
    if kind is None:
        raise _WrongError("no level that is known")
    return kind


def of_number(level: int) -> int:
    """The kind of a level that is a number, as pino and bunyan count them."""
    return SEVERE if level >= 50 else WARN if level == 40 else OTHER


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


def _probability(value: Any) -> float | None:
    """A number in (0, 1), else None: what only the skill reads makes no line malformed."""
    return value if type(value) is float and 0 < value < 1 else None


def _count(value: Any) -> float | None:
    """A number of things, else None: what only drift reads makes no line malformed either."""
    return float(value) if type(value) in (int, float) and 0 <= value < _MANY else None


def _name(value: Any) -> str:
    return clean(value) if type(value) is str else ""


def _head(value: Any) -> str:
    return value if is_head(value) else ""


def _challenger(value: Any) -> tuple[str, float] | None:
    if type(value) is not dict:
        return None
    name = value.get("release")
    p = _probability(value.get("stacking")) or _probability(value.get("avg"))
    return (name, p) if type(name) is str and is_release(name) and p is not None else None


def _held(position: Any) -> float | None:
    """Nothing is judged by it, so one that can't be read is no damage."""
    if type(position) is not dict:
        return None
    side, size = position.get("side"), position.get("size")
    sign = _SIDES.get(side) if type(side) is str else None
    if sign is None or not isinstance(size, int | float) or not 0 <= size <= 1:
        return None
    return sign * size


def _time(value: Any, name: str, lax: bool) -> int | None:
    if value is None:
        return None
    if type(value) is not str and not (lax and type(value) in (int, float)):
        raise _WrongError(f"{name} is not text")
    if lax and (epoch := moment(value)) is not None:
        return epoch
    try:
        said = datetime.fromisoformat(value)
        written = round((said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError, TypeError):
        raise _WrongError(f"{name} is not a time") from None
    if not _EARLIEST <= written <= _LATEST:
        raise _WrongError(f"{name} is out of range")
    return written


def moment(value: Any) -> int | None:
    """A time in any usual form as epoch milliseconds; None for what is none."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text)
        except ValueError:
            return _iso(text)
    if type(value) not in (int, float) or not math.isfinite(as_float(value)):
        return None
    unit = 1000.0 ** sum(value >= limit for limit in _SECONDS_BELOW)
    epoch = round(value / unit * 1000)
    return epoch if _EARLIEST <= epoch <= _LATEST else None


def _iso(text: str) -> int | None:
    try:
        said = datetime.fromisoformat(text.replace(",", ".").removesuffix(" UTC"))
        epoch = round((said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    return epoch if _EARLIEST <= epoch <= _LATEST else None


def as_float(value: float) -> float:
    """A number that JSON may write larger than any float: infinite then."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _WrongError("a key stands there twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
