"""Run a command that ends together with whoever asked for it, however that one ends.

`python -m macd.release.keeper WORD...`, with a pipe as its input that nobody writes to. When the
pipe's other end is closed, which a SIGKILL does too, the command and all it started is killed.
Afterwards it ends as the command did. Where this process itself is killed, the kernel kills the
command, and who asked the rest of the session (`macd.host.processes.of_session`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading

from macd.host.jobs.runner import end_with


def main(words: list[str]) -> int:
    """The command's exit code; a signal that ended it ends this process as well."""
    asked_to_end: list[int] = []
    groups: list[int] = []

    def end(number: int, _: object) -> None:
        asked_to_end.append(number)
        for group in groups:
            _kill(group)

    # Before the command starts: a signal that comes while it does so must not leave it running.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end)
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=end_with(os.getpid()),  # noqa: PLW1509 - the thread begins later
        )
    except OSError as error:
        sys.stderr.write(f"{error.strerror}: {words[0]}\n")
        return 127
    groups.append(child.pid)
    if asked_to_end:
        _kill(child.pid)
    threading.Thread(target=_end_with_asker, args=(child.pid,), daemon=True).start()
    # Waited for without reaping, so that its number is its own until all of it is killed.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    _kill(child.pid)  # what it left running
    code = child.wait()
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _end_with_asker(group: int) -> None:
    while os.read(0, 1):
        pass
    _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
