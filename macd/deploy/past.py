"""What was live on each host at a moment, from the journals of one or several machines. Pure.

An operator's journal says how its own deploys and flags ended. A host's own journal says all that
happened there, whoever did it. Several of them are joined by time; where they can't all be true,
that is named and not decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from macd.deploy.records import ENDS, LEFT, NOT_REPORTED
from macd.host.flag.flag_file import FLAG, FULL, LIVE
from macd.host.record import Record

_BEGINS = ("deploy.began", "rollback.began")
_FLAG_KINDS = (
    *("flag.enable", "flag.disable", "flag.set", "flag.reverted"),
    *("guard.raised", "guard.ended", "guard.failed"),
)
_TRAININGS = "train."  # recorded of hosts on which nothing is ever live
_CLOCKS = timedelta(seconds=2)  # two machines in step by NTP
_MOST_ACTIVATIONS, _SHOWN = 100_000, 5


@dataclass(frozen=True)
class Entry:
    """A record, in whose journal it stands, and when and on which host it happened ("": none)."""

    record: Record
    source: str
    host: str
    at: datetime

    @property
    def fields(self) -> Mapping[str, Any]:
        return self.record.fields


@dataclass(frozen=True)
class Then:
    """What was live on a host; release None: nothing, "": not known.

    since: from when. weight: what stacking counted for, in percent, 0 in shadow, None where not
    known; weighed: False where the application knows no weights. evidence: the gate report that
    allowed it. under_way: a change that had begun and whose
    end is not on record by then.
    """

    host: str
    env: str = ""
    release: str | None = ""
    since: datetime | None = None
    by: str = ""
    how: str = ""
    weight: int | None = None
    weighed: bool = True
    weight_since: datetime | None = None
    evidence: str = ""
    verdict: str = ""
    under_way: str = ""
    sources: tuple[str, ...] = ()


def joined(journals: Mapping[str, Iterable[Record]], hosts: Iterable[str] = ()) -> list[Entry]:
    """The records of several journals by time, oldest first. hosts: sources that are a host's own.

    What two operators recorded of the same change stands there twice. One record that stands in
    several journals, as in a copy, stands there once, with the source that came first.
    """
    own = set(hosts)
    entries = []
    seen: set[str] = set()
    for source, records in journals.items():
        for record in records:
            if not record.hash or record.hash not in seen:
                host = source if source in own else _host(record)
                entries.append(Entry(record, source, host, _time(record)))
                seen.add(record.hash)
    return sorted(entries, key=lambda entry: (entry.at, entry.source, entry.record.seq))


def at(entries: Sequence[Entry], moment: datetime) -> list[Then]:
    """What was live then on each host that a record names but for trainings, in order of names."""
    judged = [entry.fields for entry in entries if entry.record.kind == "gate.judged"]
    states: dict[str, Then] = {}
    for entry in entries:
        if entry.host and entry.at <= moment and not entry.record.kind.startswith(_TRAININGS):
            before = states.get(entry.host, Then(entry.host))
            states[entry.host] = _after(before, entry, judged)
    return [states[name] for name in sorted(states)]


def _after(then: Then, entry: Entry, judged: Sequence[Mapping[str, Any]]) -> Then:
    kind, fields = entry.record.kind, entry.fields
    env = str(fields.get("env") or then.env)
    sources = then.sources if entry.source in then.sources else (*then.sources, entry.source)
    then = replace(then, env=env, sources=sources)
    if kind in _FLAG_KINDS:
        return _flag(then, entry, judged)
    if kind in ENDS:
        return _ended(then, entry)
    if kind == "committed":
        return _live(replace(then, under_way=""), entry, fields.get("release"))
    if kind in _BEGINS or kind == "switching":
        what = kind.partition(".")[0] if kind in _BEGINS else "change"
        goes_to = fields.get("release") or fields.get("to") or "another release"
        who = f" by {fields['who']}" if fields.get("who") else ""
        return replace(then, under_way=f"{what} to {goes_to}{who}, started {shown(entry.at)}")
    return replace(then, under_way="") if kind == "reverted" else then


def _flag(then: Then, entry: Entry, judged: Sequence[Mapping[str, Any]]) -> Then:
    kind, fields = entry.record.kind, entry.fields
    report, verdict = _evidence(str(fields.get("report") or ""), judged)
    if not report and then.weight:  # raised by the guard, or lowered
        report, verdict = then.evidence, then.verdict
    if kind in ("flag.enable", "flag.disable"):
        if fields.get("result") != "set":
            return then
        return _weighed(then, entry, _weight(fields, "value"), report, verdict)
    if kind == "flag.set":
        return _weighed(then, entry, _weight(fields, "wanted"), report, verdict)
    if kind == "flag.reverted":
        weight = fields.get("was_weight", FULL) if fields.get("was") == LIVE else 0
        return _weighed(then, entry, weight, then.evidence, then.verdict)
    if kind == "guard.raised":
        return replace(then, weight=fields.get("weight"), weight_since=entry.at)
    failed = fields.get("result", "failed") == "failed"  # the guard's watch ended so
    return _weighed(then, entry, 0, "", "") if failed else then


def _evidence(report: str, judged: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A gate report as people find it, and its verdict: hosts record its SHA-256, not its path."""
    for fields in judged:
        path, verdict = str(fields.get("report") or ""), str(fields.get("verdict"))
        if path and report.endswith(path):
            return report, verdict
        if path and report and report == fields.get("report_sha256"):
            return path, verdict
    return report, ""


