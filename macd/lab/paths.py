"""The files of a lab: homes, tools, host keys; the operator's key and SSH configuration."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from macd.errors import MacdError
from macd.host.durable import replace_file
from macd.lab.processes import MARKER
from macd.lab.state import HOSTS, USERS

SIGNER = "lab@macd"
_NO_SYSTEMD = "System has not been booted with systemd as init system (PID 1). Can't operate."
# The services' output is kept in a file each; what the host half asks of it is all that is
# understood. systemctl (macd/lab/systemctl.py) writes there when a life of a unit begins.
_JOURNALCTL = r"""lines=10
for word in "$@"; do
  case "$word" in
    --lines=*) lines=${word#--lines=} ;;
    --output=json) json=yes ;;
    --user-unit=*|_SYSTEMD_USER_UNIT=*) unit=${word#*=} ;;
    _SYSTEMD_INVOCATION_ID=*) life=${word#*=} ;;
    -*) ;;
    *) unit=$word ;;
  esac
done
cd "$HOME/.config/log/journal" || exit
if [ "$life" ]; then
  exec awk -v life="$life" '/^-- invocation /{on = $3 == life; next} on' ./*.log
fi
file="${unit:?which unit}.log"
if [ "$json" ]; then
  sed 's/[\\"]/\\&/g' "$file" | awk '
    /^-- invocation /{life = $3; since = $4; next}
    {printf "{\"_SYSTEMD_INVOCATION_ID\": \"%s\", ", life}
    {printf "\"_SOURCE_REALTIME_TIMESTAMP\": \"%s\", ", since}
    {printf "\"MESSAGE\": \"%s\"}\n", $0}'
else
  grep -v '^-- invocation ' "$file"
fi | tail -n "$lines"
"""


@dataclass(frozen=True)
class HostPaths:
    """Where one host's things are, and what commands there see as their environment."""

    name: str
    user: str
    directory: Path
    run: Path
    lab_id: str

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    @property
    def host_key(self) -> Path:
        return self.directory / "etc" / "ssh_host_ed25519_key"

    @property
    def authorized_keys(self) -> Path:
        return self.directory / "etc" / "authorized_keys"

    def environment(self) -> dict[str, str]:
        """Only what a fresh login has: nothing of the operator's environment gets in."""
        return {
            "HOME": str(self.home),
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "XDG_RUNTIME_DIR": str(self.run),
            MARKER: self.lab_id,
        }


def create(root: Path, private: Path, lab_id: str) -> dict[str, HostPaths]:
    """Make what is missing, keep what is there; returns the hosts by name."""
    lab = root / ".lab"
    refuse_unquotable(lab)
    try:
        (lab / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
        operator = _key(lab / "keys" / "operator", "operator@lab")
        _signers(lab)
        hosts = {}
        for name in HOSTS:
            host = HostPaths(name, USERS[name], lab / "hosts" / name, private / name, lab_id)
            for directory in (host.home, host.bin, host.host_key.parent, host.run):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _key(host.host_key, f"{name}@lab")
            _write(host.authorized_keys, operator)
            _tools(host)
            hosts[name] = host
    except OSError as error:
        raise MacdError(
            f"the lab can't be created in {lab}",
            why=str(error),
            hint="make the directory writable, or work in a clone that belongs to you",
        ) from error
    return hosts


def write_client_files(
    root: Path, hosts: Mapping[str, HostPaths], ports: Mapping[str, int]
) -> None:
    """ssh_config and known_hosts: all an SSH client needs to reach the three hosts."""
    lab = root / ".lab"
    trusted, key = _quoted(lab / "known_hosts"), _quoted(lab / "keys" / "operator")
    blocks = ["# Made by `invoke lab.up`; try: ssh -F .lab/ssh_config lab-prod"]
    lines = []
    for name, host in hosts.items():
        direct = name in ports
        address = "127.0.0.1" if direct else name
        port = ports.get(name, 22)
        blocks.append(
            f"Host lab-{name}\n"
            f"    HostName {address}\n"
            f"    Port {port}\n"
            f"    User {host.user}\n"
            + ("" if direct else "    ProxyJump lab-jump\n")
            + f"    IdentityFile {key}\n"
            "    IdentitiesOnly yes\n"
            "    IdentityAgent none\n"
            "    ForwardAgent no\n"
            f"    UserKnownHostsFile {trusted}\n"
            "    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
        )
        public = host.host_key.with_suffix(".pub").read_text().split()
        spoken = f"[{address}]:{port}" if port != 22 else address
        lines.append(f"{spoken} {public[0]} {public[1]}\n")
    _write(lab / "known_hosts", "".join(lines))
    _write(lab / "ssh_config", "\n".join(blocks))


def refuse_unquotable(path: Path) -> None:
    """ssh_config has no way to write these characters in a path."""
    if any(bad in str(path) for bad in ('"', "\n", "${")):
        raise MacdError(
            f"a lab can't live in {path}",
            why='ssh_config can\'t name a path with a quote, a line break or "${" in it',
            hint="move the clone to another directory",
        )


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'


def _key(path: Path, comment: str) -> str:
    """The public half of the key at `path`, which is made when missing."""
    public = path.with_suffix(".pub")
    if not (path.exists() and public.exists()):
        made = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
        _write(path, made.export_private_key("openssh").decode())
        _write(public, made.export_public_key("openssh").decode(), mode=0o644)
    return public.read_text()


def _signers(lab: Path) -> None:
    """The keys that sign the lab's releases and gate reports, and who may sign what."""
    lines = []
    for name, namespace in (("release", "release-manifest@macd"), ("gate", "gate-report@macd")):
        public = " ".join(_key(lab / "keys" / name, f"{name}@lab").split()[:2])
        lines.append(f'{SIGNER} namespaces="{namespace}" {public}\n')
    _write(lab / "allowed_signers", "".join(lines))


def _tools(host: HostPaths) -> None:
    """python3 is the lab's own interpreter; systemctl never reaches the real machine's systemd."""
    python = shlex.quote(sys.executable)
    _script(host.bin / "python3", f'exec {python} "$@"')
    absent = f"echo {shlex.quote(_NO_SYSTEMD)} >&2\nexit 1"
    for tool in ("systemctl", "systemd-run", "loginctl", "journalctl"):
        _script(host.bin / tool, absent)
    if host.name == "prod":
        # By file and isolated: what lies in the caller's directory must not be imported.
        program, show = (
            shlex.quote(str(Path(__file__).with_name(name)))
            for name in ("systemctl.py", "systemctl_show.py")
        )
        quickly = f'[ "$1 $2" = "--user show" ] && exec {python} -ISB {show} "$@"'
        _script(host.bin / "systemctl", f'{quickly}\nexec {python} -I {program} "$@"')
        _script(host.bin / "journalctl", _JOURNALCTL)


def _script(path: Path, body: str) -> None:
    _write(path, f"#!/bin/sh\n{body}\n", mode=0o755)


def _write(path: Path, text: str, *, mode: int = 0o600) -> None:
    replace_file(path, text.encode(), mode=mode)
