"""A real sudo that says no to the agent is told as what it is, and the remedy named works."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from macd.errors import MacdError
from macd.inventory import Inventory, load
from macd.ssh.session import open_session
from tests.support.hosts.fleet import Hosts

pytestmark = pytest.mark.hosts
SUDOERS = "/etc/sudoers.d/deploy"
OURS = "/etc/sudoers.d/zz-macd"
Sudoers = Callable[[str, str], None]


@pytest.fixture
def sudoers(hosts: Hosts) -> Iterator[Sudoers]:
    """Write a file of sudoers on prod; what was there comes back."""
    before = hosts.prod.exec("cat", SUDOERS)

    def write(path: str, text: str) -> None:
        hosts.prod.exec("sh", "-c", 'cat > "$1" && chmod 440 "$1"', "sh", path, input=text)

    yield write
    write(SUDOERS, before)
    hosts.prod.exec("rm", "-f", OURS)


@pytest.fixture
def book(hosts: Hosts) -> Inventory:
    return load(hosts.inventory, root=hosts.root)


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ("deploy ALL=(ALL) ALL\n", "a password is required"),
        ("deploy ALL=(ALL) NOPASSWD: /usr/bin/systemctl\n", "a password is required"),
        (
            "deploy ALL=(ALL) NOPASSWD: /usr/bin/systemctl\nDefaults:deploy !authenticate\n",
            "not allowed to execute '/usr/bin/python3 ...' as root",
        ),
        ("Defaults requiretty\ndeploy ALL=(ALL) NOPASSWD: ALL\n", "must have a tty"),
    ],
)
def test_a_sudo_that_says_no_is_told_with_a_remedy_that_works(
    hosts: Hosts, book: Inventory, sudoers: Sudoers, rules: str, why: str
) -> None:
    host = book.host("prod").model_copy(update={"user": "deploy", "become": "sudo"})
    sudoers(SUDOERS, rules)
    with open_session(host, book) as session, pytest.raises(MacdError) as caught:
        session.ping()
    assert caught.value.what == "prod: sudo -n may not start python3"
    assert why in caught.value.why and "import sys" not in caught.value.why
    lines = [line for line in caught.value.hint.splitlines() if "deploy" in line]
    assert lines == ["deploy ALL=(root) NOPASSWD: /usr/bin/python3", "Defaults:deploy !requiretty"]
    sudoers(OURS, "\n".join(lines) + "\n")
    with open_session(host, book) as session:
        assert session.facts().user.name == "root"


def test_a_terminal_serves_a_sudo_that_wants_one(
    hosts: Hosts, book: Inventory, sudoers: Sudoers
) -> None:
    sudoers(SUDOERS, "Defaults requiretty\ndeploy ALL=(ALL) NOPASSWD: ALL\n")
    host = book.host("prod").model_copy(update={"user": "deploy", "become": "sudo"})
    with open_session(host, book) as session, pytest.raises(MacdError) as caught:
        session.ping()
    assert "set terminal: exec of prod in the inventory" in caught.value.hint
    with open_session(host.model_copy(update={"terminal": "exec"}), book) as session:
        assert session.facts().user.name == "root"
