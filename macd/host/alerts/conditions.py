"""What is worth a message to people: each condition a pure function of facts and terms.

A condition answers an Alarm while it holds, None while it does not, and UNKNOWN where the facts
don't tell. To add one: a field of Facts (read in facts.py), a function here, its row in CONDITIONS.
When a message follows is in episodes.py.
"""

from __future__ import annotations

import fnmatch
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from macd.host.durable import Disk
from macd.host.judge.drift import DRIFT, Drift
from macd.host.judge.parse import step_ms
from macd.host.own import Service
from macd.host.store.age import age_of
from macd.host.store.signature import GATE_NAMESPACE, RELEASE_NAMESPACE
from macd.host.systemd.supervisor import OFF, Process

DAY_S = 86400.0
_GRACE_S = 120.0  # of a replay, whose bars may be seconds apart
_MOST_NAMED = 5
_MANY_RESTARTS = 3  # by systemd, in an hour
_PENDING_S = 3600.0  # no activation's times together are longer, unless somebody set them so


class Alarm(NamedTuple):
    """Why a condition holds, on one line, and what to do about it."""

    text: str
    hint: str = ""


UNKNOWN = Alarm("")  # compared by identity


@dataclass(frozen=True)
class Terms:
    """From when on it is an alarm, as the unit's command line says; 0 switches a condition off.

    silent_bars: bars. disk_free: a share of the file system. expires_days: days. clock_s: seconds.
    every_s: between two looks.
    """

    unit: str
    scope: str = "system"
    every_s: float = 300.0
    silent_bars: float = 2.0
    disk_free: float = 0.05
    expires_days: float = 7.0
    clock_s: float = 30.0


@dataclass(frozen=True)
class Newest:
    """The newest signal line. Times in epoch milliseconds: its bar's open, and of writing it."""

    bar: int
    written: int
    tf: str


@dataclass(frozen=True)
class Facts:
    """What one look saw; times are epoch seconds. None, or empty: not known.

    changing: a deploy, a provision or a change of the flag is at work, so nothing about the service
    means much. committed: when the newest release was. unit: of several instances the one that does
    not run, which `process` is of then. restarts: by systemd in the last hour. restarted: of
    several instances, by unit how often since a deploy or somebody started it.
    health: the service's answer, or {"unreachable": why}. rollback: the release that a rollback
    goes to. service: service.json. guard: as `guard_of` answers. pending: the pending activation's
    number, started and whether a process is at it. synchronised: what systemd says of the clock,
    and `keeps` whether a time service is on. offset_s: of this clock against the web server that
    answered last, positive where ours is ahead. bars_end: the last bar of the live release's
    training. features: how the newest block of bars lies against training's, None where the release
    doesn't say. signals: where an application of the team's own logs its signals, "" where the
    inventory doesn't say, None for the built-in one; `written` is when it last wrote there. unread:
    what could not be looked at, and why.
    """

    now: float
    live: str | None = None
    changing: bool = False
    committed: float | None = None
    process: Process | None = None
    unit: str = ""
    restarts: int = 0
    restarted: Mapping[str, int] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    rollback: str | None = None
    service: Mapping[str, Any] = field(default_factory=dict)
    newest: Newest | None = None
    disk: Disk | None = None
    expires: float | None = None
    identity: str = ""
    allowed_signers: str = ""
    guard: str = "none"
    unjudged: str = ""
    pending: Mapping[str, Any] | None = None
    synchronised: bool | None = None
    keeps: bool | None = None
    offset_s: float | None = None
    bars_end: datetime | None = None
    features: Drift | None = None
    signals: str | None = None
    written: float | None = None
    unread: Sequence[str] = ()

    @property
    def beat(self) -> int | None:
        """What changes with each new bar, or line of an own application; None: none came yet."""
        if self.newest is not None:
            return self.newest.bar
        return None if self.written is None else round(self.written * 1000)


Condition = Callable[[Facts, Terms], Alarm | None]


