"""The guard on a pretended host raises the weight of stacking step by step, or takes it back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from macd.errors import RefusedError
from macd.host.judge import judging
from macd.journal import Journal
from tests.support import signal_lines
from tests.support.local_host import UNIT, Place
from tests.support.stacking_host import (
    ENV,
    KILLED_LOOK,
    LOG,
    LOOK,
    RULE,
    broken,
    deployed_place,
    end_guard,
    flip,
    listening,
    looked,
    message_on,
    on_a_full_disk,
    report,
    until,
    weights_now,
    write,
)
from tests.support.sweeps import at_points


@pytest.fixture(scope="module")
def deployed() -> Iterator[Place]:
    """Its release is live, kept as it is then."""
    with deployed_place() as made:
        (made.app / "data/live" / LOG).write_text('{"seq": 1}\n')
        made.save()
        yield made


@pytest.fixture
def host(deployed: Place) -> Place:
    deployed.restore()
    return deployed


# Looks once, as its loop would, which holds this lock; kills itself as KILLED_LOOK does.
RAISING = (
    KILLED_LOOK.replace(
        "print(guard.step(Layout(sys.argv[2]), datetime.now(UTC)))",
        """from macd.host.deploy import locks
from macd.host.flag import guard_config
layout = Layout(sys.argv[2])
with locks.locked(layout, guard_config.GUARD_LOCK, {"who": "guard"}):
    print(guard.step(layout, datetime.now(UTC)))""",
    )
    .replace("sys.addaudithook(watch)\n", "")
    .replace("    print(guard.step", "    sys.addaudithook(watch)\n    print(guard.step")
)


STEPS = {"every_s": 3600.0, "for_s": 7200.0, "rule": RULE, "steps": [25, 50, 100]}


def stepping(host: Place) -> dict[str, Any]:
    """Stacking decides with the first step, its watch's time is over, and nothing looks."""
    told = flip(host, "1", report(host), guard=STEPS)
    assert (told["outcome"], told["weight"]) == ("set", 25)
    until(host, lambda told: bool(told["loop"]))
    end_guard(host)
    return time_is_over(host)


def time_is_over(host: Place) -> dict[str, Any]:
    watch: dict[str, Any] = host.state("guard.json")
    watch |= {"until": watch["since"] + 1e-3, "next": watch["since"]}
    (host.app / "state/guard.json").write_text(json.dumps(watch))
    return watch


def weight_now(host: Place) -> int:
    """At the next start, in the process, and as the service says: the same."""
    now = set(weights_now(host))
    assert len(now) == 1
    return int(now.pop() or 0)


def raises(host: Place) -> list[tuple[Any, Any]]:
    records = Journal(host.app / "state/journal.jsonl").records()
    found = [one.fields for one in records if one.kind == "guard.raised"]
    return [(one["was_weight"], one["weight"]) for one in found]


def test_the_guard_raises_step_by_step_and_tells_each(host: Place) -> None:
    """By its own loop, with nobody there."""
    with listening(200) as (url, came):
        message_on(host, url)
        terms = {**STEPS, "every_s": 0.3, "for_s": 0.5}
        told = flip(host, "1", report(host), guard=terms)
        assert (told["outcome"], told["weight"]) == ("set", 25)
        first = host.state("guard.json")
        assert first["alpha"] == pytest.approx(0.05 / 3)
        time.sleep(1.5)  # its time is over, and there are no bars: nothing is raised
        told = until(host, lambda told: bool(told["order"].get("waits")))
        assert told["order"]["waits"] == "0 of at least 20 bars were judged"
        assert weight_now(host) == 25
        write(host, 60)
        told = until(host, lambda told: raised(told, 50))
        assert weight_now(host) == 50
        second = told["order"]
        assert second["since"] > first["since"]
        assert (second["alpha"], second["state"]) == (first["alpha"], "watching")
        write(host, 60, first_seq=61)  # these are of the new watch
        told = until(host, lambda told: raised(told, 100))
        assert weight_now(host) == 100
        told = until(host, lambda told: told["order"]["state"] == "over")
        until(host, lambda told: not told["loop"])
    assert weight_now(host) == 100
    assert (host.app / ".env").read_text() == ENV.replace("STACKING=0", "STACKING=1")
    assert raises(host) == [(25, 50), (50, 100)]
    assert [one["event"] for one in came] == ["guard.raised", "guard.raised", "guard.over"]
    assert "stacking counts for 50 % now, before 25 %" in came[0]["text"]
    assert [(one["from"], one["to"]) for one in told["order"]["raised"]] == [(25, 50), (50, 100)]


