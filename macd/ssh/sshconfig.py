"""Find the way to a host: every hop with its address, user, port and keys, just as ssh would go it.

OpenSSH itself reads its configuration (`ssh -G`), so Include, Match, tokens and defaults mean here
exactly what they mean there. What the inventory says comes first. Nothing is connected here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from macd.errors import UsageError
from macd.inventory import Host, Inventory
from macd.inventory.names import is_host, is_user, split_jump

_DEEPEST = 16
_JUMP_TOKENS = ("%", "h", "n", "p", "r")  # ssh_config(5), TOKENS: what ProxyJump may hold
_RESOLVE_S = 20  # a `Match exec` in the user's own configuration may take a moment


@dataclass(frozen=True)
class Hop:
    """One SSH server on the way.

    Args:
        name: what messages call it: the inventory's name, or the alias.
        alias: what ssh_config knows it by.
        known_as: its name in known_hosts: HostKeyAlias, host, or [host]:port.
        identities: private keys to log in with, in order; not all need exist.
        certificates: user certificates for them (CertificateFile).
        agent: socket of the ssh-agent to ask, "" for none.
        identities_only: use no key of the agent's that isn't among `identities`.
        family: AddressFamily: any, inet or inet6.
    """

    name: str
    alias: str
    hostname: str
    port: int
    user: str
    known_as: str
    identities: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    agent: str = ""
    identities_only: bool = False
    family: str = "any"

    @property
    def address(self) -> str:
        """host:port for people."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class _Wanted:
    """A hop as asked for, before ssh_config was looked at; None leaves it to ssh_config."""

    alias: str
    name: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None

    @classmethod
    def host(cls, host: Host) -> _Wanted:
        return cls(host.ssh, host.name, host.user, host.port, host.identity)


def resolve(host: Host, inventory: Inventory) -> tuple[Hop, ...]:
    """Every hop to `host`, nearest first, the host itself last.

    Raises UsageError: no such alias or file, a jump loop, a ProxyCommand (which would have to be
    ignored), ssh not installed.
    """
    return tuple(_way(host, inventory))


def _config(inventory: Inventory) -> Path | None:
    """The file to name to ssh, None for what it reads by itself."""
    path = inventory.ssh_config
    if path is None or path == _read_by_ssh():
        return None  # then /etc/ssh/ssh_config counts too, and the file needn't exist
    if path.is_file():
        return path
    if path == Path("~/.ssh/config").expanduser().resolve():
        return None
    lab = ".lab" in path.parts
    raise UsageError(
        f"{path} does not exist",
        why=f"inventory {inventory.name} reads its ssh aliases from there (key ssh_config)",
        hint="invoke lab.up starts the lab and writes it" if lab else "correct ssh_config",
    )


def _read_by_ssh() -> Path | None:
    """The user's own file as ssh finds it: by the account, whatever HOME says."""
    with contextlib.suppress(KeyError):
        return Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh/config").resolve()
    return None


def _way(host: Host, inventory: Inventory) -> list[Hop]:
    config = _config(inventory)
    wanted = _Wanted.host(host)
    if host.jump is None:
        return _as_ssh_goes(wanted, config, None, ())
    hops: list[Hop] = []
    for number, entry in enumerate(host.jump):
        named = inventory.hosts.get(entry)
        if number == 0 and named is not None:
            hops += _way(named, inventory)
            continue
        jump = _Wanted.host(named) if named is not None else _spelled(entry, host.name)
        if number == 0:
            hops += _as_ssh_goes(jump, config, None, ())
        else:
            hops.append(_direct(jump, config))
    return [*hops, _direct(wanted, config)]


def _spelled(entry: str, owner: str) -> _Wanted:
    parts = split_jump(entry)
    if parts is None:
        raise UsageError(
            f"{entry!r} is no jump host",
            why=f"it stands on the way to {owner}",
            hint="write [user@]host[:port]",
        )
    user, alias, port = parts
    return _Wanted(alias, alias, user, port)


