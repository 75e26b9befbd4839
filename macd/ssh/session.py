"""A session with the agent on one host: start it, call it, many calls in flight at once.

Nothing here waits before it must: the agent's sources and the first request leave together, so a
new session costs no round trip of its own and every call costs one. One thread reads all the time,
so answers never pile up in the link while we send: that keeps pipelining free of deadlocks.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from macd.errors import ContactLostError, MacdError
from macd.host.rpc import frames
from macd.ssh import archive, failures, terminal
from macd.ssh.blobs import put
from macd.ssh.facts import Clock, Facts

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.ssh.ahead import LinksAhead
    from macd.ssh.blobs import Blob, PutReport

START_SECONDS = 45.0
_EXIT_SECONDS = 5.0
_PIECE = 1 << 20
_AHEAD = 8  # pieces on their way behind one: more than a fast link holds over a long way
_RECEIVE = 256 << 10
_BEGINNING = 4096

# A line for each call; macd/cli/verb.py says where they go. They hold no argument and no answer.
CALLS = logging.getLogger("macd.calls")

Message = dict[str, Any]
T = TypeVar("T")
Progress = Callable[[Any], None]


def open_session(
    host: Host,
    inventory: Inventory,
    *,
    ahead: LinksAhead | None = None,
) -> Session:
    """Connect to `host`, by a link that was started `ahead` if there is one, and start the agent.

    Use it as a context manager. A host without a usable Python is reported by the first call.
    """
    from macd.ssh.ssh import connect  # noqa: PLC0415 - paramiko is slow to import

    command = archive.command(host.python, become=host.become, quoted=bool(host.terminal))
    link = (ahead and ahead.take(host)) or connect(host, inventory)
    try:
        return Session(
            terminal.open_channel(link, command, host.terminal),
            name=host.name,
            python=host.python,
            copy=host_copy(host, inventory),
            reopen=lambda: terminal.open_channel(link, command, host.terminal),
            link=link,
            sudo_login=link.user if host.become == "sudo" else "",
        )
    except BaseException:
        link.close()
        raise


def in_flight(requests: Iterable[T], ahead: int) -> Iterator[T]:
    """The requests in their order, up to `ahead` more submitted before one of them is handed out.

    `requests` submits each as it is asked for it.
    """
    coming: deque[T] = deque()
    for request in requests:
        coming.append(request)
        if len(coming) > ahead:
            yield coming.popleft()
    yield from coming


def host_copy(host: Host, inventory: Inventory) -> archive.HostCopy | None:
    """Where provision or a training leaves the archive on `host`; None where nothing does."""
    directory = host.app_dir or host.work_dir
    if not directory:
        return None
    memory = inventory.state_dir / "host-copies" / host.name
    return archive.HostCopy(f"{directory}/bin/macd-host.pyz", memory)


class Session:
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
        copy: archive.HostCopy | None = None,
        reopen: Callable[[], Channel] | None = None,
        link: Link | None = None,
        sudo_login: str = "",
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.name = name
        self.clock = Clock(0.0, float("inf"))
        self._python = python
        self._sudo_login = sudo_login
        self._channel = channel
        self._received = _Received(channel)
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
        """Like submit, for operations that take data frames or report progress.

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

    # -- the operations that every agent has ----------------------------------------------

    def ping(self) -> Clock:
        """One round trip; returns the best estimate of the host's clock so far."""
        self.call("ping")
        return self.clock

    def facts(self, disks: Sequence[str] = ("/", "~", "/tmp")) -> Facts:  # noqa: S108
        """What the host is; `disks` are paths whose free space is wanted."""
        answer = self.call("facts", disks=list(disks))
        return Facts.of(answer, self.clock)

    def pieces(self, path: str, *, offset: int = 0) -> Iterator[bytes]:
        """A file from `offset` to the end it has now, the next pieces already on their way.

        Raises RemoteFileNotFoundError. After a cut, call again with what has come as the offset.
        """
        first = self.call("read", path=path, offset=offset, limit=_PIECE)
        yield first["data"]
        if first["eof"]:
            return
        starts = range(offset + len(first["data"]), first["size"], _PIECE)
        asked = (self.submit("read", path=path, offset=start, limit=_PIECE) for start in starts)
        for pending in in_flight(asked, _AHEAD):
            yield pending.result()["data"]

    def read(self, path: str, *, limit: int = 64 << 20) -> bytes:
        """A whole file. Raises RemoteFileNotFoundError; MacdError when longer than `limit`."""
        data = bytearray()
        for piece in self.pieces(path):
            data += piece
            if len(data) > limit:
                raise MacdError(f"{self.name}: {path} is larger than the {limit} bytes expected")
        return bytes(data)

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Replace a file atomically and durably, its directory made where there is none.

        Up to 8 MiB: larger things are blobs.
        """
        self.call("write", path=path, data=data, mode=mode)

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "~",
        env: Mapping[str, str | None] | None = None,
        input: bytes = b"",  # noqa: A002 - the name subprocess.run uses
        timeout: float = 60.0,
        limit: int = 1 << 20,
    ) -> Finished:
        """Run a program, without a shell. A status other than 0 is a result, not an error."""
        answer = self.call(
            "run", argv=list(argv), cwd=cwd, env=env, input=input, timeout=timeout, limit=limit
        )
        return Finished(**answer)

    def put_blobs(
        self, root: str, blobs: Iterable[Blob], progress: Callable[[int, int], None] | None = None
    ) -> PutReport:
        """Send what `root`'s blob store lacks; see macd/ssh/blobs.py."""
        return put(self, root, blobs, progress)

    def beside(self) -> Session:
        """Another session over the same connection, for the caller to close. Raises MacdError."""
        if self._reopen is None:
            raise MacdError(f"the connection to {self.name} carries one session")
        return Session(
            self._reopen(),
            name=self.name,
            python=self._python,
            copy=self._copy,
            reopen=self._reopen,
            sudo_login=self._sudo_login,
        )

    # -- what goes out ----------------------------------------------------------------------

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
            self._received = _Received(channel)
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
            pending.report(message["progress"])
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
            answers=self._answers,
        )

    def _answers(self) -> bool:
        """Whether the host runs a command that every shell has. True where that is not known."""
        if self._link is None:
            return True
        came = b""
        with contextlib.suppress(MacdError):
            channel = self._link.open_channel("echo macd-answers")
            patience = threading.Timer(_EXIT_SECONDS, channel.close)
            patience.start()
            try:
                channel.shutdown_write()
                while (data := channel.recv(_BEGINNING)) and len(came) < _BEGINNING:
                    came += data
            finally:
                patience.cancel()
                channel.close()
        return b"macd-answers" in came

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

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Finished:
    """How a program run on the host ended; `exit` is negative for a signal."""

    exit: int
    stdout: bytes
    stderr: bytes
    dropped: int
    timed_out: bool
    seconds: float


