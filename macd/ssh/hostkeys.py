"""The host keys this project trusts: judge what a server shows, and pin a key durably.

The file is OpenSSH's known_hosts (sshd(8)): several names, wildcards, negation, hashed names,
[host]:port and @revoked. Certificates (@cert-authority) are not used: servers are asked for plain
keys. paramiko's own reader is not used because it passes over @revoked and wildcards in silence.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from macd.errors import MacdError, UsageError
from macd.host.durable import one_at_a_time, replace_file


@dataclass(frozen=True)
class HostKey:
    """A server's public key; `type` is as in known_hosts (ssh-ed25519, ssh-rsa ...)."""

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """SHA256:... as ssh and ssh-keygen show it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode()
        return f"SHA256:{digest.rstrip('=')}"

    def __str__(self) -> str:
        return f"{self.type} {self.fingerprint}"


class Verdict(Enum):
    """What known_hosts says about a key: CHANGED: others are pinned, not this one."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True)
class _Line:
    number: int
    marker: str
    names: tuple[str, ...]
    key: HostKey
    rest: str

    def is_for(self, name: str) -> bool:
        """As OpenSSH matches: a negated name that matches rules the whole line out."""
        matches = False
        for pattern in self.names:
            negated = pattern.startswith("!")
            if _matches(pattern.removeprefix("!"), name):
                if negated:
                    return False
                matches = True
        return matches


@dataclass(frozen=True)
class KnownHosts:
    """The keys in one file as it was when read; a file that isn't there holds none."""

    path: Path
    lines: tuple[_Line, ...]

    @classmethod
    def read(cls, path: Path) -> KnownHosts:
        """Read the file. Raises MacdError where it exists and can't be read."""
        return cls(path, tuple(line for _, line in _parse(_text(path)) if line is not None))

    def pinned(self, name: str) -> tuple[HostKey, ...]:
        """Keys pinned for a host by its known_hosts name."""
        keys = [line.key for line in self.lines if not line.marker and line.is_for(name)]
        return tuple(dict.fromkeys(keys))

    def judge(self, name: str, key: HostKey) -> Verdict:
        """What to make of a key that the server calling itself `name` shows."""
        for line in self.lines:
            if line.marker == "@revoked" and line.key == key and line.is_for(name):
                return Verdict.REVOKED
        pinned = self.pinned(name)
        if key in pinned:
            return Verdict.KNOWN
        return Verdict.CHANGED if pinned else Verdict.UNKNOWN


def pin(path: Path, name: str, key: HostKey) -> None:
    """Make `key` the only key pinned for `name`; other lines stay as they are. Durable, atomic.

    Raises UsageError where the old key stands for several hosts by a pattern, MacdError where the
    file can't be written.
    """
    target = path.resolve()  # a link stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target.parent):  # two that pin at once must not lose a key
            other_lines = "".join(_without(raw, line, name) for raw, line in _parse(_text(target)))
            if other_lines and not other_lines.endswith("\n"):
                other_lines += "\n"
            blob = base64.b64encode(key.blob).decode()
            _replace(target, f"{other_lines}{name} {key.type} {blob}\n")
    except OSError as error:
        raise MacdError(
            f"{path} can't be written", why=str(error), live="the host's key is not pinned"
        ) from error


def _without(raw: str, line: _Line | None, name: str) -> str:
    if line is None or line.marker or not line.is_for(name):
        return raw
    names = [pattern for pattern in line.names if not _is_exactly(pattern, name)]
    remaining = _Line(line.number, "", tuple(names), line.key, line.rest)
    if remaining.is_for(name):
        raise UsageError(
            f"the old key of {name} is pinned by a pattern for several hosts",
            why=f"line {line.number}: {','.join(line.names)}",
            hint="change that line by hand, then repeat the command",
        )
    return f"{','.join(names)} {line.rest}\n" if names else ""


def _is_exactly(pattern: str, name: str) -> bool:
    return pattern.lower() == name.lower() or (pattern.startswith("|") and _matches(pattern, name))


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("|1|"):
        try:
            _, _, salt, digest = pattern.split("|")
            made = hmac.digest(base64.b64decode(salt), name.encode(), "sha1")
            return hmac.compare_digest(made, base64.b64decode(digest))
        except (ValueError, binascii.Error):
            return False
    # fnmatch also knows [...], which means an address here.
    literal = pattern.lower().replace("[", "[[]")
    return fnmatch.fnmatchcase(name.lower(), literal)


def _parse(text: str) -> Iterator[tuple[str, _Line | None]]:
    """Each line as it stands, with what it says; None for comments and what isn't understood."""
    for number, raw in enumerate(text.splitlines(keepends=True), 1):
        words = raw.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        line = None
        if len(words) >= 3 and not words[0].startswith("#"):
            with contextlib.suppress(ValueError, binascii.Error):
                key = HostKey(words[1], base64.b64decode(words[2], validate=True))
                line = _Line(number, marker, tuple(words[0].split(",")), key, " ".join(words[1:]))
        yield raw, line


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise MacdError(f"{path} can't be read", why=str(error)) from error


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    replace_file(path, text.encode("utf-8", "surrogateescape"), mode=mode)
