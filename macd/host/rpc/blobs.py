"""Receive blobs: only what is missing, verified on arrival, resumable to the last byte.

Layout under a root such as /opt/macd-analysis:
    blobs/sha256/<first 2 hex>/<64 hex>     whole and verified, never changed afterwards
    blobs/.partial/<64 hex>.<token>         arriving; its writer holds a flock on it

The next writer adopts a partial whose writer is gone (its lock is free). A partial that somebody
still writes (a second uploader, or the agent of a link that died unnoticed) is copied as far as it
got. So nobody writes into another's file, and nobody starts over needlessly.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from macd.host import durable
from macd.host.failure import HostError, PeerGoneError

if TYPE_CHECKING:
    from macd.host.rpc.agent import Peer

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PIECE = 1 << 20
_SPARE_BYTES = 16 << 20  # a disk filled to the last byte breaks more than an upload
_MODE = 0o444
_QUIET_S = 20.0  # without a byte of a blob that another session brings
_LOOK_S = 0.005


def path_of(root: str, sha256: str) -> str:
    """Where the whole blob lies."""
    return os.path.join(durable.expand(root), "blobs", "sha256", sha256[:2], sha256)


def keep(root: str, path: str) -> str:
    """Make a file of this host a blob, whatever happens to the file; its SHA-256."""
    root = durable.expand(root)
    arriving = os.path.join(root, "blobs", ".partial", f"here.{secrets.token_hex(8)}")
    durable.make_directories(os.path.dirname(arriving))
    try:
        shutil.copyfile(path, arriving)
        sha256 = durable.sha256_of(arriving)  # of the copy: the file may change meanwhile
        target = path_of(root, sha256)
        os.chmod(arriving, _MODE)
        durable.sync(arriving)
        durable.make_directories(os.path.dirname(target))
        os.rename(arriving, target)
        durable.sync_directory(os.path.dirname(target))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(arriving)
        raise
    return sha256


def missing(root: str, blobs: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Which of `blobs` (sha256, size) are not here, and how much of each is. Changes nothing."""
    root = durable.expand(root)
    wanted = [[sha256, _have(root, sha256, size)] for sha256, size in _absent(root, blobs)]
    return {"missing": wanted, "free": durable.disk_of(root).free}


def put(
    peer: Peer, root: str, blobs: Sequence[tuple[str, int]], create: bool = True
) -> dict[str, Any]:
    """Receive those of `blobs` that are not here. Without `create`, `root` must exist.

    Answers at once with a progress message {"missing": [[sha256, offset], ...]}; the client then
    sends exactly those bytes in that order, as data frames {"sha256", "data"}. A blob that another
    session brings is waited for: {"sha256", "elsewhere": true}. A progress message
    {"landed": sha256} acknowledges every blob that arrived.

    Raises HostError of kind "disk full" before anything is sent, "oversize" for bytes beyond the
    declared size and "mismatch" for a wrong hash (its partial is deleted) or a blob that no other
    session brings.
    """
    root = durable.expand(root)
    if not create and not os.path.isdir(root):
        raise HostError(f"there is no {root} on this host", kind="refused", live="unchanged")
    partials = os.path.join(root, "blobs", ".partial")
    absent = _absent(root, blobs)
    if absent:
        durable.make_directories(partials)
    with contextlib.ExitStack() as stack:
        arriving = [
            stack.enter_context(contextlib.closing(_Arriving(root, sha256, size)))
            for sha256, size in absent
        ]
        _check_room(root, sum(blob.size - blob.offset for blob in arriving))
        peer.progress({"missing": [[blob.sha256, blob.offset] for blob in arriving]})
        received = 0
        for blob in arriving:
            received += blob.receive(peer)
            peer.progress({"landed": blob.sha256})
    return {"received": received, "landed": len(arriving), "present": len(blobs) - len(absent)}


