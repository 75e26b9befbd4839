"""A link goes through every hop of a real chain, logs in with keys only, and carries commands."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from macd.errors import ContactLostError, MacdError
from macd.inventory import Inventory
from macd.ssh import ssh
from macd.ssh.refusals import UnreachableError
from tests.support.openssh import eventually
from tests.support.ssh_servers import World, world_in


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def answer(inventory: Inventory, command: str, data: bytes = b"") -> tuple[bytes, int | None]:
    """stdout and exit status of a command run on `box`."""
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel(command)
        channel.send(data)
        channel.shutdown_write()
        return everything(channel), status(channel)


def everything(channel: ssh.SshChannel) -> bytes:
    pieces = []
    while piece := channel.recv(65536):
        assert len(piece) <= 65536
        pieces.append(piece)
    return b"".join(pieces)


def status(channel: ssh.SshChannel) -> int | None:
    eventually(lambda: channel.exit_status() is not None)
    return channel.exit_status()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_commands_run_at_the_end_of_a_chain(world: World, depth: int) -> None:
    names = ["one", "two", "three"][:depth]
    for name in names:
        world.start(name)
    inventory = world.chain(*names)
    data = os.urandom(3_000_000)
    assert answer(inventory, "cat; exit 3", data) == (data, 3)
    for name in names:
        assert set(world.servers[name].logins) == {f"u-{name}"}
    assert [world.servers[name].commands for name in names[:-1]] == [[]] * (depth - 1)


def test_the_link_tells_its_way(world: World) -> None:
    for name in ("one", "two"):
        world.start(name)
    inventory = world.chain("one", "two")
    with ssh.connect(inventory.host("box"), inventory) as link:
        assert [hop.name for hop in link.hops] == ["one", "box"]
        assert link.connection.run("echo fabric", hide=True, in_stream=False).stdout == "fabric\n"


def test_several_commands_share_a_link(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    with ssh.connect(inventory.host("box"), inventory) as link:
        channels = [link.open_channel(f"cat; echo {n}") for n in range(5)]
        for channel in channels:
            channel.shutdown_write()
        assert [everything(channel) for channel in channels] == [b"%d\n" % n for n in range(5)]
    assert world.servers["one"].pipe.opened == 1


def test_stderr_is_kept_apart_and_its_end_kept(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    script = "head -c 3000000 /dev/zero >&2; echo told >&2; echo out"
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel(script)
        assert everything(channel) == b"out\n"
        assert status(channel) == 0
        eventually(lambda: channel.stderr().endswith(b"told\n"))
        assert len(channel.stderr()) == 65536
        assert channel.stderr() == channel.stderr()  # looking takes nothing away


def test_a_command_that_reads_nothing_does_not_block_its_own_stderr(world: World) -> None:
    """Sending waits for room while the other side fills stderr: both must get on."""
    world.start("one")
    inventory = world.chain("one")
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel("head -c 40000000 /dev/zero >&2; cat | wc -c")
        channel.send(bytes(8_000_000))
        channel.shutdown_write()
        assert everything(channel) == b"8000000\n"


def test_the_agent_is_never_forwarded(world: World, agent: str) -> None:
    world.start("one")
    config = world.directory / "ssh_config"
    inventory = world.chain("one")
    config.write_text("Host *\n  ForwardAgent yes\n" + config.read_text())
    assert answer(inventory, "echo ${SSH_AUTH_SOCK:-none}")[1] == 0
    assert world.servers["one"].commands and not world.servers["one"].agent_asked


@pytest.fixture
def agent(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real ssh-agent that holds nothing yet."""
    path = f"/tmp/macd-agent-{os.getpid()}-{id(world)}"  # a socket's path must be short
    running = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    eventually(lambda: Path(path).exists())
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    yield path
    running.terminate()
    running.wait()
    Path(path).unlink(missing_ok=True)


