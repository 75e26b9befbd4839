"""A running lab for the tests in this folder: one for each file, in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from macd import lab as lab_room


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab_room.LabState]:
    """The file's lab: `lab.root`, `lab.ssh_config`, `lab.known_hosts`, `lab.hosts`.

    Its tests share it: leave no fault behind (`clean_links` sees to it).
    """
    root = tmp_path_factory.mktemp("lab")
    state = lab_room.up(root)
    yield state
    lab_room.down(root)


@pytest.fixture
def clean_links(lab: lab_room.LabState) -> Iterator[lab_room.LabState]:
    """The file's lab with perfect links and zeroed counters, before and after the test."""
    _clean(lab.root)
    yield lab
    _clean(lab.root)


def _clean(root: Path) -> None:
    for name in lab_room.status(root).hosts:
        lab_room.revive_host(root, name)
        lab_room.set_fault(root, name, lab_room.Fault())
        lab_room.reset_counters(root, name)
