"""The flags file a unit reads as EnvironmentFile=: read as systemd reads it, rewritten in place.

What systemd accepts is accepted, and every byte outside a changed key's lines stays. The rules are
those of systemd.exec(5) and of its reader, src/basic/env-file.c. CR and LF both end a line. Quotes
and a trailing backslash continue a value in the next lines. A repeated key has its last value.
Lines without a variable name are skipped. One rule changed: before systemd 254 a comment that ends
with a backslash continues in the next line. This module follows both rules.

No message shows a value: it may be a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from macd.host.masking import COVER

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Needs no quotes, and every reader understands it the same. We write nothing else.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:/@+=%-]{0,1024}\Z")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.,:/@+=%-]")
# Keys that change which code the process loads or whom it trusts, whatever the unit says. It is no
# list of allowed keys: an unknown key (an exchange's, say) is left alone, and shown as drift. A
# proxy is allowed: it carries TLS, which SSL_* and the like would have to open for it.
_FORBIDDEN = re.compile(
    r"(LD_|DYLD_|PYTHON|BASH_|GCONV_|MALLOC_|GLIBC_|OPENSSL_|SSL_|REQUESTS_|CURL_|ORT_"
    r"|OMP_TOOL|XDG_|LISTEN_|SYSTEMD_"
    r"|(PATH|IFS|ENV|SHELL|HOME|TMPDIR|TEMP|TMP|LOCPATH|NLSPATH|NIS_PATH|TZDIR|GETCONF_DIR"
    r"|SSLKEYLOGFILE|NETRC|HOSTALIASES"
    r"|LOCALDOMAIN|RES_OPTIONS|RESOLV_HOST_CONF|NOTIFY_SOCKET|CREDENTIALS_DIRECTORY)\Z)"
)
FLAGS: dict[str, re.Pattern[str]] = {
    "ML_ENABLE_STACKING": re.compile(r"[01]\Z"),
    "ML_STACKING_WEIGHT": re.compile(r"(100|[1-9][0-9]?)\Z"),  # percent
    "ML_STACKING_MIN_SAMPLES": re.compile(r"[0-9]{1,9}\Z"),
}
_ALLOWED = {
    "ML_ENABLE_STACKING": "0 or 1",
    "ML_STACKING_WEIGHT": "a whole number from 1 to 100",
    "ML_STACKING_MIN_SAMPLES": "a whole number",
}
MOST_BYTES = (64 << 20) - 1  # a larger file systemd does not read

_BLANK = b" \t"
_NEWLINE = b"\r\n"
_FIRST = re.compile(rb"[^ \t\r\n]")
_LINE_END = re.compile(rb"[\r\n]")
_KEY_END = re.compile(rb"[=\r\n]")
_STOPS = re.compile(rb"[\\\r\n]")
_STOPS_QUOTED = re.compile(rb'["\\]')
_UNESCAPED = b'"\\`$'  # within double quotes a backslash before one of these goes
# An older systemd drops a variable whose value holds one of these.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_NO_CHARACTER = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_BEFORE_254, _SINCE_254 = True, False
_RULES = (_BEFORE_254, _SINCE_254)


class EnvFileError(ValueError):
    """A file, line or value that systemd does not take, or that may not be in this file."""


@dataclass(frozen=True)
class _Assignment:
    """KEY=value with its bytes data[start:stop]. `open`: its quote is not closed in the file."""

    key: bytes
    value: bytes
    start: int
    stop: int
    open: bool


def rewritten(data: bytes, changes: Mapping[str, str | None]) -> bytes:
    """The file with each key of `changes` set (None: removed), whatever else the file holds.

    Only the key's own lines change, all of them. An absent key gets a line of its own. Every other
    byte stays. Every version of systemd then reads the new value.

    Raises:
        EnvFileError: a key is no variable name, or no file can give systemd that value.
    """
    for name, value in changes.items():
        key, line = name.encode(), _line(name, value)
        wanted = None if value is None else value.encode()
        # A rewritten line may uncover one that an open quote before had swallowed: look again.
        while any(_all_but(data, key, wanted, rule) for rule in _RULES):
            for rule in _RULES:
                data = _replaced(data, key, wanted, line, rule)
        if wanted is not None and not all(_values(data, key, rule) for rule in _RULES):
            data = _added(data, key, line)
    return data


def parse(text: str) -> dict[str, str]:
    """Keys and values as systemd takes them; of a key that stands twice the last.

    Bytes that are no UTF-8 come as surrogates (errors="surrogateescape").

    Raises:
        EnvFileError: systemd takes nothing from this file, its versions read it in two ways, or it
            sets what may not come from here.
    """
    data = text.encode("utf-8", "surrogateescape")
    before, since = readings(data)
    if before != since:
        raise EnvFileError(
            "a comment ends with a backslash: before systemd 254 it goes on into the next line"
        )
    for key in since:
        _refuse_forbidden(key)
    return since


def readings(data: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """The variables as systemd before 254 reads them, and as it does since; mostly the same.

    Raises:
        EnvFileError: it takes nothing from the file, and starts the service as if there were none.
    """
    if len(data) > MOST_BYTES:
        raise EnvFileError(f"it is larger than systemd reads ({MOST_BYTES + 1 >> 20} MiB)")
    if b"\0" in data:
        raise EnvFileError(
            f"line {_line_number(data, data.index(0))} holds a NUL byte; systemd then takes nothing"
            " from the whole file"
        )
    before, since = (_reading(data, rule) for rule in _RULES)
    return before, since


def passed_over(data: bytes) -> list[int]:
    """The numbers of the lines with a "=" that name no variable."""
    return [
        _line_number(data, assignment.start)
        for assignment in _assignments(data, _SINCE_254)
        if not _NAME.match(assignment.key.decode("utf-8", "replace"))
    ]


def values_of(data: bytes, name: str) -> list[str]:
    """Each value that the file gives `name`, in order; before or since systemd 254."""
    values = max((_values(data, name.encode(), rule) for rule in _RULES), key=len)
    return [value.decode("utf-8", "replace") for value in values]


def exported(data: bytes) -> dict[str, str]:
    """The variables of lines such as `export KEY=value`, over which systemd passes."""
    words = ((a.key.decode("utf-8", "replace").split(), a.value) for a in _assignments(data, False))
    return {
        key[1]: value.decode("utf-8", "surrogateescape")
        for key, value in words
        if len(key) == 2 and key[0] == "export" and _NAME.match(key[1])
    }


def unfit(key: str, value: str) -> str:
    """Why a variable that somebody else set can't stand in the file; "" if it can."""
    try:
        _refuse_forbidden(key)
        _line(key, value)
    except EnvFileError as error:
        return str(error)
    return ""


