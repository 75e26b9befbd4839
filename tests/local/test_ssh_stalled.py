"""A link that stalls without closing is reported, whoever waits for it and on whichever hop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macd.errors import ContactLostError, ExitCode, MacdError
from macd.ssh import ssh
from tests.support.ssh_servers import World, world_in

SHORT = {"keepalive_s": 0.3, "dead_after_s": 1.5}
PATIENT = {"keepalive_s": 0.5, "dead_after_s": 6}  # longer than a busy machine keeps us waiting


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        for name in ("one", "two"):
            made.start(name)
        yield made


def outcome(work: Callable[[], object]) -> MacdError | object:
    """What `work` returned or raised; it must end, or the test fails rather than hangs."""
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(work())
        except MacdError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert ended, "it hangs"
    return ended[0]


def lost(work: Callable[[], object], part: str) -> None:
    error = outcome(work)
    assert isinstance(error, ContactLostError), error
    assert error.exit_code == ExitCode.CONTACT_LOST
    assert "contact with box was lost" in error.what
    assert part in error.why and "no sign of life" in error.why


@pytest.fixture(params=[SHORT])
def link(world: World, request: pytest.FixtureRequest) -> Iterator[ssh.Link]:
    inventory = world.chain("one", "two", **request.param)
    with ssh.connect(inventory.host("box"), inventory) as made:
        yield made


HOPS = [("one", "one (on the way to box)"), ("two", "box gave")]


@pytest.mark.parametrize(("hop", "part"), HOPS)
def test_receiving(world: World, link: ssh.Link, hop: str, part: str) -> None:
    channel = link.open_channel("cat")
    world.servers[hop].pipe.stalled = True
    lost(lambda: channel.recv(1), part)


@pytest.mark.parametrize(("hop", "part"), HOPS)
def test_sending_more_than_fits_on_the_way(
    world: World, link: ssh.Link, hop: str, part: str
) -> None:
    channel = link.open_channel("cat > /dev/null")
    world.servers[hop].pipe.stalled = True
    lost(lambda: channel.send(bytes(64 << 20)), part)


@pytest.mark.parametrize(("hop", "part"), HOPS)
def test_both_at_once(world: World, link: ssh.Link, hop: str, part: str) -> None:
    channel = link.open_channel("cat")
    sender = threading.Thread(target=outcome, args=(lambda: channel.send(bytes(64 << 20)),))
    sender.start()
    channel.recv(1)
    world.servers[hop].pipe.stalled = True

    def receive() -> None:
        while channel.recv(1 << 20):
            pass

    lost(receive, part)
    sender.join(60)
    assert not sender.is_alive()


def test_small_messages_that_always_fit(world: World, link: ssh.Link) -> None:
    """The kernel takes them all, so only the missing signs of life can tell."""
    channel = link.open_channel("cat > /dev/null")
    world.servers["one"].pipe.stalled = True
    pause = threading.Event()

    def chatter() -> None:
        while True:
            channel.send(b"x")
            pause.wait(0.05)

    lost(chatter, "one (on the way to box)")


def test_opening_a_channel(world: World, link: ssh.Link) -> None:
    world.servers["one"].pipe.stalled = True
    lost(lambda: link.open_channel("cat"), "one (on the way to box)")


def test_closing_ends_at_once_or_when_the_link_is_given_up(world: World, link: ssh.Link) -> None:
    channel = link.open_channel("cat")
    world.servers["one"].pipe.stalled = True
    assert outcome(channel.shutdown_write) is None
    assert outcome(channel.close) is None
    assert outcome(link.close) is None


def test_connecting_through_a_jump_that_stalls(world: World) -> None:
    inventory = world.chain("one", "two", connect_s=0.5, login_s=0.5)
    world.servers["two"].pipe.stalled = True
    error = outcome(lambda: ssh.connect(inventory.host("box"), inventory))
    assert isinstance(error, MacdError) and "box" in error.what


@pytest.mark.parametrize("link", [PATIENT], indirect=True)
def test_a_quiet_link_is_not_a_dead_one(world: World, link: ssh.Link) -> None:
    """The command says nothing for twice the limit; the servers answer the probes."""
    channel = link.open_channel("sleep 13; echo done")
    assert outcome(lambda: channel.recv(10)) == b"done\n"


@pytest.mark.parametrize("link", [PATIENT], indirect=True)
def test_a_short_stall_is_survived(world: World, link: ssh.Link) -> None:
    channel = link.open_channel("cat")
    world.servers["one"].pipe.stalled = True
    threading.Event().wait(0.7)
    world.servers["one"].pipe.stalled = False
    channel.send(b"still here")
    assert outcome(lambda: channel.recv(100)) == b"still here"


def test_one_direction_is_enough_to_be_dead(world: World, link: ssh.Link) -> None:
    """What the command prints still arrives, but nothing we send does."""
    channel = link.open_channel("while :; do echo tick; sleep 0.1; done & cat > /dev/null")
    assert channel.recv(5)
    world.servers["one"].pipe.stalled_up = True
    lost(lambda: channel.send(bytes(64 << 20)), "gave no sign of life")
