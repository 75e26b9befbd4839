"""What the tests of this folder share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def ctrl_c_as_in_a_verb() -> Iterator[None]:
    """A KeyboardInterrupt, as once a verb has begun; who imports tasks.py leaves it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
