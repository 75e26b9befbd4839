"""A Channel to a process on this machine: the agent without SSH."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

from macd.errors import ContactLostError

_LAST_WORDS_S = 1.0


class PipeChannel:
    """Runs `command` the way sshd does, by a shell with -c, and speaks to it over pipes."""

    def __init__(
        self,
        command: str,
        *,
        shell: Sequence[str] = ("/bin/sh", "-c"),
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*shell, command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            process_group=0,
        )
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._printed = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Keep stderr from filling its pipe, which would stop the process."""
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._stderr.fileno(), 65536):
                self._printed += chunk
                del self._printed[:-65536]

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._stdin.fileno(), view) :]
        except (OSError, ValueError) as error:
            raise ContactLostError("the local agent has gone", why=str(error)) from error

    def recv(self, limit: int) -> bytes:
        try:
            return os.read(self._stdout.fileno(), limit)
        except (OSError, ValueError) as error:
            raise ContactLostError("the local agent has gone", why=str(error)) from error

    def stderr(self) -> bytes:
        if self.process.poll() is not None:
            self._listener.join(_LAST_WORDS_S)  # a child may hold the pipe open
        return bytes(self._printed)

    def exit_status(self) -> int | None:
        return self.process.poll()

    def shutdown_write(self) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()

    def close(self) -> None:
        """End the process; the pipes stay open until the reading thread has seen the end."""
        self.shutdown_write()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            # Its children too: one that lives holds the pipe that a sender of ours waits for.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
