"""One item of a list of checks: what was checked, how it came out, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One thing that was checked. `cause` and `remedy` are empty when it is healthy.

    done: False where it could not be checked here, which `detail` says; that is no failure.
    """

    name: str
    ok: bool
    detail: str
    cause: str = ""
    remedy: str = ""
    done: bool = True

    def line(self) -> str:
        """One line for people, with the guide's tick; two more when it failed."""
        mark = "✗" if not self.ok else "✓" if self.done else "–"
        text = f"{mark} {self.name}: {self.detail}"
        if self.ok:
            return text
        return f"{text}\n    likely cause: {self.cause}\n    remedy: {self.remedy}"
