"""Several hosts side by side: really at once, at most so many, in order, and each error kept."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from macd.deploy.fleet import side_by_side, worst
from macd.errors import ExitCode, MacdError


def hosts(count: int) -> list[Any]:
    return [SimpleNamespace(name=f"h{number}") for number in range(count)]


def test_hosts_are_acted_on_at_the_same_time() -> None:
    together = threading.Barrier(5, timeout=120)  # breaks unless all five are inside at once

    results = side_by_side(hosts(5), lambda host: (together.wait(), host.name)[1])

    assert list(results.done) == list(results.done.values()) == ["h0", "h1", "h2", "h3", "h4"]


@pytest.mark.parametrize("parallel", [0, 1, 3])
def test_never_more_at_once_than_was_said(parallel: int) -> None:
    lock = threading.Lock()
    inside: list[str] = []
    most = []

    def act(host: Any) -> None:
        with lock:
            inside.append(host.name)
            most.append(len(inside))
        threading.Event().wait(0.01)
        with lock:
            inside.remove(host.name)

    results = side_by_side(hosts(9), act, parallel=parallel)

    assert len(results.done) == 9
    assert max(most) <= max(1, parallel)


def test_an_error_hides_no_other_host() -> None:
    def act(host: Any) -> str:
        if host.name in ("h1", "h3"):
            raise MacdError(f"{host.name} is away")
        return str(host.name)

    results = side_by_side(hosts(4), act)

    assert results.done == {"h0": "h0", "h2": "h2"}
    assert {name: error.what for name, error in results.failed.items()} == {
        "h1": "h1 is away",
        "h3": "h3 is away",
    }
    assert not results.interrupted


def test_what_is_no_macd_error_comes_out_after_the_running_have_ended() -> None:
    ended = []
    both = threading.Barrier(2, timeout=120)

    def act(host: Any) -> None:
        both.wait()
        if host.name == "h0":
            raise ZeroDivisionError
        threading.Event().wait(0.05)
        ended.append(host.name)

    with pytest.raises(ZeroDivisionError):
        side_by_side(hosts(2), act)
    assert ended == ["h1"]


def test_a_single_host_runs_in_the_calling_thread() -> None:
    results = side_by_side(hosts(1), lambda _: threading.current_thread())
    assert results.done["h0"] is threading.main_thread()


def test_ctrl_c_lets_the_running_end_and_starts_no_other() -> None:
    running_hosts: list[tuple[str, ...]] = []
    go_on = threading.Event()

    def act(host: Any) -> str:
        if host.name == "h1":
            os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(120)
        return str(host.name)

    def on_interrupt(running: Any) -> None:
        running_hosts.append(tuple(running))
        go_on.set()

    results = side_by_side(hosts(4), act, parallel=2, on_interrupt=on_interrupt)

    assert running_hosts == [("h0", "h1")]
    assert list(results.done) == ["h0", "h1"]
    assert results.not_started == ["h2", "h3"]
    assert results.interrupted


def test_without_a_word_about_it_ctrl_c_leaves_at_once() -> None:
    never = threading.Event()

    def act(host: Any) -> None:
        if host.name == "h1":
            os.kill(os.getpid(), signal.SIGINT)
        never.wait(30)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(hosts(2), act)
    never.set()


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([], 0),
        ([None, ExitCode.DONE], 0),
        ([None, 3], 3),
        ([3, 2], 2),
        ([2, 6], 6),
        ([6, 4], 4),
        ([4, 5], 5),
        ([5, 1, 0], 1),
    ],
)
def test_the_worst_of_several_exit_codes(codes: list[Any], said: int) -> None:
    assert worst(codes) == worst(reversed(codes)) == said
