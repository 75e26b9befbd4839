"""Make Invoke tasks whose errors are caught, printed and given an exit code in this one place."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json as jsonlib
import logging
import os
import select
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from invoke import Exit, Task, task

from macd.cli import interrupts
from macd.errors import ExitCode, MacdError, UsageError
from macd.host import untrusted

CALLS = logging.getLogger("macd.calls")  # not macd.ssh.session's: that import is slow

_LONGEST = 20_000  # characters of an error
_OFF, _ON = ("", "0", "false", "no", "off"), ("1", "2", "true", "yes", "on")  # of MACD_DEBUG
_LOOK_S = 0.2
Verb = Callable[..., Any]

_INTERRUPTED = (
    "nothing more is started from here; hosts finish what they are doing\n"
    "  do: invoke status, or invoke train.status, shows how it ended"
)
LOOKED = "nothing was changed on any host"  # of verbs that only look
_HELP = {  # of options that many verbs have
    "env": "act on the hosts of this environment (default: prod)",
    "host": "only this host of the environment",
    "inventory": "use inventory/NAME.yml (default: $MACD_INVENTORY, else lab)",
    "json": "print one JSON document for machines",
    "parallel": "how many hosts to work on at the same time (default: 10)",
    "yes": "don't ask for confirmation",
}


class _Verb(Task):  # type: ignore[type-arg]
    def arg_opts(self, name: str, default: Any, taken_names: set[str]) -> dict[str, Any]:
        """Of an option whose letters are all taken, Invoke would make its dash a short option."""
        options = super().arg_opts(name, default, taken_names)
        return {**options, "names": [name for name in options["names"] if name != "-"]}


def verb(
    *,
    help: Mapping[str, str] = MappingProxyType({}),
    default: bool = False,
    positional: Sequence[str] = (),
    iterable: Sequence[str] = (),
    interrupted: str = _INTERRUPTED,
) -> Callable[[Verb], Task[Any]]:
    """Make an Invoke task: a MacdError becomes a message and its exit code, Ctrl-C a line and 130.

    The body returns None for success or an ExitCode (a gate that FAILs is a result, not an error).
    `help` is about options that are this verb's own, or mean something else here. `interrupted` is
    what a Ctrl-C leaves, and what to do, where no host has anything to finish.
    """

    def decorate(body: Verb) -> Task[Any]:
        @functools.wraps(body)
        def guarded(*args: Any, **kwargs: Any) -> None:
            code = _run(body, args, kwargs, interrupted)
            if code:
                raise Exit(code=int(code))

        options = inspect.signature(body).parameters
        common = {option: text for option, text in _HELP.items() if option in options}
        made: Task[Any] = task(
            klass=_Verb,
            name=body.__name__.strip("_").replace("_", "-"),
            help=common | dict(help),
            default=default,
            positional=positional,
            iterable=iterable,
        )(guarded)
        return made

    return decorate


def _run(body: Verb, args: tuple[Any, ...], kwargs: dict[str, Any], interrupted: str) -> int:
    try:
        interrupts.as_usual()
        log_calls()
        result = body(*args, **kwargs)
    except MacdError as error:
        return _print_error(error, as_json=bool(kwargs.get("json")))
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        interrupts.discard_unread()  # `| head` closed us; stay silent
        return ExitCode.DONE
    except OSError as error:
        known = _of_a_file(error)
        if known is None:
            raise
        known.__cause__ = error
        return _print_error(known, as_json=bool(kwargs.get("json")))
    return int(result or 0)


def _of_a_file(error: OSError) -> MacdError | None:
    """The error of a file or disk of this machine; None for any other."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not (full or (place and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM))):
        return None
    return MacdError(
        f"{place or 'a file of this machine'} can't be {'written' if full else 'opened here'}",
        why=error.strerror or str(error),
        live="nothing more is started from here; invoke status shows what is live",
        hint="make room on this machine (df -h), then type it again"
        if full
        else "make the directory writable for you, or work in a clone that belongs to you",
    )


