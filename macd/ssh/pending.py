"""A request on its way: what the caller holds until the answer is there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from macd.errors import ContactLostError, MacdError

if TYPE_CHECKING:
    from macd.ssh.channel import Channel

Progress = Callable[[Any], None]

# A line for each call; macd/cli/verb.py says where they go. Nothing that was said is in them.
CALLS = logging.getLogger("macd.calls")
_RECEIVE = 256 << 10
_BEGINNING = 4096


@dataclass(frozen=True)
class Finished:
    """How a program run on the host ended; `exit` is negative for a signal."""

    exit: int
    stdout: bytes
    stderr: bytes
    dropped: int
    timed_out: bool
    seconds: float


class _Conversation(Protocol):
    name: str

    def await_start(self) -> None: ...


class Pending:
    """The promise of one answer.

    `sent` is the epoch second the request was made, `worked` the seconds the host took for it: the
    rest of the time went into the link. `bytes_out` and `bytes_in` count its frames.
    """

    def __init__(
        self, session: _Conversation, op: str, number: int, progress: Progress | None = None
    ) -> None:
        self.op = op
        self.id = number
        self.sent = time.time()
        self.worked = 0.0
        self.bytes_out = self.bytes_in = 0
        self._session = session
        self._progress = progress
        self._finishing = threading.Lock()
        self._done = threading.Event()
        self._callback: Callable[[], None] | None = None
        self._result: Any = None
        self._error: MacdError | None = None

    def result(self, wait: float | None = None) -> Any:
        """The operation's result. Raises what went wrong; ContactLostError after `wait` seconds."""
        if not self._done.is_set():
            self._session.await_start()
        if not self._done.wait(wait):
            raise ContactLostError(
                f"{self._session.name} has not answered {self.op} within {wait:.0f} s"
            )
        if self._error is not None:
            raise self._error
        return self._result

    @property
    def done(self) -> bool:
        """Whether the answer (or an error) is there."""
        return self._done.is_set()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, now or later, from whichever thread finishes the request."""
        with self._finishing:
            self._callback = callback
            finished = self._done.is_set()
        if finished:
            callback()

    def told(self, value: Any) -> None:
        """Progress has arrived (called by the session)."""
        if self._progress is not None:
            self._progress(value)

    def finish(self, result: Any = None, error: MacdError | None = None) -> None:
        """The answer has arrived (called by the session); the first one counts."""
        with self._finishing:
            if self._done.is_set():
                return
            self._result, self._error = result, error
            self._log(failed=error is not None)  # before anybody who waits may end the process
            self._done.set()
            callback = self._callback
        if callback is not None:
            callback()

    def _log(self, *, failed: bool) -> None:
        link = max(0.0, time.time() - self.sent - self.worked)
        CALLS.info(
            "%s %s: host %.3f s, link %.3f s, sent %d B, received %d B%s",
            self._session.name,
            self.op,
            max(0.0, self.worked),
            link,
            self.bytes_out,
            self.bytes_in,
            "" if not failed else ", failed" if self.bytes_in else ", no answer",
        )


class Received:
    """read(n) with exactly n bytes, from a channel that gives what it has; `taken` counts them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.taken = 0
        self._data = bytearray()
        self._beginning: bytearray | None = bytearray()

    def beginning(self) -> bytes:
        """The first bytes that came, for telling what was printed instead of a message."""
        return bytes(self._beginning or b"")

    def forget_beginning(self) -> None:
        """Whatever came first was fine."""
        self._beginning = None

    def read(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end of the stream only."""
        while len(self._data) < count:
            chunk = self._channel.recv(_RECEIVE)
            if not chunk:
                break
            self._data += chunk
            if self._beginning is not None and len(self._beginning) < _BEGINNING:
                self._beginning += chunk[:_BEGINNING]
        taken = bytes(self._data[:count])
        del self._data[:count]
        self.taken += len(taken)
        return taken
