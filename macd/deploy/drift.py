"""What differs between a host and the inventory: as sentences (drift), and as diffs. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from macd.deploy.desired import Desired
from macd.deploy.state import HostState
from macd.host import envfile
from macd.host.flag.flag_file import DROPIN, FLAG, FULL, LIVE, WEIGHT, off
from macd.host.masking import hidden, masked_lines
from macd.host.own import BUILT_IN_FLAG, UNREADABLE, Flag, parse

_CHANGED = " was changed or is missing"
_NOT_ENABLED = " is not enabled, so a boot does not start it"
_OVERRIDES = " overrides "
_NOT_READ = "systemd has not read "


def is_about_units(text: str) -> bool:
    """Whether a line of `drift` is about the units."""
    ends = (_CHANGED, _NOT_ENABLED)
    return text.endswith(ends) or _OVERRIDES in text or text.startswith(_NOT_READ)


def drift(state: HostState, wanted: Desired) -> list[str]:
    """What is on the host that neither the code nor a deploy put there."""
    if not state.exists:
        return []
    differences = []
    if state.live:
        differences += [
            f"{name}{_NOT_ENABLED if _is_left_out(name, state, wanted) else _CHANGED}"
            for name in _changed_units(state, wanted)
        ]
        if not state.readiness.get("ready", True):
            differences.append(
                f"the live release is not as it was deployed: {state.readiness.get('why')}"
            )
        if state.live not in [entry["release"] for entry in state.history]:
            differences.append(f"{state.live} is live, but was never committed here")
        if state.process.get("active") != "active":
            differences.append(state.inactive)
        answering = state.health.get("release")
        if answering not in (None, state.live):
            differences.append(f"the running process serves {answering}, not {state.live}")
    differences += _around_units(state, wanted)
    differences += [
        f"state/{name} is not the inventory's; invoke provision puts it there"
        for name in _foreign_trust(state, wanted)
    ]
    differences += _flag_drift(state, wanted)
    differences += _broken_settings(state)
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


def _broken_settings(state: HostState) -> list[str]:
    """A service reads them when it starts, and it may still run by what they were."""
    try:
        parse(state.service_settings)
    except UNREADABLE as error:
        broken = f"service.json can't be understood ({type(error).__name__}: {error})"
        return [f"{broken[:200]}; invoke deploy writes it again"]
    return []


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
    """A host of an earlier version lacks what looks for alarms: no drift, provision adds it."""
    changed = [name for name, text in wanted.units.items() if state.units.get(name) != text]
    if state.alerts.get("checked"):
        return changed
    return [name for name in changed if state.units.get(name) or "-alerts." not in name]


def _is_left_out(name: str, state: HostState, wanted: Desired) -> bool:
    """Whether it is an instance whose template is as wanted, by others that are enabled."""
    is_there = state.units.get(name) is not None
    is_instance = name in state.health.get("units", {}) and "@" in name
    return is_instance and not is_there and wanted.units[name] in state.units.values()


def _around_units(state: HostState, wanted: Desired) -> list[str]:
    """What has a unit run otherwise than its file says."""
    differences = []
    for unit, beside in state.dropins.items():
        for dropin in beside:
            if unit == wanted.unit and _is_the_flags(dropin, wanted):
                continue
            sets = f", sets {', '.join(dropin['sets'])}" if dropin["sets"] else ""
            differences.append(f"{dropin['path']}{_OVERRIDES}{unit}{sets}")
    if state.alerts.get("installed") and not state.alerts["runs"]:
        differences.append(
            "nobody looks for alarms: the timer does not run; invoke provision starts it"
        )
    reload = f"systemctl {'--user ' if wanted.scope == 'user' else ''}daemon-reload"
    return differences + [
        f"{_NOT_READ}{unit} as it stands on the disk: {reload} on the host"
        for unit in state.not_read
    ]


def _is_the_flags(dropin: Mapping[str, Any], wanted: Desired) -> bool:
    """Whether the application's flag may be what this drop-in is there for."""
    flag = wanted.application.flag
    return flag is not None and flag.where == DROPIN and dropin["sets"] == ["Environment"]


def about_stacking(flag: Mapping[str, Any]) -> list[str]:
    """What is wrong with who decides. `flag`: as macd/host/flag/guard_config.py answers, or {}."""
    if not flag or flag["changing"]:  # a flip or an activation puts it right by itself
        return []
    running, upcoming = flag["running"], flag["next"]
    own = flag_in(flag)
    differences = [
        f"{place['where']} sets {own.name}={own.said(place['value'])}; only {own.place} may"
        for place in flag["beside"]
    ]
    if flag["unread"]:
        differences.append(f"systemd takes nothing from .env: {flag['unread']}")
    if running not in (None, upcoming):
        differences.append(
            f"{_source(flag)} says {own.name}={own.said(upcoming)}{_count(flag)}, "
            f"the process {own.said(running)}"
        )
    if LIVE in (running, upcoming):
        differences += _about_weight(flag)
    if LIVE in (running, upcoming) and flag["guard"] not in ("watches", "failing"):
        when = "decides" if running == LIVE else "will decide from the next start on,"
        lacking = "its guard is dead" if flag["guard"] == "dead" else "no gate report and no guard"
        differences.append(f"stacking {when} without evidence: {lacking}")
    return differences