def _direct(wanted: _Wanted, config: Path | None) -> Hop:
    """A hop whose predecessors are given: the ProxyCommand of ssh_config doesn't count."""
    return _hop(wanted, _ask_ssh(wanted, config, ("-o", "ProxyCommand=none")))


def _as_ssh_goes(
    wanted: _Wanted, config: Path | None, jumps: str | None, passed: tuple[str, ...]
) -> list[Hop]:
    """As ssh does for ProxyJump a,b,c: to c through a,b, and to a by a's own ProxyJump."""
    here = f"{wanted.user or ''}@{wanted.alias}:{wanted.port or ''} via {jumps or '-'}"
    if here in passed or len(passed) >= _DEEPEST:
        way = " -> ".join(step.split(" via ")[0].strip("@:") for step in (*passed, here))
        raise UsageError(
            f"the way to {passed[0].split(' via ')[0].strip('@:')} is a loop",
            why=f"ProxyJump leads {way}",
            hint=f"correct ProxyJump in {_shown(config)}, or give the host a jump: list",
        )
    settings = _ask_ssh(wanted, config, ("-J", jumps) if jumps else ())
    hop = _hop(wanted, settings)
    command = settings["proxycommand"][-1:]
    if command and command != ["none"]:
        raise UsageError(
            f"{wanted.alias} is reached by a ProxyCommand, which paramiko does not run",
            why=f"{_shown(config)} says: ProxyCommand {command[0]}",
            hint="set transport: openssh for it in the inventory, which goes as ssh goes; or use"
            " ProxyJump there",
        )
    chain = settings["proxyjump"][-1:]
    if not chain or chain == ["none"]:
        return [hop]
    tokens = _Tokens.of(hop.alias, hop.hostname, hop.port, hop.user, "")
    before, _, last = _expand_jumps(chain[0], tokens).rpartition(",")
    following = _spelled(last, wanted.alias)
    return [*_as_ssh_goes(following, config, before or None, (*passed, here)), hop]


def _ask_ssh(
    wanted: _Wanted, config: Path | None, options: tuple[str, ...]
) -> defaultdict[str, list[str]]:
    argv = ["ssh", "-G", "-T", *(("-F", str(config)) if config else ()), *options]
    argv += ["-l", wanted.user] if wanted.user else []
    argv += ["-p", str(wanted.port)] if wanted.port else []
    try:
        done = subprocess.run(
            [*argv, "--", wanted.alias],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RESOLVE_S,
            check=False,
            start_new_session=True,  # a Ctrl-C that lets hosts end must not end this for them
        )
    except FileNotFoundError as error:
        raise UsageError(
            "OpenSSH's ssh is not installed here",
            why="it reads the SSH configuration, so that aliases mean what they mean to it",
            hint="apt-get install openssh-client",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"ssh did not resolve {wanted.alias} within {_RESOLVE_S} s",
            hint=f"look for a `Match exec` that hangs in {_shown(config)}",
        ) from error
    if done.returncode != 0:
        raise UsageError(
            f"ssh can't resolve {wanted.alias}",
            why=done.stderr.strip(),
            hint=f"correct {_shown(config)}; see: ssh -G -T -- {wanted.alias}",
        )
    settings: defaultdict[str, list[str]] = defaultdict(list)
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        settings[key.lower()].append(value)
    return settings


