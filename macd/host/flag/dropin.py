"""Environment= lines of a unit's drop-in: what they set a variable to, and another value there.

As systemd reads them (systemd.syntax(7), and config_parse_environ in its source): [Service] only,
lines continued by a backslash, several assignments on a line, quotes, C escapes, an empty value
that takes back all before it. Standard library alone and pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from macd.host.systemd import unitfile

NAME = "macd-flag.conf"  # the drop-in that is made where none sets the variable yet
NEW = b"# Written by macd: enable-stacking and disable-stacking set the flag here.\n"
MOST_BYTES = 4 << 20
_LINE_END = re.compile(rb"\r\n|\n\r?|\r|\0")
_BLANK = b" \t"
_SPACES = b" \t\n\r"
_PLAIN = re.compile(r"[A-Za-z0-9_.,:/@+=-]+\Z")
_SINGLE = dict(zip(b"abfnrtv\\\"'s", b"\a\b\f\n\r\t\v\\\"' ", strict=True))
_CODES = {0x78: (2, 16), 0x75: (4, 16), 0x55: (8, 16)}  # \x, \u, \U


@dataclass
class _Logical:
    """A line with its continuations; the place in the file of each of its bytes."""

    text: bytearray = field(default_factory=bytearray)
    places: list[int] = field(default_factory=list)

    def add(self, data: bytes, start: int, stop: int) -> None:
        self.text += data[start:stop]
        self.places += range(start, stop)


def values_of(data: bytes, name: str) -> list[str]:
    """Each value that the drop-in gives `name` in the end, in order; the last one counts."""
    values: list[str] = []
    for word, _, _ in _words(data):
        if word is None:  # Environment= without anything
            values.clear()
        elif word.partition(b"=")[0] == name.encode():
            values.append(word.partition(b"=")[2].decode("utf-8", "replace"))
    return values


def rewritten(data: bytes, name: str, value: str) -> bytes:
    """The drop-in with `name` set to `value`: each of its assignments, or a line of its own.

    Every other byte stays.
    """
    line = _assignment(name, value)
    parts: list[bytes] = []
    copied = 0
    for word, start, stop in _words(data):
        key, sign, old = (word or b"").partition(b"=")
        if sign and key == name.encode() and old != value.encode():
            parts += [data[copied:start], line]
            copied = stop
    data = b"".join([*parts, data[copied:]])
    if values_of(data, name)[-1:] == [value]:
        return data
    # A last line that goes on (backslash) would take ours in: an empty one ends it.
    gap = b"" if not data or data.endswith((b"\n", b"\r")) else b"\n"
    gap += b"\n" if data.rstrip(b"\r\n").endswith(b"\\") else b""
    return data + gap + b"[Service]\nEnvironment=" + line + b"\n"


def _assignment(name: str, value: str) -> bytes:
    text = f"{name}={value}"
    return (text if _PLAIN.match(text) else unitfile.assignment(name, value)).encode()


def _words(data: bytes) -> Iterator[tuple[bytes | None, int, int]]:
    """Each assignment of Environment= as systemd understands it, and where it stands in the file.

    None for an empty Environment=.
    """
    section = b""
    for line in _logical(data):
        text = bytes(line.text)
        stripped = text.strip(_SPACES)
        if stripped[:1] == b"[":
            section = stripped
            continue
        key, sign, value = text.partition(b"=")
        if section != b"[Service]" or not sign or key.strip(_SPACES) != b"Environment":
            continue
        if not value.strip(_SPACES):
            yield None, 0, 0
        for word, start, stop in _split(text, len(key) + 1):
            yield word.replace(b"%%", b"%"), line.places[start], line.places[stop - 1] + 1


def _logical(data: bytes) -> Iterator[_Logical]:
    at = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    line: _Logical | None = None
    while at < len(data):
        end = _LINE_END.search(data, at)
        stop = end.start() if end else len(data)
        start = at + len(data[at:stop]) - len(data[at:stop].lstrip(_BLANK))
        at = end.end() if end else len(data)
        if data[start : start + 1] in (b"#", b";") and start < stop:
            continue
        line = line or _Logical()
        line.add(data, start, stop)
        backslashes = len(line.text) - len(line.text.rstrip(b"\\"))
        if backslashes % 2:
            line.text[-1:] = b" "
        else:
            yield line
            line = None
    if line is not None:
        yield line


def _split(text: bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """The words from `at` on, without quotes and escapes; none from one on that is no word."""
    while at < len(text):
        if text[at] in _SPACES:
            at += 1
            continue
        start, word, quote = at, bytearray(), 0
        while at < len(text) and (quote or text[at] not in _SPACES):
            byte = text[at]
            at += 1
            if byte == quote:
                quote = 0
            elif not quote and byte in b"\"'":
                quote = byte
            elif byte == 0x5C:
                taken = _escaped(text, at)
                if taken is None:
                    return
                said, at = taken
                word += said
            else:
                word.append(byte)
        if quote:
            return
        yield bytes(word), start, at


def _escaped(text: bytes, at: int) -> tuple[bytes, int] | None:
    """What an escape means whose backslash stands before `at`, and its end; None: it is none."""
    byte = text[at : at + 1]
    if not byte:
        return None
    if byte[0] in _SINGLE:
        return bytes([_SINGLE[byte[0]]]), at + 1
    count, base = _CODES.get(byte[0], (3, 8))
    digits = text[at + (base == 16) : at + (base == 16) + count]
    try:
        if len(digits) < count or not digits.isalnum():
            return None
        code = int(digits, base)
        said = chr(code).encode() if count > 3 else bytes([code])
    except (ValueError, OverflowError):
        return None
    return said, at + (base == 16) + count
