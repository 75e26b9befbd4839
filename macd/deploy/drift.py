"""Tell what stands on a host that neither the code nor a deploy has put there. Pure."""

from __future__ import annotations

from macd.deploy.desired import Desired
from macd.deploy.state import HostState
from macd.host import envfile

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


def _flag_drift(found: HostState, wanted: Desired) -> list[str]:
    if found.env is None:
        return [".env is missing"]
    try:
        present = envfile.parse(found.env)
    except envfile.EnvFileError as error:
        return [f".env can't be understood: {error}"]
    told = [
        f".env holds {key}, which the inventory does not know"
        for key in present
        if key not in wanted.flags and key not in envfile.FLAGS
    ]
    for key, value in wanted.flags.items():
        if key != "ML_ENABLE_STACKING" and present.get(key) != value:
            told.append(f".env has not {key} as the inventory says; invoke provision sets it")
    return told
