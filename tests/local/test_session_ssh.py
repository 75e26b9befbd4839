"""The agent over real SSH: through the jump host, over cut links, past noisy shells."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from macd import inventory as inventory_room
from macd import lab as lab_room
from macd.errors import ContactLostError, MacdError
from macd.lab import Fault, LabState
from macd.ssh.blobs import Blob
from macd.ssh.failures import RemoteFileNotFoundError
from macd.ssh.session import Session, open_session
from tests.support.openssh import eventually

Open = Callable[..., Session]

SIZE = 2 << 20
DATA = random.Random(11).randbytes(SIZE)


@pytest.fixture(scope="module")
def inventory(lab: LabState) -> inventory_room.Inventory:
    """The lab's inventory as it is shipped, read for the test's lab."""
    shipped = inventory_room.project_root() / "inventory" / "lab.yml"
    (lab.root / "inventory").mkdir(exist_ok=True)
    shutil.copy(shipped, lab.root / "inventory" / "lab.yml")
    return inventory_room.load("lab", root=lab.root)


@pytest.fixture
def open_to(inventory: inventory_room.Inventory) -> Iterator[Open]:
    """Open a session to a host of the lab; keywords change what the inventory says of the host."""
    with ExitStack() as stack:

        def to(name: str, **changes: object) -> Session:
            host = inventory.host(name).model_copy(update=changes)
            return stack.enter_context(open_session(host, inventory))

        yield to


def python_behind(lab: LabState, host: str, prelude: str) -> str:
    """A `python` for the inventory that does what a careless login shell does, then starts ours."""
    script = lab.hosts[host].home / "noisy python"
    script.write_text(f'#!/bin/sh\n{prelude}\nexec python3 "$@"\n')
    script.chmod(0o755)
    return "~/noisy python"


def agent_runs(home: Path) -> bool:
    """Whether some agent still runs on the lab host with this home."""
    found = False
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"macd-agent" in (process / "cmdline").read_bytes():
                found |= f"HOME={home}\0".encode() in (process / "environ").read_bytes()
    return found


def settled(store: Path, home: Path) -> int:
    """Bytes kept of a cut upload, once the agent that wrote them has ended."""
    eventually(lambda: not agent_runs(home))
    return sum(path.stat().st_size for path in store.glob(".partial/*"))


@pytest.mark.parametrize("name", ["jump", "h800", "prod"])
def test_facts_of_every_host(lab: LabState, open_to: Open, name: str) -> None:
    facts = open_to(name).facts(["~"])
    assert facts.user.home == str(lab.hosts[name].home)
    assert facts.disks[0].path == str(lab.hosts[name].home)
    assert facts.python.implementation == "cpython"


def test_prod_has_a_service_manager_in_user_scope(open_to: Open) -> None:
    assert open_to("prod").facts().systemd.scope == "user"


def test_the_clock_is_known_to_within_half_a_round_trip(
    clean_links: LabState, open_to: Open
) -> None:
    lab_room.set_fault(clean_links.root, "prod", Fault(rtt_ms=60))
    session = open_to("prod")
    session.call("facts")
    clock = session.ping()
    assert abs(clock.offset) <= clock.error
    assert clock.error >= 0.03


def test_files_and_programs_through_the_jump_host(lab: LabState, open_to: Open) -> None:
    session = open_to("h800")
    session.write("~/work/$(touch owned)/a file", b"content")
    assert (lab.hosts["h800"].home / "work/$(touch owned)/a file").read_bytes() == b"content"
    assert session.run(["cat", "a file"], cwd="~/work/$(touch owned)").stdout == b"content"
    with pytest.raises(RemoteFileNotFoundError, match="h800: read"):
        session.read("~/not there")
    assert session.run(["sh", "-c", "cat; exit 4"], input=DATA, limit=SIZE).stdout == DATA


# Bytes over the link: its handshake and the agent are the first ~25,000.
CUTS = [1_000, 30_000, 160_000, 300_000, 500_000, 800_000, 1 << 20, 1_500_000, 1_800_000, SIZE]


@pytest.mark.parametrize("host", ["prod", "h800"])
@pytest.mark.parametrize("cut", CUTS)
def test_an_upload_cut_anywhere_goes_on_where_it_stopped(
    clean_links: LabState, open_to: Open, host: str, cut: int
) -> None:
    root = f"~/cut at {cut}"
    home = clean_links.hosts[host].home
    store = home / f"cut at {cut}" / "blobs"
    blob = Blob.of_bytes(DATA)
    lab_room.set_fault(clean_links.root, host, Fault(cut_after=cut, cut_direction="up"))
    with pytest.raises(MacdError):
        open_to(host).put_blobs(root, [blob])
    assert lab_room.status(clean_links.root).hosts[host].counters.cuts == 1
    assert not list(store.glob("sha256/??/*"))
    kept = settled(store, home)

    report = open_to(host).put_blobs(root, [blob])
    assert report.sent == SIZE - kept
    (landed,) = store.glob("sha256/??/*")
    assert landed.read_bytes() == DATA
    assert not list(store.glob(".partial/*"))


def test_what_has_arrived_is_kept(clean_links: LabState, open_to: Open) -> None:
    """A link that only stops for good after the host has taken what was sent."""
    home = clean_links.hosts["prod"].home
    store = home / "kept" / "blobs"
    session = open_to("prod")
    blob = Blob.of_bytes(DATA)
    listed = {"root": "~/kept", "blobs": [[blob.sha256, SIZE]]}
    pending = session.stream("blobs_put", listed)
    session.send_data(pending, {"sha256": blob.sha256, "data": DATA[:1_000_000]})
    eventually(lambda: sum(p.stat().st_size for p in store.glob(".partial/*")) == 1_000_000)
    lab_room.set_fault(clean_links.root, "prod", Fault(cut_after=0, cut_on="present"))
    with pytest.raises(ContactLostError):
        pending.result()
    assert settled(store, home) == 1_000_000
    assert open_to("prod").put_blobs("~/kept", [blob]).sent == SIZE - 1_000_000


def test_noise_of_a_login_shell_is_tolerated(lab: LabState, open_to: Open) -> None:
    noise = "echo 'Welcome!'; printf '\\033[2J'; (sleep 0.05; echo still here) & echo oops >&2"
    session = open_to("prod", python=python_behind(lab, "prod", noise))
    assert all([session.call("run", argv=["sleep", "0.01"]) for _ in range(20)])


def test_a_login_shell_that_never_stops_talking_is_an_error(lab: LabState, open_to: Open) -> None:
    talk = "echo Terms and conditions; head -c 300000 /dev/zero"
    python = python_behind(lab, "prod", talk)
    with pytest.raises(MacdError, match="prod: the agent did not start") as caught:
        open_to("prod", python=python).facts()
    assert "Terms and conditions" in caught.value.why


def test_a_host_without_python_is_named(open_to: Open) -> None:
    with pytest.raises(MacdError, match=r"prod: there is no /opt/none/python3") as caught:
        open_to("prod", python="/opt/none/python3").facts()
    assert "the key `python` of host prod" in caught.value.hint


def test_a_host_whose_python_is_too_old_is_named(lab: LabState, open_to: Open) -> None:
    old = lab.hosts["prod"].home / "old python"
    old.write_text("#!/bin/sh\necho 'macd-agent: python too old: 3.10 '; exit 78\n")
    old.chmod(0o755)
    with pytest.raises(MacdError, match=r"prod: ~/old python is Python 3\.10; macd needs 3\.11"):
        open_to("prod", python="~/old python").facts()


def test_several_sessions_to_one_host_at_once(lab: LabState, open_to: Open) -> None:
    sessions = [open_to("prod") for _ in range(3)]
    calls = [session.submit("ping") for _ in range(5) for session in sessions]
    assert len({call.result()["pid"] for call in calls}) == 3


def test_nothing_is_left_on_the_host(lab: LabState, open_to: Open) -> None:
    home = lab.hosts["jump"].home
    before = sorted(home.rglob("*"))
    session = open_to("jump")
    session.facts()
    session.close()
    assert sorted(home.rglob("*")) == before


def test_a_cut_in_the_middle_of_a_call_is_contact_lost(
    clean_links: LabState, open_to: Open
) -> None:
    session = open_to("prod")
    session.call("ping")
    pending = session.submit("run", argv=["sleep", "1000"])
    lab_room.set_fault(clean_links.root, "prod", Fault(cut_after=0, cut_on="present"))
    with pytest.raises(ContactLostError, match="contact with prod was lost"):
        pending.result()
    assert open_to("prod").call("ping")


@pytest.mark.timeout(60)
def test_it_ends_though_a_ctrl_c_left_a_lock_of_paramiko_taken(open_to: Open) -> None:
    session = open_to("prod")
    session.ping()
    below: Any = session
    below._channel._channel.lock.acquire()  # as an interrupt between acquire() and try does
    session.close()
