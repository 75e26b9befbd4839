"""What `enable-stacking` and `disable-stacking` say on each way it may end."""

from __future__ import annotations

from macd.cli.flag import _lines
from macd.gate.flag import Flipped


def test_the_weight_is_always_said() -> None:
    lines = _lines("enable", Flipped("prod", "set", "1", "r", 7, weight=100))
    assert lines[0] == "✓ prod: stacking decides with 100 %; process 7 runs with it"


def test_without_weights_no_weight_is_said() -> None:
    def line(result: str, value: str = "1") -> str:
        ended = Flipped("prod", result, value, "r", 7, weight=100, was_weight=0, weighed=False)
        return _lines("enable", ended)[0]

    assert line("set") == "✓ prod: the models decide; process 7 runs with it"
    assert line("would") == "prod: would enable stacking and restart the service"
    assert "shadow" in line("reverted", "0")


def test_a_change_that_was_ended_first_is_told() -> None:
    there = Flipped("prod", "already", "0", "r", 7)
    assert _lines("disable", there)[0].endswith("in shadow already; nothing was restarted")
    ended = Flipped("prod", "already", "0", "r", 7, ended=True)
    assert _lines("disable", ended)[0] == (
        "✓ prod: stacking is in shadow; the change that was interrupted was ended, "
        "the service restarted"
    )


def test_a_dry_run_tells_from_what_to_what_and_which_steps_end() -> None:
    def lines(weight: int, was: int, *cancels: int) -> list[str]:
        seen = Flipped("p", "would", "1", "r", weight=weight, was_weight=was, cancels=cancels)
        return _lines("enable", seen)

    assert lines(50, 25)[0] == "p: would raise stacking from 25 % to 50 % and restart the service"
    assert lines(10, 25)[0] == "p: would lower stacking from 25 % to 10 % and restart the service"
    assert lines(25, 0)[0] == "p: would enable stacking with 25 % and restart the service"
    assert lines(50, 25, 50, 100)[-1] == (
        "  steps  the guard's steps to 50 %, 100 % end: --weight sets one weight"
    )
