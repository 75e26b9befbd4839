"""Commands as users type them: `invoke WORDS` in a project's directory.

Most of a command's CPU time would be imports. So a command is forked from a server that has made
them (tests/support/command_server.py). It is a process like any other: exit code, streams,
directory, environment and signals are its own. `real=True` starts the `invoke` script itself, and
so does what a fork can't give: see `_needs_the_script`.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import macd

INVOKE = str(Path(sys.executable).with_name("invoke"))
_READ_BY_PYTHON = ("PYTHON", "LANG", "LC_", "LD_", "OPENSSL_")


def run(
    root: Path, *words: str, timeout: float = 240, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Type it and wait; both streams are captured unless `options` say otherwise. See `start`."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with start(root, *words, **options) as command:
        try:
            out, err = command.communicate(timeout=timeout)
        except BaseException:
            command.kill()
            raise
    return subprocess.CompletedProcess(command.args, command.returncode, out, err)


def start(
    root: Path,
    *words: str,
    env: Mapping[str, str] | None = None,
    real: bool = False,
    **options: Any,
) -> subprocess.Popen[str]:
    """Type it. `env` is its whole environment.

    Args:
        options: stdin (nothing to read unless given), stdout, stderr and start_new_session of
            subprocess.Popen.
    """
    environment = dict(os.environ if env is None else env)
    real = real or _needs_the_script(root, environment)
    kind = subprocess.Popen if real else _Forked
    options = {"stdin": subprocess.DEVNULL, "text": True, **options}
    return kind([INVOKE, *words], cwd=root, env=environment, **options)


def _needs_the_script(root: Path, environment: Mapping[str, str]) -> bool:
    """Whether the project has a macd of its own, or Python reads the environment as it starts."""
    _, server = _server()
    names = {*environment, *server} - {"PYTHONUNBUFFERED"}
    read = [name for name in names if name.startswith(_READ_BY_PYTHON)]
    its_own = (root / "macd").exists() and not (root / "macd").samefile(next(iter(macd.__path__)))
    return its_own or any(environment.get(name) != server.get(name) for name in read)


@functools.cache
def _server() -> tuple[socket.socket, Mapping[str, str]]:
    """The socket of this pytest worker's server, which ends when it is closed; its environment."""
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    program = Path(__file__).with_name("command_server.py")
    with theirs:
        subprocess.Popen(
            [sys.executable, program, str(theirs.fileno())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return ours, environment


class _Forked(subprocess.Popen[str]):
    """A Popen whose process is the server's child: the server says how it ended."""

    def _execute_child(self, args: list[str], *given: Any) -> None:
        cwd, env, new_session = given[4], given[5], given[20]
        pipes = given[9:15]  # stdin for the command and for us; stdout for us and for it; stderr
        control, _ = _server()
        self._reply, reply = socket.socketpair()
        with reply:
            theirs = [
                number if end == -1 else end
                for number, end in enumerate((pipes[0], pipes[3], pipes[5]))
            ]
            socket.send_fds(control, [b"."], [*theirs, reply.fileno()])
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        request = {"argv": args, "cwd": str(cwd), "env": env, "new_session": new_session}
        self._reply.sendall(json.dumps(request).encode() + b"\n")
        self.pid = self._number(None)
        self._child_created = True

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        try:
            return self._wait(0)
        except subprocess.TimeoutExpired:
            return None

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            try:
                status = self._number(timeout)
            except (TimeoutError, BlockingIOError) as error:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from error
            self.returncode = os.waitstatus_to_exitcode(status)
            self._reply.close()
        return self.returncode

    def _number(self, timeout: float | None) -> int:
        self._reply.settimeout(timeout)
        received = self._reply.recv(4)
        if not received:
            raise RuntimeError("the server that forks commands has gone")
        return int.from_bytes(received, "big")
