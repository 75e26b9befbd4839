"""Forks a process for each command that a test types, with what commands import already there.

tests/support/commands.py starts one for each pytest worker. It must have no thread when it forks:
numpy, polars and torch start some when they are imported, so nothing here imports them.

For each command it gets one byte with four descriptors: the command's stdin, stdout and stderr, and
a socket. The child reads the request from that socket, a line of JSON, and becomes what the
`invoke` script would be. The server writes to the socket, four bytes each: the child's pid, and its
wait status once it has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from invoke.main import program

_PACKAGES = ("cli", "deploy", "gate", "inventory", "jobs", "release", "report", "ssh")


def main(control: socket.socket) -> None:
    """Import what commands import; then fork until the other end of `control` is closed."""
    ended: list[int] = []
    atexit.register(_leave, ended)  # before what is imported registers anything, so it comes last
    for name in _PACKAGES:
        package = importlib.import_module(f"macd.{name}")
        for module in pkgutil.iter_modules(package.__path__, f"macd.{name}."):
            importlib.import_module(module.name)
    gc.freeze()  # a child that looks for garbage would copy all these pages
    command = _next_command(control)
    if command is not None:
        control.close()
        _become(*command)
        code: Any = 0
        try:
            program.run()
        except SystemExit as end:
            code = end.code or 0
        ended.append(code)
        sys.exit(code)


def _leave(ended: list[int]) -> None:
    """End a child without tearing down every module, which takes longer than most commands."""
    if ended:
        with contextlib.suppress(OSError):  # then Python ends as it does when it can't write
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended[0])


def _next_command(control: socket.socket) -> tuple[list[int], socket.socket] | None:
    """In each child: its descriptors and its socket. In the server only at the end: None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed for pytest and the commands
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended, waker = socket.socketpair()
    ended.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    try:
        with ended, waker, selectors.DefaultSelector() as events:
            events.register(control, selectors.EVENT_READ)
            events.register(ended, selectors.EVENT_READ)
            return _serve(control, ended, events)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _serve(
    control: socket.socket, ended: socket.socket, events: selectors.BaseSelector
) -> tuple[list[int], socket.socket] | None:
    children: dict[int, socket.socket] = {}
    while True:
        ready = [key.fileobj for key, _ in events.select()]
        if ended in ready:
            ended.recv(4096)
            _report_ended(children)
        if control in ready:
            asked, descriptors, _, _ = socket.recv_fds(control, 1, 4)
            if not asked:
                return None
            reply = socket.socket(fileno=descriptors.pop())
            pid = os.fork()
            if not pid:
                for other in children.values():
                    other.close()
                return descriptors, reply
            for descriptor in descriptors:
                os.close(descriptor)
            children[pid] = reply
            _send(reply, pid)


def _report_ended(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as reply:
            _send(reply, status)


def _send(reply: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test doesn't wait for it
        reply.sendall(number.to_bytes(4, "big"))


def _become(descriptors: list[int], reply: socket.socket) -> None:
    """Take over descriptors, directory, environment and signals, as a program just started."""
    with reply, reply.makefile("rb") as stream:
        request: dict[str, Any] = json.loads(stream.readline())
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.stdin = sys.__stdin__ = _stream(0, sys.stdin)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, sys.stderr)  # type: ignore[misc]


def _stream(number: int, servers: TextIO) -> io.TextIOWrapper:
    """A standard stream as Python opens it; `servers` has the encoding that this locale gives."""
    buffered = not os.environ.get("PYTHONUNBUFFERED")
    mode = "wb" if number else "rb"
    return io.TextIOWrapper(
        open(number, mode, -1 if buffered or not number else 0, closefd=False),
        servers.encoding,
        servers.errors,
        line_buffering=buffered and (number == sys.stderr.fileno() or os.isatty(number)),
        write_through=not buffered,
    )


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