def shown(text: str) -> str:
    """Its variables to show, a line each; all values are covered but those of our own flags."""
    try:
        variables = parse(text)
    except EnvFileError:
        return ""
    return "".join(
        f"{key}={value if key in FLAGS and FLAGS[key].match(value) else COVER}\n"
        for key, value in variables.items()
    )


def with_values(text: str, changes: Mapping[str, str]) -> str:
    """The file with `changes` set, for callers that may refuse a file.

    Raises:
        EnvFileError: as `parse` does, or a value is not allowed.
    """
    for key, value in changes.items():
        _check(key, value)
    parse(text)
    return rewritten_text(text, changes)


def rewritten_text(text: str, changes: Mapping[str, str | None]) -> str:
    """As `rewritten`, of a text in which bytes that are no UTF-8 are surrogates."""
    data = rewritten(text.encode("utf-8", "surrogateescape"), changes)
    return data.decode("utf-8", "surrogateescape")


def _check(key: str, value: str) -> None:
    """What we write is plain; what others wrote is left alone."""
    if not _NAME.match(key):
        raise EnvFileError("a name of a variable has letters, digits and _ only")
    _refuse_forbidden(key)
    if not _PLAIN.match(value):
        strange = _NOT_PLAIN.search(value)
        where = f"at place {strange.start() + 1}" if strange else "too many"
        raise EnvFileError(
            f"{key} has a character other than letters, digits and _.,:/@+=%- {where}"
        )
    if key in FLAGS and not FLAGS[key].match(value):
        raise EnvFileError(f"{key} can't have this value: {_ALLOWED[key]}")


