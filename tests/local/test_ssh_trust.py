"""`invoke host.trust` shows, asks and pins; `invoke host.list` shows the way, by real invoke."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from macd.inventory import Inventory
from macd.ssh import ssh
from tests.support import commands
from tests.support.ssh_servers import Server, World, world_in

TASKS = """
from invoke import Collection
from macd.cli import host, usage
usage.install()
namespace = Collection(host=Collection(host.list_, host.trust))
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "tasks.py").write_text(TASKS)
    with world_in(tmp_path) as made:
        for name in ("one", "two"):
            made.start(name)
        yield made


def invoke(
    world: World, *argv: str, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    return commands.run(world.directory, *argv, stdin=stdin)


def answered(world: World, answer: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run with a terminal on which `answer` is typed."""
    terminal, there = pty.openpty()
    os.write(terminal, answer.encode())
    try:
        return invoke(world, *argv, stdin=there)
    finally:
        os.close(terminal)
        os.close(there)


def known_hosts(world: World) -> str:
    return (world.directory / "known_hosts").read_text()


def connects(inventory: Inventory) -> bool:
    with ssh.connect(inventory.host("box"), inventory) as link:
        return link.open_channel("echo hi").recv(10) == b"hi\n"


def change_key(world: World, server: Server) -> str:
    """Pin another key than the server's; returns its fingerprint."""
    old = asyncssh.generate_private_key("ssh-ed25519")
    public = " ".join(old.export_public_key().decode().split()[:2])
    path = world.directory / "known_hosts"
    path.write_text(path.read_text().replace(server.public, public))
    return str(old.get_fingerprint())


def test_yes_pins_every_new_key_on_the_way(world: World) -> None:
    inventory = world.chain("one", "two", trust=False)
    done = invoke(world, "host.trust", "box", "--yes")
    assert done.returncode == 0, done.stderr
    for server in world.servers.values():
        assert server.fingerprint in done.stdout
        assert server.public in known_hosts(world)
    assert f"two.test {world.servers['two'].public}" in known_hosts(world)
    assert world.servers["two"].logins == []  # the host itself was only looked at
    assert connects(inventory)
    again = invoke(world, "host.trust", "box")
    assert again.returncode == 0 and again.stdout.count("already pinned") == 2


def test_without_a_yes_nothing_is_pinned(world: World) -> None:
    world.chain("one", "two", trust=False)
    done = invoke(world, "host.trust", "box")
    assert done.returncode == 1
    assert known_hosts(world) == ""
    assert world.servers["one"].fingerprint in done.stdout
    assert world.servers["one"].logins == []
    assert "was not pinned" in done.stderr
    assert f"--fingerprint {world.servers['one'].fingerprint}" in done.stderr


def test_the_question_is_asked_for_each_key(world: World) -> None:
    inventory = world.chain("one", "two", trust=False)
    done = answered(world, "y\nn\n", "host.trust", "box")
    assert done.returncode == 1
    assert world.servers["one"].public in known_hosts(world)
    assert world.servers["two"].public not in known_hosts(world)
    done = answered(world, "y\n", "host.trust", "box")
    assert done.returncode == 0 and "pin this key? [y/N]" in done.stderr
    assert connects(inventory)


def test_only_the_named_fingerprints_are_accepted(world: World) -> None:
    inventory = world.chain("one", "two", trust=False)
    prints = [world.servers[name].fingerprint for name in ("one", "two")]
    wrong = invoke(world, "host.trust", "box", "--fingerprint", prints[1])
    assert wrong.returncode == 6 and "shows another key" in wrong.stderr
    assert known_hosts(world) == ""
    options = [word for text in prints for word in ("--fingerprint", text.removeprefix("SHA256:"))]
    assert invoke(world, "host.trust", "box", *options).returncode == 0
    assert connects(inventory)


def test_a_changed_key_is_never_taken_by_yes_alone(world: World) -> None:
    inventory = world.chain("one", "two")
    server = world.servers["two"]
    old = change_key(world, server)
    before = known_hosts(world)
    done = invoke(world, "host.trust", "box", "--yes")
    assert done.returncode == 6
    assert "HAS CHANGED" in done.stdout and "listening" in done.stdout
    assert old in done.stdout and server.fingerprint in done.stdout
    assert known_hosts(world) == before
    done = invoke(world, "host.trust", "box", "--fingerprint", server.fingerprint)
    assert done.returncode == 0, done.stderr
    assert old not in known_hosts(world) and known_hosts(world).count("\n") == 2
    assert connects(inventory)


def test_a_revoked_key_cannot_be_pinned(world: World) -> None:
    world.chain("one", "two", trust=False)
    path = world.directory / "known_hosts"
    path.write_text(f"@revoked * {world.servers['one'].public}\n")
    fingerprint = world.servers["one"].fingerprint
    done = invoke(world, "host.trust", "box", "--fingerprint", fingerprint)
    assert done.returncode == 6 and "REVOKED" in done.stderr
    assert path.read_text().count("\n") == 1


def test_a_dry_run_pins_nothing(world: World) -> None:
    world.chain("one", "two", trust=False)
    done = invoke(world, "host.trust", "box", "--dry-run", "--yes")
    assert done.returncode == 0 and "NOT pinned" in done.stdout
    assert known_hosts(world) == ""


def test_json_says_the_same(world: World) -> None:
    world.chain("one", "two", trust=False)
    told = json.loads(invoke(world, "host.trust", "box", "--yes", "--json").stdout)
    assert [(key["hop"], key["verdict"], key["accepted"]) for key in told["keys"]] == [
        ("one", "unknown", True),
        ("box", "unknown", True),
    ]
    refused = invoke(world, "host.trust", "nobody", "--json")
    assert refused.returncode == 2
    assert "no host 'nobody'" in json.loads(refused.stdout)["error"]["what"]


def test_an_unreachable_hop_is_named(world: World) -> None:
    world.chain("one", "two", trust=False)
    world.stop("two")
    done = invoke(world, "host.trust", "box", "--yes")
    assert done.returncode == 1
    assert "can't reach box" in done.stderr
    assert world.servers["one"].public in known_hosts(world)


def test_the_list_shows_hops_and_what_is_not_pinned(world: World) -> None:
    world.chain("one", "two")
    change = world.directory / "known_hosts"
    change.write_text("".join(change.read_text().splitlines(keepends=True)[:1]))
    done = invoke(world, "host.list")
    assert done.returncode == 0, done.stderr
    port = world.servers["one"].pipe.port
    assert f"u-one@127.0.0.1:{port} -> u-two@two.test:22" in done.stdout
    assert "key of box not pinned: invoke host.trust box" in done.stdout
    (row,) = json.loads(invoke(world, "host.list", "--json").stdout)["hosts"]
    assert [hop["user"] for hop in row["hops"]] == ["u-one", "u-two"]
    assert row["hops"][0]["pinned"] == [f"ssh-ed25519 {world.servers['one'].fingerprint}"]
    assert row["hops"][0]["identities"] == [str(world.identity)]
    assert all(not server.logins for server in world.servers.values())


def test_the_list_shows_what_is_wrong_with_a_host(world: World) -> None:
    world.chain("one", "two")
    config = world.directory / "ssh_config"
    config.write_text("Host two\n  ProxyCommand nc %h %p\n")
    done = invoke(world, "host.list")
    assert done.returncode == 2
    assert "ProxyCommand" in done.stdout
