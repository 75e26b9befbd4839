"""Names that reach command lines hold nothing that a shell, ssh or systemd treats specially."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from macd.inventory import names
from macd.inventory.names import is_host, is_user, split_jump

HARMLESS = set(string.ascii_letters + string.digits + "._-+@:/~%")
hostile = st.text(alphabet=st.one_of(st.sampled_from("aZ0.-_+@:/~%[]$`;|&<>(){}*?!#'\"\\ \n\t\0é")))


def accepts(kind: object, text: str) -> bool:
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            names.SshAlias,
            ["h800", "a.b-c.example", "10.0.0.1", "::1", "fe80::1%eth0", "_x"],
            ["", "-x", "a b", "a;b", "$(x)", "a@b", "a:22", "x-", "::1%$(x)", "a" * 300, "a\n"],
        ),
        (
            names.Jump,
            ["h", "u@h", "h:22", "u@h:22", "[::1]:22", "u@[::1]"],
            ["", "-h", "u@-h", "-u@h", "h:0", "h:65536", "h:x", "a,b", "u@@h", "::1:22", "ssh://h"],
        ),
        (names.Account, ["root", "x_1", "me+x"], ["", "-x", "a b", "a;b", "a@b", "a\n", "$x"]),
        (
            names.User,
            ["root", "a.b", "me+x", "a@b@10.0.0.1", "a#b#c", "CORP\\ops"],
            ["", "-x", "a b", "a;b", "a@", "a\\", "a\n", "$x", "@a"],
        ),
        (
            names.RemotePath,
            ["/opt/macd-analysis", "~/work/x", "/a/.b/c", "/opt/x/"],
            ["", "/", "~", "x", "/a/../b", "/a//b", "~x/y", "/a b", "/a;b", "/-x", "/$(x)", "/a\n"],
        ),
        (
            names.Python,
            ["python3", "python3.12", "/usr/bin/python3"],
            ["", "-x", "a b", "./x", "/"],
        ),
        (names.Unit, ["macd-analysis", "a@b.c"], ["", "-x", "x.service", "a b", "a/b", "x;y"]),
        (names.HostName, ["prod", "h800", "a-b_c"], ["", "Prod", "-a", "a.b", "a" * 33, "a\n"]),
        (names.Timeframe, ["1h", "15m", "1d"], ["", "0h", "h", "1w", "1H"]),
        (names.Symbol, ["BTCUSD"], ["", "btc", "A/B", "../A"]),
        (names.NotifyUrl, ["json://h/x?a=b"], ["", "x", "json://h x", "-x://y"]),
    ],
)
def test_what_each_name_takes(kind: object, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not accepts(kind, text)] == []
    assert [text for text in bad if accepts(kind, text)] == []


@given(hostile)
def test_hosts_and_users_are_harmless(text: str) -> None:
    if is_host(text) or is_user(text):
        assert text and set(text) <= HARMLESS and not text.startswith("-")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gate", (None, "gate", None)),
        ("joe@gate.example:2022", ("joe", "gate.example", 2022)),
        ("1.2.3.4", (None, "1.2.3.4", None)),
        ("[1.2.3.4]", (None, "1.2.3.4", None)),
        ("joe@[127.0.0.1]:2303", ("joe", "127.0.0.1", 2303)),
        ("[10]:22", (None, "10", 22)),
        ("[::1]", (None, "::1", None)),
        ("joe@[fe80::1%eth0]:22", ("joe", "fe80::1%eth0", 22)),
        ("[gate]", None),
        ("[1.2.3.4", None),
        ("1.2.3.4]", None),
        ("[]", None),
        ("[.]", None),
        ("[-1.2.3.4]", None),
        ("[1.2.3.4;id]", None),
        ("::1", None),
        ("joe@", None),
        ("@gate", None),
        ("gate:0", None),
        ("gate:65536", None),
        ("gate/", None),
        ("http://gate", None),
        ("ssh://gate", None),
        ("a,b", None),
    ],
)
def test_a_jump_is_read_as_people_and_ssh_write_it(
    text: str, parts: tuple[str | None, str, int | None] | None
) -> None:
    assert split_jump(text) == parts


@given(hostile)
def test_jumps_come_apart_into_harmless_parts(text: str) -> None:
    parts = split_jump(text)
    if parts is not None:
        user, host, port = parts
        assert is_host(host) and (user is None or is_user(user))
        assert port is None or 1 <= port <= 65535


@given(hostile)
def test_paths_and_programs_are_harmless(text: str) -> None:
    for kind in (names.RemotePath, names.Python, names.Unit):
        if accepts(kind, text):
            assert set(text) <= HARMLESS and not text.startswith("-")
            assert ".." not in text.split("/")
