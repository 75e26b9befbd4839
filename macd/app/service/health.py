"""GET /healthz and /metrics on a loopback port or a unix socket, in a thread of its own.

Answers while the release is still loading, so that "starting" can be told from "gone". Only reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from macd.app.service.status import Status
from macd.errors import UsageError

_SLOWEST_S = 5.0
_AT_ONCE = 8


class HealthServer:
    """Serves `status` from `start` to `close`."""

    def __init__(self, endpoint: str, status: Status, given: socket.socket | None) -> None:
        """Bind `endpoint` (unix:/PATH or HOST:PORT), or take the listening socket of systemd.

        Raises UsageError when it can't be bound.
        """
        self._path = ""
        if given is None:
            given, self._path = _bind(endpoint)
        self._server = _Server(given, status)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="health"
        )
        self._thread.daemon = True

    @property
    def address(self) -> Any:
        """Of the listening socket: a path, or (host, port)."""
        return self._server.socket.getsockname()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)


def _bind(endpoint: str) -> tuple[socket.socket, str]:
    path = endpoint.removeprefix("unix:")
    try:
        if path != endpoint:
            _clear_the_way(path)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o117)
            try:
                listening.bind(path)
            finally:
                os.umask(before)
        else:
            host, _, port = endpoint.rpartition(":")
            if host not in ("127.0.0.1", "localhost"):
                raise ValueError("only this machine may ask: 127.0.0.1:PORT")
            listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", int(port)))
            path = ""
        listening.listen(16)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the service can't answer at {endpoint}",
            why=str(error),
            hint="service.health in the inventory names the place; invoke provision",
        ) from error
    return listening, path


def _clear_the_way(path: str) -> None:
    """Take a socket away that nobody listens on; one that answers is another service's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(1.0)
        try:
            asking.connect(path)
        except FileNotFoundError:
            return
        except OSError:
            Path(path).unlink()
            return
    raise OSError(f"another process answers at {path}")


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """http.server over a socket that is there already; at most _AT_ONCE answers at a time."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, status: Status) -> None:
        name: Any = listening.getsockname()
        super().__init__(name, _Handler)
        self.socket = listening
        self.status = status
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = self.socket.accept()
        connection.settimeout(_SLOWEST_S)
        return connection, ("local", 0)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):  # enough for any prober, and bounded
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()

    def server_close(self) -> None:
        self.socket.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "macd"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path == "/healthz":
            document = self.server.status.document()
            code = 200 if document["status"] == "ok" else 503
            body = json.dumps(document, allow_nan=False).encode() + b"\n"
            self._answer(code, "application/json", body)
        elif self.path == "/metrics":
            self._answer(200, "text/plain; version=0.0.4", self.server.status.metrics())
        else:
            self._answer(404, "text/plain", b"/healthz or /metrics\n")

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Probes come every second; they are no news."""
