"""The host's agent killed at every call it gets, at one end of it or the other: one trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from macd.errors import ExitCode
from tests.support.kills.kill_cases import Bench, KillCases, typed

PROGRAM = Path(__file__).with_name("agent_with_fuse.py")
UNKNOWN = "may have started to switch"
UNTOUCHED = "nothing was switched"


# A call and when, "taken" or "done". The call: its number, or the name of the first of its kind.
Point = tuple[int | str, str]
EVERY: list[Point] = [(number, when) for number in range(1, 1000) for when in ("taken", "done")]


def agent_killed_at(bench: Bench, point: Point, *words: str) -> tuple[int, str] | None:
    """Type it; exit code and the call, or None when there were fewer calls than that."""
    at, when = point
    done = typed(bench, PROGRAM, {"KILLED_AT": f"{at} {when}"}, words)
    lines = done.stderr.splitlines()
    calls = [line for line in lines if line.startswith("#") and line != "#gone"]
    said = done.stdout + "\n".join(line for line in lines if not line.startswith("#"))
    name = next((call.split()[1] for call in calls if str(at) in call[1:].split()), "")
    if not name:
        assert done.returncode == 0, said
        return None
    assert lines.count("#gone") == 1, done.stderr  # one agent died, and nobody else
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
    points: Sequence[Point],
    trial: Callable[[], tuple[Sequence[str], str | None, str]],
    after: Callable[[str], None],
) -> None:
    """A kill at each of the points, until there are fewer calls.

    `trial` makes ready and says what to type, what serves and what is to; `after` proves that the
    next command works, told what serves now.
    """
    trials = KillCases()
    for point in points:
        words, old, new = trial()
        ended = agent_killed_at(bench, point, *words)
        if ended is None:
            break
        code, call = ended
        trials.check(bench, call, old, new)
        if code == ExitCode.DONE:
            assert trials.ends[-1] == "new", call
        after(new)
    trials.tell(name, min(len(points), 14))