def _refuse_forbidden(key: str) -> None:
    if _FORBIDDEN.match(key):
        raise EnvFileError(f"{key} would change what the service loads or trusts")


def _line(name: str, value: str | None) -> bytes:
    """NAME=value so that systemd reads this very value; b"" for one that goes."""
    if not _NAME.match(name):
        raise EnvFileError("a name of a variable has letters, digits and _ only")
    if value is None:
        return b""
    unable = _CONTROL.search(value) or _NO_CHARACTER.search(value)
    if unable:
        raise EnvFileError(
            f"{name} has a character that systemd refuses at place {unable.start() + 1}"
        )
    if not _PLAIN.match(value):
        value = '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'
    return f"{name}={value}".encode()


def _reading(data: bytes, comments_go_on: bool) -> dict[str, str]:
    variables: dict[str, str] = {}
    for assignment in _assignments(data, comments_go_on):
        try:
            key, value = assignment.key.decode(), assignment.value.decode()
        except UnicodeDecodeError:
            key = value = "\ud800"
        if _NO_CHARACTER.search(key + value):
            number = _line_number(data, assignment.start)
            raise EnvFileError(
                f"line {number} is not in UTF-8; systemd then takes nothing from the whole file"
            )
        variables[key] = value
    return {key: value for key, value in variables.items() if _NAME.match(key)}


def _values(data: bytes, key: bytes, comments_go_on: bool) -> list[bytes]:
    return [
        assignment.value
        for assignment in _assignments(data, comments_go_on)
        if assignment.key == key
    ]


def _all_but(data: bytes, key: bytes, wanted: bytes | None, comments_go_on: bool) -> bool:
    """Whether the key has a value other than `wanted` anywhere in the file."""
    return any(value != wanted for value in _values(data, key, comments_go_on))


def _replaced(
    data: bytes, key: bytes, wanted: bytes | None, line: bytes, comments_go_on: bool
) -> bytes:
    """The file with `line` in place of each assignment of `key` to another value."""
    parts: list[bytes] = []
    at = copied = 0
    while True:
        assignment, at = _next(data, at, comments_go_on)
        if assignment is None:
            return b"".join([*parts, data[copied:]])
        if assignment.key != key or assignment.value == wanted:
            continue
        start, stop = assignment.start, assignment.stop
        if assignment.open:  # to the end of the file: somebody's other lines are in it
            stop = _end_of_line(data, start)
        if wanted is None:
            start, stop = _whole_line(data, start, stop)
        parts += [data[copied:start], line]
        copied = at = stop


def _added(data: bytes, key: bytes, line: bytes) -> bytes:
    """With `line` at the end; at the front where an open quote or the like would swallow it."""
    torn = data and data[-1:] not in (b"\n", b"\r")
    appended = data + (b"\n" if torn else b"") + line + b"\n"
    for rule in _RULES:
        before, after = (list(_assignments(text, rule)) for text in (data, appended))
        read = [
            (assignment.key, assignment.value) for assignment in before if assignment.key != key
        ]
        then = [(assignment.key, assignment.value) for assignment in after if assignment.key != key]
        if read != then or not any(assignment.start >= len(data) for assignment in after):
            return line + b"\n" + data
    return appended


