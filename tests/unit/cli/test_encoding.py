"""A terminal without our signs gets them spelt, never a traceback."""

from __future__ import annotations

import io
import sys

import pytest

from macd.cli.encoding import spell_signs
from macd.inventory import project_root
from tests.support import commands


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("gbk", "ok x ! … 盘"), ("latin-1", "ok x ! ... ?"), ("utf-8", "✓ ✗ ⚠ … 盘")],
)
def test_what_an_encoding_lacks_is_spelt(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    spell_signs()
    print("✓ ✗ ⚠ … 盘", end="", flush=True)
    assert raw.getvalue().decode(encoding) == shown


def test_a_command_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "gbk")
    done = commands.run(project_root(), "host.list", "--inventory", "nope", real=True)
    assert done.returncode == 2
    assert done.stderr.startswith("x there is no inventory 'nope'")
