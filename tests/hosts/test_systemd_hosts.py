"""The test hosts are what the other tests take them for: real, apart, and able to reboot."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from macd.inventory import load
from tests.support.hosts import network
from tests.support.hosts.fleet import Hosts

pytestmark = pytest.mark.hosts


def test_systemd_is_pid_1_and_up(hosts: Hosts) -> None:
    for host in hosts.each():
        done = host.ssh("cat /proc/1/comm; id -un; hostname; systemctl is-system-running")
        *of_it, state = done.stdout.split()
        assert of_it == ["systemd", host.user, host.machine.name]
        assert state in ("running", "degraded")
        failed = host.exec("systemctl", "list-units", "--failed", "--plain", "--no-legend")
        # A login of an earlier test that ends on a busy machine may end badly.
        assert [line for line in failed.splitlines() if "user@" not in line] == []


def test_h800_has_no_way_in_but_jump(hosts: Hosts) -> None:
    with pytest.raises(OSError):
        socket.create_connection((hosts.h800.address, hosts.h800.port), timeout=20)
    assert hosts.h800.ssh("true", options=["ProxyJump=none"]).returncode == 255
    assert hosts.h800.ssh("true").returncode == 0
    # Nor is there a detour: jump does not forward and h800 knows no other network.
    assert hosts.jump.exec("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
    routes = json.loads(hosts.h800.exec("ip", "-json", "route"))
    assert [route["dev"] for route in routes] == ["host0"]
    assert "gateway" not in routes[0]


def test_prod_listens_on_22222_only(hosts: Hosts) -> None:
    assert hosts.prod.port == 22222
    assert hosts.prod.ssh("echo $SSH_CONNECTION").stdout.split()[3] == "22222"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((hosts.prod.address, 22), timeout=20)


def test_a_wrong_host_key_is_noticed(hosts: Hosts, tmp_path: Path) -> None:
    wrong = tmp_path / "known_hosts"
    text = hosts.known_hosts.read_text()
    wrong.write_text(text.replace(hosts.prod.host_key, hosts.jump.host_key))
    done = hosts.prod.ssh("true", options=[f"UserKnownHostsFile={wrong}"])
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr


def test_deploy_user_may_sudo(hosts: Hosts) -> None:
    assert hosts.prod.ssh("sudo -n id -un", user="deploy").stdout.strip() == "root"


def test_services_start_stop_and_keep_their_journal(hosts: Hosts) -> None:
    unit = "[Service]\nExecStart=/bin/sh -c 'echo hello from the unit; exec sleep 1000'\n"
    prod = hosts.prod
    prod.ssh("cat > /etc/systemd/system/probe.service && systemctl daemon-reload", input=unit)
    assert prod.ssh("systemctl start probe && systemctl is-active probe").stdout == "active\n"
    assert "hello from the unit" in prod.ssh("journalctl --unit probe --output cat").stdout
    assert prod.ssh("systemctl stop probe; systemctl is-active probe").stdout == "inactive\n"
    prod.ssh("rm /etc/systemd/system/probe.service && systemctl daemon-reload")


def test_a_lingering_user_runs_units_without_being_logged_in(hosts: Hosts) -> None:
    h800 = hosts.h800
    assert h800.ssh("loginctl enable-linger quant", user="root").returncode == 0
    started = h800.ssh("systemd-run --user --quiet --unit probe sleep 1000")
    assert started.returncode == 0, started.stderr
    assert h800.ssh("systemctl --user is-active probe").stdout == "active\n"
    h800.ssh("systemctl --user stop probe")


def test_reboot_from_inside_comes_back_with_its_disk(hosts: Hosts) -> None:
    prod = hosts.prod
    before = prod.machine.boot_id()
    prod.ssh("echo kept > /opt/kept && echo lost > /run/lost && systemctl reboot")
    prod.machine.wait(before)
    assert prod.ssh("cat /opt/kept; ls /run/lost").stdout == "kept\n"


def test_power_cut_ends_every_process_and_the_disk_boots_again(hosts: Hosts) -> None:
    prod = hosts.prod
    before = prod.machine.boot_id()
    prod.ssh("echo kept > /opt/kept; nohup sleep 1000 >/dev/null 2>&1 &")
    prod.machine.power_cut()
    assert not prod.machine.running()
    with pytest.raises(OSError):
        socket.create_connection((prod.address, prod.port), timeout=20)
    prod.machine.start()
    prod.machine.wait(before)
    assert prod.ssh("cat /opt/kept; pgrep sleep").stdout == "kept\n"
    assert hosts.h800.ssh("true").returncode == 0  # the others never noticed


def test_cable_pulled_and_plugged_back(hosts: Hosts) -> None:
    network.cut(hosts.h800.machine.name)
    try:
        done = hosts.h800.ssh("true", timeout=60)
        assert done.returncode == 255
    finally:
        network.mend(hosts.h800.machine.name)
    assert hosts.h800.ssh("true").returncode == 0


def test_a_small_disk_fills_up(hosts: Hosts) -> None:
    prod = hosts.prod
    prod.machine.limit_disk("/mnt", 8)
    prod.machine.fill_disk("/mnt", leave_kb=100)
    full = prod.ssh("head -c 300000 /dev/zero > /mnt/more")
    assert full.returncode != 0
    assert "No space left on device" in full.stderr
    prod.exec("umount", "/mnt")


def test_what_later_tests_need_is_there(hosts: Hosts) -> None:
    done = hosts.prod.ssh(
        "python3 -c 'import venv, ensurepip, sys; assert sys.version_info >= (3, 11)'"
        " && python3 -m pip --version && strace -o /dev/null true && ssh-keygen -Y 2>&1 | head -1"
        " && ldconfig -p | grep libgomp.so.1"
    )
    assert done.returncode == 0, done.stderr


def test_the_product_can_load_the_inventory_of_these_hosts(hosts: Hosts) -> None:
    loaded = load(hosts.inventory, root=hosts.root)
    assert loaded.known_hosts == hosts.known_hosts
    assert [host.ssh for host in loaded.hosts.values()] == [host.alias for host in hosts.each()]
    assert loaded.env_hosts("prod")[0].app_dir == "/opt/macd-analysis"


def test_the_reboot_that_later_tests_use_returns_in_the_next_boot(hosts: Hosts) -> None:
    before = hosts.jump.machine.boot_id()
    hosts.jump.machine.reboot()
    assert hosts.jump.machine.boot_id() != before
    assert hosts.h800.ssh("true").returncode == 0