def is_meant_to_run(facts: Facts) -> bool:
    """Nothing runs before the first deploy, nor where somebody disabled or masked the unit."""
    process = facts.process
    is_off = process is not None and process.enabled in OFF
    return facts.live is not None and not is_off


def service(facts: Facts, terms: Terms) -> Alarm | None:
    """It does not run, does not answer, or says itself that it is not well."""
    if not is_meant_to_run(facts):
        return None
    process = facts.process
    if facts.changing or process is None or not process.active:
        return UNKNOWN
    # Without its name the newest release would go live, which may be one that was rolled back.
    restart = f"invoke doctor; invoke deploy --restart --release {facts.live}"
    if process.active != "active":
        how = f"{process.active} ({process.result or process.sub or '-'})"
        manager = "systemctl --user" if terms.scope == "user" else "systemctl"
        unit = facts.unit.removesuffix(".service") or terms.unit
        stop = f"meant to be stopped? on the host: {manager} disable {unit}"
        back = ", or invoke rollback" if facts.rollback else ""
        return Alarm(f"{facts.unit or 'the service'} is {how}", f"{restart}{back}; {stop}")
    health = facts.health
    if "unreachable" in health:
        return Alarm(f"the service does not answer: {health['unreachable']}", restart)
    if health.get("status") not in ("ok", None):
        said = f"{health['status']}: {health.get('last_error') or 'no reason given'}"
        return Alarm(f"the service says {said}", f"invoke doctor; invoke logs{_or_back(facts)}")
    return None if health.get("status") == "ok" else UNKNOWN


def _or_back(facts: Facts) -> str:
    return "; invoke rollback" if facts.rollback else ""


def restarting(facts: Facts, _: Terms) -> Alarm | None:
    """It ends again and again, and systemd starts it again: between two crashes it looks well."""
    if not is_meant_to_run(facts) or facts.restarts < _MANY_RESTARTS:
        return None
    text = f"systemd restarted the service {facts.restarts} times within an hour"
    shown = f"invoke doctor shows its last words{_or_back(facts)}"
    if most := sorted(facts.restarted, key=lambda unit: -facts.restarted[unit])[:_MOST_NAMED]:
        counts = ", ".join(f"{unit} {facts.restarted[unit]}" for unit in most)
        text += f" (of each since a deploy or a start by hand: {counts})"
        shown = f"invoke logs --unit {most[0].removesuffix('.service')}{_or_back(facts)}"
    return Alarm(text, shown)


def silent(facts: Facts, terms: Terms) -> Alarm | None:
    """No bar for so many bars. A start counts as a bar: the first one takes as long to come."""
    feed = facts.service.get("feed")
    if not is_meant_to_run(facts) or not terms.silent_bars or facts.signals == "":
        return None
    if facts.signals is not None:
        return UNKNOWN if facts.changing else _writes_nothing(facts, terms)
    if facts.changing or not isinstance(feed, Mapping):
        return UNKNOWN
    state, _ = _feed_of(facts.health)
    if _is_replayed(facts, facts.health):
        return None
    bar = None if facts.newest is None else facts.newest.bar / 1000
    age, allowed = _quiet_s(facts, facts.health, bar), _quiet_allowed_s(facts, terms)
    if age is None or not allowed:
        return UNKNOWN
    text = f"no bar for {lasting(age)}" + (f"; the feed is {state}" if state else "")
    alarm = Alarm(text, "invoke doctor; invoke logs --grep feed")
    return alarm if age > allowed else _behind(facts, terms)


def _is_replay(facts: Facts) -> bool:
    feed = facts.service.get("feed")
    return isinstance(feed, Mapping) and feed.get("kind") == "replay"


def _is_replayed(facts: Facts, health: Mapping[str, Any]) -> bool:
    """Whether what was to be replayed has been."""
    return _is_replay(facts) and _feed_of(health)[0].startswith("at the end")


