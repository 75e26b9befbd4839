"""The local server: GET of two addresses for this very host, and nothing else."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from macd.dashboard.server import Server
from macd.errors import UsageError

PAGE = "<!doctype html><title>one</title>"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.show(PAGE)
    yield made
    made.close()


def ask(
    server: Server, path: str = "/", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    port = int(server.address.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_it_serves_the_page_and_what_makes_it_live(server: Server) -> None:
    answer, body = ask(server)
    assert (answer.status, body) == (200, PAGE.encode())
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    answer, body = ask(server, "/live.js")
    assert answer.status == 200
    assert b"use strict" in body
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_every_answer_is_kept_nowhere_and_may_load_nothing_else(server: Server) -> None:
    for path in ("/", "/live.js", "/none"):
        answer, _ = ask(server, path)
        assert answer.headers["Cache-Control"] == "no-store"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "script-src 'self';" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in answer.headers["Server"]


def test_an_unchanged_page_is_not_sent_again(server: Server) -> None:
    tag = ask(server)[0].headers["ETag"]
    answer, body = ask(server, If_None_Match=tag)
    assert (answer.status, body) == (304, b"")
    server.show(PAGE.replace("one", "two"))
    answer, body = ask(server, If_None_Match=tag)
    assert answer.status == 200
    assert b"two" in body


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "", "localhost"])
def test_another_name_gets_no_page(server: Server, host: str) -> None:
    answer, body = ask(server, Host=host)
    assert answer.status == 421
    assert PAGE.encode() not in body


def test_localhost_is_this_host(server: Server) -> None:
    port = server.address.rstrip("/").rpartition(":")[2]
    assert ask(server, Host=f"localhost:{port}")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_only_get_is_answered(server: Server, method: str) -> None:
    answer, body = ask(server, method=method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET"
    assert body == b""


@pytest.mark.parametrize("path", ["/none", "/../etc/passwd", "/?x=1", "/live.js/", "/%2e"])
def test_only_its_own_addresses_are_there(server: Server, path: str) -> None:
    assert ask(server, path)[0].status == 404


def test_it_listens_on_this_machine_alone(server: Server) -> None:
    assert server.address.startswith("http://127.0.0.1:")
    assert server._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_named(server: Server) -> None:
    port = int(server.address.rstrip("/").rpartition(":")[2])
    with pytest.raises(UsageError, match=f"port {port} can't be used") as raised:
        Server(port)
    assert "--port" in raised.value.hint


def test_after_the_end_nobody_answers() -> None:
    server = Server()
    server.show(PAGE)
    server.close()
    with pytest.raises(OSError):
        ask(server)