class _Arriving:
    """One blob on its way: at most one open, locked partial of our own."""

    def __init__(self, root: str, sha256: str, size: int) -> None:
        self.sha256 = sha256
        self.size = size
        self._root = root
        self._partials = os.path.join(root, "blobs", ".partial")
        self._descriptor = -1
        self._path = ""
        self._digest = hashlib.sha256()
        self.offset = 0
        if any(True for _ in _partials_of(root, sha256)):
            self._open()

    def _open(self) -> None:
        self._adopt()
        if self._descriptor < 0:
            self._create()
            self._copy_from_others()
        self.offset = min(os.fstat(self._descriptor).st_size, self.size)
        os.ftruncate(self._descriptor, self.offset)
        for piece in _pieces(self._descriptor, 0, self.offset):
            self._digest.update(piece)
        os.lseek(self._descriptor, self.offset, os.SEEK_SET)

    def _adopt(self) -> None:
        """Take over the longest partial whose writer is gone; remove the shorter ones."""
        for path in _partials_of(self._root, self.sha256):
            descriptor = _open_locked(path)
            if descriptor is None:
                continue
            if os.fstat(descriptor).st_size < self._length():
                os.unlink(path)
                os.close(descriptor)
                continue
            if self._descriptor >= 0:
                os.unlink(self._path)
                os.close(self._descriptor)
            self._descriptor, self._path = descriptor, path

    def _length(self) -> int:
        return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else 0

    def _create(self) -> None:
        while self._descriptor < 0:
            self._path = os.path.join(self._partials, f"{self.sha256}.{secrets.token_hex(6)}")
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._descriptor = descriptor
            except OSError:  # adopted by somebody between our open and our lock
                os.close(descriptor)

    def _copy_from_others(self) -> None:
        for path in _partials_of(self._root, self.sha256):
            if path == self._path:
                continue
            with contextlib.suppress(OSError), open(path, "rb") as other:
                length = min(os.fstat(other.fileno()).st_size, self.size)
                if length > self._length():
                    os.lseek(self._descriptor, 0, os.SEEK_SET)
                    for piece in _pieces(other.fileno(), 0, length):
                        durable.write_all(self._descriptor, piece)

    def receive(self, peer: Peer) -> int:
        """Take the rest of the bytes, verify, move the blob to its place. Returns bytes taken."""
        if self._descriptor < 0:
            self._create()
        position = self.offset
        while position < self.size:
            frame = peer.receive()
            data = frame.get("data", b"")
            if frame.get("sha256") == self.sha256 and frame.get("elsewhere"):
                self._await_other(peer)
                return position - self.offset
            if frame.get("sha256") != self.sha256 or not data:
                raise HostError("the client sent another blob than was asked for", kind="protocol")
            if len(data) > self.size - position:
                raise HostError(
                    f"blob {self.sha256[:12]} is longer than the {self.size} bytes declared",
                    kind="oversize",
                )
            durable.write_all(self._descriptor, data)
            self._digest.update(data)
            position += len(data)
        self._finish()
        return self.size - self.offset

    def _await_other(self, peer: Peer) -> None:
        """Return once another session has brought it whole; what came of it here is not needed."""
        came, since = -1, time.monotonic()
        while not _present(path_of(self._root, self.sha256), self.size):
            if peer.gone.is_set():
                raise PeerGoneError("the client closed the channel")
            if (now := _have(self._root, self.sha256, self.size)) != came:
                came, since = now, time.monotonic()
            if time.monotonic() - since > _QUIET_S:
                raise HostError(
                    f"no other session brought blob {self.sha256[:12]}", kind="mismatch"
                )
            time.sleep(_LOOK_S)
        os.unlink(self._path)
        self.close()

    def _finish(self) -> None:
        if self._digest.hexdigest() != self.sha256:
            os.unlink(self._path)
            raise HostError(
                f"blob {self.sha256[:12]} arrived with another hash",
                why=f"expected {self.sha256}, got {self._digest.hexdigest()}; deleted",
                kind="mismatch",
            )
        os.fchmod(self._descriptor, _MODE)
        os.fsync(self._descriptor)
        target = path_of(self._root, self.sha256)
        durable.make_directories(os.path.dirname(target))
        os.rename(self._path, target)
        durable.sync_directory(os.path.dirname(target))
        self.close()

    def close(self) -> None:
        """Let go of the partial; what has arrived stays for the next attempt."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _absent(root: str, blobs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    absent = {}
    for sha256, size in blobs:
        if not isinstance(sha256, str) or not _SHA256.match(sha256):
            raise HostError(f"{sha256!r} is no SHA-256 in lower case hex", kind="protocol")
        if not isinstance(size, int) or size < 0:
            raise HostError(f"blob {sha256[:12]} has no valid size: {size!r}", kind="protocol")
        if not _present(path_of(root, sha256), size):
            absent[sha256] = size
    return list(absent.items())


def _present(path: str, size: int) -> bool:
    try:
        return os.lstat(path).st_size == size
    except FileNotFoundError:
        return False


def _have(root: str, sha256: str, size: int) -> int:
    lengths = [0]
    for path in _partials_of(root, sha256):
        with contextlib.suppress(FileNotFoundError):
            lengths.append(min(os.path.getsize(path), size))
    return max(lengths)


def _partials_of(root: str, sha256: str) -> Iterator[str]:
    partials = os.path.join(root, "blobs", ".partial")
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(partials)):
            if name.startswith(sha256 + "."):
                yield os.path.join(partials, name)


def _open_locked(path: str) -> int | None:
    """A descriptor of a partial nobody writes, locked for us; None if somebody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink and os.path.exists(path):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _pieces(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = os.pread(descriptor, min(_PIECE, end - start), start)
        if not piece:
            return
        start += len(piece)
        yield piece


def _check_room(root: str, needed: int) -> None:
    free = durable.disk_of(root).free
    if needed + _SPARE_BYTES > free:
        raise HostError(
            f"not enough room under {root}: {needed} bytes to receive, {free} free",
            hint="remove old releases or make room, then run the command again",
            kind="disk full",
        )