def in_agent(world: World, key: asyncssh.SSHKey) -> None:
    path = world.directory / "for-agent"
    path.write_bytes(key.export_private_key())
    path.chmod(0o600)
    subprocess.run(["ssh-add", "-q", str(path)], check=True)
    path.unlink()


def with_agent(world: World, inventory: Inventory, extra: str = "") -> Inventory:
    config = world.directory / "ssh_config"
    config.write_text(config.read_text().replace("IdentityAgent none", extra or "Compression no"))
    return inventory


def test_a_key_of_the_agent_opens_the_door(world: World, agent: str) -> None:
    key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    in_agent(world, asyncssh.generate_private_key("ssh-ed25519"))  # a wrong one before it
    in_agent(world, key)
    world.start("one", allowed=key)
    inventory = with_agent(world, world.chain("one"))
    assert answer(inventory, "echo in") == (b"in\n", 0)


def test_identitiesonly_keeps_the_agents_other_keys_back(world: World, agent: str) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    in_agent(world, key)
    world.start("one", allowed=key)
    inventory = with_agent(world, world.chain("one"), "IdentitiesOnly yes")
    with pytest.raises(UnreachableError) as caught:
        answer(inventory, "echo in")
    assert caught.value.reason == "login"
    assert "from the agent" not in caught.value.why


def test_a_public_key_names_the_agents_key(world: World, agent: str) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    in_agent(world, key)
    world.start("one", allowed=key)
    world.identity.unlink()
    world.identity.with_name(world.identity.name + ".pub").write_bytes(key.export_public_key())
    inventory = with_agent(world, world.chain("one"), "IdentitiesOnly yes")
    assert answer(inventory, "echo in") == (b"in\n", 0)


@pytest.mark.parametrize("kind", ["ssh-rsa", "ecdsa-sha2-nistp384", "ssh-ed25519"])
def test_each_kind_of_key_works_for_host_and_user(world: World, kind: str) -> None:
    key = asyncssh.generate_private_key(kind, comment="me@here")
    world.identity.write_bytes(key.export_private_key())
    world.start("one", key_type=kind, allowed=key)
    assert answer(world.chain("one"), "echo in") == (b"in\n", 0)


def test_the_pinned_kind_of_host_key_is_asked_for(world: World) -> None:
    """The server has a key of a kind that we like better; only its RSA key is pinned."""
    better = asyncssh.generate_private_key("ssh-ed25519")
    world.start("one", key_type="ssh-rsa", more_keys=[better])
    assert answer(world.chain("one"), "echo in") == (b"in\n", 0)


def test_a_server_that_runs_no_commands_is_told(world: World) -> None:
    world.start("one", no_exec=True)
    inventory = world.chain("one")
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel("echo x")
        with pytest.raises(MacdError, match="refuses to run commands"):
            channel.recv(10)
        with pytest.raises(ContactLostError):
            for _ in range(100):
                channel.send(bytes(65536))


def test_a_link_cut_from_the_other_side_is_contact_lost(world: World) -> None:
    world.start("one")
    world.start("two")
    inventory = world.chain("one", "two")
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel("cat")
        channel.send(b"x")
        assert channel.recv(1) == b"x"
        world.stop("one")
        with pytest.raises(ContactLostError, match="contact with box was lost"):
            channel.recv(1)
        with pytest.raises(ContactLostError):
            channel.send(b"x" * (1 << 22))
        with pytest.raises(ContactLostError):
            link.open_channel("cat")
        channel.close()


def test_nothing_is_left_running_after_close(world: World) -> None:
    for name in ("one", "two"):
        world.start(name)
    inventory = world.chain("one", "two")
    before = set(threading.enumerate())
    with ssh.connect(inventory.host("box"), inventory) as link:
        link.open_channel("sleep 60")
    link.close()
    gc.collect()
    eventually(lambda: not {t for t in threading.enumerate() if "asyncio" not in t.name} - before)
