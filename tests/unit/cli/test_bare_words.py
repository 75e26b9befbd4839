"""A bare word after a task that takes one gets its option's name; wrong words are named plainly."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.cli.usage import spelt_out, usage_error


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["release.show", "2026"], ["release.show", "--id", "2026"]),
        (["release.show"], ["release.show"]),
        (["release.show", "--json"], ["release.show", "--json"]),
        (["release.show", "--id", "2026"], ["release.show", "--id", "2026"]),
        (["release.verify", "b.gz", "--json"], ["release.verify", "--id", "b.gz", "--json"]),
        (["train.compare", "a", "b"], ["train.compare", "--challenger", "a", "--champion", "b"]),
        (["train.compare", "a", "--json"], ["train.compare", "--challenger", "a", "--json"]),
        (["train.compare", "a", "b", "c"],
         ["train.compare", "--challenger", "a", "--champion", "b", "c"]),
        (["release", "--run", "x"], ["release", "--run", "x"]),
        (["history", "release.show"], ["history", "release.show"]),
        ([], []),
    ],
)  # fmt: skip
def test_only_tasks_that_take_a_bare_word_get_its_option(
    typed: list[str], meant: list[str]
) -> None:
    assert spelt_out(typed) == meant


def test_health_takes_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models", "runs/one"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs/one/settings.json").write_text("{}")
    (tmp_path / "export").write_text("")
    for word, option in (
        ("models", "--dir"),
        ("../nowhere", "--dir"),
        ("runs/one", "--run"),
        ("export", "--bundle"),
        ("../macd_models.tar.gz", "--bundle"),
    ):
        assert spelt_out(["health", word, "--json"]) == ["health", option, word, "--json"]
    assert spelt_out(["health", "status"]) == ["health", "status"]
    assert spelt_out(["health", "--dir", "models"]) == ["health", "--dir", "models"]
    wrong = usage_error("No idea what 'mdls' is!", "health", ["status"], ["--json"])
    assert "neither a folder nor an archive" in wrong.what
    assert "--release ID" in wrong.hint


@pytest.mark.parametrize(
    ("error", "task", "said"),
    [
        ("No idea what 'statsu' is!", "", "statsu is no task; did you mean status?"),
        ("No idea what 'prod' is!", "status", "prod is no task"),
        ("No idea what '--jsno' is!", "status",
         "--jsno is no option of status; did you mean --json?"),
        ("No idea what '-z' is!", "status", "-z is no option of status"),
        ("Flag <Argument: host (h)> needed value and was not given one!", "status",
         "--host needs a value"),
        ("'host.trust' did not receive required positional arguments: 'name'", "host.trust",
         "host.trust needs NAME"),
        ("something new", "", "something new"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_told_as_it_was_typed_with_what_was_meant(
    error: str, task: str, said: str
) -> None:
    wrong = usage_error(error, task, ["status", "release.list"], ["--json", "--host", "-j"])
    assert wrong.what == said
    assert f"invoke --help {task or 'TASK'} " in wrong.hint
