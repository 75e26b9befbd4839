"""What a deploy, a plan or a status asks of a host: everything in one answer, nothing changed."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from macd.host import durable
from macd.host.deploy import ledger, locks, rollback
from macd.host.deploy.health import ProbeError, ask
from macd.host.failure import HostError
from macd.host.flag import flag_file, guard_config
from macd.host.layout import Layout, live_release, load
from macd.host.rpc import blobs
from macd.host.store import needs, policy, releases, runtimes
from macd.host.systemd import overrides
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Supervisor


def deploy_facts(
    app: str,
    unit: str,
    units: Sequence[str],
    scope: str,
    endpoint: str,
    wanted: Sequence[tuple[str, int]] = (),
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a plan needs, in one answer; changes nothing and needs no lock.

    `endpoint` may be "unix": the answer says where that is on this host. `flags` are the keys of
    .env that the tool sets.
    """
    layout = Layout(durable.expand(app))
    supervisor = Supervisor(scope)
    endpoint = layout.endpoint(endpoint, scope)
    process = supervisor.show(unit)
    history = ledger.history(layout)
    live = live_release(layout)
    bad = ledger.bad_releases(layout)
    bad_ids = [entry["release"] for entry in bad]
    readiness = ReadinessCheck(layout, Sandbox(scope, supervisor.unit_text(unit), layout.app))
    back = _rollback_target(readiness, history, live, bad_ids)
    of_live = readiness.of(live)
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
        "damaged": releases.damaged(layout),
        "foreign": [n for n in _names(layout.releases) if n not in releases.on_host(layout)],
        # One that is not whole is built again by the next deploy that needs it.
        "runtimes": [n for n in _names(layout.runtimes) if n not in readiness.broken],
        "serial": load(layout.state("serial.json"), {"serial": 0, "release": ""}),
        "pending": _pending_public(layout),
        "last": ledger.last_end(layout) if os.path.isdir(layout.state("activations")) else None,
        "flag_change": _flag_change_public(layout),
        "lock": _lock(layout),
        "process": vars(process),
        "stacking": guard_config.stacking_state(layout, supervisor, unit, process, endpoint),
        # With a socket but no release, asking would only make systemd try to start nothing.
        "health": _health(endpoint) if live else {"unreachable": "no release is live"},
        "units": {name: supervisor.unit_text(name) for name in units},
        "dropins": overrides.dropins(scope, units),
        "not_read": overrides.not_read(supervisor, units),
        "env": _text(layout.env),
        "service_settings": _read(layout.service_settings),
        "agent_archive": _file_sha256(layout.agent_archive),
        "allowed_signers": _read(layout.state("allowed_signers")),
        "accepts": _read(layout.state(policy.FILE)),
        "revoked": _file_sha256(layout.state(policy.REVOKED)),
        "missing": blobs.missing(layout.app, wanted)["missing"] if wanted else [],
        "rollback": back,
        "returns": rollback.previews(layout, supervisor, units, live, history, list(flags)),
        "rehearsal": of_live,
        **needs.room(layout.app),
        "lacks": needs.missing_programs(),
    }


def _files_of(layout: Layout, release: str | None) -> list[list[Any]]:
    """Path, size and hash of what the live release declares; empty when that can't be read."""
    with contextlib.suppress(HostError):
        if release is not None:
            files = releases.read_manifest(layout, release).files
            return [[file.path, file.size, file.sha256] for file in files]
    return []


def _details_of(layout: Layout, release: str | None) -> dict[str, Any]:
    with contextlib.suppress(HostError):
        if release is not None:
            return releases.read_manifest(layout, release).details
    return {}


def _rollback_target(
    readiness: ReadinessCheck, history: list[dict[str, Any]], live: str | None, bad: list[str]
) -> dict[str, Any]:
    """The release a rollback goes to, rehearsed; where there is none, why, and what is left."""
    target = releases.rollback_target(history, live, bad)
    if target is not None or not history:
        return readiness.of(target)
    here = releases.on_host(readiness.layout)
    names = [str(entry["release"]) for entry in reversed(history)]
    left = [name for name in dict.fromkeys(names) if name not in (live, *bad) and name in here]
    why = "no other release was committed here yet"
    if set(names) - {live}:
        why = "the others that were live here were rolled back from, failed, or are gone"
        if left:
            why += "; invoke rollback --to %s goes to the newest" % left[0]
    return {"release": None, "ready": False, "why": why}


