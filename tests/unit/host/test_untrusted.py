"""Text of strangers is short and harmless to a terminal before anybody keeps or shows it."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host import untrusted
from macd.host.deploy import health
from macd.host.systemd.supervisor import Process

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3000),
    lambda inner: st.lists(inner, max_size=200) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=60,
)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain, 模型 and é", "plain, 模型 and é"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("a\x1b]8;;http://x\x1b\\link", "alink"),
        ("over\rwritten\n2nd\tline", "over written 2nd line"),
        ("a\x00b\x9b1mc\u202ed\ud800", "a\ufffdbc\ufffdd\ufffd"),
    ],
)
def test_control_characters_reach_no_terminal(raw: str, shown: str) -> None:
    assert untrusted.line(raw) == shown


def test_a_text_of_several_lines_keeps_them() -> None:
    assert untrusted.text("a\r\n\x1b[1mb\x1b[0m\n\tc\x07") == "a\nb\n\tc\ufffd"


def test_what_is_cut_says_so() -> None:
    cut = untrusted.line("x" * 5000, 100)
    assert cut.startswith("x" * 100)
    assert cut.endswith("[4900 more characters]")
    assert untrusted.line(None) == "None"


@given(JSON)
def test_any_document_becomes_one_that_is_short_and_json(value: Any) -> None:
    made = untrusted.document(value, most=50)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    for text in texts(made):
        assert len(text) < 100
        assert text.isprintable()


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def test_what_json_can_not_hold_is_told_in_words() -> None:
    assert untrusted.document({"a": math.nan, "b": 1 << 80, "c": {1}}) == {
        "a": "nan",
        "b": str(1 << 80),
        "c": "(set)",
    }


@contextmanager
def answering(path: Path, body: bytes) -> Iterator[str]:
    """A service that gives every question this answer; its endpoint."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)

        threading.Thread(target=serve, daemon=True).start()
        yield f"unix:{path}"
        server.shutdown(socket.SHUT_RDWR)


def test_what_a_service_says_of_itself_comes_in_short(tmp_path: Path) -> None:
    said = {"status": "\x1b[2Jfine", "release": "x" * 9000, "last_error": "e" * 9000, "pid": 7}
    said["golden"] = {"ok": False, "detail": "d" * 9000}
    with answering(tmp_path / "h", json.dumps(said).encode()) as endpoint:
        answer = health.ask(endpoint)
    process = Process("active", "running", 8, "", 0, "", "", "")
    wrong = "; ".join(health.problems(answer, release="r", manifest_sha256="s", process=process))
    assert len(wrong) < 5000
    assert wrong.isprintable()
    assert "status is fine" in wrong


def test_no_symbol_of_many_is_cut_from_an_answer(tmp_path: Path) -> None:
    wrong = {"ok": False, "golden": {"ok": False, "detail": "d" * 400}}
    said = {"status": "ok", "symbols": {f"S{n}USD": wrong for n in range(400)}}
    with answering(tmp_path / "h", json.dumps(said).encode()) as endpoint:
        assert health.ask(endpoint) == said


def test_an_answer_of_a_megabyte_is_no_answer(tmp_path: Path) -> None:
    said = json.dumps({"status": "ok", "last_error": "e" * (1 << 20)}).encode()
    with (
        answering(tmp_path / "h", said) as endpoint,
        pytest.raises(health.ProbeError, match="longer than 256 KiB"),
    ):
        health.ask(endpoint)


def test_what_is_no_http_is_told_short(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "h"))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):  # who asked hangs up in the middle
                connection.recv(65536)
                connection.sendall(b"\x1b[31m" + b"no http " * 5000 + b"\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(health.ProbeError) as error:
            health.ask(f"unix:{tmp_path}/h")
        thread.join()
    assert len(str(error.value)) < 1100
    assert str(error.value).isprintable()


def test_a_service_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(health.ProbeError, match=r"^there is no socket$"):
        health.ask(f"unix:{tmp_path}/h")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "h"))  # and does not listen
        with pytest.raises(health.ProbeError, match=r"^nobody listens there$"):
            health.ask(f"unix:{tmp_path}/h")