def _quiet_s(facts: Facts, health: Mapping[str, Any], bar: float | None) -> float | None:
    """How long no bar came to a process. bar: the open of its newest one, in epoch seconds.

    A replay's bars are of another time than ours: when one came counts.
    """
    _, arrived = _feed_of(health)
    if not _is_replay(facts):
        arrived = None if bar is None else bar + step_ms(str(facts.service.get("tf"))) / 1000
    known = [at for at in (arrived, epoch_of(health.get("started"))) if at is not None]
    return facts.now - max(known) if known else None


def _quiet_allowed_s(facts: Facts, terms: Terms) -> float:
    if not _is_replay(facts):
        return terms.silent_bars * step_ms(str(facts.service.get("tf"))) / 1000
    speed = facts.service["feed"].get("speed")
    every = 1 / speed if isinstance(speed, (int, float)) and speed > 0 else 0.0
    return max(terms.silent_bars * every, _GRACE_S)


def _behind(facts: Facts, terms: Terms) -> Alarm | None:
    """Of a service of several symbols, those whose bars have stopped while others' come.

    In one process they share its time. An instance goes at its own pace, and is looked at alone.
    """
    symbols = facts.health.get("symbols")
    newest = epoch_of(facts.health.get("last_bar"))
    if not isinstance(symbols, Mapping) or newest is None:
        return None
    allowed = terms.silent_bars * step_ms(str(facts.service.get("tf"))) / 1000
    silent, hint = [], "invoke logs --grep bars_stopped; "
    for name, said in symbols.items():
        last = epoch_of(said.get("last_bar")) if isinstance(said, Mapping) else None
        if isinstance(said, Mapping) and "started" in said:
            quiet = _quiet_s(facts, said, last) or 0.0
            is_silent = quiet > _quiet_allowed_s(facts, terms) and not _is_replayed(facts, said)
            hint = ""
        elif last is None:
            is_silent = isinstance(said, Mapping) and said.get("stopped") is True
        else:
            is_silent = newest - last > allowed
        if is_silent:
            silent.append(str(name))
    if not silent:
        return None
    named = ", ".join(sorted(silent)[:_MOST_NAMED])
    more = f" and {len(silent) - _MOST_NAMED} more" if silent[_MOST_NAMED:] else ""
    return Alarm(
        f"no bar of {named}{more}, while other symbols' bars come",
        f"{hint or 'invoke logs --unit ' + min(silent) + '; '}"
        "invoke status has a row for each symbol",
    )


def _writes_nothing(facts: Facts, terms: Terms) -> Alarm | None:
    """No line of an application's own for so many bars; going live counts as one."""
    allowed = terms.silent_bars * step_ms(str(facts.service.get("tf"))) / 1000
    known = [at for at in (facts.written, facts.committed) if at is not None]
    if not known or not allowed:
        return UNKNOWN
    age = facts.now - max(known)
    text = f"no new line in {facts.signals} for {lasting(age)}"
    return Alarm(text, "invoke doctor; invoke logs") if age > allowed else None


def left_out(service: Service) -> list[str]:
    """What can't be looked at of an application of the team's own, in words."""
    if not service.name:
        return []
    said = ["not checked, since only the built-in application reports it: features, old"]
    if service.signals is None:
        said.append("not checked, since the inventory names no signals: silent, the heartbeat")
    return said


def disk(facts: Facts, terms: Terms) -> Alarm | None:
    """Bytes or files of the application's file system."""
    seen = facts.disk
    if not terms.disk_free:
        return None
    if seen is None:
        return UNKNOWN
    shares = {"of the disk": seen.free / seen.total if seen.total else 1.0}
    if seen.inodes >= 0 and seen.all_inodes > 0:
        shares["of its inodes"] = seen.inodes / seen.all_inodes
    low = [f"{share:.1%} {of} is free" for of, share in shares.items() if share < terms.disk_free]
    hint = "make room on the host: old logs in data/live (after invoke logs), release.keep"
    return Alarm(f"{' and '.join(low)} at {seen.at}", hint) if low else None