def raised(told: dict[str, Any], weight: int) -> bool:
    """Whether the guard has raised to it, and told so."""
    made = told["order"]["raised"]
    return bool(made) and made[-1]["to"] == weight and made[-1]["told"]


def looked_raising(host: Place, n: int = 0) -> str:
    return looked(host, n, RAISING)


@at_points([1, 5, 9, 14, 39], range(1, 40))
def test_a_guard_killed_while_it_raises_leaves_the_old_weight_or_the_new_one(
    deployed: Place, points: Sequence[int]
) -> None:
    ends, host = [], deployed
    host.restore()
    for n in points:
        with listening(200) as (url, came):
            message_on(host, url)
            flip(host, "0")
            before = stepping(host)
            write(host, 60)
            how = looked_raising(host, n)
            host.watching.call("recover", app=str(host.app))
            now, watch = weight_now(host), host.state("guard.json")
            assert now in (25, 50), f"killed before change {n}"
            assert host.state("pending-flag.json") is None
            assert (watch["state"], watch["weight"]) == ("watching", now)
            assert (watch["since"] == before["since"]) == (now == 25)
            ends.append(now)
            assert looked_raising(host) == "watching"  # what is left to do is done
            watch = host.state("guard.json")
            assert [(one["from"], one["to"], one["told"]) for one in watch["raised"]] == [
                (25, 50, True)
            ]
            assert weight_now(host) == watch["weight"] == 50
            assert {one["event"] for one in came} == {"guard.raised"}
            (host.app / "data/live" / f"trades_{datetime.now(UTC):%Y%m%d}.jsonl").unlink()
        if how != "killed":
            break
    assert points[len(ends) - 1] > 10
    assert (ends[0], ends[-1]) == (25, 50)


@pytest.mark.parametrize(
    ("lines", "waits"),
    [
        (0, "0 of at least 20 bars were judged"),
        (19, "19 of at least 20 bars were judged"),
        (-60, judging.STALE),  # they end an hour and more ago
    ],
)
def test_what_says_too_little_raises_nothing(host: Place, lines: int, waits: str) -> None:
    stepping(host)
    if lines > 0:
        write(host, lines)
    if lines < 0:
        watch = host.state("guard.json")
        long_ago = {"since": watch["since"] - 90_000, "until": watch["since"] - 80_000}
        (host.app / "state/guard.json").write_text(json.dumps({**watch, **long_ago}))
        end = datetime.now(UTC) - timedelta(hours=20)
        made = signal_lines.lines(60, release=host.live, end=end, every=timedelta(milliseconds=1))
        signal_lines.write(host.app / "data/live", made)
    assert looked_raising(host) == "watching"
    watch = host.state("guard.json")
    assert (watch["waits"], watch["weight"], watch["raised"]) == (waits, 25, [])
    assert weight_now(host) == 25
    write(host, 60, first_seq=abs(lines) + 1)
    if lines >= 0:
        assert looked_raising(host) == "watching"
        assert (weight_now(host), host.state("guard.json")["waits"]) == (50, "")