class ReadinessCheck:
    """Could this host go back to a release now, with nothing sent? Nothing is changed.

    Its files are hashed and its runtime is checked (macd/host/store/runtimes.py). Whether the
    models load and predict is not asked; the release's own check does that before a switch.
    """

    def __init__(self, layout: Layout, sandbox: Sandbox) -> None:
        self.layout = layout
        self._sandbox = sandbox
        self._runtimes: dict[str, str] = {}  # releases share them

    @property
    def broken(self) -> list[str]:
        """The runtimes that were asked about and are not whole."""
        return [lock for lock, wrong in self._runtimes.items() if wrong]

    def of(self, release: str | None) -> dict[str, Any]:
        """`why` it is not ready; `runtime` is what is wrong with the runtime, of that."""
        if release is None:
            return {"release": None, "ready": False, "why": "nothing was committed here before"}
        damage, runtime = "", ""
        try:
            damage = releases.tell_differences(releases.differences(self.layout, release))
            runtime = self._of_runtime(release)
        except (HostError, OSError) as error:
            damage = str(error)
        why = "; ".join(part for part in (damage, runtime) if part)
        return {"release": release, "ready": not why, "why": why, "runtime": runtime}

    def _of_runtime(self, release: str) -> str:
        lock = releases.read_manifest(self.layout, release).lock
        if lock not in self._runtimes:
            place = self.layout.runtime(lock)
            wheels = _wheels(os.path.join(self.layout.release(release), "lock.json"))
            self._runtimes[lock] = runtimes.wrong_with(place, wheels, self._sandbox)
        return self._runtimes[lock]


def _wheels(path: str) -> list[dict[str, Any]]:
    """What a lock lists. Raises HostError for a file that is no lock."""
    lock = load(path, {"wheels": []})
    wheels = lock.get("wheels") if isinstance(lock, dict) else None
    names = {"name", "sha256"}
    if not isinstance(wheels, list) or not all(
        isinstance(w, dict) and names <= {*w} for w in wheels
    ):
        raise HostError(f"{path} is no lock")
    return wheels


def unable(layout: Layout, release: str, sandbox: Sandbox) -> str:
    """Why there is no sense in trying to go back to `release`, "" if there is.

    Less is asked than of a readiness: whether it can do without what its runtime lacks, its own
    check will say, and somebody wants it back now.
    """
    try:
        damage = releases.tell_differences(releases.differences(layout, release))
        runtime = layout.runtime(releases.read_manifest(layout, release).lock)
    except (HostError, OSError) as error:
        return str(error)
    return damage or runtimes.python_wrong(runtime, sandbox)


def _pending_public(layout: Layout) -> dict[str, Any] | None:
    pending = ledger.read_pending(layout)
    if pending is None:
        return None
    names = ("number", "kind", "to", "origin", "who", "started", "state")
    shown = {name: getattr(pending, name) for name in names}
    return {**shown, "runner": locks.holder_of(layout, locks.ACTIVATION) is not None}


def _flag_change_public(layout: Layout) -> dict[str, Any] | None:
    change = flag_file.interrupted(layout)
    if change is None:
        return None
    names = ("wanted", "was", "release", "who", "started", "state")
    return {name: getattr(change, name) for name in names}


def _lock(layout: Layout) -> dict[str, Any] | None:
    """Who holds it and for how many seconds, by the host's clock; None when it is free."""
    held = locks.holder_of(layout, locks.DEPLOY) if os.path.isdir(layout.state()) else None
    if held is None:
        return None
    return {**held, "age_s": max(0.0, time.time() - float(held.get("since", time.time())))}


def _health(endpoint: str) -> dict[str, Any]:
    try:
        return ask(os.path.expanduser(endpoint))
    except ProbeError as error:
        return {"unreachable": str(error)}


def _names(directory: str) -> list[str]:
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(name for name in names if not name.startswith("."))


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read(path: str) -> str | None:
    try:
        return _bytes(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _text(path: str) -> str | None:
    """As it stands: bytes that are no UTF-8 as surrogates, as envfile.parse takes them."""
    data = durable.regular(path)
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _file_sha256(path: str) -> str | None:
    return durable.sha256_of(path) if os.path.isfile(path) else None
