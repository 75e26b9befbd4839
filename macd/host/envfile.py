"""The flags file a unit reads as EnvironmentFile=: parsed strictly, rewritten whole.

systemd lets a newline, an open quote or a trailing backslash in such a file swallow or set other
variables, and its last duplicate wins silently; so only lines that can mean one thing are accepted.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Optional, Tuple

from macd.host.masking import SECRET

_KEY = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
_VALUE = re.compile(r"[A-Za-z0-9_.,:/@+=%-]{0,1024}\Z")
# What would change which code the process loads, or whom it trusts, whatever the unit says. No list
# of what is allowed: a key that nobody named (an exchange's, say) is left alone and shown as drift.
# A proxy may be named: it carries TLS that SSL_* and the like would have to open for it.
_FORBIDDEN = re.compile(
    r"(LD_|DYLD_|PYTHON|BASH_|GCONV_|MALLOC_|GLIBC_|OPENSSL_|SSL_|REQUESTS_|CURL_|ORT_"
    r"|OMP_TOOL|XDG_|LISTEN_|SYSTEMD_"
    r"|(PATH|IFS|ENV|SHELL|HOME|TMPDIR|TEMP|TMP|LOCPATH|NLSPATH|NIS_PATH|TZDIR|GETCONF_DIR"
    r"|SSLKEYLOGFILE|NETRC|HOSTALIASES"
    r"|LOCALDOMAIN|RES_OPTIONS|RESOLV_HOST_CONF|NOTIFY_SOCKET|CREDENTIALS_DIRECTORY)\Z)"
)
FLAGS: Dict[str, "re.Pattern[str]"] = {
    "ML_ENABLE_STACKING": re.compile(r"[01]\Z"),
    "ML_STACKING_MIN_SAMPLES": re.compile(r"[0-9]{1,9}\Z"),
}


class EnvFileError(ValueError):
    """A line or value that could mean something else to systemd than to a reader."""


def parse(text: str) -> Dict[str, str]:
    """Keys and values; of a key that stands twice the last, as systemd takes it.

    Raises:
        EnvFileError: naming the line that is no plain KEY=value, comment or blank.
    """
    return dict(pair for _, pair in _assignments(text))


def with_values(text: str, changes: Mapping[str, str]) -> str:
    """The file with `changes` set: comments and order kept, each key once, one newline at the end.

    Raises:
        EnvFileError: the file has a line we don't understand, or a value is not allowed.
    """
    for key, value in changes.items():
        _check(key, value)
    values = {**parse(text), **changes}
    written = set()
    lines: List[str] = []
    for line in text.splitlines():
        key = line.partition("=")[0].strip()
        if _is_comment(line):
            lines.append(line.rstrip())
        elif key not in written:
            written.add(key)
            lines.append(f"{key}={values[key]}")
    lines += [f"{key}={value}" for key, value in changes.items() if key not in written]
    return "\n".join(lines) + "\n"


def rewritten(data: bytes, changes: Mapping[str, Optional[str]]) -> bytes:
    """The file with each key of `changes` set, None removes it; every other byte stays.

    Works on any bytes: only a key's own lines are rewritten, all of them; where it has none, one is
    added at the end.
    """
    pieces = data.split(b"\n")
    lines = [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])
    for key, value in changes.items():
        own = key.encode()
        after: List[bytes] = []
        seen = False
        for line in lines:
            name, equals, _ = line.partition(b"=")
            if not equals or name.strip() != own:
                after.append(line)
            elif value is not None:
                bare = line.rstrip(b"\r\n")
                after.append(own + b"=" + value.encode() + line[len(bare) :])
            seen |= bool(equals) and name.strip() == own
        if value is not None and not seen:
            if after and not after[-1].endswith(b"\n"):
                after[-1] += b"\n"
            after.append(own + b"=" + value.encode() + b"\n")
        lines = after
    return b"".join(lines)


def values_of(data: bytes, name: str) -> List[str]:
    """Each value that `name` is given in the file, in order."""
    found = []
    for line in data.split(b"\n"):
        key, equals, value = line.partition(b"=")
        if equals and key.strip() == name.encode():
            found.append(_unquoted(value.strip().decode("utf-8", "replace")))
    return found


def _is_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith(("#", ";"))


def _assignments(text: str) -> List[Tuple[int, Tuple[str, str]]]:
    found = []
    # Only "\n" ends a line for systemd; any other control character is refused below.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.isprintable():
            raise EnvFileError(f"line {number} holds a character that is not printable")
        if _is_comment(line):
            if line.endswith("\\"):
                raise EnvFileError(f"line {number} is a comment that goes on into the next line")
            continue
        key, equals, value = line.strip().partition("=")
        if not equals:
            raise EnvFileError(f"line {number} is not KEY=value")
        try:
            _check(key, _unquoted(value))
        except EnvFileError as error:
            raise EnvFileError(f"line {number}: {error}") from error
        found.append((number, (key, _unquoted(value))))
    return found


def _unquoted(value: str) -> str:
    for quote in ('"', "'"):
        if len(value) >= 2 and value[0] == value[-1] == quote:
            return value[1:-1]
    return value


def _check(key: str, value: str) -> None:
    if not _KEY.match(key):
        raise EnvFileError(f"{key!r} is not a variable name")
    if _FORBIDDEN.match(key):
        raise EnvFileError(f"{key} would change what the service loads or trusts")
    shape = FLAGS.get(key, _VALUE)
    if not shape.match(value):
        told = "a value" if SECRET.search(key) else repr(value)
        raise EnvFileError(f"{key} can't be {told}: letters, digits and _.,:/@+=%- only")
