"""transport: openssh: the system's ssh does what paramiko can't, and is as strict about keys."""

from __future__ import annotations

import errno
import getpass
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.errors import ContactLostError, MacdError, RefusedError, UsageError
from macd.inventory import Inventory, load
from macd.ssh import ssh
from macd.ssh.refusals import UnreachableError
from macd.ssh.session import open_session
from tests.support import ports
from tests.support.openssh import eventually
from tests.support.ssh_servers import World, world_in
from tests.support.sshd import SSHD, Sshd, key

pytestmark = pytest.mark.skipif(
    SSHD is None, reason="no sshd here (apt-get install openssh-server)"
)


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Control sockets of this test's own; who is logged in at its end is logged out."""
    directory = Path(tempfile.mkdtemp(prefix="m"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    yield directory / "macd-ssh"
    for path in (directory / "macd-ssh").glob("*"):
        if path.is_socket():
            argv = ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "x"]
            subprocess.run(argv, capture_output=True, check=False)
    shutil.rmtree(directory, ignore_errors=True)  # a master takes its socket away as it ends


@pytest.fixture
def sshd(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sshd]:
    made = Sshd(tmp_path, *getattr(request, "param", ()))
    yield made
    made.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def inventory_of(sshd: Sshd, config: str, hosts: str) -> Inventory:
    (sshd.directory / "ssh_config").write_text(
        f"{config}\nHost *\n  IdentityAgent none\n  IdentityFile {sshd.directory}/right\n"
    )
    (sshd.directory / "inventory" / "lab.yml").write_text(
        "ssh_config: ../ssh_config\nlink: {keepalive_s: 1, dead_after_s: 3}\nhosts:\n" + hosts
    )
    return load("lab", root=sshd.directory)


def box(sshd: Sshd, more: str = "") -> str:
    at = f"ssh: 127.0.0.1, port: {sshd.port}, user: {getpass.getuser()}"
    return f"  box: {{role: jump, transport: openssh, {at}{more}}}\n"


def pinged(inventory: Inventory, host: str = "box") -> str:
    """What the agent on the host says of itself: a whole conversation, there and back."""
    with open_session(inventory.host(host), inventory) as session:
        return session.facts().user.name


def test_an_agent_runs_over_it_and_one_login_serves_all(sshd: Sshd, sockets: Path) -> None:
    inventory = inventory_of(sshd, "", box(sshd))
    assert pinged(inventory) == getpass.getuser()
    (sshd.directory / "authorized").write_text("")  # nobody could log in a second time
    assert pinged(inventory) == getpass.getuser()
    assert sockets.stat().st_mode & 0o777 == 0o700
    data = os.urandom(3_000_000)
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel("cat; echo well >&2; exit 7")
        threading.Thread(target=lambda: (channel.send(data), channel.shutdown_write())).start()
        came = b""
        while piece := channel.recv(1 << 16):
            came += piece
        eventually(lambda: channel.exit_status() is not None)
        assert (came, channel.exit_status(), channel.stderr()) == (data, 7, b"well\n")


def test_through_a_proxy_command(sshd: Sshd) -> None:
    relay = sshd.directory / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while d := os.read(0, 65536): s.sendall(d)\n"
        "    s.shutdown(1)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while d := s.recv(65536): os.write(1, d)\n"
    )
    config = (
        f"Host gpu\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {getpass.getuser()}\n"
        f"  ProxyCommand {sys.executable} {relay} %h %p\n"
    )
    inventory = inventory_of(sshd, config, "  gpu: {role: jump, ssh: gpu, transport: openssh}\n")
    assert pinged(inventory, "gpu") == getpass.getuser()
    inventory = inventory_of(sshd, config, "  gpu: {role: jump, ssh: gpu}\n")
    with pytest.raises(UsageError, match="ProxyCommand") as error:
        pinged(inventory, "gpu")
    assert "transport: openssh" in error.value.hint


