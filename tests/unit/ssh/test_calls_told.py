"""Each call to a host is one whole line: who, what, where the time went, bytes; nothing that was
said."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from macd.cli.verb import debugging, log_calls
from macd.errors import ContactLostError
from macd.ssh.blobs import Blob
from macd.ssh.failures import RemoteError
from macd.ssh.session import CALLS, Session
from tests.support.pipe_channel import PipeChannel

StartAgent = Callable[..., Session]
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<host>\S+) (?P<op>\S+): "
    r"host (?P<worked>\d+\.\d{3}) s, link (?P<link>\d+\.\d{3}) s, "
    r"sent (?P<out>\d+) B, received (?P<in>\d+) B(?P<end>|, failed|, no answer)"
)


class Counting:
    """A channel that counts what really passes it."""

    def __init__(self, channel: PipeChannel) -> None:
        self._channel = channel
        self.bytes_out = self.bytes_in = 0

    def send(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self._channel.send(data)

    def recv(self, limit: int) -> bytes:
        data = self._channel.recv(limit)
        self.bytes_in += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


@pytest.fixture
def logger_as_before() -> Iterator[None]:
    yield
    for handler in [*CALLS.handlers]:
        CALLS.removeHandler(handler)
        handler.close()
    CALLS.setLevel(logging.NOTSET)
    CALLS.propagate = True


@pytest.fixture
def logged_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger_as_before: None
) -> Callable[[], list[Any]]:
    """The lines written so far, taken apart."""
    path = tmp_path / "calls.log"
    monkeypatch.setenv("MACD_DEBUG", str(path))
    log_calls()

    def lines() -> list[Any]:
        matches = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
        assert all(matches), path.read_text()
        return matches

    return lines


@pytest.mark.usefixtures("logger_as_before")
def test_a_file_needs_no_slash_and_a_switch_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value, traced in (("off", False), ("False", False), ("true", True), ("2", True)):
        monkeypatch.setenv("MACD_DEBUG", value)
        log_calls()
        assert not CALLS.handlers
        assert debugging() == traced
    monkeypatch.setenv("MACD_DEBUG", "calls.log")
    log_calls()
    assert len(CALLS.handlers) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["calls.log"]
    assert not debugging()


def test_every_call_is_a_line_and_all_bytes_are_in_them(
    start_agent: StartAgent, logged_calls: Callable[[], list[Any]], tmp_path: Path
) -> None:
    counting: list[Counting] = []

    def wrap(channel: PipeChannel) -> Counting:
        counting.append(Counting(channel))
        return counting[0]

    session = start_agent(wrap=wrap)
    session.ping()
    session.run(["sleep", "0.3"])
    session.put_blobs(str(tmp_path / "app"), [Blob.of_bytes(b"x" * 300_000)])
    with pytest.raises(RemoteError):
        session.read(str(tmp_path / "none"))
    lines = logged_calls()
    assert [(line["host"], line["op"], line["end"]) for line in lines] == [
        ("here", "(agent)", ""),
        ("here", "ping", ""),
        ("here", "run", ""),
        ("here", "blobs_put", ""),
        ("here", "read", ", failed"),
    ]
    assert float(lines[2]["worked"]) >= 0.3
    assert sum(int(line["out"]) for line in lines) == counting[0].bytes_out
    assert sum(int(line["in"]) for line in lines) == counting[0].bytes_in


def test_waiting_for_data_is_the_links_time(
    start_agent: StartAgent, logged_calls: Callable[[], list[Any]], tmp_path: Path
) -> None:
    session, blob = start_agent(), Blob.of_bytes(b"late")
    asked = threading.Event()
    request = {"root": str(tmp_path / "app"), "blobs": [[blob.sha256, blob.size]]}
    pending = session.stream("blobs_put", request, lambda _: asked.set())
    assert asked.wait(120)
    time.sleep(0.4)
    session.send_data(pending, {"sha256": blob.sha256, "data": b"late"})
    pending.result()
    assert float(logged_calls()[-1]["link"]) >= 0.39


def test_nothing_that_was_said_is_in_a_line(
    start_agent: StartAgent, logged_calls: Callable[[], list[Any]], tmp_path: Path
) -> None:
    session = start_agent()
    env = tmp_path / ".env"
    session.write(str(env), b"EXCHANGE_KEY=sesame\n")
    assert session.read(str(env)) == b"EXCHANGE_KEY=sesame\n"
    session.run(["echo", "sesame"], env={"TOKEN": "sesame"}, input=b"sesame")
    for failing in (
        lambda: session.read(str(tmp_path / "sesame")),
        lambda: session.run(["/sesame"]),
        lambda: session.call("sesame".replace("s", "n"), token="sesame"),
    ):
        with pytest.raises(RemoteError):
            failing()
    assert [line["op"] for line in logged_calls()][1:] == [
        "write",
        "read",
        "run",
        "read",
        "run",
        "nename",
    ]
    text = (tmp_path / "calls.log").read_text()
    assert "sesame" not in text and "EXCHANGE_KEY" not in text and str(tmp_path) not in text


def test_lines_of_several_hosts_at_once_are_whole(
    start_agent: StartAgent, logged_calls: Callable[[], list[Any]]
) -> None:
    sessions = [start_agent() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(lambda one: [one.submit("ping") for _ in range(100)], sessions):
            assert all(pending.result() for pending in done)
    assert len(logged_calls()) == 4 * 101


def test_a_call_without_an_answer_is_a_line_too(
    start_agent: StartAgent, logged_calls: Callable[[], list[Any]]
) -> None:
    session = start_agent()
    waiting = session.submit("run", argv=["sh", "-c", "kill -9 $PPID; sleep 9"])
    with pytest.raises(ContactLostError):
        waiting.result()
    assert [(line["op"], line["end"]) for line in logged_calls()] == [
        ("(agent)", ""),
        ("run", ", no answer"),
    ]


def test_without_being_asked_nothing_is_written(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for value in ("", "0", "1"):
        monkeypatch.setenv("MACD_DEBUG", value)
        log_calls()
    start_agent().ping()
    assert not CALLS.handlers
    assert capfd.readouterr() == ("", "")
