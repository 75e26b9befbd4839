"""One thing that `invoke doctor` looked for, and how it came out."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST = 300


@dataclass(frozen=True)
class Finding:
    """One known failure: ok True (not here), False (here) or None (unknown), and why."""

    name: str
    ok: bool | None
    evidence: str
    remedy: str = ""


def short(text: str) -> str:
    """Foreign text on one line, harmless and not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
