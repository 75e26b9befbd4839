"""A thousand hostile host, user and path strings, in every place that takes one, run nothing.

Each is either refused, or it is plain enough to stand in a shell's command line as it is.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from macd.errors import MacdError, UsageError
from macd.inventory import Inventory, load
from macd.ssh import ssh, sshconfig
from tests.support.ssh_servers import World, world_in

COUNT = 1000
CANARY = "canary"
FIELDS = ("ssh", "user", "jump", "work_dir", "app_dir", "python", "unit", "identity", "env")
SHELL_FIELDS = ("ssh", "user", "work_dir", "app_dir", "python", "unit", "env")
PLAIN = ("box", "root", "10.0.0.1", "::1", "~/work", "/opt/x", "python3", "a", "x.y-z_1", "")
METACHARACTERS = (*";|&$`<>(){}[]*?!#~'\"\\ \t\n\r\0%=^,:@/.-", "\u202e", "é", "。", "\x1b")


def payloads(canary: Path) -> tuple[str, ...]:
    run = f"touch {canary}"
    return (
        f"$({run})",
        f"`{run}`",
        f";{run};",
        f"|{run}",
        f"&&{run}",
        f"\n{run}\n",
        f"'; {run}; '",
        f'"; {run}; "',
        f"-oProxyCommand={run}",
        f"-oLocalCommand={run}",
        f"-F{canary}",
        f"--; {run}",
        f"x@-oProxyCommand={run}",
        f"${{IFS}}touch${{IFS}}{canary}",
        f"%{{{run}}}",
        f"box -oProxyCommand={run}",
        f"box\nProxyCommand {run}",
        f"../../{canary}",
        f"ssh://-oProxyCommand={run}",
    )


def strings(seed: int, canary: Path, count: int) -> Iterator[str]:
    """`count` of them, the same for the same seed."""
    chance, hostile = random.Random(seed), payloads(canary)
    for _ in range(count):
        parts = [chance.choice(PLAIN)]
        for _ in range(chance.randint(1, 4)):
            kind = chance.random()
            if kind < 0.4:
                parts.append(chance.choice(hostile))
            elif kind < 0.8:
                parts.append(chance.choice(METACHARACTERS))
            else:
                parts.append(chance.choice(PLAIN))
        chance.shuffle(parts)
        yield "".join(parts)


def inventory_with(root: Path, field: str, text: str) -> Inventory:
    host: dict[str, object] = {"role": "jump", "ssh": "box", field: text}
    if field == "jump":
        host["jump"] = [text]
    document = {"ssh_config": "../ssh_config", "hosts": {"box": host}}
    escaped = yaml.safe_dump(document, allow_unicode=True).replace("${", "$${")
    (root / "inventory" / "lab.yml").write_text(escaped, encoding="utf-8")
    return load("lab", root=root)


def test_a_thousand_strings_in_every_field_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    (tmp_path / "ssh_config").write_text("Host *\n  User nobody\n")
    canary, accepted = tmp_path / CANARY, dict.fromkeys(FIELDS, 0)
    for number, text in enumerate(strings(1, canary, COUNT)):
        field = FIELDS[number % len(FIELDS)]
        try:
            inventory = inventory_with(tmp_path, field, text)
        except UsageError:
            continue
        accepted[field] += 1
        if field in SHELL_FIELDS:
            stands_in_a_shell(getattr(inventory.host("box"), field))
        try:
            sshconfig.resolve(inventory.host("box"), inventory)
        except UsageError:
            continue
    assert not canary.exists()
    assert sum(accepted.values()) > 50, accepted  # plain ones got through, so the rest was judged
    assert sum(accepted.values()) < COUNT / 2, accepted


def stands_in_a_shell(value: str) -> None:
    """Put into a command line unquoted it is one word that means itself (but for a leading ~)."""
    if not value:
        return
    shown = subprocess.run(
        ["sh", "-c", f"printf '[%s]' {value}"], capture_output=True, text=True, check=True
    ).stdout
    home = f"[{Path.home()}{value[1:]}]"
    assert shown in (f"[{value}]", home), value


def test_hostile_lines_in_ssh_config_run_nothing(tmp_path: Path) -> None:
    """What ssh_config says is checked too, wherever ssh itself lets it through."""
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "lab.yml").write_text(
        "ssh_config: ../ssh_config\nhosts: {box: {role: jump, ssh: box}}\n"
    )
    inventory = load("lab", root=tmp_path)
    canary, resolved = tmp_path / CANARY, 0
    keys = ("HostName", "User", "ProxyJump", "IdentityFile", "IdentityAgent", "HostKeyAlias")
    for number, text in enumerate(strings(2, canary, 300)):
        line = text.replace("\n", " ").replace("\r", " ").replace("\0", " ")
        key = keys[number % len(keys)]
        (tmp_path / "ssh_config").write_text(f"Host box\n  {key} {line}\n", encoding="utf-8")
        try:
            way = sshconfig.resolve(inventory.host("box"), inventory)
        except UsageError:
            continue
        resolved += 1
        for hop in way:
            for value in (hop.hostname, hop.user):
                stands_in_a_shell(value)
                assert not value.startswith("-")
    assert not canary.exists()
    assert resolved > 30


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        made.start("one")
        yield made


def test_hostile_strings_that_are_accepted_connect_without_running_anything(world: World) -> None:
    """Against a live server, with hostile text where OpenSSH takes any: paths and alias names."""
    canary = world.directory / CANARY
    inventory = world.chain("one", connect_s=20)
    config = (world.directory / "ssh_config").read_text()
    for text in payloads(canary):
        path = text.replace("\n", " ").replace('"', "")
        known_as = f"[127.0.0.1]:{world.servers['one'].pipe.port}"
        lines = f'  IdentityFile "{path}"\n  HostKeyAlias {known_as}\n'
        (world.directory / "ssh_config").write_text(f"Host one\n{lines}{config}")
        try:
            with ssh.connect(inventory.host("box"), inventory) as link:
                assert link.open_channel("echo hi").recv(10) == b"hi\n"
        except MacdError as error:
            assert "no such file" in str(error) or "is not known" in str(error), error
    assert not canary.exists()
    assert set(world.servers["one"].commands) <= {"echo hi"}