def test_a_step_that_can_not_be_proved_is_put_back_told_and_the_last(host: Place) -> None:
    stepping(host)
    write(host, 60)
    broken(host, "50")
    with listening(200) as (url, came):
        message_on(host, url)
        assert looked_raising(host) == "over"
    assert weight_now(host) == 25
    (message,) = came
    assert message["event"] == "guard.over"
    assert "stacking stays at 25 %; the step to 50 % was not made: golden" in message["reason"]
    watch = host.state("guard.json")
    assert (watch["state"], watch["weight"], watch["steps"], watch["raised"]) == (
        "over",
        25,
        [],
        [],
    )
    assert raises(host) == []
    (host.app / "unwell at").unlink()
    assert flip(host, "1", guard=STEPS)["outcome"] == "already"  # as watched, without evidence
    told = flip(host, "1", report(host), guard=STEPS)  # with it, the steps begin anew
    assert (told["outcome"], told["weight"]) == ("set", 25)
    watch = host.state("guard.json")
    assert (watch["state"], watch["steps"]) == ("watching", [50, 100])


def test_where_the_weight_before_does_not_work_again_stacking_is_disabled(host: Place) -> None:
    old = report(host)
    stepping(host)
    write(host, 60)
    broken(host, "25 50")
    assert looked_raising(host) == "failed"
    assert weight_now(host) == 0
    assert "nor did 25 % work again" in host.state("guard.json")["reason"]
    (host.app / "unwell at").unlink()
    with pytest.raises(RefusedError, match="older than the guard's"):
        flip(host, "1", old, guard=STEPS)


def test_a_raise_that_is_cut_short_again_and_again_is_the_last(host: Place) -> None:
    stepping(host)
    write(host, 60)
    n = next(n for n in range(4, 30) if cut_short(host, n))
    for count in (2, 3):
        assert looked_raising(host, n) == "killed"
        assert host.state("guard.json")["raises"] == 0  # the new watch's
        host.watching.call("recover", app=str(host.app))
        assert host.state("guard.json")["raises"] == count
    assert looked_raising(host) == "over"
    assert "it was cut short 3 times" in host.state("guard.json")["reason"]
    assert weight_now(host) == 25


def cut_short(host: Place, n: int) -> bool:
    """Whether a kill there, in the first try, leaves a raise that is taken back."""
    watch = {**host.state("guard.json"), "raises": 0}
    (host.app / "state/guard.json").write_text(json.dumps(watch))
    assert looked_raising(host, n) == "killed"
    pending, watch = host.state("pending-flag.json"), host.state("guard.json")
    host.watching.call("recover", app=str(host.app))
    assert weight_now(host) == 25
    return pending is not None and watch["weight"] == 50


def test_people_end_the_steps_by_naming_a_weight(host: Place) -> None:
    stepping(host)
    write(host, 60)
    assert flip(host, "1", weight=25)["outcome"] == "already"
    watch = host.state("guard.json")
    assert (watch["state"], watch["steps"]) == ("watching", [])
    assert looked_raising(host) == "over"
    assert weight_now(host) == 25


def test_a_weight_raised_by_hand_is_not_raised_further(host: Place) -> None:
    stepping(host)
    write(host, 60)
    (host.app / ".env").write_text(
        ENV.replace("STACKING=0", "STACKING=1") + "ML_STACKING_WEIGHT=40\n"
    )
    host.systemctl("restart", UNIT)
    assert looked_raising(host) == "watching"
    assert "not what the guard watched" in host.state("guard.json")["waits"]
    assert weight_now(host) == 40
    write(host, 90, first_seq=61, ml_error="tft: broken")
    assert looked_raising(host) == "failed"
    assert weight_now(host) == 0


def test_on_a_disk_that_takes_nothing_nothing_is_raised(host: Place) -> None:
    stepping(host)
    write(host, 60)
    before = host.state("guard.json")
    assert on_a_full_disk(host, LOOK, str(host.app)) == 1
    assert (weight_now(host), host.state("guard.json")) == (25, before)


@pytest.mark.parametrize("at", [25, 50])
def test_a_bad_window_is_taken_back_and_not_raised(host: Place, at: int) -> None:
    stepping(host)
    if at == 50:
        write(host, 60)
        assert looked_raising(host) == "watching"
    write(host, 90, first_seq=61, ml_error="tft: broken")
    assert looked_raising(host) == "failed"
    assert weight_now(host) == 0
    assert (host.app / ".env").read_text() == ENV
    assert raises(host) == ([(25, 50)] if at == 50 else [])
