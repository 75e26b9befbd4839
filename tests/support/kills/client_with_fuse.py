"""invoke, in a process that is killed with SIGKILL once it has sent some call to a host.

A call is a request or a frame of data, over whichever session. KILLED_AT tells which one: its
number, or the name of the first of its kind. CTRL_C_AT does too: SIGINT goes to its process group
then, as from a terminal. The product knows nothing of it. Run as a script by the tests.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from invoke.main import program

from macd.ssh.session import Pending, Session


def _count(fatal: str, blow: Callable[[], None]) -> Callable[[str], None]:
    calls = itertools.count(1)
    one_at_a_time = threading.Lock()

    def passed(call: str) -> None:
        with one_at_a_time:
            number = next(calls)
            print(f"{number} {call}", file=sys.stderr, flush=True)
            if fatal in (str(number), call):
                blow()

    return passed


def main() -> None:
    if at := os.environ.get("CTRL_C_AT"):
        passed = _count(at, lambda: os.killpg(0, signal.SIGINT))
    else:
        passed = _count(os.environ["KILLED_AT"], lambda: os.kill(os.getpid(), signal.SIGKILL))
    stream, send_data = Session.stream, Session.send_data

    def streaming(self: Session, op: str, *args: Any, **named: Any) -> Pending:
        pending = stream(self, op, *args, **named)
        passed(op)
        return pending

    def sending(self: Session, *args: Any, **named: Any) -> int:
        length = send_data(self, *args, **named)
        passed("data")
        return length

    Session.stream = streaming  # type: ignore[method-assign]
    Session.send_data = sending  # type: ignore[method-assign]
    program.run()


if __name__ == "__main__":
    main()
