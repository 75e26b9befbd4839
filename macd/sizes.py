"""Bytes and times for people: one way to say them, on the terminal and on pages."""

from __future__ import annotations


def size(count: float) -> str:
    """A number of bytes: `959 B`, `66.6 kB`, `5.1 MB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def minutes(seconds: float) -> str:
    """75 becomes `1:15`."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