def _ended(then: Then, entry: Entry) -> Then:
    fields = entry.fields
    result, live = fields.get("result"), fields.get("live")
    if result == LEFT and then.under_way:  # else the host said before how it ended
        outcome = f"{then.under_way}; contact was given up, the host ends it by itself"
        return replace(then, under_way=outcome)
    then = replace(then, under_way="")
    if result in NOT_REPORTED or "live" not in fields:
        return then
    if result == "committed":
        return _live(then, entry, live)
    if then.release != live:  # nothing to do, or reverted: it says what was live all the same
        return replace(then, release=live, since=None, by="", how="")
    return then


def _live(then: Then, entry: Entry, release: Any) -> Then:
    """A new release begins in shadow."""
    how = entry.record.kind.partition(".")[0] if entry.record.kind in ENDS else ""
    again = then.release == release
    return replace(
        then,
        release=release,
        since=then.since if again and then.since else entry.at,
        by=str(entry.fields.get("who") or (then.by if again else "")),
        how=how or (then.how if again else ""),
        weight=0,
        weight_since=entry.at,
        evidence="",
        verdict="",
    )


def _weighed(then: Then, entry: Entry, weight: Any, evidence: str, verdict: str) -> Then:
    release = then.release if then.release != "" else entry.fields.get("release", "")
    shown_as = {"evidence": evidence, "verdict": verdict} if weight else {}
    blank = {"evidence": "", "verdict": ""}
    changes: dict[str, Any] = {**blank, **shown_as}
    changes["weighed"] = _knows_weights(entry.fields)
    return replace(then, release=release, weight=weight, weight_since=entry.at, **changes)


def _knows_weights(fields: Mapping[str, Any]) -> bool:
    """Of an application without weights, a host's earlier records hold only the flag's name."""
    return fields.get("weighed") is not False and fields.get("flag", FLAG) == FLAG


def _weight(fields: Mapping[str, Any], flag: str) -> int:
    weight = fields.get("weight", FULL)
    return weight if fields.get(flag) == LIVE and isinstance(weight, int) else 0


def _host(record: Record) -> str:
    return str(record.fields.get("host") or "")


def _time(record: Record) -> datetime:
    """When it happened: some records are written later, and say when that was."""
    for name in ("ended", "at"):
        text = record.fields.get(name)
        if isinstance(text, str):
            try:
                moment = datetime.fromisoformat(text)
            except ValueError:
                continue
            return moment if moment.tzinfo else record.time
    return record.time


def shown(moment: datetime) -> str:
    """A moment for people."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def contradictions(entries: Sequence[Entry]) -> list[str]:
    """What can't all be true, a sentence each."""
    return [
        *_forks(entries),
        *_ends_that_differ(entries),
        *_serials_twice(entries),
        *_flags_of_others(entries),
        *_clocks(entries),
    ]


