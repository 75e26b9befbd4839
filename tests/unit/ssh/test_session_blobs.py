"""Blobs land once, whole and verified, whatever is cut, wrong or done twice at the same time."""

from __future__ import annotations

import fcntl
import hashlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macd.errors import ContactLostError
from macd.host.rpc import blobs as host_blobs
from macd.host.rpc import frames
from macd.ssh import archive
from macd.ssh.blobs import Blob
from macd.ssh.failures import RemoteDiskFullError, RemoteError, RemoteMismatchError
from macd.ssh.session import Session
from tests.support.pipe_channel import PipeChannel

StartAgent = Callable[..., Session]

SIZE = 3 << 20
DATA = random.Random(7).randbytes(SIZE)  # does not compress

AGENT = len(archive.compressed()) + 9000  # what a budget holds beside the blob, at most


class CutChannel:
    """A link that is cut after `budget` bytes from here: the last message arrives torn."""

    def __init__(self, channel: PipeChannel, budget: int) -> None:
        self._channel = channel
        self._budget = budget

    def send(self, data: bytes) -> None:
        self._channel.send(data[: self._budget])
        self._budget -= min(self._budget, len(data))
        if not self._budget:
            self._channel.close()  # waits for the agent, so that the disk can be looked at
            raise ContactLostError("cut")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


def landed(root: Path) -> dict[str, bytes]:
    store = root / "blobs" / "sha256"
    files = {path.name: path.read_bytes() for path in store.glob("??/*")}
    assert all(path.parent.name == path.name[:2] for path in store.glob("??/*"))
    return files


def partials(root: Path) -> list[Path]:
    return sorted((root / "blobs" / ".partial").glob("*"))


