"""Wheels fetched once a machine and shared by all tests that make releases with real locks.

The second run of the tests finds them here and asks no package index.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def share(state: Path) -> None:
    """Make the shared wheelhouse that of the inventory whose state lies in `state`."""
    state.mkdir(parents=True, exist_ok=True)
    (state / "wheelhouse").symlink_to(wheelhouse())


def wheelhouse() -> Path:
    """The shared directory, made if missing."""
    made = Path(tempfile.gettempdir()) / f"macd-wheelhouse-{os.getuid()}"
    made.mkdir(mode=0o700, exist_ok=True)
    return made


def none_to_be_had(why: str) -> None:
    """Skip where nobody has fetched them and no index is in reach; in CI that is a failure."""
    told = f"no package index can be reached, and nothing is cached: {why}"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(told, pytrace=False)
    pytest.skip(told)
