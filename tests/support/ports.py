"""Ports of 127.0.0.1 that stay a test's own: one only found free, another process may get."""

from __future__ import annotations

import functools
import socket


def reserved() -> socket.socket:
    """A port that is bound as long as the socket is open, and refuses connections.

    A server that sets SO_REUSEADDR, as nearly all do, can listen there, and again after its end.
    """
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    return made


def number(reserved: socket.socket) -> int:
    port: int = reserved.getsockname()[1]
    return port


@functools.cache
def _of_this_process(name: str) -> socket.socket:
    return reserved()


def kept(name: str) -> int:
    """The same port for the same name throughout a test process."""
    return number(_of_this_process(name))
