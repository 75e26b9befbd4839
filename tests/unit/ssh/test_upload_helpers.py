"""Large uploads over several sessions of a connection: all lands, whatever becomes of a helper."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from macd.errors import ContactLostError, MacdError
from macd.host.failure import HostError, PeerGoneError
from macd.host.rpc import blobs as host_blobs
from macd.ssh import archive, blobs
from macd.ssh.blobs import Blob
from macd.ssh.failures import RemoteMismatchError
from macd.ssh.session import Session
from tests.support.pipe_channel import PipeChannel

COUNT, SIZE = 12, 400_000
BLOBS = [Blob.of_bytes(random.Random(number).randbytes(SIZE)) for number in range(COUNT)]
TOTAL = COUNT * SIZE
MANY = [Blob.of_bytes(number.to_bytes(4, "big") * 500_000) for number in range(1, 40)]
START = len(archive.compressed()) + 10_000  # what a channel carries before any blob


class Counted:
    """A channel that counts what it is given, and breaks after `budget` bytes."""

    def __init__(self, channel: PipeChannel, budget: float = float("inf")) -> None:
        self._channel = channel
        self._budget = budget
        self.sent = 0

    def send(self, data: bytes) -> None:
        self.sent += len(data)
        if self.sent > self._budget:
            self._channel.close()
            raise ContactLostError("cut")
        self._channel.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class Slow(Counted):
    """The first session's channel: after a blob's worth it goes on once the helpers have ended."""

    def send(self, data: bytes) -> None:
        if self.sent > START + SIZE:
            for thread in threading.enumerate():
                if thread.name.startswith("upload to"):
                    thread.join(30)
        super().send(data)


class Connection:
    """A session here whose connection carries more of them; `more` are their channels."""

    def __init__(
        self,
        stack: ExitStack,
        budget: float = float("inf"),
        limit: int = 99,
        first: type[Counted] = Slow,
        command: str = archive.command(sys.executable),
    ) -> None:
        self._stack = stack
        self._command = command
        self._budget = budget
        self._limit = limit
        self._opening = threading.Lock()
        self.more: list[Counted] = []
        self.first = first(self._channel(archive.command(sys.executable)))
        self.session = stack.enter_context(
            Session(self.first, name="here", python=sys.executable, reopen=self._open)
        )

    def _channel(self, command: str) -> PipeChannel:
        channel = PipeChannel(command)
        self._stack.callback(channel.close)
        return channel

    def _open(self) -> Counted:
        with self._opening:
            if len(self.more) >= self._limit:
                raise MacdError("here opens no session")
            self.more.append(Counted(self._channel(self._command), self._budget))
            return self.more[-1]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Connection]]:
    """Every line counts as slow, and every few bytes as much."""
    monkeypatch.setattr(blobs, "_TRIED", SIZE // 2)
    monkeypatch.setattr(blobs, "_FAST", 1 << 60)
    monkeypatch.setattr(blobs, "_WORTH", SIZE)
    with ExitStack() as stack:
        yield lambda **options: Connection(stack, **options)


def landed(root: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in (root / "blobs" / "sha256").glob("??/*")}


ALL = {blob.sha256: blob.size for blob in BLOBS}


def test_helpers_take_a_part_and_all_is_counted(
    connect: Callable[..., Connection], tmp_path: Path
) -> None:
    here = connect()
    steps: list[tuple[int, int]] = []
    report = here.session.put_blobs(str(tmp_path), BLOBS, lambda *step: steps.append(step))
    assert (report.landed, report.present, report.sent) == (COUNT, 0, TOTAL)
    assert landed(tmp_path) == ALL
    assert steps == sorted(steps)
    assert steps[-1] == (TOTAL, TOTAL)
    assert len(here.more) == blobs._HELPERS
    assert here.first.sent < START + 4 * SIZE
    assert sum(channel.sent for channel in here.more) > TOTAL - 4 * SIZE
    assert list((tmp_path / "blobs/.partial").iterdir()) == []
    assert here.session.put_blobs(str(tmp_path), BLOBS).present == COUNT


@pytest.mark.parametrize("limit", [0, 1])
def test_a_host_that_opens_no_more_sessions_gets_it_by_those_there_are(
    connect: Callable[..., Connection], tmp_path: Path, limit: int
) -> None:
    here = connect(limit=limit)
    assert here.session.put_blobs(str(tmp_path), BLOBS).sent == TOTAL
    assert landed(tmp_path) == ALL
    assert len(here.more) == limit


def test_what_a_broken_helper_did_not_send_goes_by_the_first_session(
    connect: Callable[..., Connection], tmp_path: Path
) -> None:
    here = connect(budget=START + SIZE // 3)
    steps: list[tuple[int, int]] = []
    here.session.put_blobs(str(tmp_path), BLOBS, lambda *step: steps.append(step))
    assert max(steps) == (TOTAL, TOTAL)
    assert landed(tmp_path) == ALL
    assert any(channel.sent > START + SIZE // 3 for channel in here.more)
    assert here.first.sent > TOTAL - SIZE


def test_a_helper_that_does_not_start_is_not_waited_for(
    connect: Callable[..., Connection], tmp_path: Path
) -> None:
    here = connect(first=Counted, command="exec cat > /dev/null")
    assert here.session.put_blobs(str(tmp_path), BLOBS).sent == TOTAL
    assert landed(tmp_path) == ALL
    assert any(thread.name.startswith("upload to") for thread in threading.enumerate())


def test_a_wrong_blob_is_refused_by_whomever_it_came(
    connect: Callable[..., Connection], tmp_path: Path
) -> None:
    wrong = Blob(BLOBS[-1].sha256, SIZE, bytes(SIZE))
    with pytest.raises(RemoteMismatchError, match="another hash"):
        connect().session.put_blobs(str(tmp_path), [*BLOBS[:-2], wrong, BLOBS[-2]])
    assert wrong.sha256 not in landed(tmp_path)


def test_a_refusal_is_not_held_up_by_helpers(
    connect: Callable[..., Connection], tmp_path: Path
) -> None:
    wrong = Blob(BLOBS[0].sha256, SIZE, bytes(SIZE))
    here = connect(first=Counted, command="exec cat > /dev/null")
    with pytest.raises(RemoteMismatchError, match="another hash"):
        here.session.put_blobs(str(tmp_path), [wrong, *BLOBS[1:], *MANY])
    assert any(thread.name.startswith("upload to") for thread in threading.enumerate())


def test_without_another_session_one_sends_it_all(tmp_path: Path) -> None:
    with Session(PipeChannel(archive.command(sys.executable)), python=sys.executable) as alone:
        with pytest.raises(MacdError, match="carries one session"):
            alone.beside()
        assert alone.put_blobs(str(tmp_path), BLOBS[:2]).landed == 2


def test_a_quick_line_needs_no_helper(
    connect: Callable[..., Connection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = connect()
    monkeypatch.setattr(blobs, "_FAST", 1e-9)  # bytes a second
    assert here.session.put_blobs(str(tmp_path), BLOBS).sent == TOTAL
    assert here.more == []


class Client:
    """The client of a put, as the host sees it: it announces another session, and no more."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = threading.Event()
        if gone:
            self.gone.set()

    def receive(self) -> dict[str, Any]:
        return {"sha256": BLOBS[0].sha256, "elsewhere": True}

    def progress(self, value: Any) -> None:
        """Nobody looks."""


@pytest.mark.parametrize(
    ("gone", "error", "words"),
    [(False, HostError, "no other session brought"), (True, PeerGoneError, "closed the channel")],
)
def test_a_host_does_not_wait_for_ever_for_another_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool, error: type, words: str
) -> None:
    monkeypatch.setattr(host_blobs, "_QUIET_S", 0.05)
    client: Any = Client(gone=gone)
    with pytest.raises(error, match=words):
        host_blobs.put(client, str(tmp_path), [(BLOBS[0].sha256, SIZE)])
    assert landed(tmp_path) == {}
