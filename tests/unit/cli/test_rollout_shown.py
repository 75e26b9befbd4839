"""Several hosts at work: each line whole and named without a terminal, one line a host on one."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from macd.cli.rollout import Board, Shown, _end, dry_rollback, print_plan
from macd.deploy.follow import Outcome
from macd.deploy.plan import Delta, Plan
from macd.deploy.rollback import RollbackTarget
from macd.errors import MacdError, RefusedError


def named(*names: str) -> list[Any]:
    return [SimpleNamespace(name=name) for name in names]


def test_one_host_is_shown_as_it_always_was(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown([named("prod")], quiet=False) as shown:
        with shown.host("prod", "deploying r2 to prod") as report:
            report("switching", {})
        shown.ended("prod", "3 changes")
    assert capsys.readouterr().out == "deploying r2 to prod\n  · switching\n"


def test_an_error_of_one_host_is_left_to_whoever_prints_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(MacdError),
        Shown([named("prod")], quiet=False) as shown,
        shown.host("prod"),
    ):
        raise MacdError("gone")
    assert capsys.readouterr().out == ""


def test_several_without_a_terminal_are_named_in_every_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    together = threading.Barrier(2, timeout=120)

    def act(shown: Shown, name: str) -> None:
        with shown.host(name, f"deploying r2 to {name}") as report:
            for number in range(50):
                together.wait()
                report("restarted", {"pid": number})
            if name == "bb":
                raise MacdError("contact with bb was lost")

    def quietly(shown: Shown, name: str) -> None:
        try:
            act(shown, name)
        except MacdError:
            return

    with Shown([named("a"), named("bb")], quiet=False) as shown:
        threads = [threading.Thread(target=quietly, args=(shown, name)) for name in ("a", "bb")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 103
    assert all(line.startswith(("a  | ", "bb | ")) for line in lines)
    assert lines.count("bb |   ✗ contact with bb was lost") == 1


def test_who_goes_on_after_the_end_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A thread that a second Ctrl-C did not wait for."""
    with Shown([named("a", "b")], quiet=False) as shown, shown.host("a") as report:
        pass
    report("switching", {})
    assert capsys.readouterr().out == ""


def test_for_machines_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown([named("a", "b")], quiet=True) as shown, shown.host("a", "deploying") as report:
        report("switching", {})
    assert capsys.readouterr().out == ""


def test_ctrl_c_names_who_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    Shown([named("a", "b")], quiet=True).interrupted(["a", "b"])
    captured = capsys.readouterr()
    assert captured.out == ""  # that is one JSON document
    assert "interrupted: a, b go on to the end; no other host is started" in captured.err
    assert "Ctrl-C again" in captured.err


def board(waves: list[list[Any]]) -> tuple[Board, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, legacy_windows=False)
    return Board(waves, console), screen


def test_on_a_terminal_each_host_has_one_line() -> None:
    made, screen = board([named("a"), named("bb")])
    made.open()
    made.rows["a"] = "✓ switched"
    made.close()
    shown = screen.getvalue()
    assert "waiting for wave 2" in shown
    assert "✓ switched" in shown
    last = shown.rsplit("\x1b[2K", 1)[-1]
    assert "a   " in shown and "waiting for wave 2" in last  # still there when it ends


def test_of_more_hosts_than_lines_those_at_work_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"h{number:02}" for number in range(40)]
    screen = io.StringIO()
    console = Console(file=screen, width=60, height=10, legacy_windows=False)
    made = Board([named(*names)], console)
    shown = Shown([named(*names)], quiet=False)
    monkeypatch.setattr(shown, "_board", made)
    for name in ("h31", "h35", "h07"):
        with shown.host(name) as report:
            report("switching", {})
    console.print(made._table())
    *rows, rest = screen.getvalue().splitlines()
    assert len(rows) == 8  # with the rest, and a line for the cursor
    assert [row.split()[0] for row in rows if "switching" in row] == ["h07", "h31", "h35"]
    assert rest == "and 32 more hosts"
    made.open()
    made.close()
    assert [line.split()[0] for line in screen.getvalue().splitlines()[-40:]] == names


def test_a_long_line_is_cut_and_what_a_host_says_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, screen = board([named("a", "b")])
    shown = Shown([named("a", "b")], quiet=False)
    monkeypatch.setattr(shown, "_board", made)
    with shown, shown.host("a") as report:
        report("reverted", {"reason": "\x1b[5Anot\nwell [bold]" + "x" * 100})
    text = screen.getvalue()
    assert "\x1b[5A" not in text
    assert "[bold]" in text and "…" in text


def test_the_line_of_a_host_says_how_much_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = board([named("a", "b")])
    shown = Shown([named("a", "b")], quiet=False)
    monkeypatch.setattr(shown, "_board", made)
    with shown.host("a", "deploying r2 to a") as report:
        assert made.rows["a"] == "deploying r2 to a"
        steps = ("send",)
        report("planned", {"plan": Plan(host="a", live=None, release="r2", steps=steps)})
        assert made.rows["a"] == "planned: 0 B to send"
        report("sending", {"sent": 500, "total": 1000})
        assert "500 B of 1.0 kB" in made.rows["a"]
        nothing = Plan(host="a", live="r2", release="r2")
        report("planned", {"plan": nothing})
        assert made.rows["a"].startswith("nothing to do: r2 is live")


def test_a_plan_of_thousands_of_files_is_no_flood(capsys: pytest.CaptureFixture[str]) -> None:
    delta = tuple(Delta("new", f"source/{number}.py", 3) for number in range(4000))
    print_plan(Plan(host="a", live=None, release="r2", delta=delta))
    lines = capsys.readouterr().out.splitlines()
    assert sum("source/" in line for line in lines) == 60
    assert "    and 3,940 more files (--json names them)" in lines


def test_a_restart_that_was_reverted_left_no_failed_release() -> None:
    failed = Outcome("prod", "reverted", "r2", "r1", reason="it hangs", serving="pid 7")
    assert "the failed release stays there" in _end(failed, "deploy", "")
    again = Outcome("prod", "reverted", "r1", "r1", reason="nobody confirmed", serving="pid 7")
    assert "failed release" not in _end(again, "activation", "")


@pytest.mark.parametrize(
    ("target", "to", "why"),
    [
        (RollbackTarget("prod", "r1", None), "", "no other release that is good was live there"),
        (RollbackTarget("prod", "r1", "r9", possible=["r0"]), "r9", "r9 was never live there"),
    ],
)
def test_a_dry_rollback_that_goes_nowhere_is_refused(
    target: RollbackTarget, to: str, why: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        dry_rollback([target], {}, "", "prod", to, json=False)
    assert refused.value.why == why


def test_a_dry_rollback_to_what_is_live_already_is_none() -> None:
    assert dry_rollback([RollbackTarget("a", "r1", "r1")], {}, "", "prod", "r1", json=True) is None
