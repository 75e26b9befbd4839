"""An Ansible inventory (INI or YAML, with group_vars and host_vars beside it), read as hosts.

Only how to reach a host is read, by Ansible's own rules of which variable counts.
"""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from macd.errors import UsageError
from macd.inventory.names import split_jump

_RANGE = re.compile(r"\[(?P<first>\w+):(?P<last>\w+)(?::(?P<step>[0-9]+))?\]")
_SECTION = re.compile(r"\[(?P<name>[^\]:]+)(?::(?P<kind>vars|children))?\]\s*([#;].*)?")
_STDIO = re.compile(r"-W\s*\S*%h:%p")
_PORT = re.compile(r"(?P<host>(?:[^:\[\]]|\[[^\[\]]+\])+):(?P<port>[0-9]{1,5})")
_ADDRESS = re.compile(r"\[([0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*)\]")  # of IPv6
_MOST = 1000
UNREAD = "\0unread"  # notes about files of variables, among the variables themselves
ENCRYPTED = "{{ encrypted by Ansible's vault }}"
_VAULT_FILE = "$ANSIBLE_VAULT"
_OWN_OPTIONS = ("StrictHostKeyChecking", "UserKnownHostsFile", "ControlMaster", "ControlPersist",
                "ControlPath", "ServerAliveInterval", "ConnectTimeout")  # fmt: skip
_BECOME_PASSWORDS = ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")
# Words of host and group names, in this order.
_ROLES = (
    ("jump", ("jump", "bastion", "gateway", "gate", "proxy")),
    ("train", ("gpu", "train", "h800", "h100", "a100")),
)


@dataclass(frozen=True)
class ImportedHost:
    """One host as the other file has it; role is a guess by its names. None and "": not said."""

    name: str
    ssh: str
    groups: tuple[str, ...] = ()
    user: str = ""
    port: int | None = None
    identity: str = ""
    python: str = ""
    become: bool = False
    jump: tuple[str, ...] = ()
    openssh: bool = False
    notes: tuple[str, ...] = ()

    @property
    def role(self) -> str:
        """By a word in its name, else in its groups' names; serve where nothing says otherwise."""
        for words in (self.name, " ".join(self.groups)):
            for role, marks in _ROLES:
                if any(mark in words.lower() for mark in marks):
                    return role
        return "serve"


@dataclass
class _Group:
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)


def groups_in(path: Path, text: str) -> dict[str, _Group]:
    """The groups of an inventory. Raises UsageError where the text is none, without showing it."""
    try:
        parsed = _yaml(text)
    except yaml.MarkedYAMLError as error:
        if text.lstrip().startswith(("---", "all:", "{")):
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UsageError(f"{path}, line {line} is no YAML", why=str(error.problem)) from None
        parsed = None
    except yaml.YAMLError:
        parsed = None
    if isinstance(parsed, dict) and "plugin" in parsed:
        return {}  # of a dynamic inventory
    if isinstance(parsed, dict) and all(isinstance(v, dict | None) for v in parsed.values()):
        groups: dict[str, _Group] = {}
        hostvars = (parsed.pop("_meta", None) or {}).get("hostvars") or {}
        for name, body in parsed.items():
            _yaml_group(str(name), _listed(body or {}, hostvars), groups)
        return groups
    return _ini(path, text)


class _Loader(yaml.SafeLoader):
    """YAML with Ansible's own tags, such as !vault and !unsafe."""


_Loader.add_multi_constructor("!", lambda _, tag, node: ENCRYPTED if tag == "vault" else node.value)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def _listed(body: Mapping[str, Any], hostvars: Mapping[str, Any]) -> Mapping[str, Any]:
    """A group as `ansible-inventory --list` writes it, in the form of a YAML inventory."""
    made = dict(body)
    if isinstance(made.get("hosts"), list):
        made["hosts"] = {host: hostvars.get(host) for host in made["hosts"]}
    if isinstance(made.get("children"), list):
        made["children"] = dict.fromkeys(made["children"])
    return made


def _yaml_group(name: str, body: Mapping[str, Any], groups: dict[str, _Group]) -> None:
    group = groups.setdefault(name, _Group())
    hosts = body.get("hosts") or {}
    for pattern, variables in hosts.items() if isinstance(hosts, dict) else ():
        for host in _expanded(str(pattern)):
            group.hosts.setdefault(host, {}).update(variables or {})
    group.variables.update(body.get("vars") or {})
    children = body.get("children") or {}
    for child, inner in children.items() if isinstance(children, dict) else ():
        group.children.append(str(child))
        _yaml_group(str(child), inner or {}, groups)


