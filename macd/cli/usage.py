"""Invoke ends wrong options with 1; our contract says 2 for usage, so scripts can tell the two."""

from __future__ import annotations

import functools

from invoke import Exit, ParseError, Program

from macd.errors import ExitCode


def install() -> None:
    """Make the running `invoke` end with 2 on unknown tasks and options. Called once by tasks.py."""
    original = Program.parse_tasks
    if getattr(original, "ends_with_usage", False):
        return

    @functools.wraps(original)
    def parse_tasks(self: Program) -> None:
        try:
            original(self)
        except ParseError as error:
            hint = "  do: invoke --list shows every task, invoke --help TASK its options"
            raise Exit(f"✗ {error}\n{hint}", code=int(ExitCode.USAGE)) from error

    parse_tasks.ends_with_usage = True  # type: ignore[attr-defined]
    Program.parse_tasks = parse_tasks
