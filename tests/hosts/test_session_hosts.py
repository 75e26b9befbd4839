"""The agent on real Debian hosts: OpenSSH, bash with its .bashrc, systemd, connections that die."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from macd.errors import ContactLostError, MacdError
from macd.inventory import load
from macd.ssh.blobs import Blob
from macd.ssh.session import Session, open_session
from tests.support.hosts.fleet import Hosts, TestHost
from tests.support.sweeps import sweep

pytestmark = pytest.mark.hosts

Open = Callable[..., Session]

SIZE = 2 << 20
DATA = random.Random(13).randbytes(SIZE)


@pytest.fixture
def open_to(hosts: Hosts) -> Iterator[Open]:
    inventory = load(hosts.inventory, root=hosts.root)
    with ExitStack() as stack:

        def to(name: str, **changes: object) -> Session:
            host = inventory.host(name).model_copy(update=changes)
            return stack.enter_context(open_session(host, inventory))

        yield to


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def agents(host: TestHost) -> list[str]:
    return host.exec("pgrep", "-f", "macd-agent", check=False).split()


@contextmanager
def bashrc(host: TestHost, text: str) -> Iterator[None]:
    """What bash runs first for every command over SSH."""
    before = host.ssh("cat ~/.bashrc").stdout
    host.ssh("cat > ~/.bashrc", input=text)
    try:
        yield
    finally:
        host.ssh("cat > ~/.bashrc", input=before)


def test_a_lingering_user_has_a_manager_of_its_own(hosts: Hosts, open_to: Open) -> None:
    hosts.h800.ssh("loginctl enable-linger quant", user="root")
    eventually(lambda: open_to("h800").facts().systemd.scope == "user")


def test_a_talking_bashrc_is_tolerated(hosts: Hosts, open_to: Open) -> None:
    with bashrc(
        hosts.prod, "echo 'Welcome to prod!'; (sleep 0.2; echo You have mail) & date >&2\n"
    ):
        session = open_to("prod")
        assert all([session.run(["sleep", "0.02"]).exit == 0 for _ in range(20)])


def test_a_bashrc_that_never_stops_talking_is_shown(hosts: Hosts, open_to: Open) -> None:
    with (
        bashrc(hosts.prod, "echo Terms and conditions; head -c 300000 /dev/zero\n"),
        pytest.raises(MacdError, match="prod: the agent did not start") as caught,
    ):
        open_to("prod").facts()
    assert "Terms and conditions" in caught.value.why


def test_a_bashrc_that_reads_stdin_is_told(hosts: Hosts, open_to: Open) -> None:
    with (
        bashrc(hosts.prod, "read -r -t 5 answer\n"),
        pytest.raises(MacdError, match="prod: the agent did not start") as caught,
    ):
        open_to("prod").facts()
    assert "stdin was read by something else" in caught.value.why


def test_no_python_and_one_too_old_are_named(hosts: Hosts, open_to: Open) -> None:
    with pytest.raises(MacdError, match=r"prod: there is no python3\.99"):
        open_to("prod", python="python3.99").facts()
    # The rootfs has one Python: let the real one believe to be older, before our loader runs.
    pretend = (
        "#!/bin/sh\n"
        'exec python3 -c "import sys; sys.version_info = (3, 10); exec(sys.argv[1])" "$2"\n'
    )
    hosts.prod.ssh("cat > /root/old && chmod +x /root/old", input=pretend)
    with pytest.raises(MacdError, match=r"prod: /root/old is Python 3\.10; macd needs 3\.11"):
        open_to("prod", python="/root/old").facts()


CUTS = [1, 4_096, *range(200_000, SIZE, 250_000), SIZE - 1]


@pytest.mark.parametrize("cut", sweep(CUTS, 1, 950_000, SIZE - 1))
def test_an_upload_goes_on_after_sshd_was_killed(hosts: Hosts, open_to: Open, cut: int) -> None:
    host = hosts.h800
    blob = Blob.of_bytes(DATA)
    root = f"/home/quant/cut-{cut}"
    session = open_to("h800")
    pid = session.call("ping")["pid"]
    pending = session.stream("blobs_put", {"root": root, "blobs": [[blob.sha256, SIZE]]})
    session.send_data(pending, {"sha256": blob.sha256, "data": DATA[:cut]})
    sizes = f"stat -c %s {root}/blobs/.partial/*"
    eventually(lambda: host.exec("sh", "-c", sizes, check=False).strip() == str(cut))
    parent = host.exec("ps", "-o", "ppid=", "-p", str(pid)).strip()
    host.exec("kill", "-9", parent)
    with pytest.raises(ContactLostError, match="h800"):
        pending.result()
    eventually(lambda: not agents(host))

    assert open_to("h800").put_blobs(root, [blob]).sent == SIZE - cut
    landed = host.exec("sh", "-c", f"sha256sum {root}/blobs/sha256/*/*; ls {root}/blobs/.partial")
    assert landed.split()[0] == blob.sha256
    assert len(landed.split()) == 2