def expires(facts: Facts, terms: Terms) -> Alarm | None:
    """The live release: once it has expired it can't be deployed again."""
    if facts.live is None or not terms.expires_days:
        return None
    if facts.expires is None:
        return UNKNOWN
    left = facts.expires - facts.now
    if left > terms.expires_days * DAY_S:
        return None
    word = f"expires in {lasting(left)}" if left > 0 else "has expired"
    text = f"the live release {word} ({_day(facts.expires)}); then it goes on serving, "
    text += "but can't be deployed again"
    return Alarm(text, "invoke train, invoke release, invoke deploy")


def key(facts: Facts, terms: Terms) -> Alarm | None:
    """The last key of a purpose that this host takes; with a newer one the change was made."""
    if not terms.expires_days or not facts.allowed_signers:
        return None
    ends = {
        purpose: _last_end(facts.allowed_signers, facts.identity, namespace)
        for purpose, namespace in (("releases", RELEASE_NAMESPACE), ("gate", GATE_NAMESPACE))
    }
    soon = [
        f"the key for {'gate reports' if purpose == 'gate' else purpose} "
        f"{'expires' if end > facts.now else 'expired'} {_day(end)}"
        for purpose, end in ends.items()
        if end is not None and end - facts.now <= terms.expires_days * DAY_S
    ]
    hint = "add the new key to allowed_signers, then: invoke provision"
    return Alarm("; ".join(soon), hint) if soon else None


def clock(facts: Facts, terms: Terms) -> Alarm | None:
    """Off against a web server; or not synchronised, though it should be or bars seem to be late.

    A guest whose host keeps its clock is not synchronised either, and right.
    """
    if not terms.clock_s:
        return None
    hint = "on the host: timedatectl; timedatectl set-ntp true"
    offset = facts.offset_s
    if offset is not None and abs(offset) > terms.clock_s:
        way = "ahead of" if offset > 0 else "behind"
        return Alarm(f"the clock is {abs(offset):.0f} s {way} a web server's", hint)
    if facts.synchronised is False and facts.keeps:
        return Alarm("the time service is on, but the clock is not synchronised", hint)
    late = _late_s(facts)
    if facts.synchronised is False and late > terms.clock_s:
        text = (
            f"the clock is not synchronised, and the newest bar came {late:.0f} s after its close"
        )
        return Alarm(text, hint)
    return UNKNOWN if facts.synchronised is None and offset is None else None


def guard(facts: Facts, _: Terms) -> Alarm | None:
    """Of the live release, while stacking decides."""
    if facts.guard == "dead":
        text = "stacking decides, and its guard is dead"
        return Alarm(text, "invoke disable-stacking; then invoke shadow-gate, enable-stacking")
    if facts.guard == "failing":
        text = "stacking is not safe, and the guard could not disable it yet"
        return Alarm(text, "invoke disable-stacking")
    if facts.unjudged:
        return Alarm(f"stacking decides, its guard {facts.unjudged}", "invoke logs; invoke monitor")
    return None


def pending(facts: Facts, _: Terms) -> Alarm | None:
    """An activation that neither ends nor is carried on by a process."""
    at = facts.pending
    if at is None:
        return None
    age = facts.now - float(at["started"])
    if at["runner"] and age <= _PENDING_S:
        return None
    who = "" if at["runner"] else ", and no process is at it"
    text = f"activation {at['number']} is pending for {lasting(age)}{who}"
    return Alarm(text, "invoke status; the next invoke deploy ends it")


def old(facts: Facts, _: Terms) -> Alarm | None:
    """The live models' age against service.max_age_days; a replay's bars are of their own time."""
    feed, most = facts.service.get("feed"), facts.service.get("max_age_days")
    if facts.live is None or not isinstance(feed, Mapping) or feed.get("kind") == "replay":
        return None
    if not isinstance(most, (int, float)) or not 0 < most < math.inf:
        return None
    if facts.bars_end is None:
        return UNKNOWN
    age = age_of(facts.bars_end, datetime.fromtimestamp(facts.now, UTC), most)
    hint = "invoke train on newer bars, invoke release, invoke deploy"
    return Alarm(age.text, hint) if age.text else None


