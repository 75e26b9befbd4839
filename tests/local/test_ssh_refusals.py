"""Whatever goes wrong on whichever hop, one message names that hop, the cause and the next step."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from paramiko import Message

from macd.errors import ExitCode, MacdError, RefusedError
from macd.inventory import Inventory
from macd.ssh import ssh
from macd.ssh.refusals import UnreachableError
from tests.support import ports
from tests.support.openssh import eventually
from tests.support.ssh_servers import World, world_in

CHAIN = ("one", "two", "three")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def refused(inventory: Inventory) -> MacdError:
    with pytest.raises(MacdError) as caught:
        ssh.connect(inventory.host("box"), inventory)
    return caught.value


def unreachable(inventory: Inventory, reason: str, hop: str) -> UnreachableError:
    error = refused(inventory)
    assert isinstance(error, UnreachableError), error
    assert (error.reason, error.hop) == (reason, hop), str(error)
    assert error.exit_code == ExitCode.FAILED
    assert error.why and error.hint and error.live
    return error


def named(hop: str) -> str:
    """The last hop is called as the inventory calls it."""
    return "box" if hop == CHAIN[-1] else hop


def started(world: World, special: str, **options: object) -> Inventory:
    for name in CHAIN:
        world.start(name, **(options if name == special else {}))
    return world.chain(*CHAIN)


def edit(world: World, old: str, new: str, file: str = "ssh_config") -> None:
    path = world.directory / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("hop", CHAIN)
def test_an_unknown_host_key_is_refused_on_each_hop(world: World, hop: str) -> None:
    inventory = started(world, "")
    server = world.servers[hop]
    edit(world, server.public, "", "known_hosts")
    error = refused(inventory)
    assert isinstance(error, RefusedError) and error.exit_code == ExitCode.REFUSED
    assert f"host key of {'' if hop == 'three' else 'jump host '}{named(hop)} (" in error.what
    assert "not known" in error.what
    assert server.fingerprint in error.why
    assert "invoke host.trust box" in error.hint
    assert server.logins == []  # nothing was said to a host that isn't trusted


@pytest.mark.parametrize("hop", CHAIN)
def test_a_changed_host_key_is_refused_loudly_on_each_hop(world: World, hop: str) -> None:
    inventory = started(world, "")
    server = world.servers[hop]
    old = asyncssh.generate_private_key("ssh-ed25519")
    public = " ".join(old.export_public_key().decode().split()[:2])
    edit(world, server.public, public, "known_hosts")
    error = refused(inventory)
    assert error.exit_code == ExitCode.REFUSED
    assert "HAS CHANGED" in error.what and "attack" in error.what and named(hop) in error.what
    assert server.fingerprint in error.why and str(old.get_fingerprint()) in error.why
    assert "invoke host.trust box" in error.hint
    assert server.logins == []


@pytest.mark.parametrize("hop", CHAIN)
def test_a_revoked_host_key_is_refused_on_each_hop(world: World, hop: str) -> None:
    inventory = started(world, "")
    server = world.servers[hop]
    with (world.directory / "known_hosts").open("a") as file:
        file.write(f"@revoked * {server.public}\n")
    error = refused(inventory)
    assert error.exit_code == ExitCode.REFUSED
    assert "REVOKED" in error.what and named(hop) in error.what


def test_options_of_ssh_config_do_not_soften_the_check(world: World) -> None:
    world.start("one")
    inventory = world.chain("one", trust=False)
    kh = world.directory / "their_known_hosts"
    kh.write_text(f"* {world.servers['one'].public}\n")
    config = world.directory / "ssh_config"
    soft = f"Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile {kh}\n"
    config.write_text(soft + config.read_text())
    assert "not known" in refused(inventory).what


@pytest.mark.parametrize("hop", CHAIN)
def test_a_key_that_is_not_accepted_is_told_on_each_hop(world: World, hop: str) -> None:
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    inventory = started(world, hop, allowed=stranger)
    error = unreachable(inventory, "login", named(hop))
    assert f"does not let u-{hop} in" in error.what
    assert f"tried {world.identity}" in error.why
    assert "ssh-copy-id" in error.hint


def test_every_key_that_was_tried_is_listed(world: World) -> None:
    world.start("one", allowed=asyncssh.generate_private_key("ssh-ed25519"))
    inventory = world.chain("one")
    second = world.directory / "second"
    second.write_bytes(world.identity.read_bytes())
    second.chmod(0o600)
    locked = world.directory / "locked"
    key = asyncssh.generate_private_key("ssh-ed25519")
    locked.write_bytes(key.export_private_key(passphrase="secret"))
    locked.chmod(0o600)
    open_to_all = world.directory / "open"
    open_to_all.write_bytes(world.identity.read_bytes())
    open_to_all.chmod(0o644)
    lines = "".join(
        f'  IdentityFile "{path}"\n'
        for path in (second, locked, open_to_all, world.directory / "nowhere")
    )
    edit(world, "  IdentityAgent none\n", f"  IdentityAgent none\n{lines}")
    error = unreachable(inventory, "login", "box")
    assert f"tried {world.identity}" in error.why and f"tried {second}" in error.why
    assert f"not tried: {locked}: needs its passphrase; ssh-add {locked}" in error.why
    assert f"not tried: {open_to_all}: others may read it" in error.why
    assert "nowhere: there is no such file" in error.why


def test_having_no_key_is_told(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    world.identity.unlink()
    error = unreachable(inventory, "login", "box")
    assert "no key to log in with" in error.why and "no such file" in error.why


def test_a_server_that_wants_a_password_is_told(world: World) -> None:
    world.start("one", password=True)
    error = unreachable(world.chain("one"), "login", "box")
    assert "it takes no keys, only" in error.why


def test_a_refused_connection_names_host_and_port(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    port = ports.kept("nobody listens")
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    error = unreachable(inventory, "refused", "box")
    assert f"box (127.0.0.1:{port}) refused" in error.what
    assert "wrong port" in error.why


def test_a_jump_host_that_is_down_is_named(world: World) -> None:
    inventory = started(world, "")
    world.stop("one")
    error = unreachable(inventory, "refused", "one")
    assert "jump host one (127.0.0.1:" in error.what
    assert "hop 1 of 3: one -> two -> box" in error.why


def test_a_second_jump_that_is_down_is_named(world: World) -> None:
    inventory = started(world, "")
    world.stop("two")
    error = unreachable(inventory, "behind-jump", "two")
    assert "jump host one" in error.what and "can't reach jump host two" in error.what
    assert "hop 2 of 3" in error.why


def test_a_target_that_the_jump_cannot_reach_is_named(world: World) -> None:
    inventory = started(world, "")
    world.stop("three")
    error = unreachable(inventory, "behind-jump", "box")
    assert "jump host two" in error.what and "can't reach box (three.test:22)" in error.what
    assert "refused" in error.why.lower() or "Connect call failed" in error.why


def test_a_name_that_only_the_jump_does_not_know(world: World) -> None:
    inventory = started(world, "")
    edit(world, "HostName three.test", "HostName nowhere.test")
    error = unreachable(inventory, "behind-jump", "box")
    assert "Name or service not known" in error.why


def test_a_jump_that_forbids_going_on(world: World) -> None:
    inventory = started(world, "two", no_forwarding=True)
    error = unreachable(inventory, "forwarding", "box")
    assert "jump host two" in error.what and "AllowTcpForwarding" in error.hint


def test_a_jump_that_gets_no_answer(world: World) -> None:
    for name in CHAIN:
        world.start(name, hangs=name == "two")
    inventory = world.chain(*CHAIN, connect_s=6)
    error = unreachable(inventory, "behind-jump", "box")
    assert "jump host two" in error.what and "no answer from box" in error.what


def test_a_name_that_is_not_known(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    edit(world, "HostName 127.0.0.1", "HostName no-such-host.invalid")
    error = unreachable(inventory, "name", "box")
    assert "no-such-host.invalid" in error.why


@pytest.mark.parametrize(
    ("greeting", "hold", "part"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "HTTP/1.1 400 Bad Request"),
        (b"220 mail ESMTP\r\n", True, "220 mail ESMTP"),
        (b"\x00\x01\x02binary", False, "binary"),
        (b"", False, "without a greeting"),
        (b"", True, "no SSH greeting"),
    ],
)
def test_a_port_that_is_no_ssh_server(world: World, greeting: bytes, hold: bool, part: str) -> None:
    world.start("one")
    # What is greeted with is read to its end, or as long as nothing comes.
    inventory = world.chain("one", connect_s=6 if greeting and hold else 20 if greeting else 1)
    port = world.speak(greeting, hold=hold)
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    error = unreachable(inventory, "not-ssh", "box")
    assert part in str(error)
    assert f"port of box ({port})" in error.hint


def test_a_server_that_falls_silent_after_its_greeting(world: World) -> None:
    world.start("one")
    inventory = world.chain("one", connect_s=20, login_s=1)
    port = world.speak(b"SSH-2.0-Stuck\r\n", hold=True)
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    error = unreachable(inventory, "timeout", "box")
    assert "fell silent" in error.what


def kexinit() -> bytes:
    """A server's first packet, after which it owes its key."""
    message = Message()
    message.add_byte(b"\x14")
    message.add_bytes(bytes(16))
    for names in (["curve25519-sha256@libssh.org"], ["ssh-ed25519"], *[["aes128-ctr"]] * 2):
        message.add_list(names)
    for names in (*[["hmac-sha2-256"]] * 2, *[["none"]] * 2, [], []):
        message.add_list(names)
    message.add_boolean(False)
    message.add_int(0)
    payload = message.asbytes()
    padding = 4 + -(len(payload) + 9) % 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def test_a_server_that_falls_silent_before_it_shows_its_key(world: World) -> None:
    world.start("one")
    inventory = world.chain("one", connect_s=20, login_s=1)
    port = world.speak(b"SSH-2.0-Stuck\r\n" + kexinit(), hold=True)
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    error = unreachable(inventory, "timeout", "box")
    assert "fell silent while keys were exchanged" in error.what


