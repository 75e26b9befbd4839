"""The three hosts of the team's guide on real systemd, with the files a client needs to reach them.

`root` is laid out like a project: `inventory/systemd-test.yml`, an ssh_config and a known_hosts
beside it, so the product's own commands run against these hosts with `--inventory systemd-test`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import inventory, network, rootfs
from tests.support.hosts import run_lock as claims
from tests.support.hosts.machine import Machine

NAMES = ("jump", "h800", "prod")
USERS = {"jump": "jumper", "h800": "quant", "prod": "root"}
MAY_LOG_IN = {"jump": ("jumper",), "h800": ("quant", "root"), "prod": ("root", "deploy")}
PORTS = {"jump": 22, "h800": 22, "prod": 22222}
# The test hosts have no network to get torch from, so h800 trains with what runs these tests: its
# interpreter and packages, to be read and not written. That is the one thing there that a real
# training host has of its own. prod has it too, as the second host of a cluster.
TRAINS_WITH = {
    "/srv/python": Path(sys.base_prefix),
    "/srv/packages": Path(sysconfig.get_path("purelib")),
}
_WATCHES = 1024
ALIASES = {"jump": "jumphost", "h800": "h800", "prod": "prod"}


@dataclass(frozen=True)
class TestHost:
    """One host twice over: as SSH sees it, and as the machine that a test may reboot or cut off."""

    __test__ = False  # pytest: not a test class

    name: str
    alias: str
    address: str
    port: int
    user: str
    key: Path
    host_key: str
    machine: Machine
    ssh_config: Path

    def ssh(
        self,
        command: str,
        *,
        user: str = "",
        options: Sequence[str] = (),
        input: str | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command by the plain OpenSSH client, through the jump host where there is one.

        `options` are ssh_config settings that win over the generated file, e.g. ProxyJump=none.
        """
        extra = [word for option in options for word in ("-o", option)]
        login = ["-l", user] if user else []
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), *extra, *login, self.alias, command],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def exec(self, *argv: str, input: str | None = None, check: bool = True) -> str:
        """Run a command as root around SSH and return its stdout."""
        return self.machine.exec(*argv, input=input, check=check)


@dataclass(frozen=True)
class Hosts:
    """The three hosts and the project directory that knows them."""

    jump: TestHost
    h800: TestHost
    prod: TestHost
    root: Path
    inventory: str
    ssh_config: Path
    known_hosts: Path

    def each(self) -> tuple[TestHost, TestHost, TestHost]:
        """Return the hosts in the order they are reached."""
        return self.jump, self.h800, self.prod


@contextmanager
def booted(
    cache: Path, root: Path, *, names: Sequence[str] = NAMES, options: Sequence[str] = ()
) -> Iterator[Hosts]:
    """Boot the three hosts side by side; everything of theirs is removed at the end.

    `cache` holds the built root (made if missing) and the running hosts' disks; `root` is an empty
    directory for the client's files. Hosts that aren't in `names` stay off; `options` of
    systemd-nspawn are for prod. Raises RuntimeError when a host does not come up.
    """
    _allow_watches()
    lower = rootfs.ensure(cache)
    claim = claims.take(cache)
    hosts: Hosts | None = None
    try:
        hosts = _lay_out(claim, lower, root)
        hosts.prod.machine.options = tuple(options)
        on = [host for host in hosts.each() if host.name in names]
        for host in on:
            host.machine.start()
        for host in on:
            host.machine.wait()
        yield hosts
    finally:
        for host in hosts.each() if hosts else ():
            host.machine.power_cut()
        claim.release()


def _allow_watches() -> None:
    """Room for the inotify instances of many hosts' systemd, until this machine is booted again.

    The kernel's 128 are for all processes of a user, and some twenty hosts take them all. Where the
    setting can't be changed fewer hosts boot, and their consoles say why.
    """
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    with contextlib.suppress(OSError):
        if int(limit.read_text()) < _WATCHES:
            limit.write_text(str(_WATCHES))


def _lay_out(claim: claims.RunLock, lower: Path, root: Path) -> Hosts:
    wired = network.wire(claim)
    root.mkdir(parents=True, exist_ok=True)
    (root / "tasks.py").touch()
    key = root / "id_ed25519"
    _generate_key(key, "macd test user")
    ssh_config, known_hosts = root / "ssh_config", root / "known_hosts"
    hosts: dict[str, TestHost] = {}
    for name in NAMES:
        address, port = getattr(wired, name), PORTS[name]
        host_key = root / f"host_{name}"
        _generate_key(host_key, claim.name(name))
        files = _files(name, claim, key, host_key)
        shown = TRAINS_WITH if name in ("h800", "prod") else {}
        machine = Machine(claim.name(name), claim.directory / name, lower, files, shown)
        public = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        hosts[name] = TestHost(
            name, ALIASES[name], address, port, USERS[name], key, public, machine, ssh_config
        )
    ssh_config.write_text("".join(_ssh_block(h, known_hosts) for h in hosts.values()))
    known_hosts.write_text("".join(_known_line(h) for h in hosts.values()))
    inventory.write(root, ssh_config, known_hosts)
    return Hosts(
        **hosts,
        root=root,
        inventory=inventory.NAME,
        ssh_config=ssh_config,
        known_hosts=known_hosts,
    )


def _files(name: str, claim: claims.RunLock, key: Path, host_key: Path) -> dict[str, str]:
    """Return what tells this host from its twins on the shared root."""
    public = key.with_suffix(".pub").read_text()
    return {
        "etc/hostname": claim.name(name) + "\n",
        "etc/ssh/sshd_config.d/20-port.conf": f"Port {PORTS[name]}\n",
        "etc/ssh/ssh_host_ed25519_key": host_key.read_text(),
    } | {f"etc/ssh/authorized_keys.d/{user}": public for user in MAY_LOG_IN[name]}


def _ssh_block(host: TestHost, known_hosts: Path) -> str:
    jump = f"  ProxyJump {ALIASES['jump']}\n" if host.name == "h800" else ""
    return f"""\
Host {host.alias}
  HostName {host.address}
  Port {host.port}
  User {host.user}
{jump}  IdentityFile {host.key}
  IdentitiesOnly yes
  UserKnownHostsFile {known_hosts}
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 20

"""


def _known_line(host: TestHost) -> str:
    where = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
    return f"{where} {host.host_key}\n"


def _generate_key(path: Path, comment: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
