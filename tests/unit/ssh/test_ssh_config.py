"""The way to a host is the one OpenSSH would go, the inventory first; nothing is dropped."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from macd.errors import UsageError
from macd.inventory import Host, Inventory
from macd.ssh.sshconfig import Hop, resolve


class Book:
    """An ssh_config and the inventory over it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "my config"  # a space: the path is one argument everywhere

    def way(self, config: str, name: str = "box", /, **hosts: dict[str, object]) -> list[Hop]:
        self.config.write_text(config)
        made = {
            key: Host.model_validate(
                {"name": key, "role": "jump", "ssh": key, **fields},
                context={"base": self.directory},
            )
            for key, fields in ({"box": {}} | hosts).items()
        }
        inventory = Inventory.model_validate(
            {
                "name": "lab",
                "path": self.directory / "lab.yml",
                "root": self.directory,
                "ssh_config": str(self.config),
                "known_hosts": "kh",
                "hosts": made,
                "train": {"data_dir": "."},
            }
        )
        return list(resolve(made[name], inventory))

    def shown(self, config: str, name: str = "box", /, **hosts: dict[str, object]) -> list[str]:
        return [f"{hop.user}@{hop.address}" for hop in self.way(config, name, **hosts)]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


ME = getpass.getuser()


def test_an_alias_means_what_it_means_to_ssh(book: Book) -> None:
    (book.directory / "more").write_text("Host box\n  Port 2200\n  Port 9999\n")
    config = f"""
Include {book.directory}/more
Host b?x !other
  HostName %h.Example.COM
Match originalhost box
  User bob
Host *
  User nobody
"""
    (hop,) = book.way(config)
    assert (hop.hostname, hop.port, hop.user) == ("box.example.com", 2200, "bob")
    assert hop.known_as == "[box.example.com]:2200"
    assert (hop.name, hop.alias) == ("box", "box")


def test_defaults_are_those_of_ssh(book: Book) -> None:
    (hop,) = book.way("")
    assert (hop.hostname, hop.port, hop.user, hop.known_as) == ("box", 22, ME, "box")
    assert "id_ed25519" in {path.name for path in hop.identities}
    assert all(path.is_absolute() for path in hop.identities)


def test_the_inventory_comes_before_ssh_config(book: Book) -> None:
    config = "Host box\n  User bob\n  Port 2200\n  IdentityFile ~/.ssh/other\n  ProxyJump gate\n"
    fields: dict[str, object] = {"user": "eve", "port": 1234, "jump": [], "identity": "mine"}
    (hop,) = book.way(config, box=fields)
    assert (hop.user, hop.port) == ("eve", 1234)
    assert hop.identities == (book.directory / "mine",)


def test_the_inventorys_user_decides_what_matches(book: Book) -> None:
    config = "Match user eve\n  HostName eves.example\nHost box\n  User bob\n"
    assert book.shown(config, box={"user": "eve"}) == ["eve@eves.example:22"]


def test_proxyjump_lists_are_gone_in_order(book: Book) -> None:
    config = """
Host box
  ProxyJump alice@one:2222,two,[::1]:44
Host one two
  User shared
Host two
  HostName two.example
  ProxyJump ignored-because-the-list-says-how
"""
    assert book.shown(config) == [
        "alice@one:2222",
        "shared@two.example:22",
        f"{ME}@[::1]:44",
        f"{ME}@box:22",
    ]


@pytest.mark.parametrize(
    ("jumps", "way"),
    [
        ("ubash@127.0.0.1:2303", ["ubash@127.0.0.1:2303"]),
        ("127.0.0.1", [f"{ME}@127.0.0.1:22"]),
        ("a@1.2.3.4,b@[::1]:44,c@5.6.7.8:9", ["a@1.2.3.4:22", "b@[::1]:44", "c@5.6.7.8:9"]),
        ("ssh://a@1.2.3.4:22,ssh://b@gate:23/", ["a@1.2.3.4:22", "b@gate:23"]),
        ("10,11", [f"{ME}@0.0.0.10:22", f"{ME}@0.0.0.11:22"]),
        ("gw.%h,%r@%n.gw:23", [f"{ME}@gw.box.example:22", "bob@box.gw:23"]),
    ],
)
def test_whatever_ssh_prints_as_proxyjump_is_gone(book: Book, jumps: str, way: list[str]) -> None:
    config = f"Host box\n  HostName box.example\n  User bob\n  ProxyJump {jumps}\n"
    assert book.shown(config) == [*way, "bob@box.example:22"]


def test_a_token_that_proxyjump_does_not_have_is_told(book: Book) -> None:
    with pytest.raises(UsageError, match="%C is not known"):
        book.way("Host box\n  ProxyJump gate-%C\n")


def test_a_jumps_own_proxyjump_is_gone_first(book: Book) -> None:
    config = "Host box\n  ProxyJump b\nHost b\n  ProxyJump c\nHost c\n  ProxyJump d\n"
    assert [hop.alias for hop in book.way(config)] == ["d", "c", "b", "box"]


def test_only_the_first_of_a_list_is_reached_by_its_own_way(book: Book) -> None:
    config = "Host box\n  ProxyJump a,b\nHost a\n  ProxyJump z\nHost b\n  ProxyJump y\n"
    assert [hop.alias for hop in book.way(config)] == ["z", "a", "b", "box"]


@pytest.mark.parametrize(
    "config",
    [
        "Host *\n  ProxyJump box\n",
        "Host box\n  ProxyJump a\nHost a\n  ProxyJump box\n",
        "Host box\n  ProxyJump a\nHost a\n  ProxyJump b\nHost b\n  ProxyJump a\n",
    ],
)
def test_loops_are_told(book: Book, config: str) -> None:
    with pytest.raises(UsageError) as caught:
        book.way(config)
    assert "loop" in str(caught.value)


def test_proxyjump_none_goes_directly(book: Book) -> None:
    config = "Host box\n  ProxyJump none\nHost *\n  ProxyJump gate\n"
    assert [hop.alias for hop in book.way(config)] == ["box"]


@pytest.mark.parametrize("chain", ["", "Host box\n  ProxyJump gate\n"])
def test_a_proxycommand_is_refused_not_ignored(book: Book, chain: str) -> None:
    where = "gate" if chain else "box"
    with pytest.raises(UsageError, match=f"{where} is reached by a ProxyCommand") as caught:
        book.way(f"{chain}Host {where}\n  ProxyCommand nc %h %p\n")
    assert "nc %h %p" in caught.value.why


def test_an_explicit_way_replaces_a_proxycommand(book: Book) -> None:
    config = "Host box\n  ProxyCommand nc %h %p\n"
    way = book.way(config, box={"jump": ["joe@gate:2022"]})
    assert [(hop.user, hop.address) for hop in way] == [("joe", "gate:2022"), (ME, "box:22")]


def test_jumps_of_the_inventory_are_named_there(book: Book) -> None:
    """h800 goes by `first`, an inventory host with settings and a jump of its own."""
    way = book.way(
        "Host deep\n  HostName 10.0.0.9\n",
        "h800",
        outer={"ssh": "outer.example", "user": "o", "port": 2201},
        first={"ssh": "deep", "user": "f", "jump": ["outer"]},
        h800={"jump": ["first", "x@alias-only"]},
    )
    assert [(hop.name, hop.user, hop.address) for hop in way] == [
        ("outer", "o", "outer.example:2201"),
        ("first", "f", "10.0.0.9:22"),
        ("alias-only", "x", "alias-only:22"),
        ("h800", ME, "h800:22"),
    ]


def test_a_hostkeyalias_is_the_name_in_known_hosts(book: Book) -> None:
    (hop,) = book.way("Host box\n  HostKeyAlias The-Box\n  Port 2200\n")
    assert hop.known_as == "the-box"  # as ssh -G gives it; names in known_hosts have no case


