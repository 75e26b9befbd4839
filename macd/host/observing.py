"""What a deploy, a plan or a status asks of a host: everything in one answer, nothing changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from macd.host import activation, blobs, durable, flagchange, identity, ledger, overrides, releases
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, load
from macd.host.probe import ProbeError, ask
from macd.host.supervisor import Supervisor

DEPLOY_LOCK = "deploy.lock"


def deploy_facts(
    app: str,
    unit: str,
    units: Sequence[str],
    scope: str,
    endpoint: str,
    wanted: Sequence[Tuple[str, int]] = (),
) -> Dict[str, Any]:
    """Everything a plan needs, in one answer; changes nothing and needs no lock.

    `endpoint` may be "unix": the answer says where that is on this host.
    """
    layout = Layout(durable.expand(app))
    supervisor = Supervisor(scope)
    endpoint = layout.endpoint(endpoint, scope)
    process = supervisor.show(unit)
    history = ledger.history(layout)
    live = live_release(layout)
    bad = ledger.bad_releases(layout)
    bad_ids = [entry["release"] for entry in bad]
    return {
        "app": layout.app,
        "exists": os.path.isdir(layout.state()),
        "python": {"executable": sys.executable, "version": "%d.%d" % sys.version_info[:2]},
        "endpoint": endpoint,
        "live": live,
        "live_files": _files_of(layout, live),
        "details": _details_of(layout, live),
        "history": history,
        "bad": bad,
        "releases": releases.on_host(layout),
        "foreign": [n for n in _names(layout.releases) if n not in releases.on_host(layout)],
        "runtimes": _names(layout.runtimes),
        "serial": load(layout.state("serial.json"), {"serial": 0, "release": ""}),
        "pending": _pending_public(layout),
        "last": ledger.last_end(layout) if os.path.isdir(layout.state("activations")) else None,
        "flag_change": _flag_change_public(layout),
        "lock": _lock(layout),
        "process": vars(process),
        # With a socket but no release, asking would only make systemd try to start nothing.
        "health": _health(endpoint) if live else {"unreachable": "no release is live"},
        "units": {name: supervisor.unit_text(name) for name in units},
        "dropins": overrides.dropins(scope, units),
        "not_read": overrides.not_read(supervisor, units),
        "env": _read(layout.env),
        "service_settings": _read(layout.service_settings),
        "agent_archive": _file_sha256(layout.agent_archive),
        "allowed_signers": _read(layout.state("allowed_signers")),
        "accepts": _read(layout.state(identity.FILE)),
        "revoked": _file_sha256(layout.state(identity.REVOKED)),
        "missing": blobs.missing(layout.app, wanted)["missing"] if wanted else [],
        "rollback": _way_back(layout, history, live, bad_ids),
        "rehearsal": rehearse(layout, live),
        "free": _free(layout.app),
    }


def _files_of(layout: Layout, release: Optional[str]) -> List[List[Any]]:
    """Path, size and hash of what the live release declares; empty when that can't be read."""
    with contextlib.suppress(HostError):
        if release is not None:
            files = releases.read_manifest(layout, release).files
            return [[file.path, file.size, file.sha256] for file in files]
    return []


def _details_of(layout: Layout, release: Optional[str]) -> Dict[str, Any]:
    with contextlib.suppress(HostError):
        if release is not None:
            return releases.read_manifest(layout, release).details
    return {}


def _way_back(
    layout: Layout, history: List[Dict[str, Any]], live: Optional[str], bad: List[str]
) -> Dict[str, Any]:
    """The release a rollback goes to, rehearsed; where there is none, why, and what is left."""
    target = releases.rollback_target(history, live, bad)
    if target is not None or not history:
        return rehearse(layout, target)
    here = releases.on_host(layout)
    names = [str(entry["release"]) for entry in reversed(history)]
    left = [name for name in dict.fromkeys(names) if name not in (live, *bad) and name in here]
    why = "no other release was committed here yet"
    if set(names) - {live}:
        why = "the others that were live here were rolled back from, failed, or are gone"
        if left:
            why += "; invoke rollback --to %s goes to the newest" % left[0]
    return {"release": None, "ready": False, "why": why}


def rehearse(layout: Layout, release: Optional[str]) -> Dict[str, Any]:
    """Could this host go back to `release` now, with nothing sent? Checks hashes and runtime."""
    if release is None:
        return {"release": None, "ready": False, "why": "nothing was committed here before"}
    try:
        damage = releases.differences(layout, release)
        why = releases.tell_differences(damage)
        lock_hash = releases.read_manifest(layout, release).lock
        if not os.path.exists(os.path.join(layout.runtime(lock_hash), "bin", "python")):
            why = why or "its runtime is gone"
    except HostError as error:
        why = str(error)
    return {"release": release, "ready": not why, "why": why}


def _pending_public(layout: Layout) -> Optional[Dict[str, Any]]:
    pending = ledger.read_pending(layout)
    if pending is None:
        return None
    names = ("number", "kind", "to", "origin", "who", "started", "state")
    shown = {name: getattr(pending, name) for name in names}
    return {**shown, "runner": ledger.holder_of(layout, activation.LOCK) is not None}


def _flag_change_public(layout: Layout) -> Optional[Dict[str, Any]]:
    change = flagchange.interrupted(layout)
    if change is None:
        return None
    names = ("wanted", "was", "release", "who", "started", "state")
    return {name: getattr(change, name) for name in names}


def _lock(layout: Layout) -> Optional[Dict[str, Any]]:
    """Who holds it and for how many seconds, by the host's clock; None when it is free."""
    held = ledger.holder_of(layout, DEPLOY_LOCK) if os.path.isdir(layout.state()) else None
    if held is None:
        return None
    return {**held, "age_s": max(0.0, time.time() - float(held.get("since", time.time())))}


def _health(endpoint: str) -> Dict[str, Any]:
    try:
        return ask(os.path.expanduser(endpoint))
    except ProbeError as error:
        return {"unreachable": str(error)}


def _names(directory: str) -> List[str]:
    found = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(name for name in found if not name.startswith("."))


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read(path: str) -> Optional[str]:
    try:
        return _bytes(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _file_sha256(path: str) -> Optional[str]:
    return hashlib.sha256(_bytes(path)).hexdigest() if os.path.isfile(path) else None


def _free(path: str) -> int:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


OPERATIONS = {"deploy_facts": deploy_facts}
