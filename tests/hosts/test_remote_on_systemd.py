"""The product's own SSH and agent on real hosts: through jump, refused, cut off, rebooted."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from macd.errors import ContactLostError, RefusedError
from macd.inventory import Inventory, LinkSettings, load
from macd.ssh.blobs import Blob
from macd.ssh.refusals import UnreachableError
from macd.ssh.session import open_session
from macd.ssh.ssh import connect, trust
from tests.support import commands
from tests.support.hosts import network
from tests.support.hosts.fleet import Hosts, TestHost

pytestmark = pytest.mark.hosts

TASKS = """
from invoke import Collection
from macd.cli import host
namespace = Collection(host.facts)
"""
IMPATIENT = LinkSettings(connect_s=5, login_s=10, keepalive_s=1, dead_after_s=6)


@pytest.fixture
def book(hosts: Hosts) -> Inventory:
    return load(hosts.inventory, root=hosts.root)


@pytest.fixture
def impatient(book: Inventory) -> Inventory:
    """For what is to be given up: a busy machine may be taken for a dead one."""
    return book.model_copy(update={"link": IMPATIENT})


def knowing(book: Inventory, known_hosts: Path, text: str) -> Inventory:
    known_hosts.write_text(text)
    return book.model_copy(update={"known_hosts": known_hosts})


def test_facts_of_a_host_behind_jump_say_whose_systemd_may_be_used(
    hosts: Hosts, book: Inventory
) -> None:
    with open_session(book.host("h800"), book) as session:
        told = session.facts(["~/work"])
    assert told.hostname == hosts.h800.machine.name
    assert (told.user.name, told.user.home) == ("quant", "/home/quant")
    assert told.disks[0].path == "/home/quant/work"
    assert told.os.boot_id == hosts.h800.machine.boot_id()
    assert (told.systemd.booted, told.systemd.scope, told.systemd.state) == (
        True,
        "user",
        "running",
    )
    assert told.python.venv
    assert abs(told.clock.offset) <= told.clock.error


def test_facts_of_prod_as_root_and_as_the_user_with_sudo(hosts: Hosts, book: Inventory) -> None:
    prod = book.host("prod")
    with open_session(prod, book) as session:
        told = session.facts(["/opt/macd-analysis"])
        assert session.run(["systemctl", "is-active", "ssh"]).stdout == b"active\n"
    assert (told.user.name, told.systemd.scope, told.os.id) == ("root", "system", "debian")
    assert told.os.boot_id == hosts.prod.machine.boot_id()
    assert [(disk.path, disk.exists, disk.writable) for disk in told.disks] == [
        ("/opt/macd-analysis", False, True)
    ]
    with open_session(prod.model_copy(update={"user": "deploy"}), book) as session:
        assert session.facts().systemd.scope == "user"
        assert session.run(["sudo", "-n", "id", "-un"]).stdout == b"root\n"


def test_invoke_facts_through_jump(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    environment = {"MACD_ROOT": str(hosts.root), "MACD_INVENTORY": hosts.inventory}
    words = ("facts", "--host", "h800", "--json")
    done = commands.run(tmp_path, *words, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hostname"] == hosts.h800.machine.name


def test_nothing_is_left_on_the_host(hosts: Hosts, book: Inventory) -> None:
    places = ["/root", "/tmp", "/var/tmp", "/dev/shm", "/home", "/opt"]

    def state() -> str:
        return hosts.prod.exec("find", *places)

    ended = "for i in $(seq 1000); do pgrep -f 'macd-agen[t]' || exit 0; sleep 0.1; done; exit 1"
    hosts.prod.exec("sh", "-c", ended)
    before = state()
    with open_session(book.host("prod"), book) as session:
        session.facts()
        assert hosts.prod.exec("pgrep", "-fc", "macd-agent").strip() == "1"
    hosts.prod.exec("sh", "-c", ended)
    assert state() == before


@pytest.mark.parametrize("hop", ["jump", "h800"])
def test_an_unknown_host_key_is_refused_at_the_hop_that_shows_it(
    hosts: Hosts, book: Inventory, tmp_path: Path, hop: str
) -> None:
    lines = hosts.known_hosts.read_text().splitlines(keepends=True)
    unknown: TestHost = getattr(hosts, hop)
    missing = "".join(line for line in lines if unknown.host_key not in line)
    before = _logins(hosts.h800)
    with pytest.raises(RefusedError) as caught:
        connect(book.host("h800"), knowing(book, tmp_path / "known_hosts", missing))
    assert f"{unknown.address}" in caught.value.what
    assert _fingerprint(unknown) in caught.value.why
    assert "invoke host.trust h800 --inventory systemd-test" in caught.value.hint
    assert _logins(hosts.h800) == before


@pytest.mark.parametrize("hop", ["jump", "h800", "prod"])
def test_a_host_that_really_changed_its_key_is_refused(
    hosts: Hosts, book: Inventory, hop: str
) -> None:
    changed: TestHost = getattr(hosts, hop)
    with other_host_key(changed), pytest.raises(RefusedError) as caught:
        connect(book.host("prod" if hop == "prod" else "h800"), book)
    assert "HAS CHANGED" in caught.value.what
    assert changed.address in caught.value.what
    assert _fingerprint(changed) in caught.value.why  # the one that is pinned
    assert changed.ssh("true").returncode == 0  # the old key is back for the tests to come


def test_trust_pins_every_hop_and_then_the_way_is_open(
    hosts: Hosts, book: Inventory, tmp_path: Path
) -> None:
    fresh = knowing(book, tmp_path / "known_hosts", "")
    shown = trust(fresh.host("h800"), fresh, lambda _: True)
    assert [each.key.fingerprint for each in shown] == [
        _fingerprint(hosts.jump),
        _fingerprint(hosts.h800),
    ]
    with open_session(fresh.host("h800"), fresh) as session:
        assert session.run(["id", "-un"]).stdout == b"quant\n"


def test_each_way_of_not_arriving_has_its_own_words(
    hosts: Hosts, book: Inventory, impatient: Inventory
) -> None:
    h800, prod = book.host("h800"), book.host("prod")

    def failing(host: object) -> tuple[str, str]:
        with pytest.raises(UnreachableError) as caught:
            connect(host, book)  # type: ignore[arg-type]
        return caught.value.hop, caught.value.reason

    assert failing(h800.model_copy(update={"jump": ()})) == ("h800", "route")
    assert failing(prod.model_copy(update={"port": 22})) == ("prod", "refused")
    assert failing(prod.model_copy(update={"user": "nobody"})) == ("prod", "login")
    hosts.h800.exec("systemctl", "stop", "ssh")
    try:
        assert failing(h800) == ("h800", "behind-jump")
    finally:
        hosts.h800.exec("systemctl", "start", "ssh")
    hosts.jump.machine.power_cut()
    try:
        with pytest.raises(UnreachableError) as caught:
            connect(h800, impatient)
        hop, reason = caught.value.hop, caught.value.reason
        # The address is on our own link: the kernel says so, or nobody answers in time.
        assert hop == "jumphost"
        assert reason in ("route", "timeout", "refused")
    finally:
        hosts.jump.machine.start()
        hosts.jump.machine.wait()
    connect(h800, book).close()


@pytest.mark.parametrize("cut_at", [1 << 20, 9 << 20])
def test_an_upload_through_jump_goes_on_after_the_cable_was_pulled(
    hosts: Hosts, book: Inventory, impatient: Inventory, cut_at: int
) -> None:
    payload = os.urandom(12 << 20)
    blob, root = Blob.of_bytes(payload), f"~/blobs-{cut_at}"

    def cut(sent: int, total: int) -> None:
        if sent >= cut_at:
            network.cut(hosts.h800.machine.name)

    try:
        with (
            pytest.raises(ContactLostError),
            open_session(book.host("h800"), impatient) as session,
        ):
            session.put_blobs(root, [blob], cut)
    finally:
        network.mend(hosts.h800.machine.name)
    with open_session(book.host("h800"), book) as session:
        report = session.put_blobs(root, [blob])
        assert (report.landed, report.present) == (1, 0)
        assert 0 < report.sent < len(payload)  # it did not begin again
        assert session.put_blobs(root, [blob]).sent == 0
        held = session.run(
            ["sh", "-c", f"find {root} -type f -not -path '*/.partial/*' | xargs sha256sum"]
        ).stdout.decode()
    assert [line.split()[0] for line in held.splitlines()] == [blob.sha256]


def test_a_power_cut_during_a_call_is_told_and_the_next_boot_answers(
    hosts: Hosts, book: Inventory, impatient: Inventory
) -> None:
    prod = hosts.prod.machine
    with open_session(book.host("prod"), impatient) as session:
        before = session.facts().os.boot_id
        waiting = session.submit("run", argv=["sleep", "1000"], timeout=1000.0)
        prod.power_cut()
        with pytest.raises(ContactLostError):
            waiting.result()
    prod.start()
    prod.wait(before)
    with open_session(book.host("prod"), book) as session:
        assert session.facts().os.boot_id not in ("", before)


@contextmanager
def other_host_key(host: TestHost) -> Iterator[None]:
    """Reinstall sshd's identity, as far as a client can tell; put back at the end."""
    key = "/etc/ssh/ssh_host_ed25519_key"
    host.exec("mv", key, f"{key}.kept")
    host.exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    host.exec("systemctl", "restart", "ssh")
    try:
        yield
    finally:
        host.exec("mv", f"{key}.kept", key)
        host.exec("systemctl", "reset-failed", "ssh")
        host.exec("systemctl", "restart", "ssh")


def _fingerprint(host: TestHost) -> str:
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"],
        input=host.host_key,
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.split()[1]


def _logins(host: TestHost) -> int:
    log = host.exec("journalctl", "--unit", "ssh", "--output", "cat", "--no-pager")
    return log.count("Accepted publickey")
