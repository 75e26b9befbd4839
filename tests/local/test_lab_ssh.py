"""The lab's hosts are what SSH clients expect: who gets in, the way to h800, how commands run."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
from pathlib import Path

import asyncssh
import paramiko
import pytest

from macd.lab import LabState
from macd.lab.processes import marked
from tests.support.openssh import argv, eventually, ssh, text


def test_every_host_answers_plain_ssh_as_its_own_user(lab: LabState) -> None:
    for name, user in (("jump", "jump"), ("h800", "quant"), ("prod", "deploy")):
        seen = text(lab.ssh_config, name, "echo $USER; pwd; echo $HOME").split("\n")
        assert seen[:3] == [user, str(lab.hosts[name].home), str(lab.hosts[name].home)]


def test_h800_has_no_address_of_its_own(lab: LabState) -> None:
    """A direct attempt fails by name and at every port the lab has; through jump it works."""
    assert lab.hosts["h800"].port is None
    direct = ssh(lab.ssh_config, "h800", "true", options=("-o", "ProxyJump=none"))
    assert direct.returncode == 255
    for name in ("jump", "prod"):
        port = str(lab.hosts[name].port)
        aimed = ("-o", "ProxyJump=none", "-o", "HostName=127.0.0.1", "-o", f"Port={port}")
        refused = ssh(lab.ssh_config, "h800", "true", options=aimed)
        assert refused.returncode == 255
        # Nobody there lets h800's user in.
        assert b"Permission denied" in refused.stderr
    assert _listening_ports(lab.pid) == {lab.hosts["jump"].port, lab.hosts["prod"].port}
    assert text(lab.ssh_config, "h800", "echo $USER") == "quant\n"


def _listening_ports(pid: int) -> set[int]:
    """The TCP ports this process listens on, from the kernel's tables."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("listening sockets are read from /proc")
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if (target := str(entry.readlink())).startswith("socket:["):
                inodes.add(target[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_jump_leads_to_h800_and_nowhere_else(lab: LabState) -> None:
    prod = lab.hosts["prod"].port
    for target in (f"127.0.0.1:{prod}", "h800:23", "example.invalid:22"):
        refused = subprocess.run(
            ["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", "-W", target, "lab-jump"],
            capture_output=True,
            timeout=180,
            check=False,
        )
        assert refused.returncode != 0
        assert b"no route from here" in refused.stderr
    for host in ("prod", "h800"):
        refused = subprocess.run(
            ["ssh", "-F", str(lab.ssh_config), "-W", "h800:22", f"lab-{host}"],
            capture_output=True,
            timeout=180,
            check=False,
        )
        assert b"no route from here" in refused.stderr


def test_only_the_configured_user_with_the_operators_key_gets_in(
    lab: LabState, tmp_path: Path
) -> None:
    stranger = ssh(lab.ssh_config, "prod", "true", options=("-l", "root"))
    assert b"Permission denied" in stranger.stderr
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    config = tmp_path / "config"
    config.write_text(lab.ssh_config.read_text().replace(str(lab.key), str(key)))
    wrong_key = ssh(config, "prod", "true")
    assert b"Permission denied" in wrong_key.stderr


def test_nothing_of_the_operator_leaks_in(lab: LabState) -> None:
    seen = dict(
        line.split("=", 1)
        for line in text(lab.ssh_config, "prod", "env").splitlines()
        if "=" in line
    )
    made_by_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert set(seen) - made_by_the_shell == {
        "HOME", "LANG", "LOGNAME", "MACD_LAB_ID", "PATH", "SHELL", "USER", "XDG_RUNTIME_DIR",
    }  # fmt: skip
    assert seen["PATH"].split(":")[0] == str(lab.hosts["prod"].home.parent / "bin")


def test_python3_is_the_labs_own_interpreter(lab: LabState) -> None:
    shown = text(lab.ssh_config, "h800", "python3 -c 'import asyncssh, sys; print(sys.prefix)'")
    assert shown.strip() == sys.prefix


def test_exit_status_and_signal_come_back(lab: LabState) -> None:
    assert ssh(lab.ssh_config, "prod", "exit 7").returncode == 7
    assert ssh(lab.ssh_config, "prod", "no-such-command").returncode == 127
    killed = paramiko_run(lab, "kill -TERM $$")
    assert killed == (-1, b"", b"")  # paramiko's word for "ended by a signal"


def paramiko_run(lab: LabState, command: str) -> tuple[int, bytes, bytes]:
    with paramiko.SSHClient() as client:
        client.load_host_keys(str(lab.known_hosts))
        client.connect(
            "127.0.0.1",
            lab.hosts["prod"].port or 0,
            username="deploy",
            key_filename=str(lab.key),
            look_for_keys=False,
            allow_agent=False,
        )
        _, out, err = client.exec_command(command)
        return out.channel.recv_exit_status(), out.read(), err.read()


def test_streams_are_binary_and_apart(lab: LabState) -> None:
    blob = random.Random(1).randbytes(3_000_000)
    done = ssh(lab.ssh_config, "h800", "cat; echo oops >&2; exit 3", data=blob)
    assert done.stdout == blob
    assert done.stderr == b"oops\n"
    assert done.returncode == 3


def test_paramiko_reaches_h800_through_jump_with_both_host_keys_checked(lab: LabState) -> None:
    login = {"key_filename": str(lab.key), "look_for_keys": False, "allow_agent": False}
    with paramiko.SSHClient() as jump, paramiko.SSHClient() as h800:
        for client in (jump, h800):
            client.load_host_keys(str(lab.known_hosts))
        jump.connect("127.0.0.1", lab.hosts["jump"].port or 0, username="jump", **login)
        transport = jump.get_transport()
        assert transport is not None
        way = transport.open_channel("direct-tcpip", ("h800", 22), ("127.0.0.1", 0))
        h800.connect("h800", 22, username="quant", sock=way, **login)
        _, out, _ = h800.exec_command("echo $USER")
        assert out.read() == b"quant\n"


def test_many_channels_share_a_connection(lab: LabState) -> None:
    async def story() -> list[str]:
        async with asyncssh.connect("lab-h800", config=[str(lab.ssh_config)]) as link:
            ran = await asyncio.gather(*(link.run(f"sleep 0.1; echo {n}") for n in range(20)))
            return [str(one.stdout).strip() for one in ran]

    assert asyncio.run(story()) == [str(n) for n in range(20)]


def test_a_terminal_is_a_terminal(lab: LabState) -> None:
    async def story() -> tuple[str, int | None]:
        async with (
            asyncssh.connect("lab-prod", config=[str(lab.ssh_config)]) as link,
            link.create_process(term_type="xterm", term_size=(101, 33)) as shell,
        ):
            shell.stdin.write("tty; stty size; echo $TERM\n")
            seen = await shell.stdout.readuntil("xterm\r\n")
            shell.change_terminal_size(77, 22)
            shell.stdin.write("sleep 0.2; stty size; exit 6\n")
            seen += await shell.stdout.read()
            await shell.wait_closed()
            return seen, shell.exit_status

    seen, status = asyncio.run(story())
    assert "/dev/" in seen
    assert "33 101" in seen
    assert "22 77" in seen
    assert status == 6


def test_a_client_can_signal_its_command(lab: LabState) -> None:
    async def story() -> str:
        async with (
            asyncssh.connect("lab-prod", config=[str(lab.ssh_config)]) as link,
            link.create_process(
                "trap 'echo got USR1; exit 0' USR1; echo ready; while :; do sleep 0.05; done"
            ) as process,
        ):
            await process.stdout.readline()
            process.send_signal("USR1")
            return str(await process.stdout.read())

    assert asyncio.run(story()) == "got USR1\n"


def test_when_the_client_is_gone_its_command_ends_and_what_is_detached_stays(
    lab: LabState,
) -> None:
    name = f"9{random.Random().randrange(10**6):06}"
    command = f"setsid sleep {name}1 >/dev/null 2>&1 & sleep {name}2 & sleep {name}3"
    client = subprocess.Popen(argv(lab.ssh_config, "h800", command), stdin=subprocess.DEVNULL)

    def left() -> set[str]:
        shown = subprocess.run(
            ["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True
        ).stdout
        return {line.split()[1] for line in shown.splitlines() if line.startswith(f"sleep {name}")}

    eventually(lambda: len(left()) == 3)
    client.kill()
    client.wait()
    eventually(lambda: left() == {f"{name}1"})
    assert marked(lab.id), "the detached one carries the lab's mark"


def test_files_travel_by_scp_and_sftp(lab: LabState, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(random.Random(2).randbytes(100_000))
    base = ["-q", "-F", str(lab.ssh_config), "-o", "BatchMode=yes"]
    for flags, target in (([], "by-sftp"), (["-O"], "by-rcp")):
        subprocess.run(
            ["scp", *flags, *base, str(blob), f"lab-h800:{target}"], check=True, timeout=60
        )
        assert (lab.hosts["h800"].home / target).read_bytes() == blob.read_bytes()


def test_the_lab_listens_on_loopback_only(lab: LabState) -> None:
    for name in ("jump", "prod"):
        with socket.create_connection(("127.0.0.1", lab.hosts[name].port or 0), 10) as link:
            assert link.recv(8).startswith(b"SSH-2.0-")
    addresses = {
        found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    } - {"127.0.0.1", "127.0.1.1"}
    for address in addresses:
        with pytest.raises(OSError):
            socket.create_connection((str(address), lab.hosts["jump"].port or 0), 10)
