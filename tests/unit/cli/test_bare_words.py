"""A bare word after a task that takes one, and nothing else, gets its option's name."""

from __future__ import annotations

import pytest

from macd.cli.usage import spelt_out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["release.show", "2026"], ["release.show", "--id", "2026"]),
        (["release.show"], ["release.show"]),
        (["release.show", "--json"], ["release.show", "--json"]),
        (["release.show", "--id", "2026"], ["release.show", "--id", "2026"]),
        (["release.verify", "b.gz", "--json"], ["release.verify", "--id", "b.gz", "--json"]),
        (["release", "--run", "x"], ["release", "--run", "x"]),
        (["history", "release.show"], ["history", "release.show"]),
        ([], []),
    ],
)  # fmt: skip
def test_only_tasks_that_take_a_bare_word_get_its_option(
    typed: list[str], meant: list[str]
) -> None:
    assert spelt_out(typed) == meant
