"""What names of hosts, users, paths and units may look like, so that none can harm a shell.

Everything here ends up near a command line, a remote shell or a file that another program parses.
The sets of characters are what those names need, not what the receiving program would bear.
"""

import difflib
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
# Bastions take user@account@asset or user#account#asset as the name, a domain takes DOMAIN\\user.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@#/=\\-]{0,254}(?<![\\@#/])")
_JUMP = re.compile(
    r"(?:(?P<user>.*)@)?(?:\[(?P<number>[^\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?"
)
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")
_PATH_PART = re.compile(r"[A-Za-z0-9._@+][A-Za-z0-9._@+-]{0,254}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?")
_UNIT = re.compile(r"(?!.*\.service$)[A-Za-z0-9](?:[A-Za-z0-9:_.@-]{0,126}[A-Za-z0-9])?")
_PYTHON = re.compile(r"(?:/[A-Za-z0-9._+-]+)+|[A-Za-z0-9][A-Za-z0-9._+-]*")
_ENDPOINT = re.compile(r"unix|(?:127\.0\.0\.1|localhost|\[::1\]):[1-9][0-9]{0,4}")
_FLAG = re.compile(
    r"(?!LD_|PYTHON|PATH$|ML_ENABLE_STACKING$|ML_STACKING_WEIGHT$)[A-Z][A-Z0-9_]{0,63}"
)
_FLAG_VALUE = re.compile(r"[A-Za-z0-9_.,:/@+=%-]{0,1024}")
_SYMBOL = re.compile(r"[A-Z0-9]{1,20}")
_CALENDAR = re.compile(r"(?:[A-Za-z0-9*][A-Za-z0-9*,./:~ _+-]{0,99})?")
_TIMEFRAME = re.compile(r"[1-9][0-9]?[mhd]")


def is_host(text: str) -> bool:
    """True for a DNS name, an ssh alias, an IPv4 or an IPv6 address (with a zone, without [])."""
    return _HOST.fullmatch(text) is not None or _is_ipv6(text)


def is_user(text: str) -> bool:
    """True for a login name without characters that any shell, path or URL treats specially."""
    return _USER.fullmatch(text) is not None


def split_jump(text: str) -> tuple[str | None, str, int | None] | None:
    """User, host and port of `[user@]host[:port]` as in ProxyJump; None where it isn't one.

    Brackets hold any address, not only IPv6: `ssh -G` puts there every host of digits and dots
    (dump_client_config in OpenSSH's readconf.c).
    """
    match = _JUMP.fullmatch(text)
    if match is None:
        return None
    user, port = match["user"], int(match["port"]) if match["port"] else None
    number = match["number"]
    host = match["host"] if number is None else number
    plain = number is None or _DIGITS_AND_DOTS.fullmatch(number) is not None
    good_host = is_host(host) if plain else _is_ipv6(host)
    if not good_host or (user is not None and not is_user(user)):
        return None
    if port is not None and not 1 <= port <= 65535:
        return None
    return user, host, port


def _is_ipv6(text: str) -> bool:
    address, _, zone = text.partition("%")
    if zone and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", zone):
        return False
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


class DeeperError(ValueError):
    """Something wrong at a key below the value that is checked.

    key: from there on. actual: what to say stands there; "": the value itself is shown.
    """

    def __init__(self, expected: str, *key: str, actual: str = "") -> None:
        super().__init__(expected)
        self.key = key
        self.actual = actual


