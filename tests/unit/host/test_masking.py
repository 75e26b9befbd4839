"""Secrets are covered wherever they stand in units, settings and flags; the rest stays readable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.masking import masked, masked_lines

SECRET = "hunter2"
LEAKY = [
    f"EXCHANGE_API_KEY={SECRET}",
    f"# TOKEN={SECRET}",
    f"Environment=MODE=a TOKEN={SECRET} LATER=b",
    f'Environment="DB_PASSWORD=two words {SECRET}"',
    f'Environment="API_TOKEN=first\\\n{SECRET}"',
    f"ExecStart=/bin/serve --api-token {SECRET}",
    f"ExecStart=/bin/serve --password={SECRET}",
    f"SetCredential=id:{SECRET}",
    f"Environment=PROXY=http://bob:{SECRET}@proxy:3128",
    f"index = https://{SECRET}@example.test/simple",
    f"redis://:a/{SECRET}@cache/0",
    f"ExecStart=/bin/curl -H 'Authorization: Bearer {SECRET}'",
    json.dumps({"feed": {"apiKey": SECRET, "kind": "ccxt"}}),
    json.dumps({"webhook_urls": ["a]b", SECRET], "kind": "ccxt"}, indent=1),
    json.dumps({"credentials": {"user": "x", "deep": {"list": [SECRET]}}}, indent=1),
    f'{{\n "token":\n  "{SECRET}"\n}}',
]


@pytest.mark.parametrize("text", LEAKY)
def test_what_speaks_of_a_secret_is_covered(text: str) -> None:
    assert SECRET not in masked(text)
    assert "••••" in masked(text)


def test_what_follows_a_covered_value_is_shown_again() -> None:
    settings = json.dumps({"tokens": ["x", {"y": "z"}], "zone": "UTC"}, indent=1)
    assert masked(settings).splitlines()[-2:] == [' "zone": "UTC"', "}"]
    assert masked("A_TOKEN=\nMODE=a\n") == "A_TOKEN=••••\nMODE=a\n"


@pytest.mark.parametrize(
    "text",
    [
        "ML_ENABLE_STACKING=1\nOMP_NUM_THREADS=1\n",
        "[Service]\nUser=macd\nPrivateTmp=yes\nDocumentation=file:///opt/macd/current/card.md\n",
        '{\n "endpoint": "unix:/run/h.sock",\n "symbol": "BTCUSD"\n}\n',
        'release@test namespaces="release-manifest@macd" ssh-ed25519 AAAA\n',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@given(st.text(alphabet='aTOKEN=:"[]{}\\\n /@-', max_size=80))
def test_each_line_stays_a_line(text: str) -> None:
    assert len(masked_lines(text)) == len(text.splitlines())


def test_of_what_a_unit_sets_the_names_alone_are_shown() -> None:
    line = "Environment=OMP_NUM_THREADS=1 \"DSN=hunter2 x\" 'A=hunter2'"
    assert masked(line) == "Environment=OMP_NUM_THREADS=1 DSN=•••• A=••••\n"
    assert "hunter2" not in masked('Environment="DSN=hunter2')
    assert "hunter2" not in masked("Environment=A=1 \\\n  DSN=hunter2\n")
