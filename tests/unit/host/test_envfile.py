"""The flags file means to a reader what it means to systemd, and keeps every byte of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.envfile import (
    EnvFileError,
    parse,
    passed_over,
    readings,
    rewritten,
    values_of,
    with_values,
)

ROOT = Path(__file__).parents[3]
FLAG = "ML_ENABLE_STACKING"

# What systemd 252 takes from each; tests/hosts/test_flag_hosts.py asks a real one the same.
READ = {
    b"https_proxy=http://proxy.example:3128\n": {"https_proxy": "http://proxy.example:3128"},
    b"DB_URL=postgres://u:p!w@h/db?sslmode=require&x=1\n": {
        "DB_URL": "postgres://u:p!w@h/db?sslmode=require&x=1"
    },
    b"A=1\r\nB=2\r\n": {"A": "1", "B": "2"},
    b"A=1\rB=2": {"A": "1", "B": "2"},
    b"export A=1\nB=2\n": {"B": "2"},
    b"1A=1\nA-B=2\nno assignment\nB=2\n": {"B": "2"},
    b'NAME="two words"\nB=\'x"y\' \n': {"NAME": "two words", "B": 'x"y'},
    b"A = 1 \n\tB =\t2\n": {"A": "1", "B": "2"},
    b"A=two words  \n": {"A": "two words"},
    b'A="a" \'b\' c"d\n': {"A": 'abc"d'},
    b"A=one\\\ntwo\nB=x\\\\y\\ \n": {"A": "onetwo", "B": "x\\y "},
    b'A="one\ntwo\\\nthree \\" \\x"\n': {"A": 'one\ntwothree " \\x'},
    b"A='open\nB=2\n": {"A": "open\nB=2\n"},
    b"\xef\xbb\xbfA=1\nB=2\n": {"B": "2"},
    b"# A=1\n ; B=2\nA=# no comment\n": {"A": "# no comment"},
    b"A=\nB=\xc3\xa9$HOME`id`\n": {"A": "", "B": "é$HOME`id`"},
    b"A=1\nA=\x01\nB='\r\n'\tb\n": {"A": "\x01", "B": "\r\nb"},
    b"# latin-1: \xe9\nA=1": {"A": "1"},
    b"": {},
}


@pytest.mark.parametrize("data", READ)
def test_it_is_read_as_systemd_reads_it(data: bytes) -> None:
    assert readings(data) == (READ[data], READ[data])
    assert parse(data.decode("utf-8", "surrogateescape")) == READ[data]


@pytest.mark.parametrize("data", [*READ, b"A=\xe9\n", b"A=1\0\n", b"# c\\\nA=1\n", b"LD_AUDIT=x\n"])
@pytest.mark.parametrize("value", ["0", 'a b"$`\\', None])
def test_a_key_is_set_in_any_file_and_every_other_byte_is_kept(
    data: bytes, value: str | None
) -> None:
    one = f"{FLAG}=1".encode()
    for before in (
        data,
        one + b"\r\n" + data,
        data + b"\n" + one,
        one + b"\n" + data + b"\n" + one,
    ):
        after = rewritten(before, {FLAG: value})
        assert set(values_of(after, FLAG)) == ({value} if value is not None else set())
        assert rewritten(after, {FLAG: value}) == after
        rest = without(before)
        if value is None:  # the ends of its lines go too
            rest, after = rest.translate(None, b"\r\n"), after.translate(None, b"\r\n")
        assert is_part_of(rest, after)


def without(data: bytes) -> bytes:
    """Less our own lines, in a file where no quote is open before one."""
    return data.replace(b"ML_ENABLE_STACKING=1", b"") if not data.startswith(b"A='open") else b""


def is_part_of(part: bytes, whole: bytes) -> bool:
    """Whether `part` is what is left of `whole` when some bytes go."""
    at = 0
    for byte in whole:
        at += at < len(part) and part[at] == byte
    return at == len(part)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b"ML_ENABLE_STACKING=1\nA=1\nML_ENABLE_STACKING=1\n",
            b"ML_ENABLE_STACKING=0\nA=1\nML_ENABLE_STACKING=0\n",
        ),
        (b'ML_ENABLE_STACKING = "1" \r\nA=2\r\n', b"ML_ENABLE_STACKING=0\r\nA=2\r\n"),
        (b"ML_ENABLE_STACKING=\\\n1\nA=2", b"ML_ENABLE_STACKING=0\nA=2"),
        (b"export ML_ENABLE_STACKING=1\n", b"export ML_ENABLE_STACKING=1\nML_ENABLE_STACKING=0\n"),
        (b"A=1", b"A=1\nML_ENABLE_STACKING=0\n"),
        (b"", b"ML_ENABLE_STACKING=0\n"),
        # What stands behind these would be swallowed: by a quote, a backslash, a comment.
        (b'A="open', b'ML_ENABLE_STACKING=0\nA="open'),
        (b"A='\n", b"ML_ENABLE_STACKING=0\nA='\n"),
        (b"A=1\\", b"ML_ENABLE_STACKING=0\nA=1\\"),
        (b"A=1\\\n", b"ML_ENABLE_STACKING=0\nA=1\\\n"),
        (b"# c\\\n", b"ML_ENABLE_STACKING=0\n# c\\\n"),
        # A quote that nobody closed: the other lines in it are somebody's.
        (b'ML_ENABLE_STACKING="1\nA=2\n', b"ML_ENABLE_STACKING=0\nA=2\n"),
        # A comment for systemd 252, the flag for 254.
        (b"# c\\\nML_ENABLE_STACKING=1\n", b"# c\\\nML_ENABLE_STACKING=0\nML_ENABLE_STACKING=0\n"),
        (
            b"\0=ML_ENABLE_STACKING=1\nML_ENABLE_STACKING=1\n\xff",
            b"\0=ML_ENABLE_STACKING=1\nML_ENABLE_STACKING=0\n\xff",
        ),
    ],
)
def test_taking_back(before: bytes, after: bytes) -> None:
    assert rewritten(before, {FLAG: "0"}) == after


def test_a_key_that_goes_takes_its_lines_along() -> None:
    assert rewritten(b" A=1\r\nB=2\n A=3\nC=4\nA=5", {"A": None}) == b"B=2\nC=4\n"
    assert rewritten(b"# c\\\nA=1\nB=2\n", {"A": None}) == b"# c\\\n\nB=2\n"  # or B is a comment
    assert rewritten(b"B=2\n", {"A": None}) == b"B=2\n"


def test_a_large_file_is_rewritten_and_one_that_systemd_does_not_read_is_told() -> None:
    large = b"# " + b"x" * (16 << 20) + b"\nML_ENABLE_STACKING=1\nA=" + b"\\y" * (1 << 12) + b"\n"
    assert rewritten(large, {FLAG: "0"}) == large.replace(b"STACKING=1", b"STACKING=0")
    with pytest.raises(EnvFileError, match="larger than systemd reads"):
        readings(b"#" * (64 << 20))


PIECES = [
    *(b"ML_ENABLE_STACKING", b"=", b"0", b"1", b"\n", b"\r\n", b"\r", b"\\", b'"', b"'", b" "),
    *(b"#", b";", b"\t", b"A=", b"export ", b"\n\nML_ENABLE_STACKING=1\n", b"x", b"\0", b"\xff"),
    *(b"$", b"\xef\xbb\xbf", b"https_proxy=http://p:1"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=24))
def test_enabled_and_taken_back_others_stay_as_they_were(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    on = rewritten(data, {FLAG: "1"})
    off = rewritten(on, {FLAG: "0"})
    assert set(values_of(on, FLAG)) == {"1"}
    assert set(values_of(off, FLAG)) == {"0"}
    assert len(off) == len(on)
    for at in (at for at in range(len(on)) if on[at] != off[at]):
        assert on[: at + 1].endswith(b"ML_ENABLE_STACKING=1")
        assert off[at : at + 1] == b"0"
    try:
        before, after = readings(data), readings(off)
    except EnvFileError:
        return
    for then, now in zip(before, after, strict=True):
        others = {key: value for key, value in then.items() if key != FLAG}
        assert others.items() <= {k: v for k, v in now.items() if k != FLAG}.items()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A=1\nB=\x00\n", "line 2 holds a NUL byte"),
        ("A=\n\nB=\udce9\n", "line 3 is not in UTF-8"),
        ("# comment \\\nA=1", "before systemd 254"),
        ("LD_PRELOAD=/tmp/x.so\n", "LD_PRELOAD would change"),
    ],
)
def test_what_systemd_does_not_take_or_may_not_be_there_is_refused(text: str, why: str) -> None:
    with pytest.raises(EnvFileError, match=why):
        with_values(text, {FLAG: "0"})


def test_what_systemd_passes_over_is_known() -> None:
    assert passed_over(b"A=1\nexport B=1\n# C D=1\nE='\n'\r\nF-G=1\rno") == [2, 6]


@pytest.mark.parametrize(
    "key",
    [
        *("LD_AUDIT", "PYTHONSTARTUP", "PATH", "OPENSSL_CONF", "OPENSSL_MODULES", "SSL_CERT_FILE"),
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE", "HOME", "TMPDIR", "ORT_LIB"),
        *("GCONV_PATH", "LOCPATH", "XDG_CONFIG_HOME", "NETRC", "HOSTALIASES", "NOTIFY_SOCKET"),
    ],
)
def test_a_key_that_changes_what_is_loaded_or_trusted_is_refused(key: str) -> None:
    with pytest.raises(EnvFileError, match=f"{key} would change"):
        parse(f"ML_ENABLE_STACKING=0\n{key}=/tmp/x\n")
    with pytest.raises(EnvFileError, match=f"{key} would change"):
        with_values("", {key: "/tmp/x"})


def test_what_the_unit_takes_out_may_not_be_put_in() -> None:
    lines = (ROOT / "templates" / "unit_unset.j2").read_text().splitlines()
    taken = [w for line in lines if line.startswith("UnsetEnvironment=") for w in line[17:].split()]
    assert "GCONV_PATH" in taken
    for key in taken:
        with pytest.raises(EnvFileError):
            with_values("", {key: "1"})


@pytest.mark.parametrize("key", ["EXCHANGE_API_KEY", "HTTPS_PROXY", "HOMEBASE", "PATHS", "tempo"])
def test_a_key_that_nobody_named_is_left_alone(key: str) -> None:
    text = f"{key}=http://here:3128\n"
    assert with_values(text, {"ML_ENABLE_STACKING": "0"}) == f"{text}ML_ENABLE_STACKING=0\n"


@pytest.mark.parametrize(
    "value", ["1\nLD_PRELOAD=x", '1"', "1'", "1\\", "1 ", "１", "", "2", "yes"]
)
def test_no_value_can_inject(value: str) -> None:
    with pytest.raises(EnvFileError):
        with_values("", {"ML_ENABLE_STACKING": value})


@pytest.mark.parametrize("key", ["", "A B", "A=B", "1A", "A\n", "É"])
def test_no_name_can_inject(key: str) -> None:
    with pytest.raises(EnvFileError, match="a name of a variable"):
        rewritten(b"", {key: "1"})


@pytest.mark.parametrize("value", ["\0", "\x1b", "\r", "\ud800", "\uffff"])
def test_a_value_that_systemd_would_drop_is_not_written(value: str) -> None:
    with pytest.raises(EnvFileError, match="TOKEN has a character that systemd refuses at place 3"):
        rewritten(b"", {"TOKEN": f"ab{value}"})


def test_no_message_tells_a_value() -> None:
    with pytest.raises(EnvFileError) as raised:
        with_values("", {"DB_URL": "postgres://u:hunter2!w@h/db?x=1"})
    assert str(raised.value) == (
        "DB_URL has a character other than letters, digits and _.,:/@+=%- at place 21"
    )
    for text in (
        "A=hunter2\n\0",
        "hunter2=\udce9",
        "LD_PRELOAD=hunter2",
        "A=hunter2\n#\\\n B=hunter2",
    ):
        with pytest.raises(EnvFileError) as raised:
            parse(text)
        assert "hunter2" not in str(raised.value)
