"""Send blobs a host lacks: one round trip to learn what is missing, then a stream to the end.

OpenSSH's server lets a client send 2 MiB ahead in each channel: 10 MB/s at a round trip of 200 ms,
whatever the line could carry. So more sessions over the same connection help with what takes long.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from macd.errors import MacdError
from macd.host.rpc import frames
from macd.ssh.failures import RemoteMismatchError

if TYPE_CHECKING:
    from macd.ssh.session import Session

_TRIED = 3 << 20  # bytes that one session sends before others may help
_FAST = 20 << 20  # bytes a second at which nobody needs help
_WORTH = 8 << 20  # bytes for which a helper is worth the start of an agent
_HELPERS = 3


@dataclass(frozen=True)
class Blob:
    """Bytes known by their hash; `source` is where to read them from."""

    sha256: str
    size: int
    source: Path | bytes

    @classmethod
    def of_file(cls, path: Path) -> Blob:
        """Hash a file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(digest, file.tell(), path)

    @classmethod
    def of_bytes(cls, data: bytes) -> Blob:
        """Hash bytes."""
        return cls(hashlib.sha256(data).hexdigest(), len(data), data)

    def open(self) -> BinaryIO:
        """A fresh stream of the bytes."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


@dataclass(frozen=True)
class PutReport:
    """What a put did: blobs that landed, blobs that were there, bytes sent (before compression)."""

    landed: int
    present: int
    sent: int


class Upload:
    """Blobs that a host is asked to take: the question leaves at once, the bytes with `send`.

    Nothing waits before it must, so other requests may be made between the steps: they are on
    their way beside the question, or right behind the last byte.

    Args:
        create: without it a `root` that is not there is refused.
    """

    def __init__(
        self, session: Session, root: str, blobs: Iterable[Blob], *, create: bool = True
    ) -> None:
        self._session = session
        self._root = root
        self._wanted = {blob.sha256: blob for blob in blobs}
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        listed = [[blob.sha256, blob.size] for blob in self._wanted.values()]
        request = {"root": root, "blobs": listed, "create": create}
        self._pending = session.stream("blobs_put", request, self._answers.put)
        self._pending.when_done(lambda: self._answers.put(None))
        self._helpers: list[_Helper] = []
        self.resumes = False  # a blob that an earlier attempt began

    def send(
        self, progress: Callable[[int, int], None] | None = None, *, alone: bool = False
    ) -> None:
        """Wait for what the host lacks and send it, each blob from where an attempt stopped.

        Returns when the last byte has left; `result` says whether it arrived. `progress(sent,
        total)` counts bytes, one call at a time. Unless `alone`, more sessions over the same
        connection may help. Raises RemoteDiskFullError, or another refusal, before a byte leaves.
        """
        self._session.await_start()
        first = self._answers.get()
        if first is None:
            self._pending.result()  # refused
            return
        self.resumes = any(offset for _, offset in first["missing"])
        missing = [(self._wanted[sha256], offset) for sha256, offset in first["missing"]]
        queued = _Queue(missing, progress)
        try:
            self._send_all(queued, alone=alone)
        finally:
            queued.stop()

    def _send_all(self, queued: _Queue, *, alone: bool) -> None:
        started = time.monotonic()
        while (item := queued.first()) is not None:
            for _ in self._sent(*item, queued):
                if not alone and queued.sent >= _TRIED:
                    alone = True  # it is decided once
                    if time.monotonic() - started > _TRIED / _FAST:
                        self._ask_for_help(queued)
            if self._pending.done:  # refused half-way: the result says why
                self._helpers = []  # whose part no longer counts
                return
        # One that has taken nothing yet may still be starting: it is not waited for.
        self._helpers = [helper for helper in self._helpers if helper.taken]
        for helper in self._helpers:
            helper.has_sent.wait()
        sent = set().union(*(helper.sent for helper in self._helpers))
        for blob, offset in queued.rest():
            if blob.sha256 in sent and offset < blob.size:
                self._session.send_data(self._pending, {"sha256": blob.sha256, "elsewhere": True})
            else:  # a helper could not
                for _ in self._sent(blob, offset, queued):
                    pass

    def _ask_for_help(self, queued: _Queue) -> None:
        count = min(_HELPERS, queued.left // _WORTH)
        for _ in range(count):
            self._helpers.append(_Helper(self._session, self._root, queued, count + 1))

    def _sent(self, blob: Blob, offset: int, queued: _Queue) -> Iterator[None]:
        """Send the rest of a blob, until it is refused; yields after each piece of it."""
        squeeze = _Squeeze()
        for chunk in _chunks(blob, offset):
            if self._pending.done:
                return
            fields = {"sha256": blob.sha256, "data": chunk}
            wire = self._session.send_data(self._pending, fields, compress=squeeze.worth)
            squeeze.learn(wire, len(chunk))
            queued.count(len(chunk))
            yield

    @property
    def ended(self) -> bool:
        """Whether the host has answered: it has everything, or takes nothing more."""
        return self._pending.done

    def result(self) -> PutReport:
        """Wait until every blob is verified and durable on the host.

        Raises RemoteMismatchError for a wrong hash; ContactLostError after a cut: another upload
        resumes.
        """
        received = sum(helper.received() for helper in self._helpers)
        answer = self._pending.result()
        return PutReport(answer["landed"], answer["present"], answer["received"] + received)


class _Queue:
    """What is to be sent, in the host's order: one takes from the front, helpers from the end."""

    def __init__(
        self, missing: Sequence[tuple[Blob, int]], progress: Callable[[int, int], None] | None
    ) -> None:
        self._missing = missing
        self._front, self._end = 0, len(missing)
        self._progress = progress
        self._total = sum(blob.size - offset for blob, offset in missing)
        self._lock = threading.Lock()
        self._stopped = False
        self.sent = 0

    @property
    def left(self) -> int:
        """Bytes that nobody has taken."""
        return sum(blob.size - offset for blob, offset in self._missing[self._front : self._end])

    def first(self) -> tuple[Blob, int] | None:
        with self._lock:
            if self._front == self._end:
                return None
            self._front += 1
            return self._missing[self._front - 1]

    def share(self, parts: int, taken: set[str]) -> list[Blob]:
        """Blobs from the end, a `parts`th of the bytes or a little more; none if all is taken.

        Their hashes are added to `taken` at the same instant.
        """
        with self._lock:
            if self._stopped:
                return []
            enough, size, end = self.left / parts, 0, self._end
            while self._front < self._end and size < enough:
                self._end -= 1
                blob, offset = self._missing[self._end]
                size += blob.size - offset
            share = [blob for blob, _ in self._missing[self._end : end]]
            taken.update(blob.sha256 for blob in share)
            return share

    def rest(self) -> Sequence[tuple[Blob, int]]:
        """What helpers took."""
        return self._missing[self._end :]

    def count(self, length: int) -> None:
        with self._lock:
            self.sent += length
            if self._progress is not None and not self._stopped:
                # What a helper sent in vain counts twice.
                self._progress(min(self.sent, self._total), self._total)

    def stop(self) -> None:
        """Nothing more is taken or counted."""
        with self._lock:
            self._stopped = True


