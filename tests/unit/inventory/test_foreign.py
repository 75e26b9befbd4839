"""Hosts of an Ansible inventory or an ssh_config become the beginning of ours, which loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.errors import UsageError
from macd.inventory import Inventory, foreign, load

INI = """
# production
gw ansible_host=192.0.2.1 ansible_user=ops

[prod]
web[01:03].example.com ansible_port=22222
Old.Box ansible_host=10.0.0.9 ansible_ssh_private_key_file=~/.ssh/old ansible_port="{{ p }}"

[gpu]
h800 ansible_host=10.1.0.5 ansible_ssh_common_args='-o ProxyCommand="ssh -W %h:%p -p 2200 ops@gw"'
h801 ansible_ssh_common_args="-o ProxyCommand='corkscrew %h %p' -o Compression=yes"

[gpu:vars]
ansible_user=train
ansible_python_interpreter=/opt/python3.12

[prod:vars]
ansible_user=root
ansible_become=true

[all:children]
prod
gpu
"""
YAML = """
all:
  vars: {ansible_user: everyone}
  children:
    serving:
      vars: {ansible_user: root, ansible_port: 22222}
      hosts:
        a[1:2]:
        c: {ansible_user: carla, ansible_ssh_common_args: "-J ops@gate.example.com:2222,second"}
