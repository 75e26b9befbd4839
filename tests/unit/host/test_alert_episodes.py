"""When alarms begin and end, and what of it is told, over any course of looks."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macd.host.alerts import episodes
from macd.host.alerts.conditions import UNKNOWN, Alarm
from macd.host.alerts.episodes import BEGAN, ENDED, QUIET_S, Episodes, Event, advance

EVERY = 300.0
ON, OFF = Alarm("it is off", "mend it"), None
NAMES = ("disk", "service", "silent")
answer = st.sampled_from([ON, ON, OFF, OFF, UNKNOWN])
answers_of_a_look = st.fixed_dictionaries(dict.fromkeys(NAMES, answer))
looks = st.lists(st.tuples(answers_of_a_look, st.booleans()), max_size=80)


def course(*answers: Alarm | None) -> list[tuple[int, str]]:
    """Events of one condition by the number of the look, all sent at once."""
    now, state, events = 0.0, Episodes(), []
    for number, one in enumerate(answers):
        state = advance(state, {"disk": one}, now)
        events += [(number, event.what) for event in state.outbox]
        state, now = replace(state, outbox=()), now + EVERY
    return events


@pytest.mark.parametrize(
    ("answers", "events"),
    [
        ((ON, OFF, ON, OFF, ON, OFF), []),
        ((ON, ON), [(1, BEGAN)]),
        ((ON, UNKNOWN, ON), [(2, BEGAN)]),
        ((ON, ON, ON, ON, ON), [(1, BEGAN)]),
        ((ON, ON, OFF, ON, OFF, ON), [(1, BEGAN)]),
        ((ON, ON, OFF, OFF), [(1, BEGAN), (3, ENDED)]),
        ((ON, ON, OFF, UNKNOWN, UNKNOWN, OFF), [(1, BEGAN), (5, ENDED)]),
        # It comes back within the hour: told when the hour is over and it is still there.
        ((ON, ON, OFF, OFF, *[ON] * 12), [(1, BEGAN), (3, ENDED), (13, BEGAN)]),
        ((ON, ON, OFF, OFF, ON, ON, OFF, OFF), [(1, BEGAN), (3, ENDED)]),
    ],
)
def test_course(answers: tuple[Alarm | None, ...], events: list[tuple[int, str]]) -> None:
    assert course(*answers) == events


def test_a_release_committed_between_two_looks_makes_it_begin_anew() -> None:
    state = advance(Episodes(), {"service": ON}, 0.0)
    state = advance(state, {"service": ON}, EVERY, committed=EVERY / 2)
    assert (state.open, state.outbox) == ([], ())
    state = advance(state, {"service": ON}, 2 * EVERY, committed=EVERY / 2)
    [event] = state.outbox
    assert (event.what, event.since) == (BEGAN, EVERY)
    # What is open goes on, whatever is committed.
    state = advance(state, {"service": ON}, 3 * EVERY, committed=2.5 * EVERY)
    assert [episode.since for _, episode in state.open] == [EVERY]


@settings(max_examples=200, deadline=None)
@given(looks)
def test_never_a_flood_and_every_begin_has_its_end(given_looks: list) -> None:  # type: ignore[type-arg]
    """Whatever holds when, and whenever the webhook is away."""
    now, state = 0.0, Episodes()
    sent: dict[str, list[tuple[float, Event]]] = defaultdict(list)
    for answers, reachable in given_looks:
        state = advance(state, answers, now)
        assert len(state.outbox) <= 3 * len(NAMES)
        if reachable:
            for event in state.outbox:
                sent[event.name].append((now, event))
            state = replace(state, outbox=())
        state = episodes.from_json(json.loads(json.dumps(episodes.as_json(state))))
        now += EVERY
    for _ in range(2):  # it all gets well, and the webhook is back
        state = advance(state, dict.fromkeys(NAMES), now)
        now += EVERY
    for event in state.outbox:
        sent[event.name].append((now, event))
    for events in sent.values():
        whats = [event.what for _, event in events]
        assert whats == [BEGAN, ENDED] * (len(whats) // 2)
        begins = [event.at for _, event in events if event.what == BEGAN]
        assert all(later - sooner >= QUIET_S for sooner, later in pairwise(begins))
    assert state.open == []


def test_several_at_once_are_one_message_and_say_what_to_do() -> None:
    state = Episodes()
    for now in (0.0, EVERY):
        state = advance(state, {"disk": ON, "service": ON}, now)
    text = episodes.message(state.outbox)
    assert text.splitlines() == [
        "began: disk: it is off", "  do: mend it", "began: service: it is off", "  do: mend it",
    ]  # fmt: skip
    assert [name for name, _ in state.open] == ["disk", "service"]


def test_without_a_webhook_nothing_waits_and_with_one_what_is_open_is_told() -> None:
    state = Episodes()
    for now in (0.0, 300.0, 600.0):
        state = advance(state, {"disk": ON}, now, reports=False)
    assert state.open and not state.outbox
    state = advance(state, {"disk": ON}, 900.0)
    assert [(event.what, event.since) for event in state.outbox] == [(BEGAN, 0.0)]


def test_a_clock_set_back_keeps_nobody_quiet() -> None:
    state = Episodes()
    for now in (1e9, 1e9 + 300, 1e9 + 600, 1e9 + 900):
        state = advance(state, {"disk": ON if now < 1e9 + 600 else OFF}, now)
    state = replace(state, outbox=())
    for now in (5e8, 5e8 + 300):
        state = advance(state, {"disk": ON}, now)
    assert [event.what for event in state.outbox] == [BEGAN]


def test_a_condition_that_is_not_asked_any_more_ends() -> None:
    state = Episodes()
    for now in (0.0, 300.0):
        state = advance(state, {"old": ON}, now)
    for now in (600.0, 900.0):
        state = advance(state, {"disk": OFF}, now)
    assert [event.what for event in state.outbox] == [BEGAN, ENDED]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"episodes": {}, "outbox": [{}]},
        {"episodes": [], "outbox": []},
        {"episodes": {"a": {"held": "x"}}, "outbox": []},
        {"episodes": {"a": {"newer": 1}}, "outbox": []},
        {"episodes": {"a": {"reported_at": "x"}}, "outbox": []},
    ],
)
def test_what_is_no_state_is_refused(document: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        episodes.from_json(document)