def unknown_name(what: str, known: Iterable[str], typed: str) -> str:
    """What is expected in place of a name that nobody knows, and which one was meant."""
    names = list(known)
    close = difflib.get_close_matches(typed, names, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{what} {', '.join(names) or 'none'}{meant}"


def matching(pattern: re.Pattern[str], expected: str) -> AfterValidator:
    """Refuses a text that is not wholly as the pattern says; the error says what is expected."""

    def check(text: str) -> str:
        if pattern.fullmatch(text) is None:
            raise ValueError(expected)
        return text

    return AfterValidator(check)


def _check_host(text: str) -> str:
    if not is_host(text):
        raise ValueError("an ssh alias, host name or address (letters, digits, . _ -; no - first)")
    return text


def _check_jump(text: str) -> str:
    if split_jump(text) is None:
        raise ValueError("a jump as ssh takes it: [user@]host[:port]")
    return text


def _check_notify(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", text):
        raise ValueError("an Apprise URL such as mailto://... or slack://...")
    return text


def _check_webhook(text: str) -> str:
    """Plain http only to the host itself: the address is a secret."""
    plain = r"http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?(/[!-~]*)?"
    if text and not re.fullmatch(rf"https://[!-.0-~][!-~]{{0,2000}}|{plain}", text):
        raise ValueError("an https:// address that takes a POST (http:// only for 127.0.0.1)")
    return text


def _check_index(text: str) -> str:
    """A password may travel by https only; the bytes themselves are proved by the lock's hashes."""
    address = r"https?://[A-Za-z0-9._~:/?#@!$&()*+,;=%\[\]-]{1,1000}"
    open_secret = text.startswith("http://") and "@" in text
    if text and (re.fullmatch(address, text) is None or open_secret):
        raise ValueError("the https:// address of a package index (http:// without a password)")
    return text


def _check_remote_path(text: str) -> str:
    start, _, rest = text.partition("/")
    parts = rest.removesuffix("/").split("/")
    sound = all(_PATH_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    if start not in ("", "~") or not sound:
        raise ValueError("an absolute path or ~/... there (letters, digits, . _ @ + -; no ..)")
    return text.removesuffix("/")


def variable_name(text: str) -> str:
    """A variable's name for a process that is given it. Raises ValueError: none, or a loader's."""
    if not re.fullmatch(r"(?!LD_|DYLD_)[A-Za-z_][A-Za-z0-9_]{0,99}", text):
        raise ValueError("a variable's name (letters, digits, _; none of the loader's own LD_...)")
    return text


def _local_path(value: Any, info: ValidationInfo) -> Path:
    text = str(value) if isinstance(value, str | Path) else ""
    if not text or text.startswith("-") or not text.isprintable():
        raise ValueError("a path on this machine (~ and relative to this file are allowed)")
    base = (info.context or {}).get("base", Path.cwd())
    return Path(base, Path(text).expanduser()).resolve()


HostName = Annotated[
    str, matching(_NAME, "a short name in small letters, digits, - or _ (at most 32)")
]
SshAlias = Annotated[str, AfterValidator(_check_host)]
Jump = Annotated[str, AfterValidator(_check_jump)]
User = Annotated[
    str, matching(_USER, "a login name (letters, digits, . _ + @ # / = \\ -; no leading -)")
]
Account = Annotated[str, matching(_ACCOUNT, "an account's name (letters, digits, . _ + -)")]
Port = Annotated[int, Field(ge=1, le=65535)]
RemotePath = Annotated[str, AfterValidator(_check_remote_path)]
Python = Annotated[str, matching(_PYTHON, "python3, python3.12 or an absolute path to one")]
NodeAddress = Annotated[
    str,
    matching(
        re.compile(r"([0-9]{1,3}(\.[0-9]{1,3}){3}|[A-Za-z][A-Za-z0-9_.-]{0,14})?"),
        "an IPv4 address, or an interface's name such as ib0",
    ),
]
Unit = Annotated[
    str, matching(_UNIT, "a systemd unit name without .service (letters, digits, : _ . @ -)")
]
Endpoint = Annotated[str, matching(_ENDPOINT, "unix, 127.0.0.1:PORT or [::1]:PORT")]
FlagName = Annotated[
    str,
    matching(
        _FLAG,
        "a flag's name in capitals (ML_ENABLE_STACKING and its weight have verbs of their own)",
    ),
]
FlagValue = Annotated[str, matching(_FLAG_VALUE, "letters, digits and _.,:/@+=%- only")]
Symbol = Annotated[str, matching(_SYMBOL, "a symbol in capitals such as BTCUSD")]
Timeframe = Annotated[str, matching(_TIMEFRAME, "a timeframe such as 15m, 1h or 1d")]
OnCalendar = Annotated[
    str, matching(_CALENDAR, "a time as systemd's OnCalendar= takes it, such as Sun 03:00 UTC")
]
NotifyUrl = Annotated[str, AfterValidator(_check_notify)]
WebhookUrl = Annotated[str, AfterValidator(_check_webhook)]
WebhookSecret = Annotated[
    str, matching(re.compile(r"[!-~]{0,200}"), "a robot's secret: printable ASCII without spaces")
]
IndexUrl = Annotated[str, AfterValidator(_check_index)]
LocalPath = Annotated[Path, BeforeValidator(_local_path)]
