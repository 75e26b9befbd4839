"""When an alarm begins and ends, and which of that is reported: a state machine without a clock.

A condition begins when it held at two looks in a row, and ends when it was clear at two. UNKNOWN
counts for neither. A release that is committed between the first two looks makes it begin anew. Its
begin is reported at once, and so is its end. But no begin of a condition is reported within an hour
of its last one, so one that comes and goes makes at most two messages an hour. An end is reported
only after its begin. What could not be sent stays in the outbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from macd.host import untrusted
from macd.host.alerts.conditions import UNKNOWN, Alarm

LOOKS = 2
QUIET_S = 3600.0
BEGAN, ENDED = "began", "ended"
# Characters: a service's own words may be of any length. What to do has to fit behind them into a
# message, and all of it into the room that is kept on a full disk.
LONGEST_REASON = 400


@dataclass(frozen=True)
class Episode:
    """One condition's. held, clear: looks in a row that said so. since: of the first that held.

    is_open: it began and has not ended. reported: its begin is in the outbox or sent, its end not.
    reported_at: when that last happened, None if never. Times are epoch seconds.
    """

    held: int = 0
    clear: int = 0
    since: float = 0.0
    text: str = ""
    hint: str = ""
    is_open: bool = False
    reported: bool = False
    reported_at: float | None = None


@dataclass(frozen=True)
class Event:
    """What is to be reported about one condition."""

    name: str
    what: str  # BEGAN or ENDED
    at: float
    since: float
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Episodes:
    """Everything that lasts from look to look."""

    by_name: Mapping[str, Episode] = field(default_factory=dict)
    outbox: tuple[Event, ...] = ()

    @property
    def open(self) -> list[tuple[str, Episode]]:
        """The conditions that hold now, oldest first."""
        episodes = [(name, episode) for name, episode in self.by_name.items() if episode.is_open]
        return sorted(episodes, key=lambda pair: (pair[1].since, pair[0]))


def advance(
    before: Episodes,
    answers: Mapping[str, Alarm | None],
    now: float,
    *,
    reports: bool = True,
    committed: float | None = None,
) -> Episodes:
    """The episodes after one more look.

    Args:
        answers: by condition; one that is not asked any more is clear.
        reports: whether there is a webhook. Without one nothing is put into the outbox, and once
            there is one, what is open then is reported as begun.
        committed: when the newest release was committed here. What had held once before that, and
            has not begun, begins anew: between two looks it may have been well.
    """
    asked = {**dict.fromkeys(before.by_name), **answers}
    by_name: dict[str, Episode] = {}
    outbox = before.outbox if reports else ()
    for name, answer in asked.items():
        episode = before.by_name.get(name, Episode())
        if committed is not None and not episode.is_open and episode.since <= committed <= now:
            episode = replace(episode, held=0)
        episode = _looked(episode, answer, now)
        if not reports:
            episode = replace(episode, reported=False)
        elif episode.is_open and not episode.reported and _may_report(episode, now):
            episode = replace(episode, reported=True, reported_at=now)
            begin = Event(name, BEGAN, now, episode.since, episode.text, episode.hint)
            outbox = (*_without_past(outbox, name), begin)
        elif episode.reported and not episode.is_open:
            outbox = (*outbox, Event(name, ENDED, now, episode.since, episode.text))
            episode = replace(episode, reported=False)
        if episode != Episode(clear=episode.clear):
            by_name[name] = episode
    return Episodes(by_name, outbox)


def _looked(episode: Episode, answer: Alarm | None, now: float) -> Episode:
    if answer is UNKNOWN:
        return episode
    if answer is None:
        clear = min(LOOKS, episode.clear + 1)
        is_open = episode.is_open and clear < LOOKS
        return replace(episode, held=0, clear=clear, is_open=is_open)
    held = min(LOOKS, episode.held + 1)
    # A gap of one look is no end: the alarm goes on since it first held.
    since = episode.since if episode.held or episode.is_open else now
    return replace(
        episode,
        held=held,
        clear=0,
        since=since,
        text=untrusted.line(answer.text, LONGEST_REASON),
        hint=untrusted.line(answer.hint, LONGEST_REASON),
        is_open=episode.is_open or held >= LOOKS,
    )


def _may_report(episode: Episode, now: float) -> bool:
    """A clock that was set back must not keep us quiet."""
    return episode.reported_at is None or not 0 <= now - episode.reported_at < QUIET_S


def _without_past(outbox: tuple[Event, ...], name: str) -> tuple[Event, ...]:
    """A webhook may be away for weeks: an alarm's unsent begin and end make way for a new begin."""
    mine = [event for event in outbox if event.name == name]
    past = mine[-2:] if [event.what for event in mine[-2:]] == [BEGAN, ENDED] else []
    return tuple(event for event in outbox if event not in past)


def message(outbox: tuple[Event, ...]) -> str:
    """One text for all that is to be reported; a line for each, and what to do below it."""
    lines = []
    for event in outbox:
        why = untrusted.line(event.text, LONGEST_REASON)  # of an earlier version it may be longer
        if event.what == ENDED:
            lines.append(f"ended: {event.name}, it was: {why}")
        else:
            lines.append(f"began: {event.name}: {why}")
            lines += [f"  do: {event.hint}"] if event.hint else []
    return "\n".join(lines)


def as_json(episodes: Episodes) -> dict[str, Any]:
    """As `from_json` reads it."""
    return {
        "episodes": {name: vars(episode) for name, episode in episodes.by_name.items()},
        "outbox": [vars(event) for event in episodes.outbox],
    }


def from_json(document: Mapping[str, Any]) -> Episodes:
    """Raises ValueError, TypeError, LookupError or AttributeError for what is none of ours."""
    by_name = {str(name): Episode(**row) for name, row in document["episodes"].items()}
    outbox = tuple(Event(**row) for row in document["outbox"])
    for row in (*by_name.values(), *outbox):
        for name, value in vars(row).items():
            wanted = type(getattr(_SHAPES[type(row)], name))
            may_be = (int, float) if wanted is float else wanted
            if not isinstance(value, may_be) and (name, value) != ("reported_at", None):
                raise ValueError(f"{name} is no {wanted.__name__}")
    return Episodes(by_name, outbox)


_SHAPES: Mapping[type, Any] = {
    Episode: Episode(reported_at=0.0),
    Event: Event("", "", 0.0, 0.0, ""),
}
