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
    """Whether a line of `drift` is about the units."""
    return text.endswith(_CHANGED) or _OVERRIDES in text or text.startswith(_NOT_READ)


def drift(state: HostState, wanted: Desired) -> list[str]:
    """What is on the host that neither the code nor a deploy put there."""
    if not state.exists:
        return []
    differences = []
    if state.live:
        differences += [f"{name}{_CHANGED}" for name in _changed_units(state, wanted)]
        if not state.readiness.get("ready", True):
            differences.append(
                f"the live release is not as it was deployed: {state.readiness.get('why')}"
            )
        if state.live not in [entry["release"] for entry in state.history]:
            differences.append(f"{state.live} is live, but was never committed here")
        if state.process.get("active") != "active":
            differences.append(f"the service is {state.process.get('active') or 'unknown'}")
        answering = state.health.get("release")
        if answering not in (None, state.live):
            differences.append(f"the running process serves {answering}, not {state.live}")
    differences += _around_units(state, wanted)
    differences += [
        f"state/{name} is not the inventory's; invoke provision puts it there"
        for name in _foreign_trust(state, wanted)
    ]
    differences += _flag_drift(state, wanted)
    differences += [f"releases/{name} is nothing a deploy made" for name in state.foreign]
    differences += [f"releases/{name} is damaged: {why}" for name, why in state.damaged.items()]
    expected = {e["release"] for e in [*state.history, *state.bad]}
    if state.pending:
        expected.add(state.pending["to"])
    differences += [
        f"releases/{name} was never live here (an unfinished deploy; harmless)"
        for name in state.releases
        if name not in expected
    ]
    return differences


def _foreign_trust(state: HostState, wanted: Desired) -> list[str]:
    """Files that say whose releases count there, and that say something else than here."""
    names = []
    if wanted.allowed_signers not in (None, state.allowed_signers):
        names.append("allowed_signers")
    if wanted.revoked is not None:
        if (state.revoked or "") != wanted.revoked:
            names.append("revoked.krl")
        if state.accepts != wanted.identity.decode():
            names.append("accepts.json")
    return names


def _changed_units(state: HostState, wanted: Desired) -> list[str]:
    return [name for name, text in wanted.units.items() if state.units.get(name) != text]


def _around_units(state: HostState, wanted: Desired) -> list[str]:
    """What has a unit run otherwise than its file says."""
    differences = []
    for unit, beside in state.dropins.items():
        for dropin in beside:
            sets = f", sets {', '.join(dropin['sets'])}" if dropin["sets"] else ""
            differences.append(f"{dropin['path']}{_OVERRIDES}{unit}{sets}")
    reload = f"systemctl {'--user ' if wanted.scope == 'user' else ''}daemon-reload"
    return differences + [
        f"{_NOT_READ}{unit} as it stands on the disk: {reload} on the host"
        for unit in state.not_read
    ]


def about_stacking(said: Mapping[str, Any]) -> list[str]:
    """What is wrong with who decides. `said`: as macd/host/flag/guard_config.py answers, or {}."""
    if not said or said["changing"]:  # a flip or an activation puts it right by itself
        return []
    running, upcoming = said["running"], said["next"]
    differences = [
        f"{place['where']} sets {FLAG}={place['value']}; only .env may" for place in said["beside"]
    ]
    if said["unread"]:
        differences.append(f"systemd takes nothing from .env: {said['unread']}")
    if running not in (None, upcoming):
        differences.append(
            f"{_source(said)} says {FLAG}={upcoming}{_count(said)}, the process {running}"
        )
    if LIVE in (running, upcoming) and said["guard"] not in ("watches", "failing"):
        when = "decides" if running == LIVE else "will decide from the next start on,"
        lacking = "its guard is dead" if said["guard"] == "dead" else "no gate report and no guard"
        differences.append(f"stacking {when} without evidence: {lacking}")
    return differences


def _source(said: Mapping[str, Any]) -> str:
    places = [place["where"] for place in said["beside"] if place["value"] == said["next"]]
    in_file = said["in_file"][-1:] or ["0"]
    return ".env" if in_file[0] == said["next"] or not places else str(places[-1])


def _count(said: Mapping[str, Any]) -> str:
    count = len(said["in_file"])
    return "" if count < 2 else " (twice)" if count == 2 else f" ({count} times)"


def _flag_drift(state: HostState, wanted: Desired) -> list[str]:
    differences = about_stacking(state.stacking)
    if state.env is None:
        return [*differences, ".env is missing"]
    try:
        present = envfile.parse(state.env)
    except envfile.EnvFileError as error:
        unread = state.stacking.get("unread")
        return differences if unread else [*differences, f".env: {error}"]
    differences += [
        f".env: line {number} sets nothing, systemd passes over it"
        for number in state.stacking.get("passed_over", ())
    ]
    differences += [
        f".env holds {key}, which the inventory does not know"
        for key in present
        if key not in wanted.flags and key not in envfile.FLAGS
    ]
    for key, value in wanted.flags.items():
        if key != FLAG and present.get(key) != value:
            differences.append(
                f".env has not {key} as the inventory says; invoke provision sets it"
            )
    return differences


@dataclass(frozen=True)
class Diff:
    """How one text on the host would change; secrets are covered. `by`: deploy or provision."""

    name: str
    text: str
    by: str = "deploy"


def differing(state: HostState, wanted: Desired, *, new: bool) -> list[Diff]:
    """What a deploy changes beside the release, and what it leaves to provision.

    Args:
        new: another release goes live, and starts in shadow.
    """
    pairs = {name: (state.units.get(name), text) for name, text in wanted.units.items()}
    pairs["service.json"] = (state.service_settings, wanted.service_settings)
    diffs = [
        Diff(name, unified(before or "", after or "", name), _by(name, wanted))
        for name, (before, after) in pairs.items()
        if before != after
    ]
    if state.exists:
        diffs += _flags(state.env or "", wanted, new=new)
        signers = wanted.allowed_signers
        if signers not in (None, state.allowed_signers):
            name = "state/allowed_signers"
            text = unified(state.allowed_signers or "", signers or "", name)
            diffs.append(Diff(name, text, "provision"))
    return diffs


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
        differences = _of_variables(text, later)
        unseen = hidden(present, missing, envfile.FLAGS)
        yield Diff(".env", with_hidden(differences, unseen), "provision")


def _of_variables(before: str, after: str) -> str:
    """Which variables change; a value is shown of our own flags alone."""
    return unified(envfile.shown(before), envfile.shown(after), ".env", context=0)


def with_hidden(diff: str, keys: Sequence[str]) -> str:
    """A diff, and below it which variables change whose old and new values look the same there."""
    differences = f"values of {', '.join(keys)} change (hidden)" if keys else ""
    return "\n".join(part for part in (diff, differences) if part)


def unified(before: str, after: str, name: str, *, context: int = 3) -> str:
    """A unified diff without the two lines of file names' times.

    The real texts are compared, so that a secret that changes is seen to change.
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
