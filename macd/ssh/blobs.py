"""Send blobs a host lacks: one round trip to learn what is missing, then a stream to the end."""

from __future__ import annotations

import hashlib
import io
import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from macd.errors import MacdError
from macd.host.rpc import frames
from macd.ssh.failures import RemoteMismatchError

if TYPE_CHECKING:
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
        self._wanted = {blob.sha256: blob for blob in blobs}
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        listed = [[blob.sha256, blob.size] for blob in self._wanted.values()]
        request = {"root": root, "blobs": listed, "create": create}
        self._pending = session.stream("blobs_put", request, self._answers.put)
        self._pending.when_done(lambda: self._answers.put(None))
        self.resumes = False  # a blob that an earlier attempt began

    def send(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Wait for what the host lacks and send it, each blob from where an attempt stopped.

        Returns when the last byte has left; `result` says whether it arrived. `progress(sent,
        total)` counts bytes. Raises RemoteDiskFullError, or another refusal, before a byte leaves.
        """
        self._session.await_start()
        first = self._answers.get()
        if first is None:
            self._pending.result()  # refused
            return
        self.resumes = any(offset for _, offset in first["missing"])
        total = sum(self._wanted[sha256].size - offset for sha256, offset in first["missing"])
        sent = 0
        for sha256, offset in first["missing"]:
            squeeze = _Squeeze()
            for chunk in _chunks(self._wanted[sha256], offset):
                if self._pending.done:  # refused half-way: the result says why
                    return
                sent += len(chunk)
                fields = {"sha256": sha256, "data": chunk}
                wire = self._session.send_data(self._pending, fields, compress=squeeze.worth)
                squeeze.learn(wire, len(chunk))
                if progress is not None:
                    progress(sent, total)

    def result(self) -> PutReport:
        """Wait until every blob is verified and durable on the host.

        Raises RemoteMismatchError for a wrong hash; ContactLostError after a cut: another upload
        resumes.
        """
        answer = self._pending.result()
        return PutReport(answer["landed"], answer["present"], answer["received"])


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