def _print_error(error: MacdError, *, as_json: bool) -> int:
    with contextlib.suppress(BrokenPipeError):  # the status counts, read or not
        if debugging():
            traceback.print_exception(error)
        if as_json:
            emit(error_fields(error))
        else:
            print(f"✗ {harmless(error)}", file=sys.stderr)
    return int(error.exit_code)


def harmless(error: MacdError) -> str:
    """An error for a terminal: some of its text may come from a host or a service."""
    return untrusted.text(error, _LONGEST)


def safe(text: str) -> str:
    """Text from a host, harmless to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def error_fields(error: MacdError) -> dict[str, Any]:
    """An error as a JSON document shows it."""
    fields = {k: getattr(error, k) for k in ("what", "why", "live", "hint")}
    return {"error": fields, "exit_code": int(error.exit_code)}


def debugging() -> bool:
    """True when the user asked for tracebacks (`invoke --debug ...` or MACD_DEBUG=1)."""
    return "--debug" in sys.argv or os.environ.get("MACD_DEBUG", "").lower() in _ON


def log_calls() -> None:
    """Log a line for each call to a host, where it was asked for.

    `invoke --debug` logs to stderr, MACD_DEBUG=FILE to that file. macd/ssh/session.py makes the
    lines; they hold no argument and no answer. Each is written whole, whichever thread or process
    it comes from. Raises UsageError for a file that can't be written.
    """
    if CALLS.handlers:  # the second verb of one command line
        return
    named = os.environ.get("MACD_DEBUG", "")
    if "--debug" in sys.argv:
        _log_to(logging.StreamHandler())
    if named.lower() not in (*_OFF, *_ON):
        try:
            _log_to(logging.FileHandler(Path(named).expanduser(), encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"MACD_DEBUG names a file that can't be written: {named}",
                why=error.strerror or str(error),
                hint="name another file, or unset MACD_DEBUG",
            ) from error


def _log_to(handler: logging.Handler) -> None:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    CALLS.addHandler(handler)
    CALLS.setLevel(logging.INFO)
    CALLS.propagate = False  # `invoke --debug` has a handler of its own


def emit(data: Any) -> None:
    """Print one JSON document for machines; what a terminal would obey is escaped."""
    text = jsonlib.dumps(data, indent=2, ensure_ascii=False, default=str)
    if not text.replace("\n", "").isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else jsonlib.dumps(c)[1:-1] for c in text)
    print(text)


def same(*, env: str = "prod", **options: str) -> str:
    """The options as they were typed, for the hint of a next command; "" if none.

    The default environment is left out: every verb assumes it.
    """
    given = {"env": "" if env == "prod" else env, **options}
    return "".join(f" --{name} {shlex.quote(text)}" for name, text in given.items() if text)


def confirm(question: str, *, yes: bool) -> bool:
    """Ask on the terminal; `--yes` answers it; without a terminal the answer is no."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # stdout may be for a machine
    try:
        return _typed_line().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D, or the terminal is gone
        print(file=sys.stderr)
        return False


def _typed_line() -> str:
    """A line from the terminal. input() alone misses a Ctrl-C pressed just before it reads."""
    while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
        pass
    return input().strip()


def ask(question: str, default: str, *, yes: bool) -> str:
    """Ask for a text on the terminal; Enter, `--yes` or no terminal means `default`."""
    if yes or not sys.stdin.isatty():
        return default
    print(f"{question} [{default or 'none'}]: ", end="", file=sys.stderr, flush=True)
    try:
        return _typed_line() or default
    except EOFError:
        print(file=sys.stderr)
        return default


def not_agreed(*, json: bool, first: Sequence[str] = ()) -> ExitCode:
    """Say that nothing was done because the answer to `confirm` was no.

    first: what has to be done before an agreement helps.
    """
    hints = [*first, f"{'then ' if first else ''}add --yes to go on without a question"]
    if json:
        emit({"result": "not agreed", "hint": "\n".join([*first, "--yes"])})
    else:
        print("nothing was changed\n  do: " + "\n      ".join(hints))
    return ExitCode.FAILED
