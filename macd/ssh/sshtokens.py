"""Expand what `ssh -G` prints unexpanded: ~, %-tokens and ${VAR} (ssh_config(5), TOKENS)."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from macd.errors import UsageError

_JUMP_TOKENS = ("%", "h", "n", "p", "r")


@dataclass(frozen=True)
class Tokens:
    """The value of each %-token for one hop."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, alias: str, hostname: str, port: int, user: str, key_alias: str) -> Tokens:
        """Collect them; `key_alias` is HostKeyAlias or empty."""
        here = pwd.getpwuid(os.getuid())
        local = socket.gethostname()
        joined = f"{local}{hostname}{port}{user}"
        return cls(
            {
                "%": "%",
                "C": hashlib.sha1(joined.encode(), usedforsecurity=False).hexdigest(),
                "d": here.pw_dir,
                "h": hostname,
                "i": str(here.pw_uid),
                "k": key_alias or alias,
                "L": local.partition(".")[0],
                "l": local,
                "n": alias,
                "p": str(port),
                "r": user,
                "u": here.pw_name,
            }
        )

    def expand(self, text: str, environment: Mapping[str, str]) -> str:
        """A path with everything in it replaced. Raises UsageError for what isn't known."""

        def put(match: re.Match[str]) -> str:
            if match["token"]:
                return self.values[match["token"]]
            return environment[match["variable"]]

        if text == "~" or text.startswith("~/"):
            text = self.values["d"].replace("%", "%%") + text[1:]
        try:
            return re.sub(r"%(?P<token>.)|\$\{(?P<variable>[^}]*)\}", put, text)
        except KeyError as error:
            raise UsageError(
                f"the ssh configuration names {text!r}, in which {error.args[0]} is not known",
                hint="write the path out in IdentityFile, CertificateFile or IdentityAgent",
            ) from error


def paths(texts: Iterable[str], tokens: Tokens, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """IdentityFile or CertificateFile lines as paths; `none` stands for nothing."""
    return tuple(Path(tokens.expand(t, environment)) for t in texts if t and t != "none")


def expand_jumps(text: str, tokens: Tokens) -> str:
    """ProxyJump with the tokens replaced that it may have. Raises UsageError for another one."""

    def put(match: re.Match[str]) -> str:
        if match[1] not in _JUMP_TOKENS:
            raise UsageError(
                f"the ssh configuration names the jump host {text!r}, in which %{match[1]} is not"
                " known",
                hint="write the name out in ProxyJump",
            )
        return tokens.values[match[1]]

    return re.sub(r"%(.?)", put, text)


def agent_socket(text: str, tokens: Tokens, environment: Mapping[str, str]) -> str:
    """IdentityAgent as the socket's path, "" for no agent."""
    if text == "none":
        return ""
    if text == "SSH_AUTH_SOCK":
        return environment.get("SSH_AUTH_SOCK", "")
    if text.startswith("$") and not text.startswith("${"):
        return environment.get(text[1:], "")
    return tokens.expand(text, environment)
