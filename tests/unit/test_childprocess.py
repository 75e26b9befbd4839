"""A child process that is asked while something else is done."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def test_as_many_work_as_there_are_cores_and_their_answers_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(childprocess, "cores", lambda: 5)
    now: set[int] = set()
    most: list[int] = []

    @contextmanager
    def work(number: int) -> Iterator[Callable[[], int]]:
        now.add(number)
        most.append(len(now))
        yield lambda: number
        now.remove(number)

    assert childprocess.answers([work(number) for number in range(5)], each=2) == [0, 1, 2, 3, 4]
    assert (most, now) == ([1, 2, 1, 2, 1], set())
    assert childprocess.answers([work(number) for number in range(5)], each=9) == [0, 1, 2, 3, 4]
    assert most[5:] == [1] * 5


def test_where_one_fails_none_goes_on(tmp_path: Path) -> None:
    dies = childprocess.asked("no.such.module", {})
    with pytest.raises(EndedError):
        childprocess.answers([childprocess.asked("http.server 0", {}), dies][::-1])


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
