"""Hosts that another tool's file names, as the beginning of an inventory of ours.

Read are Ansible inventories (INI and YAML, with group_vars and host_vars beside them) and OpenSSH
configurations. What a file says beyond how to reach a host stays where it is; what can't be taken
over is said in a note of the host. Nothing is connected here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from macd.errors import UsageError
from macd.inventory import ansible
from macd.inventory.ansible import ImportedHost
from macd.inventory.names import is_host, is_user, split_jump

_HOST_LINE = re.compile(r"(?im)^\s*(host|match|include)[\s=]")


def read(path: Path) -> list[ImportedHost]:
    """The hosts that a file names. Raises UsageError where it is no such file, or names none."""
    text = _text(path)
    if _is_ssh_config(text):
        hosts = list(_of_ssh_config(path))
    else:
        hosts = list(ansible.hosts_of(ansible.groups_in(path, text), path.parent))
    if not hosts:
        raise UsageError(
            f"{path} names no host",
            why="read are Ansible inventories (INI, YAML) and OpenSSH configurations",
            hint="a dynamic one: ansible-inventory -i FILE --list > hosts.json, then that file",
        )
    return hosts


def ssh_config_of(path: Path) -> Path | None:
    """The file itself where it is an ssh_config that ssh does not read by itself."""
    own = Path("~/.ssh/config").expanduser()
    same = path.exists() and own.exists() and path.samefile(own)
    return path.absolute() if not same and _is_ssh_config(_text(path)) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read", why=str(error)) from error


def _is_ssh_config(text: str) -> bool:
    return bool(_HOST_LINE.search(text) and "[" not in text.split("\n", 1)[0])


def document(
    hosts: Sequence[ImportedHost],
    roles: Mapping[str, str],
    source: str,
    ssh_config: Path | None = None,
) -> str:
    """An inventory's text with these hosts.

    roles: host or group of the other file -> our role. ssh_config: where their aliases are, if ssh
    does not look there by itself.
    """
    taken: set[str] = set()
    unfit = {host.name: why for host in hosts if (why := _unfit(host))}
    names = {host.name: _name(host.name, taken) for host in hosts if host.name not in unfit}
    lines = [
        f"# Hosts of {source}. Each key is explained in production.example.yml.",
        "# Check roles and directories; then: invoke host.list --inventory NAME",
        "",
        *([f"ssh_config: {_yaml(str(ssh_config))}", ""] if ssh_config else []),
        "hosts:",
    ]
    lines += [f"  # {name[:100]!r} is left out: {why}" for name, why in unfit.items()]
    for host in (host for host in hosts if host.name in names):
        stated = [roles[name] for name in (host.name, *host.groups) if name in roles]
        role = stated[0] if stated else host.role
        lines.append(f"  {names[host.name]}:{'' if stated else '  # the role is a guess'}")
        lines += [f"    # {note}" for note in host.notes]
        lines += [f"    {key}: {_yaml(value)}" for key, value in _keys(host, role, names)]
    lines += ["", "release: {}   # keys that sign releases: see production.example.yml", ""]
    return "\n".join(lines)


def _unfit(host: ImportedHost) -> str:
    """Why an inventory of ours can't have it; "" if it can."""
    if not is_host(host.ssh):
        return "its address or alias has characters that are not taken"
    if host.user and not is_user(host.user):
        return "its login has characters that are not taken"
    wrong = [jump for jump in host.jump if split_jump(jump) is None]
    return "a jump host of it is not understood" if wrong else ""


def _keys(host: ImportedHost, role: str, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    yield "role", role
    if role == "serve":
        yield "env", "prod"
    yield "ssh", host.ssh
    given = {"user": host.user, "port": host.port, "identity": host.identity, "python": host.python}
    yield from ((key, value) for key, value in given.items() if value)
    if host.openssh:
        yield "transport", "openssh"
    # ssh_common_args of all hosts name the jump host for itself too; ssh passes over that.
    if jumps := [names.get(jump, jump) for jump in host.jump if jump != host.name]:
        yield "jump", jumps
    if host.become:
        yield "become", "sudo"
    if role == "serve":
        yield "app_dir", "/opt/macd-analysis"
    if role == "train":
        yield "work_dir", "~/work/macd-analysis"


def _yaml(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )


def _name(name: str, taken: set[str]) -> str:
    """As our inventories spell it, and no other host's."""
    base = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:28].strip("-_") or "host"
    number, made = 1, base
    while made in taken:
        number += 1
        made = f"{base}-{number}"
    taken.add(made)
    return made


def _of_ssh_config(path: Path) -> Iterator[ImportedHost]:
    """Each alias without a wildcard: ssh itself knows the rest."""
    aliases: dict[str, dict[str, str]] = {}
    for patterns, settings in _blocks(path, ()):
        for pattern in patterns:
            if not set("*?!%") & set(pattern):
                for key, text in settings.items():
                    aliases.setdefault(pattern, {}).setdefault(key, text)
                aliases.setdefault(pattern, {})
    ways = {via for s in aliases.values() for via in _names(s.get("proxyjump", ""))}
    for alias, settings in aliases.items():
        if settings.get("user") == "git":  # a forge; no shell there
            continue
        command = settings.get("proxycommand", "none")
        by_ssh = command.lower() != "none"
        group = ("jump",) if alias in ways else ()
        yield ImportedHost(alias, alias, group, openssh=by_ssh)


def _names(jumps: str) -> list[str]:
    parts = [split_jump(jump.strip()) for jump in jumps.split(",")]
    return [part[1] for part in parts if part]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _blocks(path: Path, passed: tuple[Path, ...]) -> Iterator[tuple[list[str], dict[str, str]]]:
    patterns: list[str] = []
    settings: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        key, text = ([*re.split(r"\s*=\s*|\s+", line.strip(), maxsplit=1), ""])[:2]
        key = key.lower()
        if key in ("host", "match"):
            yield patterns, settings
            patterns, settings = (_words(text) if key == "host" else []), {}
        elif key == "include" and len(passed) < 8:
            for word in text.split():
                pattern = Path(word.strip('"')).expanduser()
                at, rest = (
                    (Path("/"), pattern.relative_to("/"))
                    if pattern.is_absolute()
                    else (path.parent, pattern)
                )
                for file in sorted(at.glob(str(rest))):
                    if file not in passed:
                        yield from _blocks(file, (*passed, path))
        elif key:
            settings.setdefault(key, text)
    yield patterns, settings