def test_identity_settings_are_expanded_like_ssh_does(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    config = """
Host box
  HostName box.example
  User bob
  IdentityFile "/with space/%r-%h-%n%%"
  IdentityFile ${KEYS}/k
  IdentityFile ~/plain
  CertificateFile none
  IdentitiesOnly yes
  IdentityAgent /run/%u.sock
"""
    (hop,) = book.way(config)
    assert hop.identities[:2] == (Path("/with space/bob-box.example-box%"), Path("/keys/k"))
    assert hop.identities[2].name == "plain" and hop.identities[2].is_absolute()
    assert hop.identities_only and hop.certificates == ()
    assert hop.agent == f"/run/{ME}.sock"


@pytest.mark.parametrize(
    ("line", "agent"),
    [
        ("", "/run/agent"),
        ("IdentityAgent none", ""),
        ("IdentityAgent SSH_AUTH_SOCK", "/run/agent"),
        ("IdentityAgent $OTHER", "/run/other"),
    ],
)
def test_the_agent_is_the_one_ssh_would_ask(
    book: Book, monkeypatch: pytest.MonkeyPatch, line: str, agent: str
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("OTHER", "/run/other")
    (hop,) = book.way(f"Host box\n  {line}\n")
    assert hop.agent == agent


def test_an_unknown_token_is_told(book: Book) -> None:
    with pytest.raises(UsageError, match="which NOWHERE is not known"):
        book.way("Host box\n  IdentityFile ${NOWHERE}/k\n")


def test_what_ssh_says_of_a_broken_file_is_passed_on(book: Book) -> None:
    with pytest.raises(UsageError) as caught:
        book.way("Host box\n  Portt 22\n")
    assert "portt" in caught.value.why and str(book.config) in caught.value.hint


@pytest.mark.parametrize("line", ["User a;b", "HostName a/b", "User -x"])
def test_what_ssh_config_yields_is_checked_too(book: Book, line: str) -> None:
    with pytest.raises(UsageError):
        book.way(f"Host box\n  {line}\n")


def test_the_users_own_configuration_need_not_exist(book: Book) -> None:
    """Named or left out, it is what ssh reads by itself."""
    host = Host(name="box", role="jump", ssh="localhost")
    home = str(Path("~/.ssh/config").expanduser())
    ways = [resolve(host, inventory_of(book.directory, config, host)) for config in (home, None)]
    assert ways[0] == ways[1] and ways[0][0].alias == "localhost"


def test_a_home_that_is_not_the_accounts_is_read_where_it_was_named(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh itself goes by the account, so it has to be told."""
    monkeypatch.setenv("HOME", str(book.directory))
    (book.directory / ".ssh").mkdir()
    named = book.directory / ".ssh" / "config"
    named.write_text("Host box\n  HostName 192.0.2.7\n")
    host = Host(name="box", role="jump", ssh="box")
    (hop,) = resolve(host, inventory_of(book.directory, str(named), host))
    assert hop.hostname == "192.0.2.7"
    named.unlink()
    (hop,) = resolve(host, inventory_of(book.directory, str(named), host))
    assert hop.hostname == "box"


def inventory_of(directory: Path, config: str | None, host: Host) -> Inventory:
    return Inventory.model_validate(
        {
            "name": "lab",
            "path": directory,
            "root": directory,
            "ssh_config": config,
            "known_hosts": "kh",
            "hosts": {host.name: host},
            "train": {"data_dir": "."},
        }
    )


def test_a_missing_ssh_is_told(book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="ssh is not installed"):
        book.way("")


def test_a_missing_ssh_config_is_told_and_the_labs_comes_with_its_command(book: Book) -> None:
    book.config = book.directory / ".lab" / "ssh_config"
    book.config.parent.mkdir()
    book.way("")
    book.config.unlink()
    host = Host(name="box", role="jump", ssh="box")
    inventory = inventory_of(book.directory, str(book.config), host)
    with pytest.raises(UsageError) as caught:
        resolve(host, inventory)
    assert "invoke lab.up" in caught.value.hint
