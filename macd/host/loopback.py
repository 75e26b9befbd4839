"""HTTP over loopback or a unix socket, with a limit on the whole conversation."""

from __future__ import annotations

import http.client
import socket
import time
from typing import Any


class _BoundedSocket(socket.socket):
    """Ends a whole conversation in time: a service may drip an answer byte by byte."""

    deadline = 0.0

    def recv_into(self, *args: Any, **keywords: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it answers too slowly")
        self.settimeout(left)
        return super().recv_into(*args, **keywords)


class Connection(http.client.HTTPConnection):
    """To `endpoint`: "unix:/path" or "HOST:PORT"; ended after `timeout` seconds in all."""

    def __init__(self, endpoint: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._endpoint = endpoint
        self._within = timeout

    def connect(self) -> None:
        self.sock: _BoundedSocket
        path = self._endpoint.removeprefix("unix:")
        family = socket.AF_INET if path == self._endpoint else socket.AF_UNIX
        self.sock = _BoundedSocket(family, socket.SOCK_STREAM)
        self.sock.deadline = time.monotonic() + self._within
        self.sock.settimeout(self._within)
        host, _, port = self._endpoint.rpartition(":")
        self.sock.connect(path if family == socket.AF_UNIX else (host, int(port)))
