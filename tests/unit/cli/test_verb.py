"""Errors end in one message and the contract's exit code, through the real `invoke`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from macd.cli.verb import confirm, emit
from tests.support import commands

TASKS = """
from invoke import Collection
from macd.cli import usage
from macd.cli.verb import verb, emit
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError, UsageError

ERRORS = {
    "failed": MacdError,
    "usage": UsageError,
    "lost": ContactLostError,
    "refused": RefusedError,
}

@verb(help={"kind": "which way to end"})
def end(c, kind="done", json=False):
    "End in the way that is asked for."
    if kind == "inconclusive":
        return ExitCode.INCONCLUSIVE
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "read-only":
        raise OSError(30, "Read-only file system", "/there/.macd/.lock")
    if kind == "full":
        raise OSError(28, "No space left on device")
    if kind == "unknown":
        raise OSError(5, "Input/output error", "x")
    if kind in ERRORS:
        why = "a reason\\nin two \x1b[31mlines\x1b[0m"
        raise ERRORS[kind]("it broke", why=why, live="release A serves", hint="invoke status")
    emit({"ok": True}) if json else print("fine")

usage.install()
namespace = Collection(end)
"""


def _invoke(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    (root / "tasks.py").write_text(TASKS)
    return commands.run(root, *argv)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("done", 0), ("failed", 1), ("usage", 2), ("inconclusive", 3), ("lost", 5), ("refused", 6)],
)
def test_exit_codes_are_the_contract(tmp_path: Path, kind: str, code: int) -> None:
    ended = _invoke(tmp_path, "end", "--kind", kind)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


def test_a_message_says_what_why_live_and_what_to_do(tmp_path: Path) -> None:
    err = _invoke(tmp_path, "end", "--kind", "failed").stderr
    assert err == (
        "✗ it broke\n  why: a reason\n       in two lines\n"
        "  now: release A serves\n  do: invoke status\n"
    )


def test_json_errors_are_one_document(tmp_path: Path) -> None:
    ended = _invoke(tmp_path, "end", "--kind", "refused", "--json")
    document = json.loads(ended.stdout)
    assert document["exit_code"] == 6
    assert document["error"]["live"] == "release A serves"


@pytest.mark.parametrize(
    ("kind", "what", "do"),
    [
        ("read-only", "/there/.macd/.lock can't be opened here", "make the directory writable"),
        ("full", "a file of this machine can't be written", "make room on this machine"),
    ],
)
def test_a_file_of_this_machine_is_one_message(
    tmp_path: Path, kind: str, what: str, do: str
) -> None:
    ended = _invoke(tmp_path, "end", "--kind", kind)
    assert ended.returncode == 1
    assert what in ended.stderr and do in ended.stderr
    assert "Traceback" not in ended.stderr
    error = json.loads(_invoke(tmp_path, "end", "--kind", kind, "--json").stdout)["error"]
    assert what in error["what"]


def test_an_unknown_error_of_the_system_keeps_its_traceback(tmp_path: Path) -> None:
    assert "Traceback" in _invoke(tmp_path, "end", "--kind", "unknown").stderr


def test_a_traceback_only_with_debug(tmp_path: Path) -> None:
    assert "Traceback" in _invoke(tmp_path, "--debug", "end", "--kind", "failed").stderr


def test_ctrl_c_is_told_without_a_traceback(tmp_path: Path) -> None:
    ended = _invoke(tmp_path, "end", "--kind", "interrupt")
    assert ended.returncode == 130
    assert "interrupted" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("argv", [("end", "--nope"), ("nope",), ("end", "--kind")])
def test_wrong_words_are_usage_errors(tmp_path: Path, argv: tuple[str, ...]) -> None:
    ended = _invoke(tmp_path, *argv)
    assert ended.returncode == 2
    assert "invoke --list" in ended.stderr
    assert "<Argument" not in ended.stderr and not ended.stdout


def test_a_wrong_word_is_one_document_too(tmp_path: Path) -> None:
    ended = _invoke(tmp_path, "end", "--nope", "--json")
    assert ended.returncode == 2
    document = json.loads(ended.stdout)
    assert document["exit_code"] == 2
    assert document["error"]["what"] == "--nope is no option of end"


def test_help_shows_the_line_and_the_options(tmp_path: Path) -> None:
    shown = _invoke(tmp_path, "--help", "end").stdout
    assert "End in the way that is asked for." in shown
    assert "which way to end" in shown


@pytest.mark.parametrize(
    ("typed", "agreed"), [(b"y\n", True), (b"YES\n", True), (b"\n", False), (b"\x04", False)]
)
def test_a_question_is_answered_by_yes_alone(
    monkeypatch: pytest.MonkeyPatch, typed: bytes, agreed: bool
) -> None:
    """Ctrl-D, the last, is an answer too."""
    here, there = pty.openpty()
    os.write(here, typed)
    with os.fdopen(there, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert confirm("really?", yes=False) is agreed
    os.close(here)


def test_a_document_moves_no_cursor_and_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    words = {"é": "\x1b[2J \x9b2J \x7f \u202e \ud800 \U000e0001 \n ü"}
    emit(words)
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable()
    assert "é" in said
    assert json.loads(said) == words
