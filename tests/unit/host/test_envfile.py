"""The flags file means one thing to a reader and to systemd, whatever is asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.envfile import EnvFileError, parse, with_values

ROOT = Path(__file__).parents[3]

TEXT = "# flags\nML_ENABLE_STACKING=0\n\nEXCHANGE_API_KEY=abc123\nML_ENABLE_STACKING=1\n"


def test_duplicates_collapse_comments_stay() -> None:
    assert parse(TEXT)["ML_ENABLE_STACKING"] == "1"
    rewritten = with_values(TEXT, {"ML_ENABLE_STACKING": "0", "ML_STACKING_MIN_SAMPLES": "500"})
    assert rewritten == (
        "# flags\nML_ENABLE_STACKING=0\n\nEXCHANGE_API_KEY=abc123\nML_STACKING_MIN_SAMPLES=500\n"
    )
    assert with_values(rewritten, {"ML_ENABLE_STACKING": "0"}) == rewritten


@pytest.mark.parametrize(
    "text",
    [
        "ML_ENABLE_STACKING=1\\\nNEXT=2",
        "# comment \\\nML_ENABLE_STACKING=1",
        'A="open\nML_ENABLE_STACKING=1\n',
        "A='x\n",
        "A=a b\n",
        "A=$HOME\n",
        "A=`id`\n",
        "A=\x00\n",
        "A=1\rB=2\n",
        "A=\x85\n",
        "no assignment\n",
        "export A=1\n",
        "a=1\n",
        "LD_PRELOAD=/tmp/x.so\n",
        "PYTHONPATH=/tmp\n",
        "PATH=/tmp\n",
        "ML_ENABLE_STACKING=yes\n",
        "ML_ENABLE_STACKING=2\n",
    ],
)
def test_lines_with_two_meanings_are_refused(text: str) -> None:
    with pytest.raises(EnvFileError):
        with_values(text, {"ML_ENABLE_STACKING": "0"})


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
    lines = (ROOT / "templates" / "service.unit.j2").read_text().splitlines()
    taken = [w for line in lines if line.startswith("UnsetEnvironment=") for w in line[17:].split()]
    assert "GCONV_PATH" in taken
    for key in taken:
        with pytest.raises(EnvFileError):
            with_values("", {key: "1"})


@pytest.mark.parametrize("key", ["EXCHANGE_API_KEY", "HTTPS_PROXY", "HOMEBASE", "PATHS", "TEMPO"])
def test_a_key_that_nobody_named_is_left_alone(key: str) -> None:
    text = f"{key}=http://here:3128\n"
    assert with_values(text, {"ML_ENABLE_STACKING": "0"}) == f"{text}ML_ENABLE_STACKING=0\n"


@pytest.mark.parametrize("value", ["1\nLD_PRELOAD=x", '1"', "1'", "1\\", "1 ", "１", ""])
def test_no_value_can_inject(value: str) -> None:
    with pytest.raises(EnvFileError):
        with_values("", {"ML_ENABLE_STACKING": value})


@given(st.text(), st.text(max_size=20))
def test_whatever_comes_out_reads_back_the_same(text: str, value: str) -> None:
    try:
        written = with_values(text, {"MODE": value})
    except EnvFileError:
        return
    assert parse(written)["MODE"] == value
    keys = [line.partition("=")[0] for line in written.splitlines() if line[:1].isupper()]
    assert len(keys) == len(set(keys))
