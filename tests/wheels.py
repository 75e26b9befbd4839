"""Wheels fetched once a machine and shared by all tests that make releases with real locks.

The second run of the tests finds them here and asks no package index.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def share(state: Path) -> None:
    """Make the shared wheelhouse that of the inventory whose state lies in `state`."""
    state.mkdir(parents=True, exist_ok=True)
    (state / "wheelhouse").symlink_to(wheelhouse())


def wheelhouse() -> Path:
    """The shared directory, made if missing."""
    made = Path(tempfile.gettempdir()) / f"macd-wheelhouse-{os.getuid()}"
    made.mkdir(mode=0o700, exist_ok=True)
    return made