def _hop(wanted: _Wanted, settings: defaultdict[str, list[str]]) -> Hop:
    def setting(key: str, default: str = "") -> str:
        return settings[key][-1] if settings[key] else default

    hostname, user, port = setting("hostname"), setting("user"), setting("port", "22")
    sound = is_host(hostname) and is_user(user) and port.isdecimal() and 1 <= int(port) <= 65535
    if not sound:
        raise UsageError(
            f"ssh resolves {wanted.alias} to something that can't be connected to",
            why=f"hostname {hostname!r}, user {user!r}, port {port!r}",
            hint="correct HostName, User or Port in the ssh configuration, or set them here",
        )
    alias = setting("hostkeyalias")
    hop = Hop(
        name=wanted.name,
        alias=wanted.alias,
        hostname=hostname,
        port=int(port),
        user=user,
        known_as=alias if alias and alias != "none" else _known_as(hostname, int(port)),
        identities_only=setting("identitiesonly") == "yes",
        family=setting("addressfamily", "any"),
    )
    tokens = _Tokens.of(hop.alias, hop.hostname, hop.port, hop.user, alias)
    agent = _agent_socket(setting("identityagent", "SSH_AUTH_SOCK"), tokens, os.environ)
    certificates = _paths(settings["certificatefile"], tokens, os.environ)
    if wanted.identity is not None:
        identities: tuple[Path, ...] = (wanted.identity,)
    else:
        identities = _paths(settings["identityfile"], tokens, os.environ)
    return replace(hop, identities=identities, certificates=certificates, agent=agent)


def _known_as(hostname: str, port: int) -> str:
    name = hostname.lower()
    return name if port == 22 else f"[{name}]:{port}"


def _shown(config: Path | None) -> str:
    return str(config) if config else "~/.ssh/config"


@dataclass(frozen=True)
class _Tokens:
    """The value of each %-token for one hop: `ssh -G` prints ~, % and ${VAR} unexpanded."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, alias: str, hostname: str, port: int, user: str, key_alias: str) -> _Tokens:
        """Collect them; `key_alias` is HostKeyAlias or empty."""
        here = pwd.getpwuid(os.getuid())
        local = socket.gethostname()
        joined = f"{local}{hostname}{port}{user}"
        return cls(
            {
                "%": "%",
                "C": hashlib.sha1(joined.encode(), usedforsecurity=False).hexdigest(),
                "d": here.pw_dir,
                "h": hostname,
                "i": str(here.pw_uid),
                "k": key_alias or alias,
                "L": local.partition(".")[0],
                "l": local,
                "n": alias,
                "p": str(port),
                "r": user,
                "u": here.pw_name,
            }
        )

    def expand(self, text: str, environment: Mapping[str, str]) -> str:
        """A path with everything in it replaced. Raises UsageError for what isn't known."""

        def put(match: re.Match[str]) -> str:
            if match["token"]:
                return self.values[match["token"]]
            return environment[match["variable"]]

        if text == "~" or text.startswith("~/"):
            text = self.values["d"].replace("%", "%%") + text[1:]
        try:
            return re.sub(r"%(?P<token>.)|\$\{(?P<variable>[^}]*)\}", put, text)
        except KeyError as error:
            raise UsageError(
                f"the ssh configuration names {text!r}, in which {error.args[0]} is not known",
                hint="write the path out in IdentityFile, CertificateFile or IdentityAgent",
            ) from error


def _paths(
    texts: Iterable[str], tokens: _Tokens, environment: Mapping[str, str]
) -> tuple[Path, ...]:
    """IdentityFile or CertificateFile lines as paths; `none` stands for nothing."""
    return tuple(Path(tokens.expand(t, environment)) for t in texts if t and t != "none")


def _expand_jumps(text: str, tokens: _Tokens) -> str:
    """ProxyJump with the tokens replaced that it may have. Raises UsageError for another one."""

    def put(match: re.Match[str]) -> str:
        if match[1] not in _JUMP_TOKENS:
            raise UsageError(
                f"the ssh configuration names the jump host {text!r}, in which %{match[1]} is not"
                " known",
                hint="write the name out in ProxyJump",
            )
        return tokens.values[match[1]]

    return re.sub(r"%(.?)", put, text)


def _agent_socket(text: str, tokens: _Tokens, environment: Mapping[str, str]) -> str:
    """IdentityAgent as the socket's path, "" for no agent."""
    if text == "none":
        return ""
    if text == "SSH_AUTH_SOCK":
        return environment.get("SSH_AUTH_SOCK", "")
    if text.startswith("$") and not text.startswith("${"):
        return environment.get(text[1:], "")
    return tokens.expand(text, environment)