def features(facts: Facts, _: Terms) -> Alarm | None:
    """The models see what they were not trained on. Blocks of bars are judged: it takes a while."""
    seen = facts.features
    if facts.live is None or seen is None or seen.outcome != DRIFT:
        return None
    hint = "invoke logs --grep ml_feature; train on newer bars, then release and deploy"
    return Alarm(f"drift: {seen.text}", hint)


def look(facts: Facts, _: Terms) -> Alarm | None:
    """Something that should be looked at could not be."""
    if not facts.unread:
        return None
    return Alarm(f"could not look at {'; '.join(facts.unread)}"[:500], "invoke doctor")


CONDITIONS: Mapping[str, Condition] = {
    "service": service,
    "restarting": restarting,
    "silent": silent,
    "disk": disk,
    "expires": expires,
    "key": key,
    "clock": clock,
    "guard": guard,
    "pending": pending,
    "old": old,
    "features": features,
    "look": look,
}


def judge(facts: Facts, terms: Terms) -> dict[str, Alarm | None]:
    """Every condition's answer, by name."""
    return {name: condition(facts, terms) for name, condition in CONDITIONS.items()}


def _feed_of(health: Mapping[str, Any]) -> tuple[str, float | None]:
    """The feed's state, and when a bar last came; "" and None where the service says neither."""
    feed = health.get("feed")
    if not isinstance(feed, Mapping):
        return "", None
    arrived = feed.get("last_arrival")
    return str(feed.get("state", "")), arrived if isinstance(arrived, (int, float)) else None


def _late_s(facts: Facts) -> float:
    """How long after its close, by our clock, the newest line's bar was written; 0 of a replay."""
    newest, feed = facts.newest, facts.service.get("feed")
    if newest is None or not isinstance(feed, Mapping) or feed.get("kind") == "replay":
        return 0.0
    return (newest.written - newest.bar - step_ms(newest.tf)) / 1000


_OPTION = re.compile(r'([A-Za-z-]+)(?:="([^"]*)")?(?:,|$)')
_STAMP = re.compile(r"(\d{8})(\d{4}(?:\d{2})?)?(Z?)")


def _last_end(signers: str, identity: str, namespace: str) -> float | None:
    """When the last key ends that may sign so: None where one has no end, or there is no key.

    The format: ssh-keygen(1), ALLOWED SIGNERS.
    """
    ends = []
    for raw in signers.splitlines():
        words = raw.split(maxsplit=2)
        if len(words) < 3 or raw.startswith("#"):
            continue
        if not any(fnmatch.fnmatchcase(identity, p) for p in words[0].split(",")):
            continue
        said = {name.lower(): value for name, value in _OPTION.findall(words[1])}
        spaces = said.get("namespaces")
        if spaces and not any(fnmatch.fnmatchcase(namespace, p) for p in spaces.split(",")):
            continue
        ends.append(_stamp(said.get("valid-before", "")))
    known = [end for end in ends if end is not None]
    return max(known) if ends and len(known) == len(ends) else None


def _stamp(text: str) -> float | None:
    """YYYYMMDD[HHMM[SS]][Z] as epoch seconds; without Z in this host's timezone, as OpenSSH."""
    match = _STAMP.fullmatch(text)
    if match is None:
        return None
    day, clock_, zone = match.groups()
    try:
        moment = datetime.strptime(day + (clock_ or "0000").ljust(6, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC).timestamp() if zone else time.mktime(moment.timetuple())


def epoch_of(text: object) -> float | None:
    """Seconds since the epoch of an ISO 8601 time; None without a zone, and for anything else."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


def lasting(seconds: float) -> str:
    """How long, for people: `90 s`, `5 minutes`, `36 hours`."""
    for size, unit in ((DAY_S, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _day(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%MZ}"
