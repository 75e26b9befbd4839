"""What a diagnosis is made of: everything known of a host, and what it says of one failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from macd.deploy.state import HostState

_LONGEST = 300


@dataclass(frozen=True)
class Finding:
    """One known failure: ok True (not here), False (here) or None (can't be told), and why."""

    name: str
    ok: bool | None
    evidence: str
    remedy: str = ""


@dataclass(frozen=True)
class Feed:
    """What bars should come: seconds between two of them, and whether they are of now."""

    kind: str
    every_s: float
    live: bool


@dataclass(frozen=True)
class Case:
    """All that was found out.

    drift: as `invoke status` shows it. report: a gate document of now, None if there is none, and
    `no_report` says why. trainings: by host, state (DONE, FAILED, ...; "" if it can't be told),
    why and remedy. now: the host's time in epoch seconds.
    """

    found: HostState
    checkup: Mapping[str, Any]
    drift: Sequence[str]
    clock_offset: float
    clock_error: float
    feed: Feed
    now: float
    report: Mapping[str, Any] | None = None
    no_report: str = ""
    trainings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def restart(self) -> str:
        """What starts again what is live; without its name the newest release would go live."""
        named = f" --release {self.found.live}" if self.found.live else ""
        return f"invoke deploy --restart{named}"


def short(text: str) -> str:
    """Foreign text on one line, harmless and not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
