"""What a first inventory is made of: keys with values, and how each is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from macd.inventory.names import split_jump

RELEASE_KEY, GATE_KEY, SIGNERS = "id_ed25519_release", "id_ed25519_gate", "allowed_signers"
Origin = Literal["", "given", "found", "guessed", "decide"]


@dataclass(frozen=True)
class Item:
    """One key. note: how it is known, or what it means. active: False writes it as a comment."""

    key: tuple[str, ...]
    value: Any
    origin: Origin = ""
    note: str = ""
    active: bool = True


@dataclass(frozen=True)
class Place:
    """How a host is reached, as it was typed: [user@]host[:port]."""

    ssh: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def of(cls, text: str) -> Place | None:
        """None where the text is no such thing."""
        parts = split_jump(text)
        return cls(parts[1], parts[0], parts[2]) if parts else None


@dataclass(frozen=True)
class Answers:
    """What a person says. name: of the inventory. app: of the application.

    keys: the directory of the keys that sign. source: the application's directory as the inventory
    writes it, "" for the built-in one. app_dir, unit: on the host, "" where they have to be found.
    """

    name: str
    app: str = "macd-analysis"
    keys: str = "~/.ssh"
    source: str = ""
    prod: Place | None = None
    train: Place | None = None
    jump: Place | None = None
    app_dir: str = ""
    unit: str = ""
    become: str = ""
    ssh_config: str = ""


@dataclass(frozen=True)
class Seen:
    """What the survey saw. source and host: see macd/host/survey.py. tracked: paths in git, None
    where the source is no git repository. python: of the host, "" for its python3.
    """

    source: Mapping[str, Any]
    tracked: frozenset[str] | None = None
    host: Mapping[str, Any] | None = None
    python: str = ""
