"""Ctrl-C before a verb has begun: nothing is under way, so there is nothing to say."""

from __future__ import annotations

import os
import signal
from types import FrameType

from macd.errors import ExitCode


def leave_quietly() -> None:
    """End without a traceback until `as_usual` is called; an ignored Ctrl-C stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def as_usual() -> None:
    """A verb has begun and tells itself what Ctrl-C interrupted."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_: int, __: FrameType | None) -> None:
    os._exit(int(ExitCode.FAILED))
