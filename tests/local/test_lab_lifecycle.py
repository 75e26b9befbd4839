"""A lab comes up once, ends all it started and nothing else, and survives what happens to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macd import lab as lab_room
from macd.errors import MacdError
from macd.lab import processes
from macd.lab.state import read_record
from tests.support.openssh import eventually, ssh, text

Place = Callable[[str], Path]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Makes directories for labs; whatever lab was started in one is taken down."""
    made: list[Path] = []

    def make(name: str) -> Path:
        root = tmp_path / name
        root.mkdir()
        made.append(root)
        return root

    yield make
    for root in made:
        lab_room.down(root)


def detached(state: lab_room.LabState, host: str) -> int:
    """The pid of a process that left its SSH session on this host."""
    shown = text(
        state.ssh_config, host, "setsid sleep 600 >/dev/null 2>&1 </dev/null & echo $!; sleep 0.1"
    )
    return int(shown)


def test_up_twice_is_up_once_and_down_twice_is_down(place: Place) -> None:
    root = place("clone")
    first = lab_room.up(root)
    second = lab_room.up(root)
    assert (first.was_running, second.was_running) == (False, True)
    assert (first.pid, first.id) == (second.pid, second.id)
    lab_room.down(root)
    assert not lab_room.status(root).running
    assert lab_room.down(root) == []


def test_down_ends_a_detached_job_the_daemon_and_nothing_else(place: Place) -> None:
    root = place("clone")
    state = lab_room.up(root)
    job = detached(state, "h800")
    assert processes.started_at(job)
    bystander = subprocess.Popen(["sleep", "600"], cwd=state.hosts["h800"].home)
    private = Path(read_record(root).private)  # type: ignore[union-attr]
    try:
        lab_room.down(root)
        assert processes.started_at(job) is None
        assert processes.started_at(state.pid) is None
        assert processes.marked(state.id) == []
        assert not private.exists()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
def test_down_also_ends_a_detached_job_that_dropped_the_labs_mark(place: Place) -> None:
    root = place("clone")
    state = lab_room.up(root)
    job = int(
        text(state.ssh_config, "h800",
             "env -i setsid sleep 600 >/dev/null 2>&1 </dev/null & echo $!; sleep 0.1")
    )  # fmt: skip
    assert job not in processes.marked(state.id)
    lab_room.down(root)
    assert processes.started_at(job) is None


@pytest.mark.parametrize("look", ["up", "status", "down"])
def test_after_the_daemon_was_killed_the_next_command_cleans_up(place: Place, look: str) -> None:
    root = place("clone")
    state = lab_room.up(root)
    job = detached(state, "prod")
    private = Path(read_record(root).private)  # type: ignore[union-attr]
    os.kill(state.pid, signal.SIGKILL)
    eventually(lambda: processes.started_at(state.pid) is None)
    after = getattr(lab_room, look)(root)
    assert processes.started_at(job) is None
    assert not private.exists()
    if look == "up":
        assert after.running
        assert not after.was_running
        assert text(after.ssh_config, "h800", "echo well") == "well\n"
    else:
        assert read_record(root) is None


def test_a_record_from_before_a_reboot_never_kills_a_stranger(place: Place) -> None:
    """The pid in the record is somebody else's now: its start time tells."""
    root = place("clone")
    lab_room.up(root)
    lab_room.down(root)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (root / ".lab/state.json").write_text(
            f'{{"id": "feedfeedfeedfeed", "pid": {stranger.pid}, "started": "boot:1",'
            f' "private": "{root}/gone", "ports": {{}}}}'
        )
        assert not lab_room.status(root).running
        assert lab_room.up(root).running
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_two_labs_at_once_also_in_odd_directories(place: Place) -> None:
    one = lab_room.up(place("a clone with blanks"))
    two = lab_room.up(place("long" * 40))
    assert one.hosts["prod"].port != two.hosts["prod"].port
    for state in (one, two):
        assert text(state.ssh_config, "h800", "echo $MACD_LAB_ID; pwd").split("\n")[:2] == [
            state.id,
            str(state.hosts["h800"].home),
        ]
        assert text(state.ssh_config, "prod", "python3 -c 'print(6*7)'") == "42\n"
    # One lab's keys open nothing in the other.
    crossed = two.root / ".lab/crossed"
    crossed.write_text(one.ssh_config.read_text().replace(str(one.key), str(two.key)))
    assert b"Permission denied" in ssh(crossed, "prod", "true").stderr
    job = detached(two, "prod")
    lab_room.down(one.root)
    assert processes.started_at(job)
    assert lab_room.status(two.root).running


def test_homes_and_keys_stay_until_wiped(place: Place) -> None:
    root = place("clone")
    state = lab_room.up(root)
    text(state.ssh_config, "h800", "echo kept > note")
    known = [line.split()[2] for line in state.known_hosts.open()]
    lab_room.down(root)
    state = lab_room.up(root)
    assert text(state.ssh_config, "h800", "cat note") == "kept\n"
    assert [line.split()[2] for line in state.known_hosts.open()] == known
    lab_room.down(root, wipe=True)
    assert not (root / ".lab").exists()


def test_prod_takes_the_next_port_when_22222_is_taken(place: Place) -> None:
    root = place("clone")
    with socket.socket() as blocker:
        blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def take() -> bool:
            with contextlib.suppress(OSError):
                blocker.bind(("127.0.0.1", 22222))
                blocker.listen()
                return True
            return False

        taken = take()  # else by another lab, which may end at any moment
        state = lab_room.up(root)
        if not taken and state.hosts["prod"].port == 22222:
            lab_room.down(root)
            assert take()
            state = lab_room.up(root)
        assert (state.hosts["prod"].port or 0) > 22222
        assert text(state.ssh_config, "prod", "echo here") == "here\n"


def test_a_place_that_cannot_be_written_is_one_clear_error(place: Place) -> None:
    root = place("clone")
    (root / ".lab").write_text("a file where the directory should be")
    with pytest.raises(MacdError) as caught:
        lab_room.up(root)
    assert "can't be written" in str(caught.value)
    assert "do: make the directory writable" in str(caught.value)
    (root / ".lab").unlink()


def test_missing_libraries_are_one_clear_error(place: Place) -> None:
    root = place("clone")
    program = (
        "import sys; sys.modules['asyncssh'] = None\n"
        "from pathlib import Path; from macd import lab\n"
        f"lab.up(Path({str(root)!r}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "the lab's libraries aren't installed" in ran.stderr
    assert "make setup" in ran.stderr


def test_a_daemon_that_cannot_start_says_why(place: Place) -> None:
    root = place("clone")
    (root / ".lab").mkdir()
    (root / ".lab/hosts").write_text("in the way")
    with pytest.raises(MacdError) as caught:
        lab_room.up(root)
    assert "can't be created in" in str(caught.value)
    assert not lab_room.status(root).running
    assert read_record(root) is None


def test_starting_at_the_same_moment_starts_one(place: Place) -> None:
    root = place("clone")
    program = (
        f"from pathlib import Path; from macd import lab; print(lab.up(Path({str(root)!r})).pid)"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    pids = {racer.communicate(timeout=180)[0] for racer in racers}
    assert len(pids) == 1
