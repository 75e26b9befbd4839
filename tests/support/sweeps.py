"""Parameters of tests that try many cases of few kinds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def at_points(some: Sequence[Any], every: Sequence[Any]) -> pytest.MarkDecorator:
    """`points`: some of each run, one of each kind; every one in `make test-full`."""
    full = pytest.param(every, id="all", marks=pytest.mark.full)
    return pytest.mark.parametrize("points", [pytest.param(some, id="some"), full])


def sweep(cases: Iterable[Any], *always: Any) -> list[Any]:
    """All `cases` for `make test-full`; `make test` tries `always`, one of each kind."""
    listed = list(cases)
    unknown = set(always) - set(listed)
    if unknown:
        raise ValueError(f"no cases of this sweep: {', '.join(sorted(map(str, unknown)))}")
    return [
        case if case in always else pytest.param(case, marks=pytest.mark.full) for case in listed
    ]