def _ini(path: Path, text: str) -> dict[str, _Group]:
    groups: dict[str, _Group] = {"ungrouped": _Group()}
    name, kind = "ungrouped", "hosts"
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith(("#", ";")):
            continue
        section = _SECTION.fullmatch(line)
        if section:
            name, kind = section["name"].strip(), section["kind"] or "hosts"
            groups.setdefault(name, _Group())
        elif kind == "children":
            groups[name].children.append(line.split()[0])
            groups.setdefault(line.split()[0], _Group())
        elif kind == "vars":
            key, _, value = line.partition("=")
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            groups[name].variables[key.strip()] = value[1:-1] if quoted else value
        else:
            for host, variables in _host_line(path, number, line):
                groups[name].hosts.setdefault(host, {}).update(variables)
    return groups


def _host_line(path: Path, number: int, line: str) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        pattern, *words = shlex.split(line, comments=True)
        why = "" if all("=" in word for word in words) else "a word after the name is no key=value"
    except ValueError as error:
        pattern, words, why = "", [], str(error)
    if why:  # the line itself may hold a password
        raise UsageError(
            f"{path}, line {number} is no host of an Ansible inventory",
            why=why,
            hint="NAME key=value ..., in a section [GROUP]",
        )
    pairs = dict(word.split("=", 1) for word in words)
    if with_port := _PORT.fullmatch(pattern):
        pattern, pairs = with_port["host"], {"ansible_port": with_port["port"], **pairs}
    address = _ADDRESS.fullmatch(pattern)
    for host in [address[1]] if address else _expanded(pattern):
        yield host, dict(pairs)


def _expanded(pattern: str) -> list[str]:
    """web[01:03] is web01, web02, web03; [a:c] are letters."""
    parts: list[list[str]] = []
    end = 0
    for match in _RANGE.finditer(pattern):
        parts += [[pattern[end : match.start()]], _range(match)]
        end = match.end()
    parts.append([pattern[end:]])
    return ["".join(words) for words in product(*parts)][:_MOST]


def _range(match: re.Match[str]) -> list[str]:
    first, last, step = match["first"], match["last"], int(match["step"] or 1)
    if first.isdigit() and last.isdigit():
        numbers = range(int(first), min(int(last), int(first) + _MOST) + 1, max(step, 1))
        return [str(number).zfill(len(first)) for number in numbers]
    if len(first) == len(last) == 1:
        return [chr(code) for code in range(ord(first), ord(last) + 1, max(step, 1))]
    return [match[0]]


def hosts_of(groups: Mapping[str, _Group], directory: Path) -> Iterator[ImportedHost]:
    seen: dict[str, dict[str, Any]] = {}
    member: dict[str, list[str]] = {}
    for name in _parents_first(groups):
        group = groups[name]
        inherited = {**_beside(directory, "group_vars", name), **group.variables}
        for host in _hosts_below(name, groups, ()):
            unread = seen.get(host, {}).get(UNREAD, ())
            seen.setdefault(host, {}).update(inherited)
            seen[host][UNREAD] = tuple(dict.fromkeys((*unread, *inherited.get(UNREAD, ()))))
            member.setdefault(host, []).append(name)
    own = {h: v for g in groups.values() for h, v in g.hosts.items() if v}
    for group in groups.values():
        for host, variables in group.hosts.items():
            own[host] = {**own.get(host, {}), **variables}
    for host, variables in seen.items():
        beside = _beside(directory, "host_vars", host)
        mine = {**variables, **beside, **own.get(host, {})}
        mine[UNREAD] = (*variables.get(UNREAD, ()), *beside.get(UNREAD, ()))
        yield _as_host(host, mine, tuple(n for n in member[host] if n not in ("all", "ungrouped")))


def _parents_first(groups: Mapping[str, _Group]) -> list[str]:
    """all first, then each group before its children: what is nearer to a host counts."""

    def depth(name: str, passed: tuple[str, ...] = ()) -> int:
        above = [n for n, g in groups.items() if name in g.children and n not in passed]
        return 1 + max((depth(n, (*passed, name)) for n in above), default=0)

    return sorted(groups, key=lambda name: (name != "all", depth(name)))


def _hosts_below(name: str, groups: Mapping[str, _Group], passed: tuple[str, ...]) -> Iterator[str]:
    if name == "all":
        yield from (host for group in groups.values() for host in group.hosts)
        return
    yield from groups[name].hosts
    for child in groups[name].children:
        if child in groups and child not in passed:
            yield from _hosts_below(child, groups, (*passed, name))


