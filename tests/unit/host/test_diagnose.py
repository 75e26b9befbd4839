"""Which processes of a host are a second copy of this application's service."""

from __future__ import annotations

import pytest

from macd.host.deploy import status


@pytest.mark.parametrize(
    ("words", "serves"),
    [
        (["python", "-I", "current/app/serve.py", "--root", "/opt/app"], True),
        (["python", "-m", "macd.app.service", "--root=/opt/app"], True),
        (["python", "-mmacd.app.service", "--root", "/opt/app"], True),
        (["python", "-m", "macd.service", "--root", "/opt/app"], True),  # an earlier release's
        (["python", "-mmacd.service", "--root", "/opt/app"], True),
        (["python", "-m", "macd.app.service", "--root", "/opt/other"], False),
        (["python", "-m", "macd.app.service", "--root", "/opt/app", "--check"], False),
        (["python", "-m", "macd.app.train", "--root", "/opt/app"], False),
    ],
)
def test_a_service_is_known_by_its_words(words: list[str], serves: bool) -> None:
    assert status._serves(words, "/opt/app", "/") is serves
