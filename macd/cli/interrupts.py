"""End without a traceback on Ctrl-C before a verb starts, and when `| head` has read enough."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from types import FrameType
from typing import TextIO

from macd.errors import ExitCode


def leave_quietly() -> None:
    """End without a traceback until `as_usual` is called; an ignored Ctrl-C stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def as_usual() -> None:
    """Make Ctrl-C a KeyboardInterrupt again: a verb says itself what was interrupted."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def discard_unread() -> None:
    """Write out what is still here; where nobody reads any more, it and what follows is dropped.

    Call it at the end too: Python's own last flush would complain.
    """
    for stream in (sys.stdout, sys.stderr):
        # ValueError: closed, or (as io.UnsupportedOperation) no real file, as in tests
        with contextlib.suppress(ValueError):
            if stream is not None and _reader_left(stream):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream.fileno())
                os.close(nothing)


def _reader_left(stream: TextIO) -> bool:
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    asked = select.poll()
    asked.register(stream.fileno(), 0)
    return any(events & select.POLLERR for _, events in asked.poll(0))


def _leave(_: int, __: FrameType | None) -> None:
    os._exit(int(ExitCode.INTERRUPTED))