def test_through_the_inventorys_jump_host_by_its_own_user_and_port(sshd: Sshd) -> None:
    at = f"ssh: 127.0.0.1, port: {sshd.port}, user: {getpass.getuser()}"
    inventory = inventory_of(
        sshd, "", f"  gate: {{role: jump, {at}}}\n" + box(sshd, ", jump: [gate]")
    )
    assert pinged(inventory) == getpass.getuser()


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        return probe.connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize("sshd", [("ListenAddress ::1",)], indirect=True)
@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_through_jump_hosts_by_ipv6_address(sshd: Sshd, transport: str) -> None:
    known = sshd.directory / "inventory" / "known_hosts.lab"
    known.write_text(known.read_text() + known.read_text().replace("127.0.0.1", "::1"))
    user = getpass.getuser()
    at = f"role: jump, transport: {transport}, port: {sshd.port}, user: {user}"
    config = f"Host gpu\n  HostName 127.0.0.1\n  ProxyJump {user}@[::1]:{sshd.port}\n"
    hosts = (
        f'  gate: {{{at}, ssh: "::1"}}\n'
        f'  box: {{{at}, ssh: "::1", jump: [gate]}}\n'
        f"  gpu: {{{at}, ssh: gpu}}\n"
    )
    inventory = inventory_of(sshd, config, hosts)
    for name in ("box", "gpu"):
        assert pinged(inventory, name) == user, name


def test_a_certificate_of_the_pinned_authority_is_enough(sshd: Sshd) -> None:
    authority = key(sshd.directory / "ca")
    sign = ["ssh-keygen", "-q", "-s", "ca", "-I", "host", "-h", "-n", "127.0.0.1", "host.pub"]
    subprocess.run(sign, cwd=sshd.directory, check=True)
    config = sshd.directory / "sshd_config"
    config.write_text(f"{config.read_text()}HostCertificate {sshd.directory}/host-cert.pub\n")
    sshd.stop()
    sshd.start()
    inventory = inventory_of(sshd, "", box(sshd))
    inventory.known_hosts.write_text(f"@cert-authority * {authority}\n")
    assert pinged(inventory) == getpass.getuser()
    inventory = inventory_of(sshd, "", box(sshd, ", identity: ../right"))  # another login
    inventory.known_hosts.write_text(f"@cert-authority * {key(sshd.directory / 'other')}\n")
    with pytest.raises(RefusedError, match="not trusted"):
        pinged(inventory)


def test_keys_are_pinned_by_host_trust_and_a_changed_one_is_refused(sshd: Sshd) -> None:
    inventory = inventory_of(sshd, "", box(sshd))
    inventory.known_hosts.write_text("")
    with pytest.raises(RefusedError, match="not trusted") as error:
        pinged(inventory)
    assert "invoke host.trust box" in error.value.hint
    (refused,) = ssh.trust(inventory.host("box"), inventory, lambda shown: False)
    assert (refused.accepted, inventory.known_hosts.read_text()) == (False, "")
    (shown,) = ssh.trust(inventory.host("box"), inventory, lambda shown: True)
    assert shown.key.type == "ssh-ed25519"
    assert pinged(inventory) == getpass.getuser()
    inventory.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {key(sshd.directory / 'changed')}\n")
    inventory = inventory_of(sshd, "", box(sshd, ", identity: ../right"))
    with pytest.raises(RefusedError, match="shows another host key") as error:
        pinged(inventory)
    assert "has changed" in error.value.why


@pytest.mark.parametrize("name", ["ops@root@10.0.0.7", "ops#root#10.0.0.7", "CORP\\ops", "a/b=c"])
@pytest.mark.parametrize("transport", ["openssh", "paramiko"])
def test_a_bastion_reads_account_and_asset_from_the_login_name(
    world: World, name: str, transport: str
) -> None:
    world.start("bastion")
    world.chain("bastion")
    quoted = name.replace("\\", "\\\\")
    inventory = world.inventory("bastion", f', transport: {transport}, user: "{quoted}"')
    assert pinged(inventory) == getpass.getuser()
    assert set(world.servers["bastion"].logins) == {name}


CODE_TYPED = """
from macd.inventory import load
from macd.ssh.session import open_session
from pathlib import Path
import sys
inventory = load("lab", root=Path(sys.argv[1]))
for _ in range(2):
    with open_session(inventory.host("box"), inventory) as session:
        print("logged in as", session.facts().user.name, flush=True)
"""


def test_a_one_time_code_is_typed_once(world: World) -> None:
    server = world.start("bastion", password="314159")
    world.chain("bastion")
    world.inventory("bastion", ", transport: openssh")
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", CODE_TYPED, str(world.directory)])
    said = b""
    try:
        while piece := os.read(terminal, 4096):
            said += piece
            if said.lower().count(b"password:") > len(server.passwords):
                os.write(terminal, b"314159\n")
                eventually(lambda: server.passwords)
    except OSError:  # the terminal's other end is closed
        pass
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    assert said.count(f"logged in as {getpass.getuser()}".encode()) == 2
    assert server.passwords == ["314159"]