class Pending:
    """The promise of one answer.

    `sent` is the epoch second the request was made, `worked` the seconds the host took for it: the
    rest of the time went into the link. `bytes_out` and `bytes_in` count its frames.
    """

    def __init__(
        self, session: Session, op: str, number: int, progress: Progress | None = None
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

    def report(self, value: Any) -> None:
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


class Channel(Protocol):
    """What an SSH exec channel offers; any other that offers the same will do.

    `send` and `recv` may be used from two different threads. All raise ContactLostError once the
    link is dead, within the time its keepalives allow.
    """

    def send(self, data: bytes) -> None:
        """Hand over all of `data`, waiting for room in the window."""

    def recv(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes of the program's stdout; b"" once it is closed."""

    def stderr(self) -> bytes:
        """The last 64 KiB of what has arrived on stderr; never waits, takes nothing away."""

    def exit_status(self) -> int | None:
        """The program's exit status, or None while it runs or when it is unknown."""

    def shutdown_write(self) -> None:
        """Close the program's stdin."""

    def close(self) -> None:
        """End the channel. Never raises."""


class Link(Protocol):
    """A login to a host, over which channels are opened; ssh.py and openssh.py make such."""

    name: str

    @property
    def user(self) -> str:
        """The account that is logged in to."""

    def open_channel(self, command: str, *, terminal: bool = False) -> Channel:
        """Start `command` by the login shell and return its streams. Raises MacdError.

        terminal: in a terminal, which joins them; there "" is the login shell itself.
        """

    def close(self) -> None:
        """End it, whatever state it is in. Never raises, may be repeated."""


class _Received:
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
