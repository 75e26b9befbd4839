"""Two workers share the tests: the real hosts stay with one of them, all else is dealt by file."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep a file's tests together, so that its fixtures are made once, and boot the hosts once."""
    on_hosts = item.get_closest_marker("hosts") is not None
    group = "hosts" if on_hosts else item.nodeid.partition("::")[0]
    item.add_marker(pytest.mark.xdist_group(group))