class _Helper(threading.Thread):
    """One more session over the same connection. What it can't send is left to the first one.

    taken, sent: the hashes of its blobs, and of those whose last byte has left; `sent` is complete
    once `has_sent` is set.
    """

    def __init__(self, session: Session, root: str, queued: _Queue, parts: int) -> None:
        super().__init__(name=f"upload to {session.name}", daemon=True)
        self._session = session
        self._root = root
        self._queued = queued
        self._parts = parts
        self._received = 0
        self._error: Exception | None = None
        self.taken: set[str] = set()
        self.sent: set[str] = set()
        self.has_sent = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with contextlib.closing(self._session.beside()) as session:
                session.await_start()
                uploads = []
                while blobs := self._queued.share(self._parts, self.taken):
                    upload = Upload(session, self._root, blobs, create=False)
                    uploads.append(upload)
                    upload.send(self._counted(), alone=True)
                    if upload.ended:
                        upload.result()  # raises what it was refused for
                    self.sent |= {blob.sha256 for blob in blobs}
                self.has_sent.set()
                self._received = sum(upload.result().sent for upload in uploads)
        except Exception as error:
            # Before all has left: the first session sends it. Afterwards: it is the result.
            self._error = error if self.has_sent.is_set() else None
        finally:
            self.has_sent.set()

    def _counted(self) -> Callable[[int, int], None]:
        last = 0

        def progress(sent: int, _: int) -> None:
            nonlocal last
            self._queued.count(sent - last)
            last = sent

        return progress

    def received(self) -> int:
        """Wait for the host; the bytes that arrived. Raises what went wrong after all had left."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._received


def put(
    session: Session,
    root: str,
    blobs: Iterable[Blob],
    progress: Callable[[int, int], None] | None = None,
) -> PutReport:
    """Send those of `blobs` that aren't under `root`; wait until all are durable there.

    Raises as `Upload` does.
    """
    wanted = list(blobs)
    upload = Upload(session, root, wanted)
    upload.send(progress)
    try:
        return upload.result()
    except RemoteMismatchError:
        # What an earlier, interrupted attempt left may be rotten (a power cut). It is deleted by
        # now, so a second attempt sends that blob whole; a wrong source fails again.
        if not upload.resumes:
            raise
    upload = Upload(session, root, wanted)
    upload.send(progress)
    return upload.result()


def _chunks(blob: Blob, offset: int) -> Iterator[bytes]:
    with blob.open() as stream:
        stream.seek(offset)
        left = blob.size - offset
        while left:
            chunk = stream.read(min(frames.CHUNK, left))
            if not chunk:
                raise MacdError(
                    f"{blob.source if isinstance(blob.source, Path) else 'a blob'} became shorter"
                    " while it was sent",
                    hint="run the command again once nothing writes to it",
                )
            left -= len(chunk)
            yield chunk


class _Squeeze:
    """Whether compressing the next chunk of a blob is likely to pay: wheels and parquet don't."""

    def __init__(self) -> None:
        self._skip = 0

    @property
    def worth(self) -> bool:
        return self._skip == 0

    def learn(self, wire: int, raw: int) -> None:
        if self._skip:
            self._skip -= 1
        elif wire > raw * 0.95:
            self._skip = 7
