"""A lab's processes are found by their mark and ended; nobody else's are."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator

import pytest

from macd.lab import processes


@pytest.fixture
def mark() -> Iterator[str]:
    lab_id = secrets.token_hex(8)
    yield lab_id
    processes.end(lambda: processes.marked(lab_id), grace=0)


def start(mark: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """A process with this mark that has said it is ready."""
    child = subprocess.Popen(  # type: ignore[call-overload]
        ["/bin/sh", "-c", *arguments],
        env={"PATH": os.environ["PATH"], processes.MARKER: mark},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    assert child.stdout.readline().strip() == "ready"
    return child  # type: ignore[no-any-return]


def test_a_pid_with_its_start_names_one_process() -> None:
    mine = processes.started_at(os.getpid())
    assert mine is not None
    assert processes.is_running(os.getpid(), mine)
    assert not processes.is_running(os.getpid(), mine + "0")
    assert not processes.is_running(0, mine)


def test_an_ended_process_is_not_running_even_before_it_is_reaped(mark: str) -> None:
    child = start(mark, "echo ready; read line", stdin=subprocess.PIPE)
    started = processes.started_at(child.pid)
    assert started is not None
    child.stdin.close()  # type: ignore[union-attr]
    assert child.stdout.read() == ""  # type: ignore[union-attr]
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert not processes.is_running(child.pid, started)
    child.wait()
    assert not processes.is_running(child.pid, started)


def test_marked_finds_what_left_its_session_and_not_its_neighbour(mark: str) -> None:
    child = start(mark, "echo ready; exec sleep 600", start_new_session=True)
    other = start(mark + "0", "echo ready; exec sleep 600")
    try:
        assert processes.marked(mark) == [child.pid]
    finally:
        other.kill()
        other.wait()


def test_descendants_are_found_without_a_mark() -> None:
    child = subprocess.Popen(
        ["/bin/sh", "-c", "env -i sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    grandchild = int(child.stdout.readline())  # type: ignore[union-attr]
    try:
        assert grandchild in processes.descendants(child.pid)
        assert {child.pid, grandchild} <= set(processes.descendants(os.getpid()))
    finally:
        os.kill(grandchild, 9)
        child.wait()


def test_end_asks_first_and_then_insists(mark: str) -> None:
    polite = start(mark, "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done")
    stubborn = start(mark, "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    ended = processes.end(lambda: processes.marked(mark), grace=1.0)
    assert {polite.pid, stubborn.pid} <= set(ended)
    assert polite.wait() == 42
    assert stubborn.wait() == -9
    assert processes.marked(mark) == []
