"""OpenSSH's own server on loopback, as whoever runs the tests: no root, no password, one key."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from macd.inventory import Inventory, load
from tests.support import ports
from tests.support.openssh import eventually

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))


def key(path: Path, kind: str = "ed25519") -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


class Sshd:
    """A server of the test's own user on a port that stays its own."""

    def __init__(self, directory: Path, *lines: str) -> None:
        self.directory = directory
        public = key(directory / "host")
        (directory / "authorized").write_text(key(directory / "right") + "\n")
        self._kept = ports.reserved()
        self.port = ports.number(self._kept)
        text = "\n".join(
            [
                f"Port {self.port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {directory}/host",
                f"AuthorizedKeysFile {directory}/authorized",
                f"PidFile {directory}/pid",
                "StrictModes no",
                "UsePAM no",
                *(line.format(directory) for line in lines),
            ]
        )
        if "/rsa" in text:
            key(directory / "rsa", "rsa")
        (directory / "sshd_config").write_text(text + "\n")
        (directory / "inventory").mkdir()
        (directory / "ssh_config").write_text("Host *\n  IdentityAgent none\n")
        known = directory / "inventory" / "known_hosts.lab"
        known.write_text(f"[127.0.0.1]:{self.port} {public}\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists; Debian's unit makes it too
        self.start()

    def start(self) -> None:
        assert SSHD is not None
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(self.directory / "sshd_config")], stderr=subprocess.DEVNULL
        )
        eventually(self._listens)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(90)

    def add(self, setting: str, algorithm: str) -> None:
        """What the message tells the administrator to do."""
        config = self.directory / "sshd_config"
        text = re.sub(rf"(?m)^({setting} .*)$", rf"\1,{algorithm}", config.read_text())
        assert algorithm in text
        config.write_text(text)
        self.stop()
        self.start()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def inventory(self, *identities: str) -> Inventory:
        files = "".join(f"  IdentityFile {self.directory}/{name}\n" for name in identities)
        config = f"Host *\n  IdentityAgent none\n{files}"
        (self.directory / "ssh_config").write_text(config)
        user, at = getpass.getuser(), f"ssh: 127.0.0.1, port: {self.port}"
        (self.directory / "inventory" / "lab.yml").write_text(
            "ssh_config: ../ssh_config\nlink: {keepalive_s: 0.5, dead_after_s: 10}\nhosts:\n"
            f"  gate: {{role: jump, {at}, user: {user}}}\n"
            f"  box: {{role: jump, {at}, user: {user}, jump: [gate]}}\n"
        )
        return load("lab", root=self.directory)

    def reached_through(self, jump: Sshd, how: str) -> Inventory:
        """The host `gpu` of an ssh_config whose ProxyJump is `how`; both servers let us in."""
        key_file = f"  IdentityFile {self.directory}/right\n"
        (jump.directory / "authorized").write_text((self.directory / "authorized").read_text())
        known = self.directory / "inventory" / "known_hosts.lab"
        known.write_text(
            known.read_text() + (jump.directory / "inventory" / "known_hosts.lab").read_text()
        )
        user = getpass.getuser()
        (self.directory / "ssh_config").write_text(
            f"Host gpu\n  HostName 127.0.0.1\n  Port {self.port}\n  User {user}\n"
            f"  ProxyJump {how}\nHost *\n  IdentityAgent none\n{key_file}"
        )
        (self.directory / "inventory" / "lab.yml").write_text(
            "ssh_config: ../ssh_config\nhosts:\n  gpu: {role: jump, ssh: gpu}\n"
        )
        return load("lab", root=self.directory)