def _about_weight(flag: Mapping[str, Any]) -> list[str]:
    """The same of the weight, where stacking decides or is about to."""
    weight = flag.get("weight")
    if weight is None:  # of an earlier version
        return []
    running, upcoming = weight["running"], weight["next"]
    differences = [
        f"{place['where']} sets {WEIGHT}={place['value']}; only .env may"
        for place in weight["beside"]
    ]
    for value, mode, whose in (
        (upcoming, flag["next"], "the next start"),
        (running, flag["running"], "the running process"),
    ):
        if value is None and mode == LIVE:
            differences.append(
                f"{WEIGHT} of {whose} is no whole number from 1 to 100: the service takes shadow"
            )
    if running and upcoming and running != upcoming:
        where = f".env says {WEIGHT}={upcoming}{_count(weight)}"
        differences.append(f"{where}, the process {running}")
    covered = weight["covered"]
    if flag["guard"] == "watches" and max(running or 0, upcoming or 0) > covered:
        does = f"stacking decides with {running} %"
        if (running or 0) <= covered:
            does = f"from the next start on stacking would decide with {upcoming} %"
        differences.append(f"{does}, its evidence is for {covered} %")
    return differences


def to_what_was_proved(flag: Mapping[str, Any], options: str = "") -> str:
    """The command that leaves stacking on with what there is evidence for."""
    weight = flag.get("weight")
    if not weight or flag["guard"] != "watches":
        return f"invoke shadow-gate{options}, then invoke enable-stacking{options}"
    return f"invoke enable-stacking --weight {weight['covered']}{options}"


def about_unknown_weight(flag: Mapping[str, Any], health: Mapping[str, Any]) -> list[str]:
    """That a service which was given a weight decides with all of stacking all the same."""
    answers = "release" in health and "stacking_weight" not in health
    is_lower = flag.get("weight") and flag["weight"]["running"] != FULL
    if flag.get("running") != LIVE or not is_lower or not answers:
        return []
    return [f"the live release knows no {WEIGHT}: stacking decides with 100 %"]


def flag_in(answer: Mapping[str, Any]) -> Flag:
    """The flag that an answer of `stacking_state` is about; an earlier version says its name."""
    if "flag" in answer:
        return Flag(**answer["flag"])
    return replace(BUILT_IN_FLAG, name=answer.get("name", FLAG))


def _source(flag: Mapping[str, Any]) -> str:
    if flag["in_file"][-1:] == [flag["next"]]:
        return ".env"
    places = [place["where"] for place in flag["beside"] if place["value"] == flag["next"]]
    return str(places[-1]) if places else flag_in(flag).place


def _count(flag: Mapping[str, Any]) -> str:
    count = len(flag["in_file"])
    return "" if count < 2 else " (twice)" if count == 2 else f" ({count} times)"


def _flag_drift(state: HostState, wanted: Desired) -> list[str]:
    differences = about_stacking(state.stacking)
    differences += about_unknown_weight(state.stacking, state.health)
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
        for key in (present if wanted.application.env_is_known else ())
        if key not in wanted.flags and key not in envfile.FLAGS
    ]
    for key, value in wanted.flags.items():
        if key not in off(wanted.application.flag) and present.get(key) != value:
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
    diffs = []
    short = alike([name for name, (before, _) in pairs.items() if before is None], wanted)
    first: dict[tuple[str | None, str | None], str] = {}
    for name, (before, after) in pairs.items():
        if before == after:
            continue
        like = first.setdefault((before, after), name)
        same = "" if like == name else f"{'new' if before is None else 'changes'}, as {like}"
        if after is None:
            same = "" if like == name else f"goes, as {like}"
        text = same or short.get(name) or unified(before or "", after or "", name)
        diffs.append(Diff(name, text, _by(name, wanted)))
    if state.exists:
        diffs += _flags(state.env or "", wanted, new=new)
        signers = wanted.allowed_signers
        if signers not in (None, state.allowed_signers):
            name = "state/allowed_signers"
            text = unified(state.allowed_signers or "", signers or "", name)
            diffs.append(Diff(name, text, "provision"))
    return diffs


def alike(new: Sequence[str], wanted: Desired) -> dict[str, str]:
    """Of units that are `new` and made of one template, all but the first: what differs from it."""
    described = wanted.application.units(wanted.unit.removesuffix(".service"))
    first: dict[str, str] = {}  # by template
    differences: dict[str, str] = {}
    for name, text in wanted.units.items():
        if name in new and name in described and text:
            like = first.setdefault(described[name].template, name)
            differences |= {} if like == name else {name: _beside(like, name, wanted)}
    return differences


def _beside(first: str, name: str, wanted: Desired) -> str:
    """A new unit by what differs from the first one."""
    lines = unified(wanted.units[first] or "", wanted.units[name] or "", name, context=0)
    return "\n".join([f"new, as {first} but for:", *lines.splitlines()[2:]])


def _by(name: str, wanted: Desired) -> str:
    return "deploy" if name in wanted.switched else "provision"


def _flags(text: str, wanted: Desired, *, new: bool) -> Iterator[Diff]:
    """Of .env only the lines that change: what else it holds is nobody's business here."""
    try:
        present = envfile.parse(text)
        in_shadow = off(wanted.application.flag)
        given = in_shadow.keys() & present.keys()  # provision sets them where they are not set yet
        missing = {k: v for k, v in wanted.flags.items() if present.get(k) != v and k not in given}
        later = envfile.with_values(text, missing)
        shadow = envfile.rewritten_text(text, in_shadow)
    except envfile.EnvFileError:
        return  # the drift says which line
    if new and any(present.get(key) != value for key, value in in_shadow.items()):
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