def test_only_what_is_missing_is_sent(agent: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    few = [Blob.of_file(tmp_path / "file"), Blob.of_bytes(b""), Blob.of_bytes(b"text " * 100_000)]
    progress: list[tuple[int, int]] = []
    report = agent.put_blobs(str(tmp_path), few, lambda *step: progress.append(step))
    total = SIZE + 500_000
    assert (report.landed, report.present, report.sent) == (3, 0, total)
    assert progress[-1] == (total, total)
    assert landed(tmp_path) == {
        blob.sha256: data for blob, data in zip(few, [DATA, b"", b"text " * 100_000], strict=True)
    }
    assert partials(tmp_path) == []
    assert all(p.stat().st_mode & 0o777 == 0o444 for p in tmp_path.glob("blobs/sha256/??/*"))

    another = [*few, Blob.of_bytes(b"new"), Blob.of_bytes(b"new")]
    report = agent.put_blobs(str(tmp_path), another)
    assert (report.landed, report.present, report.sent) == (1, 3, 3)


def test_what_is_missing_can_be_asked_without_sending(agent: Session, tmp_path: Path) -> None:
    blob = Blob.of_bytes(b"x")
    answer = agent.call("blobs_missing", root=str(tmp_path), blobs=[[blob.sha256, 1]])
    assert answer["missing"] == [[blob.sha256, 0]]
    assert list(tmp_path.iterdir()) == []
    agent.put_blobs(str(tmp_path), [blob])
    answer = agent.call("blobs_missing", root=str(tmp_path), blobs=[[blob.sha256, 1]])
    assert answer["missing"] == []


CUTS = [1, 100, 17_000, 150_000, 400_000, 1 << 20, 1_500_001, 2 << 20, SIZE - 70_000, SIZE + 10_000]


@pytest.mark.parametrize("budget", CUTS)
def test_a_cut_upload_goes_on_where_it_stopped(
    start_agent: StartAgent, tmp_path: Path, budget: int
) -> None:
    blob = Blob.of_bytes(DATA)
    cut = start_agent(wrap=lambda channel: CutChannel(channel, budget))
    with pytest.raises(Exception, match=r"cut|lost|did not start"):
        cut.put_blobs(str(tmp_path), [blob])
    kept = sum(path.stat().st_size for path in partials(tmp_path))
    assert kept > budget - frames.CHUNK - AGENT  # all but a torn message and the agent itself
    assert DATA.startswith(b"".join(path.read_bytes() for path in partials(tmp_path)))
    assert landed(tmp_path) == {}

    report = start_agent().put_blobs(str(tmp_path), [blob])
    assert report.sent == SIZE - kept
    assert landed(tmp_path) == {blob.sha256: DATA}
    assert partials(tmp_path) == []


def test_several_cuts_in_a_row_add_up(start_agent: StartAgent, tmp_path: Path) -> None:
    blobs = [Blob.of_bytes(DATA), Blob.of_bytes(DATA[::-1])]
    sent = 0
    for _ in range(4):
        agent = start_agent(wrap=lambda channel: CutChannel(channel, 1_500_000))
        with pytest.raises(ContactLostError):
            agent.put_blobs(str(tmp_path), blobs, lambda *step: None)
    sent = start_agent().put_blobs(str(tmp_path), blobs).sent
    assert 0 < sent < 2 * SIZE - 4 * (1_500_000 - frames.CHUNK - AGENT)
    assert sorted(landed(tmp_path)) == sorted(blob.sha256 for blob in blobs)


def test_a_wrong_hash_is_refused_and_thrown_away(agent: Session, tmp_path: Path) -> None:
    wrong = Blob(hashlib.sha256(b"something else").hexdigest(), SIZE, DATA)
    with pytest.raises(RemoteMismatchError, match="another hash"):
        agent.put_blobs(str(tmp_path), [wrong])
    assert landed(tmp_path) == {}
    assert partials(tmp_path) == []
    assert agent.put_blobs(str(tmp_path), [Blob.of_bytes(DATA)]).landed == 1  # the session goes on


def test_nothing_more_is_sent_once_the_host_has_refused(agent: Session, tmp_path: Path) -> None:
    wrong = Blob(hashlib.sha256(b"something else").hexdigest(), 10, b"0123456789")
    large = Blob.of_bytes(bytes(64 << 20))
    sizes: list[int] = []

    def slowly(sent: int, total: int) -> None:
        sizes.append(sent)
        time.sleep(0.01)

    with pytest.raises(RemoteMismatchError):
        agent.put_blobs(str(tmp_path), [wrong, large], slowly)
    assert sizes[-1] < large.size


def test_a_rotten_partial_costs_one_more_attempt_not_the_upload(
    agent: Session, tmp_path: Path
) -> None:
    blob = Blob.of_bytes(DATA)
    (tmp_path / "blobs" / ".partial").mkdir(parents=True)
    (tmp_path / "blobs" / ".partial" / f"{blob.sha256}.abc").write_bytes(b"\0" * 1_000_000)
    agent.put_blobs(str(tmp_path), [blob])
    assert landed(tmp_path) == {blob.sha256: DATA}
    assert partials(tmp_path) == []


def put_by_hand(agent: Session, root: Path, blob: Blob, *chunks: bytes) -> Any:
    """An upload by a client that doesn't keep to the rules."""
    fields = {"root": str(root), "blobs": [[blob.sha256, blob.size]]}
    pending = agent.stream("blobs_put", fields)
    for chunk in chunks:
        agent.send_data(pending, {"sha256": blob.sha256, "data": chunk})
    agent.submit("ping")
    return pending.result()


def test_more_than_declared_is_refused(agent: Session, tmp_path: Path) -> None:
    blob = Blob(Blob.of_bytes(DATA).sha256, 1000, DATA)
    with pytest.raises(RemoteError, match="longer than the 1000 bytes declared"):
        put_by_hand(agent, tmp_path, blob, DATA[:600], DATA[600:1001])
    assert sum(path.stat().st_size for path in partials(tmp_path)) <= 1000
    assert agent.call("ping")


def test_a_client_that_stops_half_way_is_told(agent: Session, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="stopped sending"):
        put_by_hand(agent, tmp_path, Blob.of_bytes(DATA), DATA[:1000])
    assert agent.call("ping")


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", ""])
def test_a_name_that_is_no_hash_is_refused(agent: Session, tmp_path: Path, sha256: str) -> None:
    with pytest.raises(RemoteError, match="no SHA-256"):
        agent.put_blobs(str(tmp_path), [Blob(sha256, 1, b"x")])
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_noticed_before_anything_is_sent(agent: Session, tmp_path: Path) -> None:
    progress: list[Any] = []
    huge = Blob("a" * 64, 1 << 60, b"")
    with pytest.raises(RemoteDiskFullError, match="not enough room"):
        agent.put_blobs(str(tmp_path), [huge], lambda *step: progress.append(step))
    assert progress == []


def test_a_file_that_shrinks_while_it_is_sent_is_told(agent: Session, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    blob = Blob.of_file(path)
    path.write_bytes(DATA[:100_000])
    with pytest.raises(Exception, match="became shorter"):
        agent.put_blobs(str(tmp_path), [blob])
    assert landed(tmp_path) == {}


def test_two_uploaders_of_the_same_blobs_do_not_meet(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    blobs = [Blob.of_bytes(DATA), Blob.of_bytes(DATA[:-1]), Blob.of_bytes(DATA[:-2])]
    agents = [start_agent() for _ in range(3)]
    for agent in agents:
        agent.call("ping")
    together = threading.Barrier(len(agents))
    failed: list[Exception] = []

    def upload(agent: Session) -> None:
        together.wait()
        try:
            agent.put_blobs(str(tmp_path), blobs)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=upload, args=[agent]) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {name: hashlib.sha256(data).hexdigest() for name, data in landed(tmp_path).items()} == {
        blob.sha256: blob.sha256 for blob in blobs
    }
    assert partials(tmp_path) == []


def test_what_an_undead_uploader_has_is_copied_not_shared(agent: Session, tmp_path: Path) -> None:
    """The agent of a link that died unnoticed still holds its partial: we must not start over."""
    blob = Blob.of_bytes(DATA)
    (tmp_path / "blobs" / ".partial").mkdir(parents=True)
    undead = tmp_path / "blobs" / ".partial" / f"{blob.sha256}.undead"
    undead.write_bytes(DATA[:2_000_000])
    with undead.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        report = agent.put_blobs(str(tmp_path), [blob])
        held.write(b"late")
    assert report.sent == SIZE - 2_000_000
    assert landed(tmp_path) == {blob.sha256: DATA}
    assert undead.read_bytes() == DATA[:2_000_000] + b"late"


def test_of_several_partials_the_longest_is_adopted(agent: Session, tmp_path: Path) -> None:
    blob = Blob.of_bytes(DATA)
    directory = tmp_path / "blobs" / ".partial"
    directory.mkdir(parents=True)
    for token, length in (("a", 5), ("b", 2_500_000), ("c", 70), ("d", 0)):
        (directory / f"{blob.sha256}.{token}").write_bytes(DATA[:length])
    assert agent.put_blobs(str(tmp_path), [blob]).sent == SIZE - 2_500_000
    assert partials(tmp_path) == []


def test_a_blob_of_the_wrong_size_is_not_taken_for_present(agent: Session, tmp_path: Path) -> None:
    blob = Blob.of_bytes(DATA)
    path = Path(host_blobs.path_of(str(tmp_path), blob.sha256))
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:-1])
    assert agent.put_blobs(str(tmp_path), [blob]).landed == 1
    assert landed(tmp_path) == {blob.sha256: DATA}
