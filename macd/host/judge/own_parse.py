"""A signal line of an application of the team's own, read by the map of its inventory.

One untrusted line becomes an Entry, or Bad with the reason; nothing in it can raise. Standard
library alone and pure: the guard runs this on the host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from macd.host.judge.parse import (
    NO_ERROR,
    OTHER,
    SEVERE,
    SIGNAL,
    TIMES,
    WARN,
    Bad,
    clean,
    guarded,
    moment,
    of_number,
)
from macd.host.own import Signals

_LEVELS = {
    **dict.fromkeys(("ERROR", "CRITICAL", "FATAL"), SEVERE),
    **dict.fromkeys(("WARN", "WARNING"), WARN),
}
# Where the map says nothing, as the usual loggers name them.
_LEVEL_NAMES = ("level", "levelname", "severity", "lvl")
_INNER = ("log", "message", "msg")  # where a wrapper, as of a container, puts the line itself
_NOTES = ("event", "message", "msg", "error", "exc_info")
_ABSENT = object()


class Entry(NamedTuple):
    """What the counting needs of a line. Times are epoch milliseconds.

    values: of each mapped field and of each rate's, by name; absent where the line has none.
    level: as the line has it. note: what a line that is no signal says.
    """

    kind: int
    level: str
    time: int
    symbol: str
    bar: int | None
    release: str
    error: str
    note: str
    values: Mapping[str, Any]


def read(raw: bytes, signals: Signals) -> Entry | Bad:
    """One untrusted line by the map; nothing in it can raise."""
    return guarded(raw, json.loads, lambda line: _entry(_unwrapped(line, signals), signals))


def _unwrapped(document: dict[str, Any], signals: Signals) -> dict[str, Any]:
    """The line inside a wrapper's log or message, where that is JSON itself."""
    if _level(document, signals) is not None:
        return document
    for name in _INNER:
        inner = document.get(name)
        if isinstance(inner, str) and inner.lstrip()[:1] == "{":
            try:
                said = json.loads(inner)
            except ValueError:
                continue
            if isinstance(said, dict):
                return {**document, **said}
    return document


def _entry(document: dict[str, Any], signals: Signals) -> Entry | Bad:
    fields = signals.map
    said = [fields["time"]] if "time" in fields else TIMES
    time = next((t for name in said if (t := moment(_at(document, name))) is not None), None)
    if time is None:
        return Bad("no time" if "time" not in fields else f"no time in {fields['time']}")
    level = _level(document, signals)
    kind = _kind(level, signals.level)
    values: dict[str, Any] = {}
    if kind == SIGNAL:
        wanted = {**fields, **{name: rate.field for name, rate in signals.rates.items()}}
        for name, path in wanted.items():
            value = _at(document, fields.get(path, path) if name in signals.rates else path)
            if value is not _ABSENT:
                values[name] = value
    return Entry(
        kind,
        clean(str(level)) if isinstance(level, str | int) else "",
        time,
        _text(document, fields.get("symbol")),
        moment(_at(document, fields["bar_time"])) if "bar_time" in fields else None,
        _text(document, fields.get("release")),
        _error(_at(document, fields["error"])) if "error" in fields else "",
        "" if kind == SIGNAL else _note(document),
        values,
    )


def _at(document: Any, path: str) -> Any:
    """What stands at a dotted path, _ABSENT for nothing; a key may hold the dots itself."""
    if isinstance(document, dict) and path in document:
        return document[path]
    for part in path.split("."):
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return _ABSENT
    return document


def _level(document: Mapping[str, Any], signals: Signals) -> Any:
    """The line's level, None where it has none."""
    names = [signals.map["level"]] if "level" in signals.map else _LEVEL_NAMES
    values = (_at(document, name) for name in names)
    return next((value for value in values if value is not _ABSENT), None)


def _kind(level: Any, signal: str) -> int:
    if type(level) is int:
        known = of_number(level)
        text = str(level)
    else:
        text = level.strip().upper() if isinstance(level, str) else ""
        known = _LEVELS.get(text, OTHER)
    if signal and text == signal.upper():
        return SIGNAL
    return SIGNAL if not signal and known == OTHER else known


def _text(document: Mapping[str, Any], path: str | None) -> str:
    value = _at(document, path) if path else _ABSENT
    return clean(str(value)) if isinstance(value, str | int) else ""


def _error(value: Any) -> str:
    """Anything but nothing, null, false, what is empty and a nothing made text is an error."""
    if value is _ABSENT or value is None or value is False or value in ("", [], {}, *NO_ERROR):
        return ""
    return clean(value) if isinstance(value, str) else f"({type(value).__name__})"


def _note(document: Mapping[str, Any]) -> str:
    inner = document.get("data")
    places = [document, inner] if isinstance(inner, dict) else [document]
    said = [place[name] for place in places for name in _NOTES if isinstance(place.get(name), str)]
    return clean(said[0]) if said else ""
