"""What a process was started with is the kernel's word; its own only where there is no kernel's."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from macd.host import durable
from macd.host.flagfile import of_process, write
from macd.host.layout import Layout
from macd.host.supervisor import Process

PID = 4711
PROCESS = Process("active", "running", PID, "i", 0, "success", "enabled", "loaded")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Where the process says of itself that it has the flag."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"pid": PID, "flags": {"ML_ENABLE_STACKING": "1"}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for name in ("self", str(PID)):
        (tmp_path / name).mkdir()
    return tmp_path


def test_the_kernels_word(proc: Path, endpoint: str) -> None:
    (proc / str(PID) / "environ").write_bytes(b"HOME=/\0ML_ENABLE_STACKING=0\0ML_A=b=c\0")
    told = of_process(PROCESS, endpoint, str(proc))
    assert told == {"ML_ENABLE_STACKING": "0", "ML_A": "b=c"}


def test_no_settings_is_an_answer_and_nothing_at_all_is_none(proc: Path, endpoint: str) -> None:
    (proc / str(PID) / "environ").write_bytes(b"HOME=/\0")
    assert of_process(PROCESS, endpoint, str(proc)) == {}
    (proc / str(PID) / "environ").write_bytes(b"")  # a zombie's
    assert of_process(PROCESS, endpoint, str(proc)) is None


def test_what_can_not_be_read_is_not_proved_by_the_processs_own_word(
    proc: Path, endpoint: str
) -> None:
    assert of_process(PROCESS, endpoint, str(proc)) is None  # it has ended
    (proc / str(PID) / "environ").mkdir()  # an OSError that root gets too
    assert of_process(PROCESS, endpoint, str(proc)) is None


def test_without_proc_its_own_word_counts(tmp_path: Path, endpoint: str) -> None:
    absent = str(tmp_path / "none")
    assert of_process(PROCESS, endpoint, absent) == {"ML_ENABLE_STACKING": "1"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("# by hand\nA=1\nML_ENABLE_STACKING=1\n", "0", "# by hand\nA=1\nML_ENABLE_STACKING=0\n"),
        ("ML_ENABLE_STACKING=0\n", "1", ""),  # a full disk opens nothing
        ("ML_ENABLE_STACKING=1\nML_ENABLE_STACKING=1\n", "0", ""),  # one byte would not do
        ("ML_ENABLE_STACKING=1", "0", ""),
    ],
)
def test_a_full_disk_does_not_keep_stacking_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    before: str,
    value: str,
    after: str,
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    file = tmp_path / ".env"
    file.write_text(before)
    same = file.stat().st_ino
    monkeypatch.setattr(durable, "write_all", full)
    if after and number != errno.EROFS:
        write(Layout(str(tmp_path)), value)
        assert file.read_text() == after
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            write(Layout(str(tmp_path)), value)
        assert file.read_text() == before
    assert file.stat().st_ino == same
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
