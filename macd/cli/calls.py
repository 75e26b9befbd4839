"""Where the line for each call to a host goes: `invoke --debug` to stderr, MACD_DEBUG=FILE there.

The lines themselves are made in macd/ssh/session.py and hold no argument and no answer.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from macd.errors import UsageError

CALLS = logging.getLogger("macd.calls")  # not macd.ssh.session's: that import is slow


def is_file(text: str) -> bool:
    """Whether a value of MACD_DEBUG names a file; anything else asks for tracebacks."""
    return "/" in text


def write_as_asked() -> None:
    """Begin to write them, if anybody asked for them. Raises UsageError for a file that can't be.

    Each line is written whole, whichever thread or process it comes from.
    """
    if CALLS.handlers:  # the second verb of one command line
        return
    named = os.environ.get("MACD_DEBUG", "")
    if "--debug" in sys.argv:
        _add(logging.StreamHandler())
    if is_file(named):
        try:
            _add(logging.FileHandler(Path(named).expanduser(), encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"MACD_DEBUG names a file that can't be written: {named}",
                why=error.strerror or str(error),
                hint="name another file, or unset MACD_DEBUG",
            ) from error


def _add(handler: logging.Handler) -> None:
    made = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    made.converter = time.gmtime
    handler.setFormatter(made)
    CALLS.addHandler(handler)
    CALLS.setLevel(logging.INFO)
    CALLS.propagate = False  # `invoke --debug` has a handler of its own
