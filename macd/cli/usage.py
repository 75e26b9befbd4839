"""What Invoke's command line lacks: status 2 for wrong usage, and a bare word that may be left out.

Invoke ends wrong options with 1; our contract says 2, so scripts can tell the two. And it knows no
optional positional argument, while both `invoke release.show` and `release.show ID` are typed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from invoke import Exit, ParseError, Program

from macd.errors import ExitCode

_MARK = "ends_with_usage"
_BARE = {"release.show": "--id", "release.verify": "--id"}  # task -> option a bare word stands for


def install() -> None:
    """Teach the running `invoke` both. Called once by tasks.py."""
    original = Program.parse_tasks
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def parse_tasks(self: Program) -> None:
        hint = "  do: invoke --list shows every task, invoke --help TASK its options"
        try:
            self.core.unparsed = spelt_out(self.core.unparsed)
            original(self)
        except ParseError as error:
            raise Exit(f"✗ {error}\n{hint}", code=int(ExitCode.USAGE)) from error
        except ValueError as error:  # Invoke casts values and lets Python's own error through
            what = f"an option here takes a number: {error}"
            raise Exit(f"✗ {what}\n{hint}", code=int(ExitCode.USAGE)) from error

    setattr(parse_tasks, _MARK, True)
    setattr(Program, "parse_tasks", parse_tasks)  # noqa: B010 - mypy knows no other way to say so


def spelt_out(argv: Sequence[str]) -> list[str]:
    """The words with the option's name put before a bare word: `release.show ID`."""
    words: list[str] = []
    for word in argv:
        option = _BARE.get(words[-1]) if words else None
        if option and word and not word.startswith("-"):
            words.append(option)
        words.append(word)
    return words