def test_without_a_terminal_nothing_is_asked(world: World) -> None:
    world.start("bastion", password="314159")
    world.chain("bastion")
    inventory = world.inventory("bastion", ", transport: openssh")
    with pytest.raises(UnreachableError, match="refused the login") as error:
        pinged(inventory)
    assert "in a terminal" in error.value.hint


def test_a_bastion_without_exec_is_named_as_such(world: World) -> None:
    world.start("bastion", no_exec=True)
    world.chain("bastion")
    inventory = world.inventory("bastion", ", transport: openssh")
    with pytest.raises(MacdError, match="refuses to run commands"):
        pinged(inventory)


@pytest.mark.parametrize("known", ["right", "other"])
def test_known_hosts_command_gives_keys_and_wrong_ones_are_refused(sshd: Sshd, known: str) -> None:
    pinned = sshd.directory / "inventory/known_hosts.lab"
    shown = pinned.read_text() if known == "right" else f"* {key(sshd.directory / 'other')}\n"
    (sshd.directory / "shown").write_text(shown)
    config = f"Host *\n  KnownHostsCommand /bin/cat {sshd.directory}/shown\n"
    inventory = inventory_of(sshd, config, box(sshd))
    pinned.write_text("")
    if known == "right":
        assert pinged(inventory) == getpass.getuser()
        return
    with pytest.raises(RefusedError, match="host key"):
        pinged(inventory)


@pytest.mark.parametrize("transport", ["openssh", "paramiko"])
def test_a_certificate_of_the_users_key_logs_in(sshd: Sshd, transport: str) -> None:
    authority = sshd.directory / "ca"
    key(authority)
    principal = getpass.getuser()
    sign = ["ssh-keygen", "-q", "-s", "ca", "-I", "me", "-n", principal, "right.pub"]
    subprocess.run(sign, cwd=sshd.directory, check=True)
    config = sshd.directory / "sshd_config"
    config.write_text(f"{config.read_text()}TrustedUserCAKeys {authority}.pub\n")
    (sshd.directory / "authorized").write_text("")
    sshd.stop()
    sshd.start()
    hosts = box(sshd).replace("transport: openssh", f"transport: {transport}")
    assert pinged(inventory_of(sshd, "", hosts)) == principal


_PATH = f"/usr/sbin:{os.environ.get('PATH', '')}"
_KERBEROS = [shutil.which(name, path=_PATH) for name in ("krb5kdc", "kadmin.local", "kinit")]
KDC = _KERBEROS[0] if all(_KERBEROS) else None


