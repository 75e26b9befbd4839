"""Decide what a deploy would do, from what is there and what should be: data in, data out.

Pure. It reads no file and no clock, and is as printable as it is testable.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from macd.deploy.candidate import Part, ReleaseCandidate, Unpacked
from macd.deploy.desired import Desired, serving
from macd.deploy.drift import Diff, differing, drift, flag_in
from macd.deploy.state import HostState
from macd.host import envfile
from macd.host.flag.flag_file import LIVE
from macd.host.own import titled
from macd.host.store import runtimes
from macd.host.store.age import age_of
from macd.host.systemd import namespaces, selinux
from macd.sizes import size

# A new SSH connection and the agent's first answer take 6 (benchmarks/round_trips.py), the whole
# question included; stage and activate are asked together, right behind the data.
_UNTIL_LIVE = 7
_TO_CONFIRM = 6
_SPARE = 16 << 20  # as the host keeps free (macd/host/rpc/blobs.py)
_SPARE_FILES = 100  # of its state, its logs and the release's directories
_NOTHING = Unpacked()
MARKET, COPY = "market", "copy"  # what may be accepted
_OTHER_MARKET = (
    "service.feed.exchange: the one it was trained on; or train on bars of the feed's market "
    "(invoke data.fetch); if it is meant so: --accept market"
)


@dataclass(frozen=True)
class Delta:
    """One file of the new release against the live one: new, changed, same or gone."""

    path: str
    how: str
    size: int


@dataclass(frozen=True)
class Problem:
    """Why the host would refuse, and what to do about it."""

    what: str
    hint: str = ""


@dataclass(frozen=True)
class Plan:
    """What would be done to one host, and whether it could be rolled back; sizes in bytes."""

    host: str
    live: str | None
    release: str
    steps: Sequence[str] = ()
    diffs: Sequence[Diff] = ()
    delta: Sequence[Delta] = ()
    blobs: int = 0
    send_bytes: int = 0
    wire_bytes: int = 0
    round_trips: int = 0
    drift: Sequence[str] = ()
    notes: Sequence[str] = ()
    problems: Sequence[Problem] = ()
    rollback: Mapping[str, Any] = field(default_factory=dict)
    unhealthy: str = ""  # why what is live does not serve well

    @property
    def empty(self) -> bool:
        """Nothing to do."""
        return not self.steps

    @property
    def restarts(self) -> bool:
        return "restart" in self.steps


def make(
    host: str,
    current: HostState,
    desired: Desired,
    candidate: ReleaseCandidate,
    *,
    now: float,
    restart: bool = False,
    unpacked: Unpacked = _NOTHING,
    accept: Collection[str] = (),
) -> Plan:
    """The plan for one host. `restart`: even if nothing differs.

    Args:
        accept: what is no reason to refuse: MARKET, another market than the trained one; COPY, a
            process that runs the same command.
        now: epoch seconds, for the release's expiry.
        unpacked: what the runtime will take there, where it has to be built.
    """
    new = current.live != candidate.id
    diffs = tuple(differing(current, desired, new=new))
    changed = new or restart or any(diff.by == "deploy" for diff in diffs)
    lacking = [] if not changed else _lacking(current, candidate)
    problems = _problems(current, desired, candidate, lacking, now)
    market, about_market = _market(desired, candidate, accepted=MARKET in accept)
    copies, about_copies = _by_hand(current, accepted=COPY in accept)
    problems += [*market, *copies] if changed else []
    if changed and current.exists:
        problems += [
            *_no_room(current, lacking, unpacked),
            *_cannot_run(current, desired, candidate),
        ]
    return Plan(
        host=host,
        live=current.live,
        release=candidate.id,
        steps=tuple(_steps(current, candidate, bool(lacking))) if changed else (),
        diffs=diffs,
        delta=tuple(_delta(current, candidate)) if new else (),
        blobs=len(lacking),
        send_bytes=sum(part.size for part in lacking),
        wire_bytes=sum(part.wire for part in lacking),
        round_trips=(_UNTIL_LIVE + _TO_CONFIRM) if changed else _UNTIL_LIVE - 1,
        drift=tuple(drift(current, desired)),
        notes=(
            *_notes(current, candidate),
            *([desired.unconfined] if desired.unconfined else ()),
            *about_market,
            *about_copies,
            *_aged(desired, candidate, now),
        )
        if changed
        else (),
        problems=tuple(problems),
        rollback=_rollback_target(current, new=new),
        unhealthy=current.unhealthy,
    )


def _steps(current: HostState, candidate: ReleaseCandidate, sends: bool) -> list[str]:
    steps = ["send"] if sends else []
    if candidate.lock not in current.runtimes:
        steps.append("build runtime")
    return [*steps, "stage", "check", "switch", "restart", "soak", "confirm", "commit"]


def _lacking(current: HostState, candidate: ReleaseCandidate) -> list[Part]:
    offsets = {sha256: have for sha256, have in current.missing}
    parts = {p.sha256: p for p in candidate.parts if p.sha256 in offsets}
    if candidate.lock in current.runtimes:
        files = {p.sha256 for p in candidate.files}
        parts = {sha256: part for sha256, part in parts.items() if sha256 in files}
    return [
        Part(
            part.path,
            part.size - offsets[sha256],
            sha256,
            round(part.wire * (1 - offsets[sha256] / max(1, part.size))),
            part.source,
        )
        for sha256, part in parts.items()
    ]


def _delta(current: HostState, candidate: ReleaseCandidate) -> list[Delta]:
    before = {path: sha256 for path, _, sha256 in current.live_files}
    sizes = {path: size for path, size, _ in current.live_files}
    rows = []
    for part in candidate.files:
        how = "new" if part.path not in before else "changed"
        if before.get(part.path) == part.sha256:
            how = "same"
        rows.append(Delta(part.path, how, part.size))
    remaining = {part.path for part in candidate.files}
    return rows + [Delta(path, "gone", sizes[path]) for path in before if path not in remaining]


def _notes(current: HostState, candidate: ReleaseCandidate) -> list[str]:
    notes = [f"the first deploy takes over: {current.adopted}"] if current.adopted else []
    notes += [
        f"releases/{name} on the host is damaged, nothing can go back to it: {why}"
        for name, why in current.damaged.items()
        if name != candidate.id
    ]
    if current.live == candidate.id:
        return [*notes, f"the release stays, and so do its flags{_as_kept(current)}"]
    failed = [entry["reason"] for entry in current.bad if entry["release"] == candidate.id]
    notes += [f"this release failed on this host before: {reason}" for reason in failed]
    if current.stacking.get("next") == LIVE:
        notes.append("stacking goes back to shadow: its evidence was about the release before")
    return notes


def _aged(desired: Desired, candidate: ReleaseCandidate, now: float) -> list[str]:
    """That its models are, or soon will be, too old to decide there."""
    if candidate.bars_end is None:
        return []
    moment = datetime.fromtimestamp(now, UTC)
    text = age_of(candidate.bars_end, moment, desired.max_age_days).text
    return [f"{text} (service.max_age_days)"] if text else []


def _as_kept(current: HostState) -> str:
    """What a restart makes of the flag that stands there."""
    if current.stacking.get("next") != LIVE:
        return ""
    if current.stacking["guard"] == "watches":
        return ": stacking goes on deciding"
    will = ": stacking will decide, without evidence (no gate report, no guard)"
    return f"{will}; invoke disable-stacking first, if that is not wanted"


def _problems(
    current: HostState,
    desired: Desired,
    candidate: ReleaseCandidate,
    lacking: Sequence[Part],
    now: float,
) -> list[Problem]:
    if not current.exists:
        return [Problem("the host is not provisioned", "invoke provision")]
    problems = _occupied(current)
    if current.agent_archive != desired.agent_archive:
        problems.append(Problem("bin/macd-host.pyz is not of this version", "invoke provision"))
    for name in ("app", "env"):
        made_for, here = getattr(candidate, name), desired.accepts[name]
        if made_for != here:
            problems.append(Problem(f"it was made for {name} {made_for}, this host is {here}"))
    problems += _other_application(current, desired, candidate)
    if (candidate.own or {}).get("name", "") == desired.application.name:
        problems += _other_symbol(desired, candidate)  # which of another application says nothing
    if candidate.expires < now:
        problems.append(Problem("the release has expired", "invoke release makes a new one"))
    highest = current.serial.get("serial", 0)
    replayed = candidate.serial < highest or (
        candidate.serial == highest and current.serial.get("release") != candidate.id
    )
    if replayed and candidate.id != current.live:  # a newer one that failed forbids no restart
        what = f"its serial {candidate.serial} is not above {highest}, which was seen here before"
        problems.append(Problem(what, "older releases come back by invoke rollback"))
    if candidate.id != current.live:
        problems += _flags_refused(current)
        flag = flag_in(current.stacking)
        problems += [
            Problem(
                f"it would not start in shadow: {place['where']} sets {flag.name}={flag.live} "
                f"and wins over {flag.place}",
                "take it out there, on the host",
            )
            for place in current.stacking.get("beside", ())[-1:]
            if place["value"] == current.stacking["next"] == LIVE
        ]
    return problems + _cannot_fit(current, candidate, lacking)


def _by_hand(current: HostState, *, accepted: bool) -> tuple[list[Problem], list[str]]:
    """Problems and notes: a second copy beside one that runs already would act twice."""
    problems, notes = [], []
    for one in current.by_hand:
        what = f"{one['command']} runs there already: pid {one['pid']} of {one['user']} in "
        what += f"{one['cwd']}, kept by {one['by']}"
        if one["apart"] or accepted:
            notes.append(what)
            continue
        hint = f"{one['do']}; where it is meant to run as well: --accept {COPY}"
        problems.append(Problem(f"{what}; the service would be its second copy", hint))
    return problems, notes


def _other_application(
    current: HostState, desired: Desired, candidate: ReleaseCandidate
) -> list[Problem]:
    """The release, the inventory and what the host has now are of one application, or refused."""
    app, made_for = desired.application, candidate.own or {}
    if (theirs := made_for.get("name", "")) != app.name:
        what = f"the release is of {titled(theirs)}, the inventory of {titled(app.name)}"
        hint = "name the inventory that it was made with (app: says which application)"
        return [Problem(what, hint)]
    if current.live and (current.details.get("own") or {}).get("name", "") != app.name:
        what = f"{current.live} is live here, which is not of {titled(app.name)}"
        hint = "one app_dir serves one application: give this one another, then invoke provision"
        return [Problem(what, hint)]
    problems = []
    for key, here, there in (
        ("writes", app.writes, made_for.get("writes", app.writes)),
        ("more", app.more, made_for.get("units", app.more)),
    ):
        if sorted(here) != sorted(there):
            listed = ", ".join(sorted(here)) or "none"
            what = f"serve.{key}: the inventory has {listed}; the release was made with "
            what += ", ".join(sorted(there)) or "none"
            problems.append(Problem(what, "invoke release makes one with what the inventory says"))
    if current.no_directory:
        what = f"{', '.join(current.no_directory)}: not a directory of {current.app}"
        problems.append(Problem(f"{what}, and the service writes it", "invoke provision makes it"))
    return problems


def _other_symbol(desired: Desired, candidate: ReleaseCandidate) -> list[Problem]:
    """The service is to watch a market that no model of the release was trained on.

    Or the release has several symbols, and nothing says that only some are to be served.
    """
    others = [name for name in desired.symbols if name not in candidate.serves]
    known = ", ".join(candidate.serves)
    if candidate.serves and others:
        what = f"its models know {known}, the service is to watch {', '.join(others)}"
        hint = f"service.symbol: one of these; or train with {others[0]} in train.panel"
        if len(desired.symbols) > 1:
            line = serving(desired.symbols, candidate.serves)
            hint = f"in the inventory, {line}; then invoke provision"
            hint += f"; or train {', '.join(others)} too"
        hint += ", and release"
        return [Problem(what, hint)]
    unserved = [name for name in candidate.several if name not in desired.symbols]
    if desired.symbols and unserved and not desired.symbols_are_named:
        what = f"it has models of {known}, the service would leave out {', '.join(unserved)}"
        hint = f"in the inventory, {serving(desired.symbols, candidate.several)}; then invoke "
        return [Problem(what, hint + f"provision; or train.symbols: [{known}]")]
    return []


def _market(
    desired: Desired, candidate: ReleaseCandidate, *, accepted: bool
) -> tuple[list[Problem], list[str]]:
    """Problems and notes: the bars to come, against those that the models were trained on."""
    market = desired.market
    if market is None:
        return [], []
    if candidate.tf and candidate.tf != market.tf:
        what = f"its models were trained on bars of {candidate.tf}, the service gets {market.tf}"
        return [Problem(what, "train.tf of the inventory: what the release was trained on")], []
    here = f"{market.exchange} {market.type}".strip()
    others, unknown = [], []
    for symbol in market.symbols:
        known = candidate.origin.get(symbol, {})
        trained = [known.get("exchange", ""), known.get("type", "")]
        pairs = list(zip(trained, (market.exchange, market.type), strict=True))
        if any(theirs and ours and theirs != ours for theirs, ours in pairs):
            whole = " ".join(word for word in (*trained, known.get("market", "")) if word)
            others.append(
                f"its {symbol} was trained on bars of {whole}, the service's feed is {here}"
            )
        elif not all(theirs and ours for theirs, ours in pairs):
            unknown.append(symbol)
    notes = []
    if unknown:
        whose = "the feed's files name no market" if not here else "its training bars name none"
        notes = [
            f"unknown whether {', '.join(unknown)} is of the market it was trained on: {whose}"
        ]
    if market.rests:
        notes.append(
            f"train.market is {market.rests}, and the service knows no market that rests: after n "
            "bars that never came its models are not asked for n bars (48 at most), the gate sees "
            "holes, and the alarm silent holds meanwhile"
        )
    if others and accepted:
        return [], [*(f"accepted: {what}" for what in others), *notes]
    return [Problem(what, _OTHER_MARKET) for what in others], notes


def _flags_refused(current: HostState) -> list[Problem]:
    """What the host would say of its flags file (macd/host/deploy/operations.py)."""
    try:
        envfile.parse(current.env or "")
    except envfile.EnvFileError as error:
        what = f"the flags file on the host can't be understood: .env: {error}"
        return [Problem(what, "mend that line on the host")]
    return []


def _occupied(current: HostState) -> list[Problem]:
    problems = []
    if current.lock:
        problems.append(Problem(f"the deploy lock is held: {current.lock_holder}", "wait for it"))
    if current.pending and current.pending.get("runner"):
        at = f"activation {current.pending['number']} is under way ({current.pending['state']})"
        problems.append(Problem(at, "invoke deploy --attach follows it"))
    return problems


def _cannot_fit(
    current: HostState, candidate: ReleaseCandidate, lacking: Sequence[Part]
) -> list[Problem]:
    problems = []
    if candidate.wheels and candidate.python and candidate.python != current.python.get("version"):
        what = f"locked for Python {candidate.python}, the host has {current.python.get('version')}"
        problems.append(Problem(what, "invoke release locks for the host's Python"))
    if candidate.lacks:
        what = f"it was made without {', '.join(candidate.lacks)}, which the service's feed needs"
        problems.append(Problem(what, "invoke release makes one for the feed of the inventory"))
    unsendable = [part.path for part in lacking if part.source is None]
    if unsendable and any(part.source for part in candidate.parts):
        what = f"wheels that neither the host nor this machine has: {', '.join(unsendable)}"
        problems.append(Problem(what, "invoke release makes the lock and its wheels again"))
    return problems


def _no_room(current: HostState, lacking: Sequence[Part], unpacked: Unpacked) -> list[Problem]:
    problems = []
    receive = sum(part.size for part in lacking)
    if not receive + unpacked.size:  # a restart takes next to nothing
        return []
    runtime = f", {size(unpacked.size)} for the unpacked runtime" if unpacked.size else ""
    app, apart = current.app, f"{current.app}/blobs, a file system of its own"
    for free, place, more, parts in (
        (current.free, app, unpacked.size, runtime),
        (current.blobs_free, apart, 0, ""),
    ):
        needed = receive + more + _SPARE
        if 0 <= free < needed:
            what = f"{size(free)} are free at {place}, {size(needed)} are needed: "
            what += f"{size(receive)} to receive{parts}, {size(_SPARE)} to spare"
            problems.append(Problem(what, f"make room there: {size(needed - free)} more"))
    files = len(lacking) + unpacked.files + _SPARE_FILES
    if 0 <= current.free_inodes < files:
        what = f"{current.free_inodes} inodes are free at {current.app}, {files} are needed"
        hint = "remove files there (df -i), or put app_dir on a file system with more inodes"
        problems.append(Problem(what, hint))
    return problems


def _cannot_run(current: HostState, desired: Desired, candidate: ReleaseCandidate) -> list[Problem]:
    problems = []
    if current.noexec:
        at = f"{current.app} is mounted noexec (at {current.noexec})"
        problems.append(
            Problem(
                f"{at}: no library of the runtime can be loaded there",
                runtimes.REMOUNT.format(current.noexec),
            )
        )
    if what := current.unprotected(desired.hardening):
        problems.append(Problem(what, namespaces.REMEDY))
    if current.selinux:
        problems.append(Problem(current.selinux, selinux.REMEDY))
    for need in current.lacks:
        if need["needed"] or need.get("module") in candidate.imports:
            hint = f"apt-get install {need['package']} on the host"
            problems.append(Problem(f"the host has no {need['name']}", hint))
    return problems


def _rollback_target(current: HostState, *, new: bool) -> Mapping[str, Any]:
    """Where a failed or regretted change would lead: what is live now, or its predecessor."""
    return current.readiness if new and current.live else current.rollback
