"""Connect to hosts in the background, while the rest of a command still loads.

The TCP connection is under way before paramiko is imported, and SSH's handshake before the caller
needs it. On a way of 200 ms that hides what imports and reading a release take.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.ssh.session import Link

T = TypeVar("T")


class LinksAhead:
    """Links to hosts that will be needed soon; a context manager that closes those never taken."""

    def __init__(self, hosts: Iterable[Host], inventory: Inventory) -> None:
        self._inventory = inventory
        self._links = {host.name: self._begin(host) for host in hosts}

    def take(self, host: Host) -> Link | None:
        """The link to `host`, waited for; None if none was started or it was taken before.

        Raises what macd.ssh.ssh.connect raises.
        """
        future = self._links.pop(host.name, None)
        return future.result() if future is not None else None

    def close(self) -> None:
        """End every link that nobody took, also those that are still being made."""
        while self._links:
            _, future = self._links.popitem()
            future.add_done_callback(_close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, host: Host) -> Future[Link]:
        return _in_background(f"connect {host.name}", lambda: self._connect(host))

    def _connect(self, host: Host) -> Link:
        if host.transport == "openssh":  # it may have to ask a person, in the main thread's turn
            from macd.ssh.openssh import connect as by_ssh  # noqa: PLC0415

            return by_ssh(host, self._inventory)
        # Nothing is loaded before the thread runs.
        from macd.ssh.sshconfig import resolve  # noqa: PLC0415
        from macd.ssh.wire import tcp  # noqa: PLC0415

        hops = resolve(host, self._inventory)
        dialled: Future[socket.socket] = _in_background(
            f"dial {host.name}", lambda: tcp(hops[0], self._inventory.link.connect_s)
        )
        from macd.ssh.ssh import connect  # noqa: PLC0415 - paramiko, while TCP connects

        return connect(host, self._inventory, hops=hops, first=dialled.result)


def _in_background(name: str, work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _close(future: Future[Link]) -> None:
    if future.exception() is None:
        future.result().close()
