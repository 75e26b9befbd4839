"""The one error users see: what happened, why, what is live now, what to do; and the exit codes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What a command's exit status means; scripts rely on these numbers."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INCONCLUSIVE = 3
    REVERTED = 4
    CONTACT_LOST = 5
    REFUSED = 6
    INTERRUPTED = 130  # Ctrl-C; 128 + SIGINT, as shells say it


_READ = 300  # characters of a library's words


class MacdError(Exception):
    """A failure shown to a person. Raise it (or a subclass) where the caller can do nothing more.

    Args:
        what: what happened, one line, no trailing full stop.
        why: the cause as far as it is known; may span lines.
        hint: the next thing to do, best a command to type.
        live: what is live (or what state things are in) now, where that could be in doubt.
        exit_code: the status the command ends with.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        hint: str = "",
        live: str = "",
        exit_code: ExitCode = ExitCode.FAILED,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.live = live
        self.exit_code = exit_code

    def __str__(self) -> str:
        parts = [self.what]
        for label, text in (("why", self.why), ("now", self.live), ("do", self.hint)):
            if text:
                parts.append(f"  {label}: " + text.replace("\n", "\n       "))
        return "\n".join(parts)


def first_line(error: BaseException) -> str:
    """What a library said, as far as a person reads it: some quote what they couldn't read."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= _READ else f"{line[:_READ]}..."


class UsageError(MacdError):
    """Wrong arguments or configuration (exit 2)."""

    def __init__(self, what: str, *, why: str = "", hint: str = "", live: str = "") -> None:
        super().__init__(what, why=why, hint=hint, live=live, exit_code=ExitCode.USAGE)


class ContactLostError(MacdError):
    """The link died and the outcome on the host is unknown (exit 5)."""

    def __init__(self, what: str, *, why: str = "", hint: str = "", live: str = "") -> None:
        super().__init__(what, why=why, hint=hint, live=live, exit_code=ExitCode.CONTACT_LOST)


class RefusedError(MacdError):
    """Nothing was done on purpose: lock, signature, evidence, host key (exit 6)."""

    def __init__(self, what: str, *, why: str = "", hint: str = "", live: str = "") -> None:
        super().__init__(what, why=why, hint=hint, live=live, exit_code=ExitCode.REFUSED)


def failure(error: MacdError) -> dict[str, Any]:
    """An error as the answer of a child process (childprocess.py); `unless_failed` raises it."""
    fields = {name: getattr(error, name) for name in ("what", "why", "live", "hint")}
    return {"error": {**fields, "exit_code": int(error.exit_code)}}


def unless_failed(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer itself. Raises the MacdError that it reports."""
    if error := answer.get("error"):
        error = dict(error)
        raise MacdError(error.pop("what"), **{**error, "exit_code": ExitCode(error["exit_code"])})
    return dict(answer)
