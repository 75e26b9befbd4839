"""What a process was started with is the kernel's word; its own only where there is no kernel's."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from macd.host import durable
from macd.host.failure import HostError
from macd.host.flag.flag_file import (
    first_weight,
    in_file,
    of_process,
    refuse_unreadable,
    weight_in_file,
    write,
)
from macd.host.layout import Layout
from macd.host.systemd.supervisor import Process

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
    variables = of_process(PROCESS, endpoint, str(proc))
    assert variables == {"ML_ENABLE_STACKING": "0", "ML_A": "b=c"}


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
        (
            "ML_ENABLE_STACKING=1\nA='\nML_ENABLE_STACKING=1'\nML_ENABLE_STACKING=1\r\n\0",
            "0",
            "ML_ENABLE_STACKING=0\nA='\nML_ENABLE_STACKING=1'\nML_ENABLE_STACKING=0\r\n\0",
        ),
        ("ML_ENABLE_STACKING=1", "0", "ML_ENABLE_STACKING=0"),
        ('ML_ENABLE_STACKING="1"\n', "0", ""),  # another length: there is no room for it
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
    file.write_bytes(before.encode())
    same = file.stat().st_ino
    monkeypatch.setattr(durable, "write_all", full)
    if after and number != errno.EROFS:
        write(Layout(str(tmp_path)), value)
        assert file.read_bytes() == after.encode()
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            write(Layout(str(tmp_path)), value)
        assert file.read_bytes() == before.encode()
    assert file.stat().st_ino == same
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (None, "0"),
        (b"", "0"),
        (b"ML_ENABLE_STACKING=1\r\nDB_URL=p://u:h!w@h\nexport X=1\nno assignment", "1"),
        (b"ML_ENABLE_STACKING=1\nML_ENABLE_STACKING = '0'\n", "0"),
        (b"# before 254 the next line is a comment \\\nML_ENABLE_STACKING=1\n", "1"),
        (b"# c \\\nML_ENABLE_STACKING=0\nML_ENABLE_STACKING=yes", "?"),
        (b"ML_ENABLE_STACKING=1\n\0", ""),
        (b"ML_ENABLE_STACKING=1\nA=\xe9\n", ""),
        (b"ML_ENABLE_STACKING=1\n" + b"#" * (64 << 20), ""),
    ],
)
def test_any_file_is_read_and_taken_back(tmp_path: Path, data: bytes | None, value: str) -> None:
    file, layout = tmp_path / ".env", Layout(str(tmp_path))
    if data is not None:
        file.write_bytes(data)
        file.chmod(0o640)
    assert in_file(layout) == value
    if value and b"before 254" not in (data or b""):
        refuse_unreadable(layout)
    else:
        with pytest.raises(HostError, match="does not say what systemd"):
            refuse_unreadable(layout)
    write(layout, "0")
    large = data is not None and len(data) > 64 << 20
    assert in_file(layout) == ("" if value == "" else "0")
    if not large:
        assert b"ML_ENABLE_STACKING=1" not in file.read_bytes()
    if data is not None:
        assert file.stat().st_mode & 0o777 == 0o640


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _through_a_file(path: Path) -> None:
    (path.parent / "x").touch()
    path.symlink_to("x/y")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [_circle, _through_a_file, _socket, _pipe])
def test_what_is_no_file_neither_hangs_nor_keeps_stacking_on(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    file, layout = tmp_path / ".env", Layout(str(tmp_path))
    put(file)
    assert in_file(layout) == "0"
    with pytest.raises(HostError, match="does not say what systemd"):
        refuse_unreadable(layout)
    write(layout, "0")
    assert file.is_file()
    assert file.read_bytes() == b"ML_ENABLE_STACKING=0\n"


@pytest.mark.parametrize(
    ("data", "weight"),
    [
        (b"", 0),
        (b"ML_ENABLE_STACKING=1\n", 100),  # the guide's switch, and what earlier versions write
        (b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=25\n", 25),
        (b"ML_STACKING_WEIGHT=25\nML_ENABLE_STACKING=1\nML_STACKING_WEIGHT='50'\n", 50),
        (b"ML_ENABLE_STACKING=0\nML_STACKING_WEIGHT=25\n", 0),
        (b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=0\n", None),
        (b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=101\n", None),
        (b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=all\n", None),
        (b"ML_ENABLE_STACKING=1\n# c \\\nML_STACKING_WEIGHT=25\n", None),  # as systemd is old
        (b"ML_ENABLE_STACKING=1\n\0", 0),
    ],
)
def test_the_weight_of_the_next_start(tmp_path: Path, data: bytes, weight: int | None) -> None:
    (tmp_path / ".env").write_bytes(data)
    assert weight_in_file(Layout(str(tmp_path))) == weight


def test_flag_and_weight_are_written_in_one_and_nothing_stale_stays(tmp_path: Path) -> None:
    file, layout = tmp_path / ".env", Layout(str(tmp_path))
    file.write_bytes(b"A=1\nML_STACKING_WEIGHT=7\nML_ENABLE_STACKING=0\nML_STACKING_WEIGHT=x\n")
    write(layout, "1", 25)
    assert (
        file.read_bytes()
        == b"A=1\nML_STACKING_WEIGHT=25\nML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=25\n"
    )
    for value, weight in (("1", 100), ("0", 25)):
        write(layout, "1", 25)
        write(layout, value, weight)
        assert file.read_bytes() == b"A=1\nML_ENABLE_STACKING=%s\n" % value.encode()


def test_a_full_disk_keeps_no_weight_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file, layout = tmp_path / ".env", Layout(str(tmp_path))
    file.write_bytes(b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=25\n")
    monkeypatch.setattr(durable, "write_all", full)
    write(layout, "0")
    assert file.read_bytes() == b"ML_ENABLE_STACKING=0\nML_STACKING_WEIGHT=25\n"
    assert weight_in_file(layout) == 0


@pytest.mark.parametrize(
    ("requested", "steps", "running", "upcoming", "covered", "weight"),
    [
        (None, (), 0, 0, 0, 100),
        (25, (), 0, 0, 0, 25),
        (25, (10, 50), 100, 100, 100, 25),  # as told, also down
        (None, (25, 50, 100), 0, 0, 0, 25),
        (None, (25, 50, 100), 0, 0, 50, 25),  # it was disabled, its watch not yet ended
        (None, (25, 50, 100), 30, 30, 30, 50),  # not down without being told
        (None, (25, 50), 50, 50, 100, 50),
        (None, (25, 50), 100, 100, 100, 100),
        (None, (), 25, 25, 25, 100),
        # Set by hand, in the file or in both: to what was proved, else no higher.
        (None, (), 10, 75, 10, 10),
        (None, (), 75, 75, 10, 10),
        (None, (25, 50, 100), 75, 75, 10, 10),
        (None, (25, 50, 100), 75, 75, 0, 25),
        (None, (25, 50, 100), 10, 10, 0, 10),
        (None, (), 0, 10, 0, 10),
        (None, (), 60, 0, 0, 60),
    ],
)
def test_where_enabling_begins(
    requested: int | None,
    steps: tuple[int, ...],
    running: int,
    upcoming: int,
    covered: int,
    weight: int,
) -> None:
    assert first_weight(requested, steps, running, upcoming, covered) == weight
