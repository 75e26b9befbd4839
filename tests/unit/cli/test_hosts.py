"""What is said of several hosts: each line whole, each host named, one exit code."""

from __future__ import annotations

import io
import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from macd.cli import hosts
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError


def named(*names: str) -> list[Any]:
    return [SimpleNamespace(name=name) for name in names]


def refuse(host: Any) -> str:
    raise RefusedError(f"{host.name} refuses")


def test_the_error_of_a_host_asked_alone_is_raised_and_of_several_kept() -> None:
    with pytest.raises(RefusedError, match="a refuses"):
        hosts.on_each(named("a"), refuse)

    results = hosts.on_each(named("a", "b"), refuse)

    assert list(results.failed) == ["a", "b"]
    assert hosts.failed_fields(results.failed)["errors"]["b"]["error"]["what"] == "b refuses"
    assert hosts.exit_code([None], results.failed) == 6


def test_an_unexpected_error_on_one_of_several_hosts_hides_no_other() -> None:
    def act(host: Any) -> str:
        if host.name == "a":
            raise ValueError("not thought of")
        return f"{host.name} is fine"

    results = hosts.on_each(named("a", "b"), act)

    assert results.done == {"b": "b is fine"}
    assert "ValueError: not thought of" in results.failed["a"].what
    with pytest.raises(ValueError, match="not thought of"):
        hosts.on_each(named("a"), act)


def test_an_error_about_a_jump_host_names_the_host_behind_it(capsys: Any) -> None:
    hosts.print_failed(
        {
            "prod-b": MacdError("jump host gw (192.0.2.1) refused the connection"),
            "prod": ContactLostError("prod: contact was lost"),
            "prod-c": MacdError("prod-c (192.0.2.2) did not answer"),
        }
    )
    assert capsys.readouterr().err.splitlines() == [
        "✗ prod-b: jump host gw (192.0.2.1) refused the connection",
        "✗ prod: contact was lost",
        "✗ prod-c (192.0.2.2) did not answer",
    ]


def test_lines_of_several_hosts_have_their_names_and_of_one_none(capsys: Any) -> None:
    with hosts.Lines(named("a", "long")) as lines:
        lines.say("a", "one\ntwo")
        lines.say("long", "three")
    with hosts.Lines(named("a")) as lines:
        lines.say("a", "alone")
    said = capsys.readouterr().out
    assert said == "a    | one\na    | two\nlong | three\nalone\n"


def test_the_words_of_a_host_move_no_cursor(capsys: Any) -> None:
    error = MacdError("a refused", why="\x1b[2J\x1b]0;title\x07it\r\x9b1mself\nsecond line")
    hosts.print_failed({"a": error})
    with hosts.Lines(named("a", "b")) as lines:
        lines.host_failed("a", error)
        lines.say("b", error.why)
    with hosts.Lines(named("b")) as lines:
        lines.say("b", error.why + "x" * 100_000)
    out, err = capsys.readouterr()
    said = out + err
    assert all(c.isprintable() or c == "\n" for c in said)
    assert said.count("second line") == 4
    assert out.endswith("x" * 100_000 + "\n")


def test_once_all_is_over_nobody_speaks_or_waits(capsys: Any) -> None:
    lines = hosts.Lines(named("a", "b"))
    waiting = threading.Event()
    ended = []

    def wait() -> None:
        waiting.set()
        with pytest.raises(BrokenPipeError):
            lines.pause(600)
        ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(120)
    with lines:
        pass
    thread.join(30)
    with pytest.raises(BrokenPipeError):
        lines.say("a", "too late")
    assert (ended, capsys.readouterr().out) == ([True], "")


def test_where_one_finds_nobody_reading_all_stop(capsys: Any) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    lines = hosts.Lines(named("a", "b"))
    with pytest.raises(BrokenPipeError):
        lines.say("a", "one", to=Gone())
    with pytest.raises(BrokenPipeError):
        lines.pause(600)


def test_who_was_never_begun_is_named_and_the_running_end(capsys: Any) -> None:
    go_on = threading.Event()

    def act(host: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(120)
        return str(host.name)

    def on_interrupt(running: Any) -> None:
        hosts.let_end(running)
        go_on.set()

    results = hosts.on_each(named("a", "b", "c"), act, parallel=1, on_interrupt=on_interrupt)

    assert list(results.done) == ["a"]
    assert [error.what for error in results.failed.values()] == [
        "b was not started: interrupted",
        "c was not started: interrupted",
    ]
    assert hosts.exit_code([], results.failed) == ExitCode.INTERRUPTED
    assert "interrupted: waiting for a; Ctrl-C again leaves" in capsys.readouterr().err


def test_an_error_that_hosts_share_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    def behind_gate(name: str) -> MacdError:
        return MacdError(
            "jump host gate (192.0.2.1:22) refused the connection",
            why=f"hop 1 of 2: gate -> {name}",
            hint=f"invoke status --host {name}",
        )

    hosts.print_failed(
        {"web-1": behind_gate("web-1"), "x": MacdError("x: full"), "web-2": behind_gate("web-2")}
    )
    said = capsys.readouterr().err
    assert said.count("refused the connection") == 1
    assert "hop 1 of 2: gate -> web-1" in said
    assert "\n  the same: web-2\n" in said
    assert "✗ x: full\n" in said


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_it_is_told_once_of_hosts_whose_names_are_words(
    capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    hosts.print_failed({name: MacdError(f"{name} is full", why="a disk") for name in names})
    said = capsys.readouterr().err
    assert said == f"✗ {names[0]} is full\n  why: a disk\n  the same: {names[1]}\n"
