"""Parameters of tests that try many cases of few kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sweep(cases: Iterable[str], *always: str) -> list[Any]:
    """All `cases` for `make test-full`; `make test` tries `always`, one of each kind."""
    listed = list(cases)
    unknown = set(always) - set(listed)
    if unknown:
        raise ValueError(f"no cases of this sweep: {', '.join(sorted(unknown))}")
    return [
        case if case in always else pytest.param(case, marks=pytest.mark.full) for case in listed
    ]