def _whole_line(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """An assignment with the blanks before it and the end of its line.

    The end stays where a backslash before would take the next line in its place.
    """
    while data[start - 1 : start] and data[start - 1 : start] in _BLANK:
        start -= 1
    if data[:start].rstrip(_NEWLINE).endswith(b"\\"):
        return start, stop
    return start, stop + (2 if data[stop : stop + 2] == b"\r\n" else 1)


def _line_number(data: bytes, at: int) -> int:
    return len(data[:at].splitlines()) + (data[:at][-1:] in (b"", b"\n", b"\r"))


def _assignments(data: bytes, comments_go_on: bool) -> Iterator[_Assignment]:
    assignment, at = _next(data, 0, comments_go_on)
    while assignment is not None:
        yield assignment
        assignment, at = _next(data, at, comments_go_on)


def _next(data: bytes, at: int, comments_go_on: bool) -> tuple[_Assignment | None, int]:
    """The next assignment from `at`, where a line begins, and where it ends; None: no more."""
    while True:
        first = _FIRST.search(data, at)
        if first is None:
            return None, len(data)
        start = first.start()
        if data[start : start + 1] in (b"#", b";"):
            at = _comment_end(data, start) if comments_go_on else _end_of_line(data, start)
            continue
        end = _KEY_END.search(data, start + 1)
        if end is None or end[0] != b"=":  # no assignment
            at = end.end() if end else len(data)
            continue
        value, stop, is_open = _value(data, end.end())
        key = data[start : end.start()].rstrip(_BLANK)
        return _Assignment(key, value, start, stop, is_open), stop


def _end_of_line(data: bytes, at: int) -> int:
    end = _LINE_END.search(data, at)
    return end.start() if end else len(data)


def _comment_end(data: bytes, at: int) -> int:
    """Where a comment ends in which a backslash takes the next character with it."""
    while True:
        stop = _STOPS.search(data, at)
        if stop is None:
            return len(data)
        if stop[0] != b"\\":
            return stop.start()
        at = stop.end() + 1


def _value(data: bytes, at: int) -> tuple[bytes, int, bool]:
    """The value that begins behind "=", the end of its last line, and whether a quote is open."""
    parts: list[bytes] = []
    while at < len(data):
        character = data[at : at + 1]
        if character in (b" ", b"\t"):
            at += 1
        elif character in (b"\r", b"\n"):
            break
        elif character == b"'":
            close = data.find(b"'", at + 1)
            if close < 0:
                return b"".join([*parts, data[at + 1 :]]), len(data), True
            parts.append(data[at + 1 : close])
            at = close + 1
        elif character == b'"':
            quoted, at, is_open = _double_quoted(data, at + 1)
            parts.append(quoted)
            if is_open:
                return b"".join(parts), at, True
        else:
            bare, at = _bare(data, at)
            parts.append(bare)
            break
    return b"".join(parts), at, False


def _bare(data: bytes, at: int) -> tuple[bytes, int]:
    """Without quotes, or behind them: to the end of the line, quotes are characters."""
    parts: list[bytes] = []
    while True:
        stop = _STOPS.search(data, at)
        end = stop.start() if stop else len(data)
        if stop is None or stop[0] != b"\\":
            return b"".join([*parts, data[at:end].rstrip(_BLANK)]), end
        parts.append(data[at:end])
        parts.append(data[end + 1 : end + 2].strip(_NEWLINE))
        at = min(end + 2, len(data))


def _double_quoted(data: bytes, at: int) -> tuple[bytes, int, bool]:
    parts: list[bytes] = []
    while True:
        stop = _STOPS_QUOTED.search(data, at)
        if stop is None:
            return b"".join([*parts, data[at:]]), len(data), True
        parts.append(data[at : stop.start()])
        at = stop.end()
        if stop[0] == b'"':
            return b"".join(parts), at, False
        escaped = data[at : at + 1]
        if escaped and escaped not in _UNESCAPED:
            parts.append(b"" if escaped == b"\n" else b"\\" + escaped)
        else:
            parts.append(escaped)
        at = min(at + 1, len(data))
