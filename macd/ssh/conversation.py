"""The client's end of the wire: requests out, answers in, and why when there are none.

One thread reads all the time, so answers never pile up in the link while we send; that is what
makes pipelining free of deadlocks. Which operations there are is none of its business.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from macd.errors import ContactLostError, MacdError
from macd.host.rpc import frames
from macd.ssh import archive, failures
from macd.ssh.facts import Clock
from macd.ssh.pending import Pending, Progress, Received

if TYPE_CHECKING:
    from macd.ssh.archive import HostCopy
    from macd.ssh.channel import Channel

START_SECONDS = 45.0
_EXIT_SECONDS = 5.0

Message = dict[str, Any]


class Closable(Protocol):
    """What a conversation takes along when it ends: the link its channel belongs to."""

    def close(self) -> None:
        """Never raises."""


class Conversation:
    """One agent, spoken to over one channel. Thread-safe; close it, or use it with `with`.

    `clock` is the best estimate so far of the host's clock. `sudo_login` is the account that
    starts the agent by sudo, "" where it is started directly.

    `copy` is the archive that may lie on the host. Where it is believed to be ours, the host runs
    it; where that is wrong, `reopen` gives another channel, and all that was sent goes there.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        name: str = "host",
        python: str = "python3",
        copy: HostCopy | None = None,
        reopen: Callable[[], Channel] | None = None,
        link: Closable | None = None,
        sudo_login: str = "",
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.name = name
        self.clock = Clock(0.0, float("inf"))
        self._python = python
        self._sudo_login = sudo_login
        self._channel = channel
        self._received = Received(channel)
        self._link = link
        self._tag = secrets.token_bytes(frames.TAG_LENGTH)
        self._copy = copy
        self._reopen = reopen
        self._runs_copy = bool(copy and reopen and copy.remembered() == archive.digest())
        self._starting = Pending(self, "(agent)", 0)  # starting it is logged like a call
        self._unanswered: list[bytes] | None = []  # requests sent before the agent has spoken
        self._sending = threading.Lock()
        self._waiting: dict[int, Pending] = {}
        self._last_id = 0
        self._hello = threading.Event()
        self._ending = threading.Lock()
        self._closed = False
        self._broken: MacdError | None = None
        self._ended = threading.Event()
        self._start_seconds = start_seconds
        # A timer, for sending to a host that reads nothing blocks whoever opens the session.
        self._starts_in_time = threading.Timer(start_seconds, self._give_up)
        self._starts_in_time.daemon = True
        self._starts_in_time.start()
        self._reader = threading.Thread(target=self._receive, name=f"agent {name}", daemon=True)
        self._reader.start()
        self._send(self._opening())

    def call(self, op: str, /, **args: Any) -> Any:
        """Run one operation and return its result: one round trip. Raises RemoteError."""
        return self.submit(op, **args).result()

    def submit(self, op: str, /, **args: Any) -> Pending:
        """Send a request and don't wait; results come in the order of the requests."""
        return self.stream(op, args)

    def stream(self, op: str, args: Mapping[str, Any], progress: Progress | None = None) -> Pending:
        """Like submit, for operations that take data frames or tell their progress.

        `progress` is called in the reading thread and must not block.
        """
        with self._sending:
            self._last_id += 1
            pending = Pending(self, op, self._last_id, progress)
            frame = self._encode({"id": pending.id, "op": op, "args": dict(args)})
            pending.bytes_out = len(frame)
            self._waiting[pending.id] = pending
            if self._unanswered is not None:
                self._unanswered.append(frame)
            self._send(frame)
        if self._ended.is_set():
            pending.finish(error=self._why_broken())
        return pending

    def send_data(
        self, pending: Pending, fields: Mapping[str, Any], *, compress: bool = True
    ) -> int:
        """One data frame for a running stream; returns its length on the wire."""
        with self._sending:
            frame = self._encode({**fields, "id": pending.id}, compress=compress)
            pending.bytes_out += len(frame)
            self._send(frame)
            return len(frame)

    def _encode(self, message: Message, *, compress: bool = True) -> bytes:
        try:
            return frames.encode(self._tag, message, compress=compress)
        except frames.FrameError as error:
            raise MacdError(f"{self.name}: the request is too large", why=str(error)) from error

    def _opening(self) -> bytes:
        path = self._copy.path if self._copy else ""
        first = archive.opening(self._tag, path, travels=not self._runs_copy)
        self._starting.bytes_out += len(first)
        return first

    def _send(self, data: bytes) -> None:
        try:
            self._channel.send(data)
        except ContactLostError:
            if self._unanswered is not None:  # the reader learns why, and may start it again
                return
            self._ended.wait(_EXIT_SECONDS)
            if self._broken is not None:
                raise self._broken from None
            raise

    # -- what comes back --------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            try:
                self._read_all()
            except frames.EndOfStreamError as error:
                if not self._runs_copy or archive.NO_COPY.encode() not in error.noise:
                    raise
                self._start_again()
                self._read_all()
        except Exception as error:  # even a channel's own bug must end the calls, not hang them
            self._end(error)

    def _read_all(self) -> None:
        while True:
            before = self._received.taken
            message, _ = frames.read_frame(self._received.read, self._tag)
            self._dispatch(message, time.time(), self._received.taken - before)

    def _start_again(self) -> None:
        """The host has no such copy: it said so before it looked at any request."""
        assert self._reopen is not None and self._unanswered is not None  # noqa: S101
        self._channel.close()
        channel = self._reopen()
        with self._sending:
            self._runs_copy = False
            self._channel = channel
            self._received = Received(channel)
            self._send(self._opening() + b"".join(self._unanswered))

    def _dispatch(self, message: Message, arrived: float, size: int) -> None:
        if "hello" in message:
            self._starts_in_time.cancel()
            self._unanswered = None
            self._received.forget_beginning()
            if self._copy is not None:
                self._copy.remember(message["hello"]["copy"])
            self._starting.bytes_in = size
            self._starting.finish()
            self._hello.set()
            return
        pending = self._waiting.get(message.get("id", -1))
        if pending is None:
            return
        pending.bytes_in += size
        if "progress" in message:
            pending.told(message["progress"])
            return
        del self._waiting[pending.id]
        received, answered = message["clock"]
        pending.worked = answered - received - message.get("waited", 0.0)
        self._set_clock(pending.sent, received, answered, arrived)
        if "error" in message:
            pending.finish(error=failures.from_host(self.name, pending.op, message["error"]))
        else:
            pending.finish(result=message.get("result"))

    def _set_clock(self, sent: float, received: float, answered: float, arrived: float) -> None:
        """NTP's arithmetic (RFC 5905, section 8); the answer with the shortest way counts."""
        error = max(0.0, (arrived - sent) - (answered - received)) / 2
        if error <= self.clock.error:
            offset = ((received - sent) + (answered - arrived)) / 2
            self.clock = Clock(offset, error)

    def _end(self, error: Exception) -> None:
        with self._ending:
            if self._broken is not None:
                return
            self._broken = self._lost(error) if self._hello.is_set() else self._not_started(error)
        self._ended.set()
        self._hello.set()
        self._starts_in_time.cancel()
        for pending in (self._starting, *self._waiting.values()):
            pending.finish(error=self._broken)
        self._channel.close()  # wakes a sender that the host reads nothing of

    def _lost(self, error: Exception) -> MacdError:
        if isinstance(error, MacdError):
            return error
        stderr = self._channel.stderr()[-500:].decode("utf-8", "replace").strip()
        why = str(error) + (f"\non stderr: {stderr}" if stderr else "")
        return ContactLostError(
            f"contact with the agent on {self.name} was lost",
            why=why,
            live="what the host was doing may or may not have been completed",
            hint="invoke status shows how it ended; the command can be repeated",
        )

    def _not_started(self, error: Exception) -> MacdError:
        if isinstance(error, MacdError):
            return error
        until = time.monotonic() + _EXIT_SECONDS
        ended = isinstance(error, frames.EndOfStreamError) and not self._closed
        while ended and self._channel.exit_status() is None and time.monotonic() < until:
            time.sleep(0.01)
        return failures.not_started(
            self.name,
            self._python,
            noise=self._received.beginning(),
            stderr=self._channel.stderr(),
            status=self._channel.exit_status(),
            cause=str(error),
            sudo_login=self._sudo_login,
        )

    def _why_broken(self) -> MacdError:
        return self._broken or ContactLostError(f"the session with {self.name} is closed")

    def await_start(self) -> None:
        """Return once the agent has spoken, or every call has failed because it did not."""
        self._hello.wait()

    def _give_up(self) -> None:
        if not self._hello.is_set():
            self._end(frames.FrameError(f"no message came within {self._start_seconds:.0f} s"))

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """End the agent (it ends with its stdin) and what was opened for it. Idempotent.

        Returns in bounded time. A Ctrl-C may be raised at the very instant at which paramiko has
        taken a lock and not yet seen to its release; closing would wait for that lock for ever.
        """
        if self._closed:
            return
        self._closed = True
        ending = threading.Thread(target=self._hang_up, name=f"end {self.name}", daemon=True)
        ending.start()
        ending.join(_EXIT_SECONDS)

    def _hang_up(self) -> None:
        self._channel.shutdown_write()
        self._channel.close()
        if self._link is not None:
            self._link.close()
        self._reader.join(_EXIT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
