"""What Invoke's command line lacks: exit status 2 for wrong usage, an optional positional argument,
and a quiet end when nobody reads its lists any more.

Invoke ends wrong options with 1; our contract says 2, so that scripts can distinguish wrong usage
from a failure. Its messages name its own objects; ours name what was typed, and what was meant. It
has no optional positional argument, while both `invoke release.show` and `release.show ID` are
valid here.
"""

from __future__ import annotations

import atexit
import difflib
import functools
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from invoke import Exit, ParseError, Program

from macd.cli import interrupts
from macd.cli.verb import emit, error_fields
from macd.errors import ExitCode, UsageError
from macd.run_directory import FILES

_MARK = "ends_with_usage"
_BARE = {  # task -> the options that bare words behind it stand for
    "release.show": ("--id",),
    "release.verify": ("--id",),
    "train.compare": ("--challenger", "--champion"),
}
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip")
_HEALTH = "invoke health FOLDER or ARCHIVE; --release ID or --run ID name what was made here"
_UNKNOWN = re.compile(r"No idea what '(.*)' is!")
_VALUELESS = re.compile(r"Flag <Argument: ([\w-]+).*> needed value")
_MISSING = re.compile(r"'([\w.-]+)' did not receive required positional arguments: (.*)")


def install(tasks: Collection[str] = ()) -> None:
    """Patch the running `invoke`. Called once by tasks.py.

    tasks: the names of all, where tasks.py loads only those that were typed.
    """
    original, lists = Program.parse_tasks, Program.parse_cleanup
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def parse_tasks(self: Program) -> None:
        typed = list(self.core.unparsed)
        try:
            self.core.unparsed = spelt_out(typed)
            original(self)
        except ParseError as error:
            context = error.context
            task = (context.name or "") if context else ""
            flags = context.flags if context and task else ()
            known = tasks or self.collection.task_names
            raise _end(typed, usage_error(str(error), task, known, flags)) from error
        except ValueError as error:  # Invoke casts values and lets Python's own error through
            raise _end(typed, _no_number(typed, str(error).rpartition(": ")[2])) from error

    @functools.wraps(lists)
    def parse_cleanup(self: Program) -> None:  # --list, --help TASK
        try:
            lists(self)
        except BrokenPipeError:
            raise Exit from None

    setattr(parse_tasks, _MARK, True)
    setattr(Program, "parse_tasks", parse_tasks)  # noqa: B010 - mypy knows no other way to say so
    setattr(Program, "parse_cleanup", parse_cleanup)  # noqa: B010
    atexit.register(interrupts.discard_unread)


def usage_error(
    error: str, task: str = "", tasks: Iterable[str] = (), flags: Iterable[str] = ()
) -> UsageError:
    """Invoke's error about `task` in plain words, with the task or option that was meant."""
    hint = f"invoke --list shows every task, invoke --help {task or 'TASK'} its options"
    if match := _UNKNOWN.search(error):
        typed = match[1]
        close = difflib.get_close_matches(typed, flags if typed.startswith("-") else tasks, n=1)
        kind = "option" if typed.startswith("-") else "task"
        of = f" of {task}" if kind == "option" and task else ""
        if task == "health" and kind == "task" and not close:
            return UsageError(f"{typed} is neither a folder nor an archive here", hint=_HEALTH)
        return UsageError(
            f"{typed} is no {kind}{of}" + (f"; did you mean {close[0]}?" if close else ""),
            hint=hint,
        )
    if match := _VALUELESS.search(error):
        return UsageError(f"--{match[1]} needs a value", hint=hint)
    if match := _MISSING.search(error):
        words = match[2].replace("'", "").upper()
        hint = f"invoke {match[1]} {words}; invoke --help {match[1]} shows its options"
        return UsageError(f"{match[1]} needs {words}", hint=hint)
    return UsageError(error, hint=hint)


def _no_number(typed: Sequence[str], value: str) -> UsageError:
    """The error about a value, quoted as Python quotes it, where a number belongs."""
    of = ["an option here"]
    of += [was for was, word in pairwise(typed) if was.startswith("-") and repr(word) == value]
    of += [word.partition("=")[0] for word in typed if repr(word.partition("=")[2]) == value]
    task = next((word for word in typed if not word.startswith("-")), "")
    return usage_error(f"{of[-1]} takes a number, and {value} is none", task)


def _end(typed: Sequence[str], error: UsageError) -> Exit:
    if "--json" in typed:
        emit(error_fields(error))
        return Exit(code=int(ExitCode.USAGE))
    return Exit(f"✗ {error}", code=int(ExitCode.USAGE))


def spelt_out(argv: Sequence[str]) -> list[str]:
    """The words with the option's name put before a bare word: `release.show ID`."""
    words: list[str] = []
    options: tuple[str, ...] = ()
    for word in argv:
        bare = bool(word) and not word.startswith("-")
        if options and bare:
            words.append(options[0])
        elif words[-1:] == ["health"] and bare and (option := _of_models(word)):
            words.append(option)
        options = options[1:] if options and bare else _BARE.get(word, ())
        words.append(word)
    return words


def _of_models(word: str) -> str:
    """The option of `health` that a path stands for; "" where the word looks like none."""
    path = Path(word)
    if path.is_dir():
        return "--run" if (path / FILES.settings).is_file() else "--dir"
    if path.is_file() or word.endswith(_ARCHIVES):
        return "--bundle"
    return "--dir" if "/" in word else ""
