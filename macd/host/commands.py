"""Run one program on the host: argv, never a shell; bounded in time and output; no orphans."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from typing import IO, TYPE_CHECKING, Any

from macd.host import durable

if TYPE_CHECKING:
    from macd.host.rpc.agent import Peer

_OUTPUT_LIMIT = 1 << 20
_GRACE_SECONDS = 3.0  # between asking a program to end and killing it
_LINGER_SECONDS = 1.0  # for a daemon that keeps the pipe of its ended parent open
_TICK = 0.1


def run(
    peer: Peer | None,
    argv: list[str],
    *,
    cwd: str = "~",
    env: dict[str, str | None] | None = None,
    input: bytes = b"",  # noqa: A002 - the name subprocess.run uses
    timeout: float = 60.0,
    limit: int = _OUTPUT_LIMIT,
) -> dict[str, Any]:
    """Run `argv` and answer with `exit` (negative: the signal), stdout, stderr, seconds, timed_out.

    `env` is added to the agent's; None takes a variable away. Of each output the last `limit` bytes
    are kept and `dropped` counts the others. After `timeout` seconds, or when the client has gone,
    the whole process group is ended. What daemonised out of the group stays.
    Raises FileNotFoundError for a program that isn't there.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [os.path.expanduser(argv[0]), *argv[1:]],
        cwd=durable.expand(cwd),
        env=_environment(env or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    pump = _Pump(process, input, limit)
    timed_out = False
    try:
        while process.poll() is None:
            pump.turn(_TICK)
            timed_out = time.monotonic() - started > timeout
            if timed_out or (peer is not None and peer.gone.is_set()):
                _end(process, pump)
        pump.drain(_LINGER_SECONDS)
    finally:
        if process.poll() is None:
            _signal(process, signal.SIGKILL)
            process.wait()
        pump.close()
    return {
        "exit": process.returncode,
        "stdout": pump.stdout.kept(),
        "stderr": pump.stderr.kept(),
        "dropped": pump.stdout.dropped + pump.stderr.dropped,
        "timed_out": timed_out,
        "seconds": time.monotonic() - started,
    }


class _Tail:
    """The last bytes of an output and a count of those before them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self.dropped = 0

    def add(self, chunk: bytes) -> None:
        self._data += chunk
        if len(self._data) > 2 * self._limit:
            self._cut()

    def _cut(self) -> None:
        excess = max(0, len(self._data) - self._limit)
        self.dropped += excess
        del self._data[:excess]

    def kept(self) -> bytes:
        self._cut()
        return bytes(self._data)


class _Pump:
    """Moves bytes between a process's three pipes and memory without ever blocking on one."""

    def __init__(self, process: subprocess.Popen[bytes], data: bytes, limit: int) -> None:
        self.stdout = _Tail(limit)
        self.stderr = _Tail(limit)
        self._selector = selectors.DefaultSelector()
        self._input = memoryview(data)
        self._pipes: list[IO[bytes]] = []
        for pipe, tail in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            assert pipe is not None  # noqa: S101 - Popen was asked for it
            self._register(pipe, selectors.EVENT_READ, tail)
        assert process.stdin is not None  # noqa: S101
        self._register(process.stdin, selectors.EVENT_WRITE, None)

    def _register(self, pipe: IO[bytes], events: int, tail: _Tail | None) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._pipes.append(pipe)
        self._selector.register(pipe, events, tail)

    def turn(self, seconds: float) -> bool:
        """Move what can be moved; False when all pipes are closed (then it waits the time out)."""
        if not self._selector.get_map():
            time.sleep(seconds / 10)
            return False
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._feed(key.fileobj)
            else:
                self._take(key.fileobj, key.data)
        return True

    def _take(self, pipe: Any, tail: _Tail) -> None:
        chunk = os.read(pipe.fileno(), 65536)
        if chunk:
            tail.add(chunk)
        else:
            self._done(pipe)

    def _feed(self, pipe: Any) -> None:
        try:
            self._input = self._input[os.write(pipe.fileno(), self._input[:65536]) :]
        except BrokenPipeError:
            self._input = self._input[:0]
        if not self._input:
            self._done(pipe)

    def _done(self, pipe: Any) -> None:
        self._selector.unregister(pipe)
        with contextlib.suppress(BrokenPipeError):
            pipe.close()

    def drain(self, seconds: float) -> None:
        """Take what is still in the pipes, but don't wait for a background child to close them."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.turn(_TICK):
            pass

    def close(self) -> None:
        self._selector.close()
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _end(process: subprocess.Popen[bytes], pump: _Pump) -> None:
    _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        pump.turn(_TICK)
    _signal(process, signal.SIGKILL)  # also for what is left of the group once its leader ended
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _environment(changes: dict[str, str | None]) -> dict[str, str]:
    environment = dict(os.environ)
    for name, value in changes.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment
