"""The host's agent killed at every call it gets, at one end of it or the other: one trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from macd.errors import ExitCode
from tests.support.kills.kill_cases import Bench, KillCases, typed

PROGRAM = Path(__file__).with_name("agent_with_fuse.py")
UNKNOWN = "may have begun to switch"
UNTOUCHED = "nothing was switched"


def agent_killed_at(bench: Bench, number: int, when: str, *words: str) -> tuple[int, str] | None:
    """Type it; exit code and what was said, or None when there were fewer calls than that."""
    done = typed(bench, PROGRAM, {"KILLED_AT": f"{number} {when}"}, words)
    lines = done.stderr.splitlines()
    calls = [line for line in lines if line.startswith("#") and line != "#gone"]
    said = done.stdout + "\n".join(line for line in lines if not line.startswith("#"))
    if len(calls) < number:
        assert done.returncode == 0, said
        return None
    assert lines.count("#gone") == 1, done.stderr  # one agent died, and nobody else
    name = calls[number - 1].split()[1]
    check_told(words[0], name, done.returncode, said)
    return done.returncode, f"{name} {when}"


def check_told(verb: str, call: str, code: int, said: str) -> None:
    """The client ended knowing, or with 5 and one message that says how to go on."""
    assert "Traceback" not in said, said
    if call in ("follow", "confirm"):  # asked again over a new connection
        assert code == ExitCode.DONE, said
        assert said.count("✗") == said.count("✗ LOST CONTACT; the host goes on by itself"), said
        return
    assert (code, said.count("✗")) == (ExitCode.CONTACT_LOST, 1), said
    assert "contact with the agent on prod was lost" in said
    assert (UNKNOWN in said) != (UNTOUCHED in said), said
    assert ("invoke deploy --attach" if UNKNOWN in said else f"invoke {verb} again") in said


def sweep(
    bench: Bench,
    name: str,
    step: int,
    first: int,
    trial: Callable[[int], tuple[Sequence[str], str | None, str]],
    after: Callable[[str], None],
) -> None:
    """Every `step`-th kill, calls and ends of calls counted alike; from the `first` on.

    `trial` makes ready and says what to type, what serves and what is to; `after` proves that the
    next command works, told what serves now.
    """
    trials = KillCases()
    number = first
    while True:
        words, old, new = trial(number)
        ended = agent_killed_at(bench, 1 + number // 2, ("taken", "done")[number % 2], *words)
        if ended is None:
            break
        code, call = ended
        trials.check(bench, call, old, new)
        if code == ExitCode.DONE:
            assert trials.ends[-1] == "new", call
        after(new)
        number += step
    trials.tell(name, 14 // step)