"""
SSH = """
Include more/*
Host h800 prod
  ProxyJump ops@jump-1
Host odd
  ProxyCommand corkscrew %h %p
Host * !x
  User someone
"""


def made(tmp_path: Path, text: str, **roles: str) -> Inventory:
    (tmp_path / "hosts").write_text(text)
    (tmp_path / "more").mkdir(exist_ok=True)
    (tmp_path / "more" / "jumps").write_text("Host jump-1\n  HostName 192.0.2.7\n")
    hosts = foreign.read(tmp_path / "hosts")
    (tmp_path / "inventory").mkdir(exist_ok=True)
    text = foreign.document(hosts, roles, "hosts")
    (tmp_path / "inventory" / "ours.yml").write_text(text)
    return load("ours", root=tmp_path)


def test_an_ini_with_ranges_groups_and_ssh_arguments(tmp_path: Path) -> None:
    inventory = made(tmp_path, INI, prod="serve", gw="jump")
    text = (tmp_path / "inventory" / "ours.yml").read_text()
    assert list(inventory.hosts) == [
        *("gw", "web01-example-com", "web02-example-com", "web03-example-com"),
        *("old-box", "h800", "h801"),
    ]
    web, h800, h801 = (inventory.hosts[n] for n in ("web02-example-com", "h800", "h801"))
    assert (web.ssh, web.user, web.port, web.become) == ("web02.example.com", "root", 22222, "sudo")
    assert (web.role, web.env) == ("serve", "prod")
    assert (h800.role, h800.ssh, h800.user, h800.jump) == (
        *("train", "10.1.0.5", "train"),
        ("ops@gw:2200",),
    )
    assert (h800.python, h800.transport) == ("/opt/python3.12", "paramiko")
    assert (h801.transport, h801.jump) == ("openssh", None)
    assert "put this into ~/.ssh/config for it: ProxyCommand corkscrew %h %p" in text
    assert "ssh options that belong into ~/.ssh/config: compression" in text
    assert "ansible_port is a template" in text
    assert inventory.hosts["gw"].role == "jump"


def test_a_yaml_with_the_nearer_variable_and_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars" / "a2.yml").write_text("ansible_host: 10.0.0.2\n")
    (tmp_path / "group_vars" / "serving").mkdir(parents=True)
    (tmp_path / "group_vars" / "serving" / "ssh.yml").write_text("ansible_become: true\n")
    inventory = made(tmp_path, YAML)
    a1, a2, c = inventory.hosts.values()
    assert (a1.user, a1.port, a1.ssh, a1.become) == ("root", 22222, "a1", "sudo")
    assert (a2.ssh, a2.user) == ("10.0.0.2", "root")
    assert (c.user, c.jump) == ("carla", ("ops@gate.example.com:2222", "second"))


def test_the_aliases_of_an_ssh_config(tmp_path: Path) -> None:
    inventory = made(tmp_path, SSH)
    assert list(inventory.hosts) == ["jump-1", "h800", "prod", "odd"]
    roles = [host.role for host in inventory.hosts.values()]
    assert roles == ["jump", "train", "serve", "serve"]
    assert inventory.hosts["odd"].transport == "openssh"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "[empty]\n", "all: {}\n", "Host *\n  User x\n"]
)
def test_a_file_without_hosts_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UsageError, match="names no host"):
        foreign.read(tmp_path / "hosts")


def test_a_line_that_is_no_host_is_named(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("[a]\nweb1 some words\n")
    with pytest.raises(UsageError, match="line 2"):
        foreign.read(tmp_path / "hosts")


def test_secrets_of_a_vault_are_named_and_never_shown(tmp_path: Path) -> None:
    vault = "!vault |\n        $ANSIBLE_VAULT;1.1;AES256\n        6238SECRET\n"
    (tmp_path / "hosts.yml").write_text(
        f"all:\n  vars:\n    ansible_user: {vault}  hosts:\n    box: {{ansible_host: 10.0.0.1}}\n"
    )
    beside = tmp_path / "group_vars/all"
    beside.mkdir(parents=True)
    (beside / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n33SECRET\n")
    (beside / "vars.yml").write_text(f"ansible_port: 2200\nansible_password: {vault}")
    hosts = foreign.read(tmp_path / "hosts.yml")
    text = foreign.document(hosts, {}, "hosts.yml")
    assert (hosts[0].ssh, hosts[0].port, hosts[0].openssh) == ("10.0.0.1", 2200, True)
    assert "group_vars/all/vault.yml is not read: encrypted by Ansible's vault" in text
    assert "ansible_user is encrypted by Ansible's vault" in text
    assert "SECRET" not in text


@pytest.mark.parametrize(
    "text",
    [
        "box ansible_password='hunter2",
        "box ansible_password=correct hunter2 battery",
        "box ansible_ssh_common_args=\"-o ProxyCommand='sshpass -p hunter2 ssh x",
        "all:\n  vars:\n   ansible_password: hunter2\n  hosts: [box\n",
    ],
)
def test_a_line_that_is_refused_is_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UsageError, match=r"line [0-9] is no") as caught:
        foreign.read(tmp_path / "hosts")
    assert "hunter2" not in str(caught.value)


def test_ports_in_names_quotes_in_quotes_and_lists_of_a_dynamic_inventory(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text(
        "[prod]\nbox:5309\n[prod:vars]\n"
        "ansible_ssh_common_args='-o ProxyCommand=\"ssh -W %h:%p -q ops@gate\"'\n"
    )
    (box,) = foreign.read(tmp_path / "hosts.ini")
    assert (box.ssh, box.port, box.jump) == ("box", 5309, ("ops@gate",))
    (tmp_path / "hosts.json").write_text(
        '{"_meta": {"hostvars": {"box": {"ansible_host": "10.0.0.1", "ansible_become": true,'
        ' "ansible_become_method": "su"}}},'
        ' "all": {"children": ["prod"]}, "prod": {"hosts": ["box"]}}'
    )
    (box,) = foreign.read(tmp_path / "hosts.json")
    assert (box.ssh, box.groups) == ("10.0.0.1", ("prod",))
    assert "ansible_become_method is su" in box.notes[0]


def test_ssh_config_with_tabs_quotes_and_nothing_but_an_include(tmp_path: Path) -> None:
    (tmp_path / "more").write_text('Host\tgpu "other"\n\tHostName\t10.0.0.9\nHost=third\n')
    (tmp_path / "config").write_text("Include more\n")
    assert [host.name for host in foreign.read(tmp_path / "config")] == ["gpu", "other", "third"]


def test_ranges_with_ports_addresses_in_brackets_and_a_mark_in_front(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_bytes(
        b"\xef\xbb\xbf[web]\r\nweb-[a:b].example.com:2222\r\n[2001:db8::5]:2200\r\n2001:db8::7\r\n"
    )
    hosts = foreign.read(tmp_path / "hosts.ini")
    assert [(host.ssh, host.port) for host in hosts] == [
        *(("web-a.example.com", 2222), ("web-b.example.com", 2222)),
        *(("2001:db8::5", 2200), ("2001:db8::7", None)),
    ]


def test_what_ours_can_not_have_is_left_out_by_name_and_the_others_are_taken(
    tmp_path: Path,
) -> None:
    text = 'Host "two words" user@odd\n  HostName 192.0.2.1\nHost good\n  HostName 192.0.2.2\n'
    text += "Host forge.example.com\n  User git\n"
    inventory = made(tmp_path, text)
    assert list(inventory.hosts) == ["good"]
    written = (tmp_path / "inventory" / "ours.yml").read_text()
    assert "# 'two words' is left out: its address or alias has characters" in written
    assert "# 'user@odd' is left out" in written


def test_a_jump_host_that_every_host_goes_by_does_not_go_by_itself(tmp_path: Path) -> None:
    text = "[all:vars]\nansible_ssh_common_args='-J gate'\n[a]\ngate\nbox\n"
    inventory = made(tmp_path, text)
    assert inventory.hosts["box"].jump == ("gate",)
    assert inventory.hosts["gate"].jump is None


def test_sudo_with_a_password_and_another_account_is_said(tmp_path: Path) -> None:
    line = "box ansible_become=yes ansible_become_user=trader ansible_become_pass=hunter2\n"
    (tmp_path / "hosts").write_text(line)
    (box,) = foreign.read(tmp_path / "hosts")
    assert "Ansible becomes trader" in box.notes[0]
    assert "gives sudo a password" in box.notes[1]
    assert "hunter2" not in str(box.notes)


def test_aliases_of_a_file_that_ssh_does_not_read_bring_the_file_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    for path in (tmp_path / ".ssh/config", tmp_path / "team_config"):
        path.write_text("Host box\n  HostName 192.0.2.1\n")
    theirs = foreign.ssh_config_of(tmp_path / "team_config")
    hosts = foreign.read(tmp_path / "team_config")
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/ours.yml").write_text(foreign.document(hosts, {}, "x", theirs))
    assert load("ours", root=tmp_path).ssh_config == tmp_path / "team_config"
    assert foreign.ssh_config_of(tmp_path / ".ssh/config") is None
    (tmp_path / "hosts").write_text("[a]\nbox\n")
    assert foreign.ssh_config_of(tmp_path / "hosts") is None