@pytest.fixture
def realm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A KDC on loopback, a keytab of this host, and a ticket of who runs the tests."""
    assert KDC is not None
    port = ports.kept("kdc")
    home = tmp_path / "krb"
    home.mkdir()
    modules = next(Path(KDC).parents[1].glob("lib*/*/krb5/plugins/kdb"))
    (home / "krb5.conf").write_text(
        "[libdefaults]\n default_realm = TEST\n rdns = false\n dns_canonicalize_hostname = false\n"
        f"[realms]\n TEST = {{\n  kdc = 127.0.0.1:{port}\n }}\n[domain_realm]\n localhost = TEST\n"
        f"[dbmodules]\n db_module_dir = {modules}\n"
    )
    (home / "kdc.conf").write_text(
        f"[kdcdefaults]\n kdc_ports = {port}\n kdc_tcp_ports = {port}\n[realms]\n TEST = {{\n"
        f"  database_name = {home}/db\n  key_stash_file = {home}/stash\n }}\n"
    )
    monkeypatch.setenv("KRB5_CONFIG", str(home / "krb5.conf"))
    monkeypatch.setenv("KRB5_KDC_PROFILE", str(home / "kdc.conf"))
    monkeypatch.setenv("KRB5_KTNAME", str(home / "keytab"))
    monkeypatch.setenv("KRB5CCNAME", str(home / "ccache"))
    monkeypatch.setenv("PATH", f"/usr/sbin:{os.environ['PATH']}")
    user = getpass.getuser()

    def run(*argv: str, typed: str = "") -> None:
        subprocess.run(argv, input=typed, text=True, check=True, capture_output=True)

    run("kdb5_util", "create", "-s", "-P", "master")
    run("kadmin.local", "-q", f"addprinc -pw typed {user}@TEST")
    run("kadmin.local", "-q", "addprinc -randkey host/localhost@TEST")
    run("kadmin.local", "-q", f"ktadd -k {home}/keytab host/localhost@TEST")
    serving = subprocess.Popen([KDC, "-n"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(listens)
        run("kinit", f"{user}@TEST", typed="typed\n")
        yield
    finally:
        serving.terminate()
        serving.wait(90)


@pytest.mark.skipif(KDC is None, reason="no Kerberos here (tests/system-packages.sh)")
@pytest.mark.usefixtures("realm")
def test_a_kerberos_ticket_logs_in_and_paramiko_names_the_transport_that_can(
    tmp_path: Path,
) -> None:
    lines = ("GSSAPIAuthentication yes", "GSSAPIStrictAcceptorCheck no", "PubkeyAuthentication no")
    sshd = Sshd(tmp_path, *lines)
    try:
        pinned = tmp_path / "inventory/known_hosts.lab"
        pinned.write_text(pinned.read_text().replace("127.0.0.1", "localhost"))
        hosts = box(sshd).replace("ssh: 127.0.0.1", "ssh: localhost")
        config = "Host localhost\n  GSSAPIAuthentication yes\n"
        assert pinged(inventory_of(sshd, config, hosts)) == getpass.getuser()
        with pytest.raises(UnreachableError, match="does not let") as error:
            pinged(inventory_of(sshd, config, hosts.replace("openssh", "paramiko")))
        assert "transport: openssh" in error.value.hint
    finally:
        sshd.stop()


@pytest.mark.parametrize(
    "sshd",
    [
        (
            "Ciphers chacha20-poly1305@openssh.com",
            "KexAlgorithms sntrup761x25519-sha512@openssh.com",
            "MACs umac-128-etm@openssh.com",
        )
    ],
    indirect=True,
)
def test_algorithms_that_only_openssh_speaks(sshd: Sshd) -> None:
    assert pinged(inventory_of(sshd, "", box(sshd))) == getpass.getuser()


@pytest.mark.parametrize("sshd", [("Ciphers 3des-cbc",)], indirect=True)
def test_algorithms_of_both_sides_are_told_with_a_remedy_that_works(sshd: Sshd) -> None:
    with pytest.raises(UnreachableError) as error:
        pinged(inventory_of(sshd, "", box(sshd)))
    assert error.value.reason == "algorithms"
    assert "Their offer: 3des-cbc" in error.value.why
    assert "ssh here offers: chacha20-poly1305@openssh.com, aes128-ctr" in error.value.why
    assert "Ciphers +NAME" in error.value.hint
    assert pinged(inventory_of(sshd, "Ciphers +3des-cbc", box(sshd))) == getpass.getuser()


@pytest.mark.parametrize("sshd", [("AllowTcpForwarding no",)], indirect=True)
def test_a_jump_host_that_does_not_forward_is_told(sshd: Sshd) -> None:
    at = f"ssh: 127.0.0.1, port: {sshd.port}, user: {getpass.getuser()}"
    hosts = f"  gate: {{role: jump, {at}}}\n" + box(sshd, ", jump: [gate]")
    with pytest.raises(UnreachableError) as error:
        pinged(inventory_of(sshd, "", hosts))
    assert error.value.reason == "forwarding"
    assert "administratively prohibited" in error.value.why
    assert "AllowTcpForwarding yes" in error.value.hint


@pytest.mark.parametrize("sshd", [("MaxSessions 0",)], indirect=True)
def test_a_login_that_allows_no_session_is_told(sshd: Sshd) -> None:
    with pytest.raises(MacdError, match="opens no session") as error:
        pinged(inventory_of(sshd, "", box(sshd)))
    assert "MaxSessions" in error.value.hint


@pytest.mark.parametrize("sshd", [("ForceCommand echo 1 list; echo 2 quit",)], indirect=True)
@pytest.mark.parametrize("transport", ["openssh", "paramiko"])
def test_a_forced_command_is_the_cause_and_not_the_shell(sshd: Sshd, transport: str) -> None:
    hosts = box(sshd).replace("transport: openssh", f"transport: {transport}")
    with pytest.raises(MacdError, match="runs something else") as error:
        pinged(inventory_of(sshd, "", hosts))
    assert "1 list" in error.value.why
    assert "ForceCommand" in error.value.hint
    config = sshd.directory / "sshd_config"
    config.write_text(config.read_text().replace("ForceCommand", "# ForceCommand"))
    sshd.stop()
    sshd.start()
    assert (
        pinged(inventory_of(sshd, "", f"{hosts[:-2]}, identity: ../right}}\n")) == getpass.getuser()
    )


NEEDS_TERMINAL = """#!/bin/sh
test -t 0 || { echo "bastion: a terminal is required" >&2; exit 1; }
"""
BASTIONS = {
    # refuses a command without a terminal
    "exec": ("exec", NEEDS_TERMINAL + 'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'),
    # goes on to the machine itself, by a terminal of its own
    "onward": ("exec", NEEDS_TERMINAL + 'exec ssh -tt -F {0}/onward box "$SSH_ORIGINAL_COMMAND"\n'),
    # a login shell and no command at all
    "shell": (
        "shell",
        NEEDS_TERMINAL
        + 'test -z "$SSH_ORIGINAL_COMMAND" || { echo "no exec here" >&2; exit 1; }\n'
        + "echo Welcome. Activity is recorded.; exec bash --norc -i\n",
    ),
}


@pytest.mark.parametrize("transport", ["openssh", "paramiko"])
@pytest.mark.parametrize("kind", BASTIONS)
def test_a_bastion_that_gives_a_terminal_only(
    sshd: Sshd, tmp_path: Path, kind: str, transport: str
) -> None:
    """Every byte comes through unchanged, also what ssh and telnet take for a command, and the
    agent ends when it is hung up."""
    terminal, script = BASTIONS[kind]
    bastion = sshd.directory / "bastion"
    bastion.write_text(script.replace("{0}", str(sshd.directory)))
    bastion.chmod(0o755)
    (tmp_path / "behind").mkdir()
    behind = Sshd(tmp_path / "behind")
    try:
        (sshd.directory / "onward").write_text(
            f"Host box\n  HostName 127.0.0.1\n  Port {behind.port}\n  LogLevel ERROR\n"
            f"  IdentityFile {behind.directory}/right\n  IdentityAgent none\n"
            f"  StrictHostKeyChecking no\n  UserKnownHostsFile {tmp_path}/theirs\n"
        )
        config = sshd.directory / "sshd_config"
        config.write_text(f"{config.read_text()}ForceCommand {bastion}\n")
        sshd.stop()
        sshd.start()
        more = f", transport: {transport}"
        hosts = box(sshd).replace(", transport: openssh", more)
        with pytest.raises(MacdError, match="speaks of a terminal") as error:
            pinged(inventory_of(sshd, "", hosts))
        assert "terminal: exec of box" in error.value.hint
        inventory = inventory_of(sshd, "", hosts.replace(more, f"{more}, terminal: {terminal}"))
        ends = (b"\r", b"\n")
        asked = b"".join(end + b"~" + bytes([byte]) for end in ends for byte in range(256))
        data = asked + b"%7E%\x1d" + bytes(range(256)) * 4096
        with open_session(inventory.host("box"), inventory) as session:
            pid = session.call("ping")["pid"]
            session.write(str(tmp_path / "sent"), data)
            assert session.read(str(tmp_path / "sent")) == data
            ran = session.run(["sh", "-c", "cat; echo oops >&2"], input=data[:5000])
            assert (ran.stdout, ran.stderr) == (data[:5000], b"oops\n")
        eventually(lambda: not Path(f"/proc/{pid}").exists())
    finally:
        behind.stop()


def test_nobody_there_and_a_link_that_dies(world: World, sshd: Sshd) -> None:
    inventory = inventory_of(sshd, "", box(sshd))
    with ssh.connect(inventory.host("box"), inventory) as link:
        channel = link.open_channel("echo there; sleep 600")
        assert channel.recv(100) == b"there\n"
        subprocess.run(["pkill", "-P", str(sshd.process.pid)], check=True)  # its own children
        with pytest.raises(ContactLostError, match="contact with box was lost"):
            channel.recv(100)
    sshd.stop()
    inventory = inventory_of(sshd, "", box(sshd, ", identity: ../right"))
    with pytest.raises(UnreachableError, match="refused the connection"):
        pinged(inventory)
    sshd.start()
