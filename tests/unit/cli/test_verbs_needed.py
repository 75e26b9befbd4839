"""Which verbs a command line makes `tasks.py` import: what was typed works as if all were there."""

from __future__ import annotations

import pytest

import tasks

ALL = list(tasks.VERBS)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("history --kind deploy --json", ["deploy", "history"]),  # a value may be a verb's name
        ("release.list", ["release.list"]),
        ("train --host h800", ["train.train"]),
        ("release.release", ["release.release"]),
        ("plan deploy --yes", ["deploy", "plan"]),
        ("status --env train", ["status", "train.train"]),
    ],
)
def test_a_verb_that_was_typed_is_enough(line: str, names: list[str]) -> None:
    assert sorted(tasks.needed(line.split())) == names


@pytest.mark.parametrize(
    "line", ["", "--list", "--list train", "train --list", "-l", "--help deploy", "histroy", "lab"]
)
def test_a_list_a_help_or_a_wrong_word_needs_all(line: str) -> None:
    assert tasks.needed(line.split()) == ALL


def test_each_entry_is_a_task_of_that_name() -> None:
    made = tasks.collection(ALL).task_names
    assert set(made) == set(ALL)


def test_no_dash_is_a_short_option() -> None:
    made = tasks.collection(ALL)
    names = {
        name for verb in ALL for argument in made[verb].get_arguments() for name in argument.names
    }
    assert "dry-run" in names
    assert "-" not in names
