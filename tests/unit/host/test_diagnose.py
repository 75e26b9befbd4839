"""What the host half of a diagnosis sees: second copies of the service, a readable .env."""

from __future__ import annotations

import tempfile
from pathlib import Path

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


def test_a_file_that_every_account_can_read_is_known_by_its_mode() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as there:  # above it every account may pass
        env = Path(there) / ".env"
        assert status._open_to_all(str(env)) == ""
        env.touch(0o644)
        env.chmod(0o644)
        assert status._open_to_all(str(env)) == ""  # nobody else comes as far
        Path(there).chmod(0o755)
        assert status._open_to_all(str(env)) == "644"
        env.chmod(0o640)
        assert status._open_to_all(str(env)) == ""
