"""A child process that is asked while something else is done."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from macd import childprocess
from macd.childprocess import EndedError


def test_it_works_while_nobody_waits_and_answers_once_asked(tmp_path: Path) -> None:
    question = {"top": str(tmp_path)}
    command = "macd.app.predict folder"
    with childprocess.asked(command, question) as answer:
        assert answer() == childprocess.ask(command, question)


def test_a_question_longer_than_a_pipe_holds_does_not_stop_who_asks(tmp_path: Path) -> None:
    question = {"top": str(tmp_path), "more": "x" * (1 << 20)}
    with childprocess.asked("macd.app.predict folder", question) as answer:
        assert "items" in answer()


def test_a_child_that_nobody_waits_for_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    children = []
    real = childprocess.subprocess.Popen

    def kept(*args: object, **more: object) -> object:
        children.append(real(*args, **more))  # type: ignore[call-overload]
        return children[-1]

    childprocess._without_network()
    monkeypatch.setattr(childprocess.subprocess, "Popen", kept)
    with pytest.raises(KeyError), childprocess.asked("http.server 0", {}):  # it never ends
        raise KeyError
    (child,) = children
    assert child.returncode == -signal.SIGKILL


def test_one_that_is_late_is_ended_and_named() -> None:
    late = childprocess.Limits(timeout_s=0.01)
    with pytest.raises(EndedError, match=r"not done in 0.01 s"):
        childprocess.ask("macd.app.predict folder", {"top": "/"}, late)
