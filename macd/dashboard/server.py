"""The page on 127.0.0.1, for the browser of this machine: two addresses, GET, nothing else.

A page of another site can make a browser ask here under a name of its own (DNS rebinding), so only
requests for this very address are answered. Nothing is stored by the browser.
"""

from __future__ import annotations

import hashlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from macd.errors import UsageError
from macd.report.page import TEMPLATES

ADDRESS = "127.0.0.1"
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TIMEOUT_S = 30.0


class Server:
    """Serves the newest page that `show` was given, from the moment it is made until `close`.

    Raises UsageError when the port is taken or not allowed. port: 0 for any that is free.
    """

    def __init__(self, port: int = 0) -> None:
        self._pages = {"/live.js": _Answer((TEMPLATES / "dashboard.js").read_bytes(), "javascript")}
        try:
            self._server = ThreadingHTTPServer((ADDRESS, port), self._handler())
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} can't be used",
                why=str(error),
                hint="give --port another number, or leave it out for one that is free",
            ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="pages", daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self._server.server_port}/"

    def show(self, html: str) -> None:
        """Serve this page from now on."""
        self._pages = {**self._pages, "/": _Answer(html.encode(), "html")}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, host: str) -> _Answer | HTTPStatus:
        """What is at `path` for a browser that asks for `host`, or why there is nothing."""
        port = self._server.server_port
        if host not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            return HTTPStatus.MISDIRECTED_REQUEST
        return self._pages.get(path, HTTPStatus.NOT_FOUND)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("Handler", (_Handler,), {"pages": self})


class _Answer:
    def __init__(self, body: bytes, kind: str) -> None:
        self.body = body
        self.kind = f"text/{kind}; charset=utf-8"
        self.tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'


class _Handler(BaseHTTPRequestHandler):
    pages: Server
    server_version = "macd"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        answer = self.pages.answer(self.path, self.headers.get("Host", ""))
        if isinstance(answer, HTTPStatus):
            self._send(answer, f"{answer.phrase}\n".encode(), {"Content-Type": "text/plain"})
        elif self.headers.get("If-None-Match") == answer.tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", {"ETag": answer.tag})
        else:
            self._send(
                HTTPStatus.OK, answer.body, {"Content-Type": answer.kind, "ETag": answer.tag}
            )

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no GET, or no HTTP; without the page that Python would make of the request."""
        allow = {"Allow": "GET"} if code == HTTPStatus.NOT_IMPLEMENTED else {}
        status = HTTPStatus.METHOD_NOT_ALLOWED if allow else HTTPStatus(code)
        self.close_connection = True
        self._send(status, b"", allow)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Only macd/cli prints."""
