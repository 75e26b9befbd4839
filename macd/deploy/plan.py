"""Decide what a deploy would do, from what is there and what should be: data in, data out.

Pure. It opens nothing, asks no clock, and is as printable as it is testable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from macd.deploy.candidate import Part, ReleaseCandidate, Unpacked
from macd.deploy.desired import Desired
from macd.deploy.drift import Diff, differing, drift
from macd.deploy.state import HostState
from macd.host import envfile
from macd.host.flag.flag_file import FLAG, LIVE
from macd.host.store import needs
from macd.sizes import size

# A new SSH connection and the agent's first answer take 6 (benchmarks/round_trips.py), the whole
# question included; stage and activate are asked together, right behind the data.
_UNTIL_LIVE = 7
_TO_CONFIRM = 6
_SPARE = 16 << 20  # as the host keeps free (macd/host/rpc/blobs.py)
_SPARE_FILES = 100  # of its state, its logs and the release's directories
_NOTHING = Unpacked()


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
    """What would be done to one host, and what is known about the way back; sizes in bytes."""

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
    unwell: str = ""  # why what is live does not serve well

    @property
    def empty(self) -> bool:
        """Nothing to do."""
        return not self.steps

    @property
    def restarts(self) -> bool:
        return "restart" in self.steps


def make(
    host: str,
    found: HostState,
    wanted: Desired,
    offer: ReleaseCandidate,
    *,
    now: float,
    restart: bool = False,
    unpacked: Unpacked = _NOTHING,
) -> Plan:
    """The plan for one host. `restart`: even if nothing differs.

    Args:
        now: epoch seconds, for the release's expiry.
        unpacked: what the runtime will take there, where it has to be built.
    """
    new = found.live != offer.id
    diffs = tuple(differing(found, wanted, new=new))
    changed = new or restart or any(diff.by == "deploy" for diff in diffs)
    lacking = [] if not changed else _lacking(found, offer)
    problems = _problems(found, wanted, offer, lacking, now)
    if changed and found.exists:
        problems += [*_no_room(found, lacking, unpacked), *_cannot_run(found, offer)]
    return Plan(
        host=host,
        live=found.live,
        release=offer.id,
        steps=tuple(_steps(found, offer, bool(lacking))) if changed else (),
        diffs=diffs,
        delta=tuple(_delta(found, offer)) if new else (),
        blobs=len(lacking),
        send_bytes=sum(part.size for part in lacking),
        wire_bytes=sum(part.wire for part in lacking),
        round_trips=(_UNTIL_LIVE + _TO_CONFIRM) if changed else _UNTIL_LIVE - 1,
        drift=tuple(drift(found, wanted)),
        notes=tuple(_notes(found, offer)) if changed else (),
        problems=tuple(problems),
        rollback=_way_back(found, new=new),
        unwell=found.unwell,
    )


def _steps(found: HostState, offer: ReleaseCandidate, sends: bool) -> list[str]:
    steps = ["send"] if sends else []
    if offer.lock not in found.runtimes:
        steps.append("build runtime")
    return [*steps, "stage", "check", "switch", "restart", "soak", "confirm", "commit"]


def _lacking(found: HostState, offer: ReleaseCandidate) -> list[Part]:
    offsets = {sha256: have for sha256, have in found.missing}
    parts = {p.sha256: p for p in offer.parts if p.sha256 in offsets}
    if offer.lock in found.runtimes:
        files = {p.sha256 for p in offer.files}
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


def _delta(found: HostState, offer: ReleaseCandidate) -> list[Delta]:
    before = {path: sha256 for path, _, sha256 in found.live_files}
    sizes = {path: size for path, size, _ in found.live_files}
    rows = []
    for part in offer.files:
        how = "new" if part.path not in before else "changed"
        if before.get(part.path) == part.sha256:
            how = "same"
        rows.append(Delta(part.path, how, part.size))
    kept = {part.path for part in offer.files}
    return rows + [Delta(path, "gone", sizes[path]) for path in before if path not in kept]


def _notes(found: HostState, offer: ReleaseCandidate) -> list[str]:
    told = [
        f"releases/{name} on the host is damaged, nothing can go back to it: {why}"
        for name, why in found.damaged.items()
        if name != offer.id
    ]
    if found.live == offer.id:
        return [*told, f"the release stays, and so do its flags{_as_kept(found)}"]
    failed = [entry["reason"] for entry in found.bad if entry["release"] == offer.id]
    told += [f"this release failed on this host before: {reason}" for reason in failed]
    if found.stacking.get("next") == LIVE:
        told.append("stacking goes back to shadow: its evidence was about the release before")
    return told


def _as_kept(found: HostState) -> str:
    """What a restart makes of the flag that stands there."""
    if found.stacking.get("next") != LIVE:
        return ""
    if found.stacking["guard"] == "watches":
        return ": stacking goes on deciding"
    told = ": stacking will decide, without evidence (no gate report, no guard)"
    return f"{told}; invoke disable-stacking first, if that is not wanted"


def _problems(
    found: HostState, wanted: Desired, offer: ReleaseCandidate, lacking: Sequence[Part], now: float
) -> list[Problem]:
    if not found.exists:
        return [Problem("the host is not provisioned", "invoke provision")]
    told = _occupied(found)
    if found.agent_archive != wanted.agent_archive:
        told.append(Problem("bin/macd-host.pyz is not of this version", "invoke provision"))
    for name in ("app", "env"):
        made_for, here = getattr(offer, name), wanted.accepts[name]
        if made_for != here:
            told.append(Problem(f"it was made for {name} {made_for}, this host is {here}"))
    if offer.expires < now:
        told.append(Problem("the release has expired", "invoke release makes a new one"))
    highest = found.serial.get("serial", 0)
    replayed = offer.serial < highest or (
        offer.serial == highest and found.serial.get("release") != offer.id
    )
    if replayed and offer.id != found.live:  # a newer one that failed forbids no restart
        what = f"its serial {offer.serial} is not above {highest}, which was seen here before"
        told.append(Problem(what, "older releases come back by invoke rollback"))
    if offer.id != found.live:
        told += _flags_refused(found)
        told += [
            Problem(
                f"it would not start in shadow: {one['where']} sets {FLAG}=1 and wins over .env",
                "take it out there, on the host",
            )
            for one in found.stacking.get("beside", ())[-1:]
            if one["value"] == found.stacking["next"] == LIVE
        ]
    return told + _cannot_fit(found, offer, lacking)


def _flags_refused(found: HostState) -> list[Problem]:
    """What the host would say of its flags file (macd/host/deploy/operations.py)."""
    try:
        envfile.parse(found.env or "")
    except envfile.EnvFileError as error:
        what = f"the flags file on the host can't be understood: .env: {error}"
        return [Problem(what, "mend that line on the host")]
    return []


def _occupied(found: HostState) -> list[Problem]:
    told = []
    if found.lock:
        told.append(Problem(f"the deploy lock is held: {found.held}", "wait for it"))
    if found.pending and found.pending.get("runner"):
        at = f"activation {found.pending['number']} is under way ({found.pending['state']})"
        told.append(Problem(at, "invoke deploy --attach follows it"))
    return told


def _cannot_fit(
    found: HostState, offer: ReleaseCandidate, lacking: Sequence[Part]
) -> list[Problem]:
    told = []
    if offer.wheels and offer.python and offer.python != found.python.get("version"):
        what = f"locked for Python {offer.python}, the host has {found.python.get('version')}"
        told.append(Problem(what, "invoke release locks for the host's Python"))
    if offer.lacks:
        what = f"it was made without {', '.join(offer.lacks)}, which the service's feed needs"
        told.append(Problem(what, "invoke release makes one for the feed of the inventory"))
    unsendable = [part.path for part in lacking if part.source is None]
    if unsendable and any(part.source for part in offer.parts):
        what = f"wheels that neither the host nor this machine has: {', '.join(unsendable)}"
        told.append(Problem(what, "invoke release makes the lock and its wheels again"))
    return told


def _no_room(found: HostState, lacking: Sequence[Part], unpacked: Unpacked) -> list[Problem]:
    told = []
    receive = sum(part.size for part in lacking)
    if not receive + unpacked.size:  # a restart takes next to nothing
        return []
    needed = receive + unpacked.size + _SPARE
    if needed > found.free:
        runtime = f", {size(unpacked.size)} for the unpacked runtime" if unpacked.size else ""
        what = f"{size(found.free)} are free at {found.app}, {size(needed)} are needed: "
        what += f"{size(receive)} to receive{runtime}, {size(_SPARE)} to spare"
        told.append(Problem(what, f"make room there: {size(needed - found.free)} more"))
    files = len(lacking) + unpacked.files + _SPARE_FILES
    if 0 <= found.free_inodes < files:
        what = f"{found.free_inodes} inodes are free at {found.app}, {files} are needed"
        hint = "remove files there (df -i), or put app_dir on a file system with more inodes"
        told.append(Problem(what, hint))
    return told


def _cannot_run(found: HostState, offer: ReleaseCandidate) -> list[Problem]:
    told = []
    if found.noexec:
        at = f"{found.app} is mounted noexec (at {found.noexec})"
        told.append(
            Problem(
                f"{at}: no library of the runtime can be loaded there",
                needs.REMOUNT.format(found.noexec),
            )
        )
    for one in found.lacks:
        if one["needed"] or one.get("module") in offer.imports:
            hint = f"apt-get install {one['package']} on the host"
            told.append(Problem(f"the host has no {one['name']}", hint))
    return told


def _way_back(found: HostState, *, new: bool) -> Mapping[str, Any]:
    """Where a failed or regretted change would lead: what is live now, or its predecessor."""
    return found.rehearsal if new and found.live else found.rollback
