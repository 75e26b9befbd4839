"""Untrusted text, made fit to store and show: short, and harmless to a terminal.

A service's answers, the output of its programs and its logs may be of any length and hold anything.
They pass through here where they come in, so that no later code has to care.
"""

from __future__ import annotations

import math
import re
from typing import Any

LONGEST = 1000  # characters of one text
_MOST_ITEMS = 100
_DEEPEST = 6
_LARGEST = 1 << 63
# What a terminal obeys: sequences that begin with ESC [ or its one-byte form, and titles and links.
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def line(value: Any, most: int = LONGEST) -> str:
    """One printable line of at most `most` characters, then the number of those cut."""
    said = str(value)
    if len(said) <= most and said.isprintable():
        return said
    return _cut("".join(map(_plain, _short(said, most))), most, len(said))


def text(value: Any, most: int = LONGEST) -> str:
    """As `line`, with line ends and tabs."""
    said = str(value)
    shown = _short(said, most).replace("\r\n", "\n")
    return _cut("".join(c if c in "\n\t" else _plain(c) for c in shown), most, len(said))


def document(
    value: Any, most: int = LONGEST, depth: int = _DEEPEST, items: int = _MOST_ITEMS
) -> Any:
    """A JSON document with each text short, few items in each list, and nothing JSON can't hold."""
    if not isinstance(value, (dict, list, tuple)):
        return _single(value, most)
    if depth == 0:
        return "(nested too deep)"
    more = len(value) - items
    if isinstance(value, dict):
        some = list(value.items())[:items]
        made = {line(k, most): document(v, most, depth - 1, items) for k, v in some}
        return {**made, "more": f"[{more} more]"} if more > 0 else made
    shown = [document(inner, most, depth - 1, items) for inner in value[:items]]
    return [*shown, f"[{more} more]"] if more > 0 else shown


def _single(value: Any, most: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return line(value, most)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return line(value, most)
    return value if isinstance(value, (int, float)) else f"({type(value).__name__})"


def _short(said: str, most: int) -> str:
    """Looks at twice that many characters, since escapes are removed."""
    return _ESCAPES.sub("", said[: 2 * most])


def _plain(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else "\ufffd"


def _cut(shown: str, most: int, length: int) -> str:
    if len(shown) <= most and length <= 2 * most:
        return shown
    return f"{shown[:most]}[{length - most} more characters]"