def missing(entries: Sequence[Entry]) -> list[str]:
    """Activations that a host counted and no journal here records, a sentence a host."""
    numbers: dict[str, set[int]] = {}
    for entry in entries:
        number = entry.fields.get("number", entry.fields.get("activation"))
        if entry.host and isinstance(number, int) and 0 < number < _MOST_ACTIVATIONS:
            numbers.setdefault(entry.host, set()).add(number)
    gaps = {
        host: [n for n in range(min(recorded), max(recorded)) if n not in recorded]
        for host, recorded in sorted(numbers.items())
    }
    return [
        f"{host}: nothing tells of activation {', '.join(map(str, gap[:_SHOWN]))}"
        f"{f' and {len(gap) - _SHOWN} more' if len(gap) > _SHOWN else ''}: it was done from "
        "another machine, or who did it was cut off; the host's own journal knows (--env)"
        for host, gap in gaps.items()
        if gap
    ]


def _forks(entries: Sequence[Entry]) -> Iterator[str]:
    """Journals that begin alike and then go apart: a chain has one record after another."""
    following: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry.record.prev.strip("0"):
            following.setdefault(entry.record.prev, {})[entry.record.hash] = entry
    for after in following.values():
        if len(after) > 1:
            first = min(after.values(), key=lambda entry: entry.source)
            sources = " and ".join(sorted(entry.source for entry in after.values()))
            yield (
                f"{sources} are one journal up to record {first.record.seq - 1} and differ from "
                "then on: a copy was written to, or one of them was changed"
            )


def _flags_of_others(entries: Sequence[Entry]) -> Iterator[str]:
    """A flag is set for the release that is live; an end of a deploy says which that is."""
    live: dict[str, Entry] = {}
    for entry in entries:
        kind, fields = entry.record.kind, entry.fields
        if kind in ENDS and fields.get("result") == "committed":
            live[entry.host] = entry
        elif kind == "flag.enable" and fields.get("result") == "set" and fields.get("release"):
            end = live.get(entry.host)
            if end and end.fields.get("live") != fields["release"] and end.source != entry.source:
                yield (
                    f"{entry.host}: {entry.source} let {fields['release']} decide on "
                    f"{shown(entry.at)}, when {end.fields.get('live')} was live by {end.source} "
                    f"since {shown(end.at)}"
                )


def _ends_that_differ(entries: Sequence[Entry]) -> Iterator[str]:
    ends: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        number = entry.fields.get("number")
        if entry.record.kind in ENDS and isinstance(number, int) and number:
            ends.setdefault((entry.host, number), []).append(entry)
    for (host, number), said in ends.items():
        versions = {(e.fields.get("release"), e.fields.get("result")): e for e in said}
        if len(versions) > 1:
            words = "; ".join(
                f"{entry.source} says {release} {result}"
                for (release, result), entry in versions.items()
            )
            yield f"activation {number} on {host}: {words}"


def _serials_twice(entries: Sequence[Entry]) -> Iterator[str]:
    made: dict[tuple[str, int], dict[str, str]] = {}
    for entry in entries:
        serial = entry.fields.get("serial")
        if entry.record.kind == "release.made" and isinstance(serial, int):
            env = str(entry.fields.get("env") or "")
            release = str(entry.fields.get("release"))
            made.setdefault((env, serial), {})[release] = entry.source
    for (env, serial), releases in made.items():
        if len(releases) > 1:
            words = ", ".join(f"{release} ({source})" for release, source in releases.items())
            yield f"serial {serial} of {env} was given to several releases: {words}"


def _clocks(entries: Sequence[Entry]) -> Iterator[str]:
    """A later activation of a host can't have ended before an earlier one."""
    last: dict[str, Entry] = {}
    ended = [
        entry
        for entry in entries
        if entry.record.kind in ENDS
        and isinstance(entry.fields.get("number"), int)
        and entry.fields["number"]
        and not entry.fields.get("attached")
    ]
    for entry in sorted(ended, key=lambda entry: (entry.host, entry.fields["number"])):
        before = last.get(entry.host)
        last[entry.host] = entry
        if before and before.source != entry.source and before.at - entry.at > _CLOCKS:
            yield (
                f"{entry.host}: activation {entry.fields['number']} ended before "
                f"{before.fields['number']} did, by the clocks of {entry.source} and "
                f"{before.source}: they differ by {(before.at - entry.at).total_seconds():.0f} s "
                "or more"
            )
