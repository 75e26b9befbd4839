"""From journals to what happened on a host: periods of releases and of stacking, and moments. Pure.

The host's own journal is the source, whoever's machine did it. The operator's journal adds what
only it knows: gate reports, releases that were made, and deploys that failed before the host began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from macd.deploy import records
from macd.host.flag.flag_file import FLAG, FULL, LIVE
from macd.host.record import Record

MADE, DEPLOY, ROLLBACK, REVERT, FAILED = "made", "deploy", "rollback", "reverted", "failed"
FLAG_ON, FLAG_OFF, FLAG_BACK = "flag on", "flag off", "flag put back"
GATE, GUARD = "gate", "guard"
_COMMITTED, _REVERTED = "committed", "reverted"
_NOT_DONE = (records.FAILED, records.REFUSED)


@dataclass(frozen=True)
class Event:
    """A moment, in epoch seconds. outcome: PASS, FAIL or INCONCLUSIVE of a verdict, else "".

    weight: what stacking counts for from then on, in percent; None where that does not change.
    """

    at: float
    kind: str
    text: str
    outcome: str = ""
    release: str = ""
    weight: int | None = None


@dataclass(frozen=True)
class Period:
    """[start, end) in epoch seconds; end None while it goes on."""

    start: float
    end: float | None
    label: str


def events(
    host: str,
    env: str,
    history: Iterable[Mapping[str, Any]],
    own: Iterable[Record],
    here: Iterable[Record],
) -> list[Event]:
    """What happened on a host, oldest first.

    Args:
        history: what was committed there (macd/host/deploy/ledger.py).
        own: the host's journal. here: the operator's.
    """
    host_events = [_commit(entry) for entry in history]
    for record in own:
        host_events += _of_the_host(record)
    for record in here:
        host_events += _of_here(record, host, env)
    return sorted(host_events, key=lambda event: event.at)


def _commit(entry: Mapping[str, Any]) -> Event:
    kind = ROLLBACK if entry.get("kind") == "rollback" else DEPLOY
    release, who = str(entry.get("release")), entry.get("who")
    text = f"{kind} of {release}{f' by {who}' if who else ''}"
    return Event(float(entry["at"]), kind, text, release=release, weight=0)  # in shadow


def _of_the_host(record: Record) -> Iterator[Event]:
    at, fields = record.time.timestamp(), record.fields
    release = str(fields.get("release") or "")
    who = f" by {fields['who']}" if fields.get("who") else ""
    if record.kind == _REVERTED:
        text = f"{release} was reverted: {fields.get('reason')}"
        yield Event(at, REVERT, text, release=release)
    elif record.kind == "flag.set":
        weight = _weight(fields, "wanted", "weight")
        text = f"{_flag(fields, '=', 'wanted')}{_share(weight)}{who}"
        yield Event(at, FLAG_ON if weight else FLAG_OFF, text, release=release, weight=weight)
    elif record.kind == "flag.reverted":
        weight = _weight(fields, "was", "was_weight")  # above 0 where a raise of it failed
        text = f"{_flag(fields, ' put back to ', 'was')}{_share(weight)}: {fields.get('reason')}"
        yield Event(at, FLAG_BACK, text, release=release, weight=weight)
    elif record.kind == "guard.judged":
        verdict = str(fields.get("verdict"))
        yield Event(at, GUARD, f"the guard says {verdict}", verdict, release)
    elif record.kind == "guard.unjudged":
        yield Event(at, GUARD, f"the guard could not judge: {fields.get('why')}", "?", release)


def _weight(fields: Mapping[str, Any], flag: str, name: str) -> int:
    """In percent; a record of an earlier version has none, where the flag is all or nothing."""
    weight = fields.get(name, FULL)
    return weight if fields.get(flag) == LIVE and isinstance(weight, int) else 0


def _flag(fields: Mapping[str, Any], does: str, which: str) -> str:
    """The flag with its value as it calls it; a host's earlier records of another one lack it."""
    name, value = str(fields.get("flag", FLAG)), str(fields.get(which))
    word = (fields.get("said") or {}).get(value)
    if name == FLAG or word:
        return f"{name}{does}{word or value}"
    return f"{name} {'lets the models decide' if value == LIVE else 'in shadow'}"


def _share(weight: int) -> str:
    return f" at {weight} %" if 0 < weight < FULL else ""


def _of_here(record: Record, host: str, env: str) -> Iterator[Event]:
    at, fields = record.time.timestamp(), record.fields
    release = str(fields.get("release") or "")
    if record.kind == "release.made" and fields.get("env") == env:
        text = f"release {release} was made from run {fields.get('run')}"
        yield Event(at, MADE, text, release=release)
    elif fields.get("host") != host:
        return
    elif record.kind == "gate.judged":
        verdict = str(fields.get("verdict"))
        yield Event(at, GATE, f"gate report on {release}: {verdict}", verdict, release)
    elif record.kind in records.ENDS and fields.get("result") in _NOT_DONE:
        what = f"{record.kind.partition('.')[0]} {fields['result']}"
        yield Event(at, FAILED, f"{what}: {fields.get('why')}", release=release)


def live_periods(host_events: Sequence[Event]) -> list[Period]:
    """From when to when each release was live: until the next one was committed."""
    commits = [event for event in host_events if event.kind in (DEPLOY, ROLLBACK)]
    ends: list[float | None] = [event.at for event in commits[1:]]
    pairs = zip(commits, [*ends, None], strict=True) if commits else ()
    return [Period(event.at, end, event.release) for event, end in pairs]


def stacking_periods(host_events: Sequence[Event]) -> list[Period]:
    """When stacking decided, and with which weight. Every deploy and rollback begins in shadow."""
    changes = [(event.at, event.weight) for event in host_events if event.weight is not None]
    periods: list[Period] = []
    began, now = 0.0, 0
    for at, weight in (*changes, (None, -1)):
        if weight == now:
            continue
        if now:
            periods.append(Period(began, at, f"stacking decides{_share(now)}"))
        began, now = at or 0.0, weight
    return periods


def live_since(host_events: Sequence[Event], release: str | None) -> datetime | None:
    """When the live release began to serve without a break; None where nobody recorded it."""
    periods = live_periods(host_events)
    if not periods or periods[-1].label != release:
        return None
    start = periods[-1].start
    for period in reversed(periods):  # deployed again, as by --restart: it served before, too
        if period.label != release:
            break
        start = period.start
    return datetime.fromtimestamp(start, UTC)
