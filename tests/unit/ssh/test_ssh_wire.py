"""A watch blames the nearest hop that stays silent after it was asked, and nobody else."""

from __future__ import annotations

import threading
import time

import pytest

from macd.ssh.wire import Watch, Watched, Wire


class Line:
    """A socket: gives what was put in, takes unless full."""

    def __init__(self) -> None:
        self.incoming: list[bytes] = []
        self.full = False
        self.closed = False

    def send(self, data: bytes, /) -> int:
        if self.full:
            raise TimeoutError
        return len(data)

    def recv(self, limit: int, /) -> bytes:
        if not self.incoming:
            raise TimeoutError
        return self.incoming.pop(0)

    def settimeout(self, seconds: float | None, /) -> None:
        del seconds

    def close(self) -> None:
        self.closed = True


class Peer:
    """A hop whose peer answers probes while `answers`."""

    def __init__(self, name: str, *, answers: bool) -> None:
        self.line = Line()
        self.wire = Wire(self.line)
        self.answers = answers
        self.asked = 0
        self.watched = Watched(name, self.wire, self.probe)

    def probe(self) -> None:
        self.asked += 1
        if self.answers:
            self.line.incoming.append(b"yes")
            self.wire.recv(100)


def dead(*peers: Peer, wait: float = 90.0) -> str:
    """The name of the hop that was declared dead, "" where none was in `wait` seconds."""
    declared_dead, names = threading.Event(), []

    def on_death(hop: Watched, seconds: float) -> None:
        names.append(hop.name)
        assert seconds >= 0.3
        declared_dead.set()

    watch = Watch(
        [peer.watched for peer in peers], keepalive_s=0.1, dead_after_s=0.4, on_death=on_death
    )
    declared_dead.wait(wait)
    watch.stop()
    return "".join(names)


def test_a_peer_that_never_answers_is_dead_and_all_wires_are_closed() -> None:
    near, far = Peer("near", answers=True), Peer("far", answers=False)
    assert dead(near, far) == "far"
    assert far.asked > 1 and near.line.closed and far.line.closed


def test_the_nearest_silent_hop_is_blamed() -> None:
    assert dead(Peer("near", answers=False), Peer("far", answers=False)) == "near"


def test_peers_that_answer_live() -> None:
    peers = [Peer("near", answers=True), Peer("far", answers=True)]
    assert dead(*peers, wait=1.5) == ""
    assert all(peer.asked > 1 and not peer.line.closed for peer in peers)


def test_a_probe_that_blocks_does_not_stop_the_clock() -> None:
    peer = Peer("near", answers=False)
    held = threading.Event()
    blocked = Watched("near", peer.wire, lambda: held.wait(120) and None)
    declared_dead = threading.Event()
    watch = Watch(
        [blocked], keepalive_s=0.1, dead_after_s=0.4, on_death=lambda *_: declared_dead.set()
    )
    assert declared_dead.wait(90)
    watch.stop()
    held.set()


def test_a_full_buffer_that_never_empties_is_silence_even_if_the_peer_talks() -> None:
    peer = Peer("near", answers=True)
    peer.line.full = True
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.01):
            try:
                peer.wire.send(b"x")
            except TimeoutError:
                continue
            except ConnectionAbortedError:
                return

    thread = threading.Thread(target=send)
    thread.start()
    assert dead(peer) == "near"
    stop.set()
    thread.join()


def test_room_in_a_buffer_that_was_full_is_a_sign_of_life() -> None:
    peer = Peer("near", answers=False)
    peer.line.full = True
    with pytest.raises(TimeoutError):
        peer.wire.send(b"x")
    peer.line.full = False
    at = time.monotonic() + 100
    before = peer.wire.silent_for(at)
    time.sleep(0.01)
    peer.wire.send(b"x")
    assert peer.wire.silent_for(at) < before


def test_sending_into_an_empty_buffer_proves_nothing() -> None:
    peer = Peer("near", answers=False)
    at = time.monotonic() + 100
    before = peer.wire.silent_for(at)
    peer.wire.send(b"x")
    assert peer.wire.silent_for(at) == before


def test_bytes_come_as_they_came_whatever_is_asked_for() -> None:
    line = Line()
    line.incoming = [b"SSH-2.0-x\r\n", b"rest"]
    wire = Wire(line)
    assert [wire.recv(4), wire.recv(100), wire.recv(100)] == [b"SSH-", b"2.0-x\r\n", b"rest"]
    assert wire.head == b"SSH-2.0-x\r\nrest"
    wire.close()
    assert wire.recv(10) == b"" and wire.ended
