"""Spoilt links as a client meets them: each fault over real SSH, set while the lab runs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
from dataclasses import replace

import asyncssh
import pytest

from macd import lab as lab_room
from macd.lab import Fault, LabState
from tests.support.openssh import argv, eventually, ssh, text

MB = 1_000_000


@pytest.mark.parametrize("host", ["prod", "h800", "jump"])
def test_the_next_connection_is_cut_after_so_many_bytes_and_the_one_after_is_whole(
    clean_links: LabState, host: str
) -> None:
    lab_room.set_fault(clean_links.root, host, Fault(cut_after=2 * MB, cut_direction="up"))
    cut = ssh(clean_links.ssh_config, host, "cat > cut", data=bytes(5 * MB))
    assert cut.returncode == 255
    seen = lab_room.status(clean_links.root).hosts[host]
    assert seen.counters.bytes_up == 2 * MB
    assert seen.counters.cuts == 1
    assert seen.fault == Fault()
    arrived = clean_links.hosts[host].home / "cut"  # a shell ended early opened none
    assert not arrived.exists() or arrived.stat().st_size < 2 * MB
    whole = ssh(clean_links.ssh_config, host, "cat > whole", data=bytes(5 * MB))
    assert whole.returncode == 0
    assert (clean_links.hosts[host].home / "whole").stat().st_size == 5 * MB


def test_what_comes_down_can_be_cut_too(clean_links: LabState) -> None:
    lab_room.set_fault(clean_links.root, "prod", Fault(cut_after=MB, cut_direction="down"))
    cut = ssh(clean_links.ssh_config, "prod", f"head -c {5 * MB} /dev/zero")
    assert cut.returncode == 255
    assert len(cut.stdout) < MB
    assert lab_room.status(clean_links.root).hosts["prod"].counters.bytes_down == MB


def test_the_present_connection_can_be_cut(clean_links: LabState) -> None:
    async def story() -> None:
        async with asyncssh.connect("lab-prod", config=[str(clean_links.ssh_config)]) as link:
            assert (await link.run("echo before")).stdout == "before\n"
            await asyncio.to_thread(
                lab_room.set_fault,
                clean_links.root,
                "prod",
                Fault(cut_after=0, cut_on="present"),
            )
            with pytest.raises((asyncssh.Error, OSError)):
                await link.run("echo after", check=True)

    asyncio.run(story())


def test_a_stalled_link_is_silent_and_goes_on_when_it_is_cleared(clean_links: LabState) -> None:
    async def story() -> None:
        async with asyncssh.connect("lab-h800", config=[str(clean_links.ssh_config)]) as link:
            await asyncio.to_thread(lab_room.set_fault, clean_links.root, "h800", Fault(stall=True))
            waiting = asyncio.create_task(link.run("echo through"))
            done, _ = await asyncio.wait({waiting}, timeout=1.0)
            assert not done, "a stalled link neither answers nor fails"
            await asyncio.to_thread(lab_room.set_fault, clean_links.root, "h800", Fault())
            assert (await waiting).stdout == "through\n"

    asyncio.run(story())


def test_keepalives_find_a_stalled_link(clean_links: LabState) -> None:
    """What users' ssh does with ServerAlive: the stall is real to it."""
    options = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    client = subprocess.Popen(
        argv(clean_links.ssh_config, "prod", "echo on; sleep 60", options=options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"on\n"
    lab_room.set_fault(clean_links.root, "prod", Fault(stall=True))
    _, err = client.communicate(timeout=180)
    assert client.returncode == 255
    assert b"not responding" in err


def test_a_delayed_link_takes_its_round_trips(clean_links: LabState) -> None:
    lab_room.set_fault(clean_links.root, "prod", Fault(rtt_ms=100))
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", clean_links.hosts["prod"].port or 0)) as link:
        assert link.recv(4) == b"SSH-"
    # The handshake's round trip, then the banner that answers the last ACK.
    assert time.monotonic() - began >= 0.2


def test_a_narrow_link_takes_its_time(clean_links: LabState) -> None:
    lab_room.set_fault(clean_links.root, "h800", Fault(mbit=8))
    began = time.monotonic()
    assert ssh(clean_links.ssh_config, "h800", "cat >/dev/null", data=bytes(MB)).returncode == 0
    assert time.monotonic() - began >= 1.0


def test_counters_see_the_traffic_of_their_host_only(clean_links: LabState) -> None:
    text(clean_links.ssh_config, "prod", f"head -c {MB} /dev/zero >&2; echo")
    seen = lab_room.status(clean_links.root).hosts
    assert seen["prod"].counters.bytes_down > MB
    assert seen["prod"].counters.connections == 1
    assert seen["prod"].counters.turnarounds > 0
    eventually(lambda: lab_room.status(clean_links.root).hosts["prod"].counters.open == 0)
    assert seen["h800"].counters == lab_room.Counters()
    text(clean_links.ssh_config, "h800", "true")
    both = lab_room.status(clean_links.root).hosts
    assert both["jump"].counters.connections == both["h800"].counters.connections == 1
    lab_room.reset_counters(clean_links.root, "prod")
    assert lab_room.status(clean_links.root).hosts["prod"].counters == lab_room.Counters()


def test_setting_a_fault_replaces_the_one_before(clean_links: LabState) -> None:
    first = Fault(rtt_ms=5, mbit=50, cut_after=9, cut_direction="down", cut_on="present")
    state = lab_room.set_fault(clean_links.root, "jump", first)
    assert state.hosts["jump"].fault == first
    second = replace(first, rtt_ms=0, cut_after=None)
    assert lab_room.set_fault(clean_links.root, "jump", second).hosts["jump"].fault == second


def test_a_jump_host_killed_in_mid_run_takes_the_connection_and_not_the_job(
    clean_links: LabState,
) -> None:
    home = clean_links.hosts["h800"].home
    (home / "go").unlink(missing_ok=True)
    wait = "while [ ! -e go ]; do sleep 0.05; done; echo done > result"
    job = f"setsid sh -c '{wait}' >/dev/null 2>&1 &"
    client = subprocess.Popen(
        argv(clean_links.ssh_config, "h800", f"rm -f result; {job} echo on; sleep 60"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"on\n"
    state = lab_room.kill_host(clean_links.root, "jump")
    assert not state.hosts["jump"].up
    assert client.wait(timeout=180) == 255
    refused = ssh(clean_links.ssh_config, "h800", "true")
    assert b"Connection refused" in refused.stderr
    lab_room.revive_host(clean_links.root, "jump")
    assert text(clean_links.ssh_config, "h800", "touch go; echo back") == "back\n"
    eventually((home / "result").exists)


def test_a_killed_h800_is_no_route_from_jump(clean_links: LabState) -> None:
    lab_room.kill_host(clean_links.root, "h800")
    refused = ssh(clean_links.ssh_config, "h800", "true")
    assert refused.returncode == 255
    assert b"no route from here to h800" in refused.stderr
    assert text(clean_links.ssh_config, "jump", "echo well") == "well\n"
    lab_room.restart_host(clean_links.root, "h800")
    assert text(clean_links.ssh_config, "h800", "echo well") == "well\n"


def test_a_restarted_host_drops_its_connections_and_keeps_its_port(clean_links: LabState) -> None:
    with socket.create_connection(("127.0.0.1", clean_links.hosts["prod"].port or 0)) as link:
        link.settimeout(30)
        gone = threading.Event()

        def drain() -> None:
            while link.recv(4096):
                pass
            gone.set()

        reader = threading.Thread(target=drain)
        reader.start()
        after = lab_room.restart_host(clean_links.root, "prod")
        reader.join()
        assert gone.is_set()
    assert after.hosts["prod"].port == clean_links.hosts["prod"].port
    assert text(clean_links.ssh_config, "prod", "echo back") == "back\n"
