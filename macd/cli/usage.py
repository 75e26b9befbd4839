"""Invoke ends wrong options with 1; our contract says 2 for usage, so scripts can tell the two."""

from __future__ import annotations

import functools

from invoke import Exit, ParseError, Program

from macd.errors import ExitCode

_MARK = "ends_with_usage"


def install() -> None:
    """Make the running `invoke` end with 2 on unknown tasks and options; called by tasks.py."""
    original = Program.parse_tasks
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def parse_tasks(self: Program) -> None:
        try:
            original(self)
        except ParseError as error:
            hint = "  do: invoke --list shows every task, invoke --help TASK its options"
            raise Exit(f"✗ {error}\n{hint}", code=int(ExitCode.USAGE)) from error

    setattr(parse_tasks, _MARK, True)
    setattr(Program, "parse_tasks", parse_tasks)  # noqa: B010 - mypy knows no other way to say so