def _beside(directory: Path, kind: str, name: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path in sorted(directory.glob(f"{kind}/{glob.escape(name)}")) + sorted(
        directory.glob(f"{kind}/{glob.escape(name)}.y*ml")
    ):
        for file in sorted(path.glob("*.y*ml")) if path.is_dir() else [path]:
            unread = made.get(UNREAD, ())
            try:
                text = file.read_text(encoding="utf-8")
                parsed = _yaml(text)
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                parsed, text = None, ""
            if isinstance(parsed, dict):
                made.update({**parsed, UNREAD: unread})
            elif parsed is not None or not text:
                vault = text.startswith(_VAULT_FILE)
                why = "encrypted by Ansible's vault" if vault else "no YAML that can be read"
                made[UNREAD] = (*unread, f"{file.relative_to(directory)} is not read: {why}")
    return made


def _as_host(name: str, variables: Mapping[str, Any], groups: tuple[str, ...]) -> ImportedHost:
    notes: list[str] = [*variables.get(UNREAD, ())]

    def value(*keys: str) -> str:
        for key in keys:
            text = str(variables.get(key) or "").strip()
            if text == ENCRYPTED:
                notes.append(f"{key} is encrypted by Ansible's vault: fill it in here")
            elif "{{" in text:
                notes.append(f"{key} is a template in Ansible: fill it in here")
            elif text:
                return text
        return ""

    jumps, by_ssh = _jumps(
        f"{value('ansible_ssh_common_args')} {value('ansible_ssh_extra_args')}", notes
    )
    if variables.get("ansible_password") or variables.get("ansible_ssh_pass"):
        notes.append(
            "Ansible logs in with a password: set a key, or transport: openssh, which asks"
        )
        by_ssh = True
    if (connection := value("ansible_connection")) not in ("", "ssh", "paramiko", "smart"):
        notes.append(f"ansible_connection is {connection}; macd comes over ssh")
    become = value("ansible_become").lower() in ("true", "yes", "1")
    notes += _becoming(variables, value) if become else []
    python = value("ansible_python_interpreter")
    port = value("ansible_port", "ansible_ssh_port")
    return ImportedHost(
        name,
        value("ansible_host", "ansible_ssh_host") or name,
        groups,
        value("ansible_user", "ansible_ssh_user"),
        int(port) if port.isdigit() else None,
        value("ansible_ssh_private_key_file", "ansible_private_key_file"),
        "" if python.startswith("auto") else python,
        become,
        jumps,
        by_ssh,
        tuple(notes),
    )


def _becoming(variables: Mapping[str, Any], value: Callable[[str], str]) -> list[str]:
    """Where Ansible becomes another account in a way that ours does not go."""
    notes = []
    if (method := value("ansible_become_method")) not in ("", "sudo"):
        notes.append(f"ansible_become_method is {method}; macd knows sudo: let the login use it")
    if (to := value("ansible_become_user")) not in ("", "root"):
        notes.append(f"Ansible becomes {to}; become: sudo becomes root")
    if any(variables.get(key) for key in _BECOME_PASSWORDS):
        notes.append("Ansible gives sudo a password; macd has none: let the login use sudo without")
    return notes


def _jumps(arguments: str, notes: list[str]) -> tuple[tuple[str, ...], bool]:
    """The jump hosts in ssh's arguments, and whether only ssh itself can follow them."""
    try:
        words = shlex.split(arguments)
    except ValueError:
        notes.append("the ssh arguments have an open quote")
        return (), False
    settings: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if word.startswith("-J"):
            settings["proxyjump"] = word[2:] or (words.pop(0) if words else "")
        elif word.startswith("-o"):
            option = word[2:] or (words.pop(0) if words else "")
            key, _, text = option.replace("=", " ", 1).partition(" ")
            settings.setdefault(key.lower(), text.strip())
    command = settings.get("proxycommand", "")
    jump = settings.get("proxyjump", "") or _as_jump(command)
    if command and not jump:
        notes.append(f"put this into ~/.ssh/config for it: ProxyCommand {_masked(command)[:200]}")
    ours = {name.lower() for name in (*_OWN_OPTIONS, "ProxyCommand", "ProxyJump")}
    if left := sorted(settings.keys() - ours):
        notes.append(f"ssh options that belong into ~/.ssh/config: {', '.join(left)}")
    return tuple(part.strip() for part in jump.split(",") if part.strip()), bool(
        command and not jump
    )


def _masked(command: str) -> str:
    return re.sub(r"(sshpass\s+-p\s*)(\S+)", r"\1...", command)


def _as_jump(command: str) -> str:
    """`ssh -W %h:%p [-p 22] user@jump` is what ProxyJump does; "" for another command."""
    if not _STDIO.search(command):
        return ""
    words = _STDIO.sub("", command).split()
    port, others = "", []
    while words:
        word = words.pop(0)
        if word == "-p" and words:
            port = words.pop(0)
        elif word not in ("ssh", "-q", "-A", "-T"):
            others.append(word)
    made = f"{others[0]}:{port}" if port and others else "".join(others[:1])
    return made if len(others) == 1 and split_jump(made) else ""
