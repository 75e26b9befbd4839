"""A link begun ahead: used once, ended when nobody wants it, its failure told where it counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.ssh.ahead import LinksAhead
from macd.ssh.refusals import UnreachableError
from macd.ssh.session import open_session
from tests.support.openssh import eventually
from tests.support.ssh_servers import World, world_in


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def test_a_session_uses_the_link_that_was_begun_and_the_next_makes_its_own(world: World) -> None:
    for name in ("one", "two"):
        world.start(name)
    inventory = world.chain("one", "two")
    host = inventory.host("box")
    with LinksAhead([host], inventory) as ahead:
        for links in (1, 2):
            with open_session(host, inventory, ahead=ahead) as session:
                assert session.run(["echo", "hello"]).stdout == b"hello\n"
            assert world.servers["one"].pipe.opened == links


def test_a_link_that_nobody_takes_is_ended(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    with LinksAhead([inventory.host("box")], inventory):
        eventually(lambda: bool(world.servers["one"].logins))
    pipe = world.servers["one"].pipe
    assert pipe.opened == 1
    eventually(lambda: all(writer.is_closing() for writer in pipe.writers))


def test_a_failure_is_told_where_the_link_is_needed(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    world.stop("one")
    host = inventory.host("box")
    with LinksAhead([host], inventory) as ahead, pytest.raises(UnreachableError, match="box"):
        open_session(host, inventory, ahead=ahead)


def test_beginning_loads_nothing_that_is_slow() -> None:
    program = (
        "import sys; from macd.ssh import ahead, session, wire; print('paramiko' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
