"""Send blobs a host lacks: one round trip to learn what is missing, then a stream to the end."""

from __future__ import annotations

import hashlib
import io
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from macd.errors import MacdError
from macd.host.rpc import frames
from macd.ssh.failures import RemoteMismatchError
from macd.ssh.pending import Pending
from macd.ssh.session import Session


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


@dataclass(frozen=True)
class Hooks:
    """What a caller pipelines around the data, so that no round trip is spent waiting.

    `before_sending`: the host has said what it lacks, no byte has left; raising sends none (end the
    session then). `all_sent`: the last byte has left; requests made now are right behind it.
    """

    before_sending: Callable[[], None] = lambda: None
    all_sent: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class _Place:
    root: str
    create: bool


def put(
    session: Session,
    root: str,
    blobs: Iterable[Blob],
    progress: Callable[[int, int], None] | None = None,
    *,
    hooks: Hooks | None = None,
    create: bool = True,
) -> PutReport:
    """Send those of `blobs` that aren't under `root`, each from where an earlier attempt stopped.

    `progress(sent, total)` counts bytes, of those the host lacks. Without `create` a `root` that
    is not there is refused. Returns once every
    blob is verified and durable on the host. Raises RemoteDiskFullError before anything is sent,
    RemoteMismatchError for a wrong hash, ContactLostError after a cut: calling again resumes.
    """
    wanted = {blob.sha256: blob for blob in blobs}
    resumed: set[str] = set()
    at = _Place(root, create)
    hooks = hooks or Hooks()
    try:
        return _attempt(session, at, wanted, resumed, progress, hooks)
    except RemoteMismatchError:
        # What an earlier, interrupted attempt left may be rotten (a power cut). It is deleted by
        # now, so a second attempt sends that blob whole; a wrong source fails again.
        if not resumed:
            raise
        return _attempt(session, at, wanted, resumed, progress, hooks)


def _attempt(
    session: Session,
    at: _Place,
    wanted: Mapping[str, Blob],
    resumed: set[str],
    progress: Callable[[int, int], None] | None,
    hooks: Hooks,
) -> PutReport:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listed = [[blob.sha256, blob.size] for blob in wanted.values()]
    request = {"root": at.root, "blobs": listed, "create": at.create}
    pending = session.stream("blobs_put", request, answers.put)
    pending.when_done(lambda: answers.put(None))
    session.await_start()
    first = answers.get()
    if first is not None:
        resumed.update(sha256 for sha256, offset in first["missing"] if offset)
        hooks.before_sending()
        _send(session, pending, wanted, first["missing"], progress)
        hooks.all_sent()
    told = pending.result()
    return PutReport(landed=told["landed"], present=told["present"], sent=told["received"])


def _send(
    session: Session,
    pending: Pending,
    wanted: Mapping[str, Blob],
    missing: list[tuple[str, int]],
    progress: Callable[[int, int], None] | None,
) -> None:
    total = sum(wanted[sha256].size - offset for sha256, offset in missing)
    sent = 0
    for sha256, offset in missing:
        squeeze = _Squeeze()
        for chunk in _chunks(wanted[sha256], offset):
            if pending.done:  # refused half-way: the result says why
                return
            fields = {"sha256": sha256, "data": chunk}
            squeeze.learn(session.send_data(pending, fields, compress=squeeze.worth), len(chunk))
            sent += len(chunk)
            if progress is not None:
                progress(sent, total)


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