def test_a_server_without_an_algorithm_of_ours(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    old = kexinit().replace(b"aes128-ctr", b"3des-cbc-x")
    port = world.speak(b"SSH-2.0-Old\r\n" + old, hold=True)
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    error = unreachable(inventory, "algorithms", "box")
    assert "no cipher that we do" in error.what
    assert "cipher: it offers 3des-cbc-x; we speak aes128-ctr, aes256-ctr" in error.why
    assert "SSH-2.0-Old" in error.hint and "sshd_config" not in error.hint


def test_the_names_of_a_servers_algorithms_are_harmless_to_a_terminal(world: World) -> None:
    world.start("one")
    inventory = world.chain("one")
    port = world.speak(
        b"SSH-2.0-Old\r\n" + kexinit().replace(b"aes128-ctr", b"\x1b[2J\x07cbc-x"), hold=True
    )
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    error = unreachable(inventory, "algorithms", "box")
    assert "it offers [2J cbc-x; we speak" in error.why


def test_a_failed_attempt_keeps_nothing_waiting(world: World) -> None:
    """paramiko's timer of an unfinished handshake would hold up the end of the command."""
    world.start("one")
    inventory = world.chain("one")
    port = world.speak(b"SSH-2.0-Gone\r\n", hold=False)
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    unreachable(inventory, "lost", "box")
    waiting = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    eventually(lambda: not any(timer.is_alive() for timer in waiting), within=90)


def test_an_address_that_does_not_answer(world: World) -> None:
    """A listener whose queue is full drops what comes after, as a firewall would."""
    world.start("one")
    inventory = world.chain("one", connect_s=1)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
        error = unreachable(inventory, "timeout", "box")
        for each in waiting:
            each.close()
    assert "did not answer within 1 s" in error.what


def test_no_message_of_the_library_reaches_the_terminal(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.start("one")
    inventory = world.chain("one", connect_s=20)
    port = world.speak(b"nonsense\r\n", hold=False)
    edit(world, f"Port {world.servers['one'].pipe.port}", f"Port {port}")
    unreachable(inventory, "not-ssh", "box")
    assert capfd.readouterr() == ("", "")
