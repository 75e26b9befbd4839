"""What differs between a host and the inventory: as sentences (drift), and as diffs. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macd.deploy.desired import SHADOW, Desired
from macd.deploy.state import HostState
from macd.host import envfile
from macd.host.flag.flag_file import FLAG, LIVE
from macd.host.masking import hidden, masked_lines

_CHANGED = " was changed or is missing"
_OVERRIDES = " overrides "
_NOT_READ = "systemd has not read "


def is_about_units(text: str) -> bool:
    """Whether a line of `drift` tells of the units."""
    return text.endswith(_CHANGED) or _OVERRIDES in text or text.startswith(_NOT_READ)


def drift(found: HostState, wanted: Desired) -> list[str]:
    """What stands on the host that neither the code nor a deploy has put there."""
    if not found.exists:
        return []
    told = []
    if found.live:
        told += [f"{name}{_CHANGED}" for name in _changed_units(found, wanted)]
        rehearsal = found.rehearsal
        if not rehearsal.get("ready", True):
            told.append(f"the live release is not as it was deployed: {rehearsal.get('why')}")
        if found.live not in [entry["release"] for entry in found.history]:
            told.append(f"{found.live} is live, but was never committed here")
        if found.process.get("active") != "active":
            told.append(f"the service is {found.process.get('active') or 'unknown'}")
        answering = found.health.get("release")
        if answering not in (None, found.live):
            told.append(f"the running process serves {answering}, not {found.live}")
    told += _around_units(found, wanted)
    told += [
        f"state/{name} is not the inventory's; invoke provision puts it there"
        for name in _foreign_trust(found, wanted)
    ]
    told += _flag_drift(found, wanted)
    told += [f"releases/{name} is nothing a deploy made" for name in found.foreign]
    told += [f"releases/{name} is damaged: {why}" for name, why in found.damaged.items()]
    known = {e["release"] for e in [*found.history, *found.bad]}
    if found.pending:
        known.add(found.pending["to"])
    told += [
        f"releases/{name} was never live here (an unfinished deploy; harmless)"
        for name in found.releases
        if name not in known
    ]
    return told


def _foreign_trust(found: HostState, wanted: Desired) -> list[str]:
    """Files that say whose releases count there, and that say something else than here."""
    told = []
    if wanted.allowed_signers not in (None, found.allowed_signers):
        told.append("allowed_signers")
    if wanted.revoked is not None:
        if (found.revoked or "") != wanted.revoked:
            told.append("revoked.krl")
        if found.accepts != wanted.identity.decode():
            told.append("accepts.json")
    return told


def _changed_units(found: HostState, wanted: Desired) -> list[str]:
    return [name for name, text in wanted.units.items() if found.units.get(name) != text]


def _around_units(found: HostState, wanted: Desired) -> list[str]:
    """What has a unit run otherwise than its file says."""
    told = []
    for unit, beside in found.dropins.items():
        for one in beside:
            sets = f", sets {', '.join(one['sets'])}" if one["sets"] else ""
            told.append(f"{one['path']}{_OVERRIDES}{unit}{sets}")
    reload = f"systemctl {'--user ' if wanted.scope == 'user' else ''}daemon-reload"
    return told + [
        f"{_NOT_READ}{unit} as it stands on the disk: {reload} on the host"
        for unit in found.not_read
    ]


def about_stacking(said: Mapping[str, Any]) -> list[str]:
    """What is wrong with who decides. `said`: as macd/host/flag/guard_config.py answers, or {}."""
    if not said or said["changing"]:  # a flip or an activation puts it right by itself
        return []
    running, upcoming = said["running"], said["next"]
    told = [f"{one['where']} sets {FLAG}={one['value']}; only .env may" for one in said["beside"]]
    if said["unread"]:
        told.append(f"systemd takes nothing from .env: {said['unread']}")
    if running not in (None, upcoming):
        told.append(f"{_source(said)} says {FLAG}={upcoming}{_count(said)}, the process {running}")
    if LIVE in (running, upcoming) and said["guard"] not in ("watches", "failing"):
        when = "decides" if running == LIVE else "will decide from the next start on,"
        lacking = "its guard is dead" if said["guard"] == "dead" else "no gate report and no guard"
        told.append(f"stacking {when} without evidence: {lacking}")
    return told


def _source(said: Mapping[str, Any]) -> str:
    places = [one["where"] for one in said["beside"] if one["value"] == said["next"]]
    in_file = said["in_file"][-1:] or ["0"]
    return ".env" if in_file[0] == said["next"] or not places else str(places[-1])


def _count(said: Mapping[str, Any]) -> str:
    count = len(said["in_file"])
    return "" if count < 2 else " (twice)" if count == 2 else f" ({count} times)"


def _flag_drift(found: HostState, wanted: Desired) -> list[str]:
    told = about_stacking(found.stacking)
    if found.env is None:
        return [*told, ".env is missing"]
    try:
        present = envfile.parse(found.env)
    except envfile.EnvFileError as error:
        unread = found.stacking.get("unread")
        return told if unread else [*told, f".env: {error}"]
    told += [
        f".env: line {number} sets nothing, systemd passes over it"
        for number in found.stacking.get("passed_over", ())
    ]
    told += [
        f".env holds {key}, which the inventory does not know"
        for key in present
        if key not in wanted.flags and key not in envfile.FLAGS
    ]
    for key, value in wanted.flags.items():
        if key != FLAG and present.get(key) != value:
            told.append(f".env has not {key} as the inventory says; invoke provision sets it")
    return told


@dataclass(frozen=True)
class Diff:
    """How one text on the host would change; secrets are covered. `by`: deploy or provision."""

    name: str
    text: str
    by: str = "deploy"


def differing(found: HostState, wanted: Desired, *, new: bool) -> list[Diff]:
    """What a deploy changes beside the release, and what it leaves to provision.

    Args:
        new: another release goes live, and starts in shadow.
    """
    pairs = {name: (found.units.get(name), text) for name, text in wanted.units.items()}
    pairs["service.json"] = (found.service_settings, wanted.service_settings)
    told = [
        Diff(name, unified(before or "", after or "", name), _by(name, wanted))
        for name, (before, after) in pairs.items()
        if before != after
    ]
    if found.exists:
        told += _flags(found.env or "", wanted, new=new)
        signers = wanted.allowed_signers
        if signers not in (None, found.allowed_signers):
            name = "state/allowed_signers"
            text = unified(found.allowed_signers or "", signers or "", name)
            told.append(Diff(name, text, "provision"))
    return told


def _by(name: str, wanted: Desired) -> str:
    return "deploy" if name in wanted.switched else "provision"


def _flags(text: str, wanted: Desired, *, new: bool) -> Iterator[Diff]:
    """Of .env only the lines that change: what else it holds is nobody's business here."""
    try:
        present = envfile.parse(text)
        kept = SHADOW.keys() & present.keys()  # provision sets them where they are not set yet
        missing = {k: v for k, v in wanted.flags.items() if present.get(k) != v and k not in kept}
        later = envfile.with_values(text, missing)
        shadow = envfile.with_values(text, SHADOW)
    except envfile.EnvFileError:
        return  # the drift says which line
    if new and any(present.get(key) != value for key, value in SHADOW.items()):
        yield Diff(".env", _of_variables(text, shadow))
    if missing:
        told = _of_variables(text, later)
        unseen = hidden(present, missing, envfile.FLAGS)
        yield Diff(".env", with_hidden(told, unseen), "provision")


def _of_variables(before: str, after: str) -> str:
    """Which variables change; a value is shown of our own flags alone."""
    return unified(envfile.shown(before), envfile.shown(after), ".env", context=0)


def with_hidden(diff: str, keys: Sequence[str]) -> str:
    """A diff, and below it which variables change whose old and new values look the same there."""
    told = f"values of {', '.join(keys)} change (hidden)" if keys else ""
    return "\n".join(part for part in (diff, told) if part)


def unified(before: str, after: str, name: str, *, context: int = 3) -> str:
    """A unified diff without the two lines of file names' times.

    What differs is told from the real texts, so that a secret that changes is seen to change.
    """
    covers: dict[str, str] = {}
    for text in (before, after):
        for line, cover in zip(text.splitlines(), masked_lines(text), strict=True):
            if line not in covers or cover != line:
                covers[line] = cover
    names = (f"{name} (host)", f"{name} (here)")
    both = (before.splitlines(), after.splitlines())
    lines = difflib.unified_diff(*both, *names, lineterm="", n=context)
    return "\n".join(line[:1] + covers.get(line[1:], line[1:]) for line in lines)
