"""A conversation with the agent on one host: ship it, call it, many calls in flight at once.

Nothing here waits before it must: the agent's sources and the first request leave together, so a
new session costs no round trip of its own and every call costs one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from macd.errors import MacdError
from macd.ssh import archive
from macd.ssh.conversation import Conversation
from macd.ssh.facts import Clock, Facts
from macd.ssh.pending import Finished, Pending

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.ssh.ahead import LinksAhead
    from macd.ssh.blobs import Blob, PutReport

_PIECE = 1 << 20
_AHEAD = 8  # pieces in flight: more than a fast link holds over a long way


def open_session(
    host: Host,
    inventory: Inventory,
    *,
    ahead: LinksAhead | None = None,
) -> Session:
    """Connect to `host`, by a link that was begun `ahead` if there is one, and start the agent.

    Use it as a context manager. A host without a usable Python is reported by the first call.
    """
    from macd.ssh.ssh import connect  # noqa: PLC0415 - paramiko is slow to import

    command = archive.command(host.python, become=host.become)
    link = (ahead and ahead.take(host)) or connect(host, inventory)
    try:
        return Session(
            link.open_channel(command),
            name=host.name,
            python=host.python,
            copy=host_copy(host, inventory),
            reopen=lambda: link.open_channel(command),
            link=link,
            sudo_login=link.hops[-1].user if host.become == "sudo" else "",
        )
    except BaseException:
        link.close()
        raise


def host_copy(host: Host, inventory: Inventory) -> archive.HostCopy | None:
    """Where provision or a training leaves the archive on `host`; None where nothing does."""
    directory = host.app_dir or host.work_dir
    if not directory:
        return None
    memory = inventory.state_dir / "host-copies" / host.name
    return archive.HostCopy(f"{directory}/bin/macd-host.pyz", memory)


class Session(Conversation):
    """A conversation with the operations every agent has."""

    def ping(self) -> Clock:
        """One round trip; returns the best estimate of the host's clock so far."""
        self.call("ping")
        return self.clock

    def facts(self, disks: Sequence[str] = ("/", "~", "/tmp")) -> Facts:  # noqa: S108
        """What the host is; `disks` are paths whose free space is wanted."""
        told = self.call("facts", disks=list(disks))
        return Facts.of(told, self.clock)

    def pieces(self, path: str, *, offset: int = 0) -> Iterator[bytes]:
        """A file from `offset` to the end it has now, the next pieces already on their way.

        Raises RemoteFileNotFoundError. After a cut, call again with what has come as the offset.
        """
        first = self.call("read", path=path, offset=offset, limit=_PIECE)
        yield first["data"]
        if first["eof"]:
            return
        coming: deque[Pending] = deque()
        asked = range(offset + len(first["data"]), first["size"], _PIECE)
        for start in asked:
            coming.append(self.submit("read", path=path, offset=start, limit=_PIECE))
            if len(coming) > _AHEAD:
                yield coming.popleft().result()["data"]
        for pending in coming:
            yield pending.result()["data"]

    def read(self, path: str, *, limit: int = 64 << 20) -> bytes:
        """A whole file. Raises RemoteFileNotFoundError; MacdError when longer than `limit`."""
        data = bytearray()
        for piece in self.pieces(path):
            data += piece
            if len(data) > limit:
                raise MacdError(f"{self.name}: {path} is larger than the {limit} bytes expected")
        return bytes(data)

    def write(
        self, path: str, data: bytes, *, mode: int = 0o644, parents: bool = False, owner: str = ""
    ) -> None:
        """Replace a file atomically and durably; up to 8 MiB (larger things are blobs)."""
        self.call("write", path=path, data=data, mode=mode, parents=parents, owner=owner)

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
        """Send what `root`'s blob store lacks; see macd/ssh/blobs.py."""
        from macd.ssh.blobs import put  # noqa: PLC0415 - it needs this module's types

        return put(self, root, blobs, progress)
