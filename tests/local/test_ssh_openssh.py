"""OpenSSH's own server, which production runs, takes what we send it: order, refusals, cuts."""

from __future__ import annotations

import getpass
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.slow_line import SlowLine
from macd.errors import ContactLostError
from macd.inventory import load
from macd.ssh import ssh
from macd.ssh.blobs import Blob
from macd.ssh.refusals import UnreachableError
from macd.ssh.session import open_session
from tests.support.openssh import eventually
from tests.support.sshd import SSHD, Sshd, key

pytestmark = pytest.mark.skipif(
    SSHD is None, reason="no sshd here (apt-get install openssh-server)"
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def sshd(directory: Path, request: pytest.FixtureRequest) -> Iterator[Sshd]:
    made = Sshd(directory, *getattr(request, "param", ()))
    yield made
    made.stop()


def test_commands_run_through_a_jump(sshd: Sshd) -> None:
    inventory = sshd.inventory("right")
    data = os.urandom(2_000_000)
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel("cat; exit 7")
        channel.send(data)
        channel.shutdown_write()
        got = b""
        while piece := channel.recv(1 << 20):
            got += piece
        assert got == data
        eventually(lambda: channel.exit_status() == 7)


def test_a_jump_host_by_its_ipv4_address_in_ssh_config(sshd: Sshd, tmp_path: Path) -> None:
    """Two servers; `ssh -G` prints the first one's address in brackets."""
    (tmp_path / "jump").mkdir()
    jump = Sshd(tmp_path / "jump")
    try:
        how = f"{getpass.getuser()}@127.0.0.1:{jump.port}"
        inventory = sshd.reached_through(jump, how)
        with ssh.connect(inventory.host("gpu"), inventory) as link:
            assert [hop.address for hop in link.hops] == [
                f"127.0.0.1:{jump.port}",
                f"127.0.0.1:{sshd.port}",
            ]
            channel = link.open_channel("echo $SSH_CONNECTION")
            assert channel.recv(200).split()[3] == str(sshd.port).encode()
    finally:
        jump.stop()


def test_wrong_keys_before_the_right_one(sshd: Sshd) -> None:
    """The request for the service and the first key leave together; later keys go the same way."""
    for name in ("wrong1", "wrong2"):
        key(sshd.directory / name)
    inventory = sshd.inventory("wrong1", "wrong2", "right")
    with ssh.connect(inventory.host("gate"), inventory) as link:
        assert link.open_channel("echo hi").recv(10) == b"hi\n"


@pytest.mark.parametrize("sshd", [("MaxAuthTries 2",)], indirect=True)
def test_too_many_keys_are_told_in_the_servers_words(sshd: Sshd) -> None:
    names = [f"wrong{n}" for n in range(4)]
    for name in names:
        key(sshd.directory / name)
    inventory = sshd.inventory(*names)
    with pytest.raises(UnreachableError) as caught:
        ssh.connect(inventory.host("gate"), inventory)
    assert caught.value.reason == "login"
    assert "Too many authentication failures" in caught.value.why
    assert "wrong0" in caught.value.why and "wrong3" not in caught.value.why


@pytest.mark.parametrize("sshd", [("AllowTcpForwarding no",)], indirect=True)
def test_a_jump_without_forwarding_is_told(sshd: Sshd) -> None:
    inventory = sshd.inventory("right")
    with pytest.raises(UnreachableError) as caught:
        ssh.connect(inventory.host("box"), inventory)
    assert (caught.value.reason, caught.value.hop) == ("forwarding", "box")
    assert "jump host gate" in caught.value.what


@pytest.mark.parametrize(
    "sshd", [("PasswordAuthentication yes\nPubkeyAuthentication no",)], indirect=True
)
def test_a_server_without_keys_is_told(sshd: Sshd) -> None:
    inventory = sshd.inventory("right")
    with pytest.raises(UnreachableError) as caught:
        ssh.connect(inventory.host("gate"), inventory)
    assert "it takes no keys, only: password" in caught.value.why


@pytest.mark.parametrize(
    ("sshd", "setting", "theirs", "ours"),
    [
        (
            ("Ciphers chacha20-poly1305@openssh.com",),
            "Ciphers",
            "cipher: it offers chacha20-poly1305@openssh.com; we speak",
            "aes256-gcm@openssh.com",
        ),
        (
            ("KexAlgorithms sntrup761x25519-sha512@openssh.com",),
            "KexAlgorithms",
            "key exchange: it offers sntrup761x25519-sha512@openssh.com; we speak",
            "curve25519-sha256@libssh.org",
        ),
        (
            ("MACs umac-128-etm@openssh.com,umac-64@openssh.com",),
            "MACs",
            "MAC: it offers umac-128-etm@openssh.com, umac-64@openssh.com; we speak",
            "hmac-sha2-256-etm@openssh.com",
        ),
        (
            ("HostKeyAlgorithms sk-ssh-ed25519@openssh.com,ssh-rsa", "HostKey {}/rsa"),
            "HostKeyAlgorithms",
            "host key type: it offers ssh-rsa; we speak",
            "ssh-ed25519",
        ),
    ],
    indirect=["sshd"],
)
def test_a_server_without_an_algorithm_of_ours_is_told_with_a_remedy_that_works(
    sshd: Sshd, setting: str, theirs: str, ours: str
) -> None:
    inventory = sshd.inventory("right")
    with pytest.raises(UnreachableError) as caught:
        ssh.connect(inventory.host("gate"), inventory)
    error = caught.value
    assert error.reason == "algorithms"
    assert theirs in error.why and ours in error.why.partition("we speak")[2]
    assert f"add one that we speak to {setting} in sshd_config there" in error.hint
    sshd.add(setting, ours)
    with ssh.connect(inventory.host("gate"), inventory) as link:
        assert link.open_channel("echo hi").recv(10) == b"hi\n"


@pytest.mark.parametrize(
    "sshd",
    [("Ciphers chacha20-poly1305@openssh.com", "MACs umac-128-etm@openssh.com")],
    indirect=True,
)
def test_every_kind_of_algorithm_that_is_missing_is_told_at_once(sshd: Sshd) -> None:
    inventory = sshd.inventory("right")
    with pytest.raises(UnreachableError) as caught:
        ssh.connect(inventory.host("gate"), inventory)
    assert "no cipher and no MAC that we do" in caught.value.what
    assert "to Ciphers and to MACs in sshd_config" in caught.value.hint


@pytest.mark.parametrize("sshd", [("ForceCommand exit 3",)], indirect=True)
def test_a_forced_command_is_seen_by_its_status(sshd: Sshd) -> None:
    inventory = sshd.inventory("right")
    with ssh.connect(inventory.host("gate"), inventory) as link:
        channel = link.open_channel("echo hi")
        assert channel.recv(10) == b""
        eventually(lambda: channel.exit_status() == 3)


def test_probes_are_answered_and_a_quiet_link_lives(sshd: Sshd) -> None:
    inventory = sshd.inventory("right")
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel("sleep 3; echo done")
        assert channel.recv(10) == b"done\n"


@pytest.mark.parametrize(
    ("sshd", "sessions"), [((), 3), (("MaxSessions 1",), 1)], indirect=["sshd"]
)
def test_a_large_upload_goes_by_several_sessions_where_the_server_opens_them(
    sshd: Sshd, sessions: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its server takes 2 MiB ahead in each: one session sends 10 MB/s at 200 ms."""
    caplog.set_level(logging.INFO, "macd.calls")
    line = SlowLine("127.0.0.1", sshd.port)
    line.set(200, 200)
    sshd.inventory("right")
    for name in ("lab.yml", "known_hosts.lab"):
        path = sshd.directory / "inventory" / name
        path.write_text(path.read_text().replace(str(sshd.port), str(line.port)))
    inventory = load("lab", root=sshd.directory)
    chance = random.Random(12)
    blobs = [Blob.of_bytes(chance.randbytes(1 << 20)) for _ in range(20)]
    try:
        with open_session(inventory.host("gate"), inventory) as session:
            report = session.put_blobs(str(tmp_path / "root"), blobs)
    finally:
        line.close()
    assert (report.landed, report.sent) == (20, 20 << 20)
    started = sum("gate (agent)" in message for message in caplog.messages)
    assert started == sessions
    whole = (tmp_path / "root/blobs/sha256").glob("??/*")
    assert {p.name for p in whole} == {blob.sha256 for blob in blobs}


def test_a_host_whose_sshd_hangs_is_dead(sshd: Sshd) -> None:
    inventory = sshd.inventory("right")
    with ssh.connect(inventory.host("gate"), inventory) as link:
        channel = link.open_channel("echo $PPID; cat")
        serving = int(channel.recv(100))
        os.kill(serving, signal.SIGSTOP)
        try:
            with pytest.raises(ContactLostError, match="contact with gate was lost"):
                channel.recv(1)
        finally:
            os.kill(serving, signal.SIGKILL)
