"""A conversation with the agent on one host: ship it, call it, many calls in flight at once.

Nothing here waits before it must: the agent's sources and the first request leave together, so a
new session costs no round trip of its own and every call costs one.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from macd.errors import ContactLostError, MacdError
from macd.host import frames
from macd.remote import assembler, failures
from macd.remote.facts import Clock, Facts
from macd.remote.pending import Finished, Pending, Progress, Received

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.remote.blobs import Blob, PutReport
    from macd.remote.channel import Channel

START_SECONDS = 45.0
_EXIT_SECONDS = 5.0

Message = dict[str, Any]


class _Closable(Protocol):
    def close(self) -> None: ...


def open_session(host: Host, inventory: Inventory, *, modules: Iterable[str] = ()) -> Session:
    """Connect to `host` and start the agent there with `modules` of macd/host added.

    Use it as a context manager. A host without a usable Python is reported by the first call.
    """
    from macd.remote import ssh  # noqa: PLC0415 - paramiko is slow to import and tests go without

    link = ssh.connect(host, inventory)
    try:
        channel = link.open_channel(assembler.command(host.python))
        return Session(channel, name=host.name, python=host.python, modules=modules, link=link)
    except BaseException:
        link.close()
        raise


class Session:
    """The client's end. Thread-safe; close it, or use it as a context manager."""

    def __init__(
        self,
        channel: Channel,
        *,
        name: str = "host",
        python: str = "python3",
        modules: Iterable[str] = (),
        link: _Closable | None = None,
    ) -> None:
        self.name = name
        self.clock = Clock(0.0, float("inf"))
        self._python = python
        self._channel = channel
        self._link = link
        self._tag = secrets.token_bytes(frames.TAG_LENGTH)
        self._sending = threading.Lock()
        self._waiting: dict[int, Pending] = {}
        self._last_id = 0
        self._hello = threading.Event()
        self._noise = b""
        self._closed = False
        self._broken: MacdError | None = None
        self._ended = threading.Event()
        self._deadline = time.monotonic() + START_SECONDS
        self._reader = threading.Thread(target=self._receive, name=f"agent {name}", daemon=True)
        self._reader.start()
        with contextlib.suppress(ContactLostError):  # the reader learns why, the first call tells
            channel.send(assembler.opening(self._tag, modules))

    @classmethod
    def over(
        cls,
        channel: Channel,
        *,
        name: str = "host",
        python: str = "python3",
        modules: Iterable[str] = (),
    ) -> Session:
        """A session over any channel on which assembler.command(python) is running."""
        return cls(channel, name=name, python=python, modules=modules)

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
            self._waiting[pending.id] = pending
            self._send({"id": pending.id, "op": op, "args": dict(args)})
        if self._ended.is_set():
            pending.finish(error=self._why_broken())
        return pending

    def send_data(
        self, pending: Pending, fields: Mapping[str, Any], *, compress: bool = True
    ) -> int:
        """One data frame for a running stream; returns its length on the wire."""
        with self._sending:
            return self._send({**fields, "id": pending.id}, compress=compress)

    def _send(self, message: Message, *, compress: bool = True) -> int:
        try:
            frame = frames.encode(self._tag, message, compress=compress)
        except frames.FrameError as error:
            self._waiting.pop(message["id"], None)
            raise MacdError(f"{self.name}: the request is too large", why=str(error)) from error
        try:
            self._channel.send(frame)
        except ContactLostError:
            self._ended.wait(_EXIT_SECONDS)
            if self._broken is not None:
                raise self._broken from None
            raise
        return len(frame)

    # -- what comes back --------------------------------------------------------------------

    def _receive(self) -> None:
        received = Received(self._channel)
        try:
            while True:
                message, noise = frames.read_frame(received.read, self._tag)
                if not self._hello.is_set():
                    self._noise = noise
                self._dispatch(message, time.time())
        except frames.FrameError as error:
            self._end(error)
        except MacdError as error:
            self._end(error)
        except Exception as error:  # a channel's own bug must end the calls, not hang them
            self._end(error)

    def _dispatch(self, message: Message, arrived: float) -> None:
        if "hello" in message:
            self._hello.set()
            return
        pending = self._waiting.get(message.get("id", -1))
        if pending is None:
            return
        if "progress" in message:
            pending.told(message["progress"])
            return
        del self._waiting[pending.id]
        self._set_clock(pending.sent, message["clock"], arrived)
        if "error" in message:
            pending.finish(error=failures.from_host(self.name, pending.op, message["error"]))
        else:
            pending.finish(result=message.get("result"))

    def _set_clock(self, sent: float, host: Sequence[float], arrived: float) -> None:
        """NTP's arithmetic (RFC 5905, section 8); the answer with the shortest way counts."""
        received, answered = host
        error = max(0.0, (arrived - sent) - (answered - received)) / 2
        if error <= self.clock.error:
            offset = ((received - sent) + (answered - arrived)) / 2
            self.clock = Clock(offset, error)

    def _end(self, error: Exception) -> None:
        self._broken = self._lost(error) if self._hello.is_set() else self._not_started(error)
        self._ended.set()
        self._hello.set()
        for pending in list(self._waiting.values()):
            pending.finish(error=self._broken)

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
        ended = isinstance(error, frames.EndOfStreamError)
        while ended and self._channel.exit_status() is None and time.monotonic() < until:
            time.sleep(0.01)
        noise = error.noise if isinstance(error, frames.FrameError) else b""
        return failures.not_started(
            self.name,
            self._python,
            noise=noise,
            stderr=self._channel.stderr(),
            status=self._channel.exit_status(),
            cause=str(error),
        )

    def _why_broken(self) -> MacdError:
        return self._broken or ContactLostError(f"the session with {self.name} is closed")

    def await_start(self) -> None:
        """Return once the agent has spoken. Raises MacdError if it doesn't within START_SECONDS."""
        if not self._hello.wait(max(0.0, self._deadline - time.monotonic())):
            self._channel.close()
            self._end(frames.FrameError(f"nothing came within {START_SECONDS:.0f} s"))
        if self._broken is not None:
            raise self._broken

    # -- the operations every session has ---------------------------------------------------

    def ping(self) -> Clock:
        """One round trip; returns the best estimate of the host's clock so far."""
        self.call("ping")
        return self.clock

    def facts(self, disks: Sequence[str] = ("/", "~", "/tmp")) -> Facts:  # noqa: S108
        """What the host is; `disks` are paths whose free space is wanted."""
        told = self.call("facts", disks=list(disks))
        return Facts.of(told, self.clock)

    def read(self, path: str, *, limit: int = 64 << 20) -> bytes:
        """A whole file. Raises RemoteFileNotFoundError; MacdError when longer than `limit`."""
        chunks: list[bytes] = []
        got = 0
        while True:
            piece = self.call("read", path=path, offset=got)
            chunks.append(piece["data"])
            got += len(piece["data"])
            if max(got, piece["size"]) > limit:
                raise MacdError(f"{self.name}: {path} is larger than the {limit} bytes expected")
            if piece["eof"]:
                return b"".join(chunks)

    def write(
        self, path: str, data: bytes, *, mode: int = 0o644, parents: bool = False, owner: str = ""
    ) -> None:
        """Replace a file atomically and durably; up to 8 MiB (larger things are blobs)."""
        self.call("write", path=path, data=data, mode=mode, parents=parents, owner=owner)

    def tail(self, path: str, *, offset: int = 0, limit: int = 1 << 20, wait: float = 0.0) -> Any:
        """See macd/host/files.py: data, offset, size, inode, device, truncated."""
        return self.call("tail", path=path, offset=offset, limit=limit, wait=wait)

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
        told = self.call(
            "run", argv=list(argv), cwd=cwd, env=env, input=input, timeout=timeout, limit=limit
        )
        return Finished(**told)

    def put_blobs(
        self, root: str, blobs: Iterable[Blob], progress: Callable[[int, int], None] | None = None
    ) -> PutReport:
        """Send what `root`'s blob store lacks; see macd/remote/blobs.py."""
        from macd.remote.blobs import put  # noqa: PLC0415 - it needs this module's types

        return put(self, root, blobs, progress)

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """End the agent (it ends with its stdin) and what this session opened. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._channel.shutdown_write()
        self._channel.close()
        if self._link is not None:
            self._link.close()
        self._reader.join(_EXIT_SECONDS)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
