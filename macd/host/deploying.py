"""The operations a deploy calls: look, lock, stage, begin, confirm, follow, end what died."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from macd.host import activation, blobs, durable, envfile, ledger, releases, runtimes
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, load
from macd.host.ledger import EventLog, Pending, locked
from macd.host.probe import ProbeError, ask
from macd.host.record import recorder
from macd.host.supervisor import Supervisor

LOCK = "deploy.lock"
_SESSION = contextlib.ExitStack()  # what this agent process holds until its channel closes
_RUNNER_START_S = 30.0


def lock(app: str, who: str, doing: str) -> Dict[str, Any]:
    """Hold the host's deploy lock for as long as this session lives.

    Raises:
        HostError ("refused"): somebody holds it, or the host was never provisioned.
    """
    layout = Layout(durable.expand(app))
    if not os.path.isdir(layout.state()):
        raise HostError(
            "this host is not provisioned",
            why=f"there is no {layout.state()}",
            hint="invoke provision",
            live="nothing; nothing was changed",
            kind="refused",
        )
    os.umask(0o022)  # the service account reads what root puts here, whatever root's own umask is
    layout.make()
    _SESSION.enter_context(locked(layout, LOCK, {"who": who, "doing": doing}))
    return {"held": True}


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
    return {
        "app": layout.app,
        "exists": os.path.isdir(layout.state()),
        "python": {"executable": sys.executable, "version": "%d.%d" % sys.version_info[:2]},
        "endpoint": endpoint,
        "live": live,
        "live_files": _files_of(layout, live),
        "details": _details_of(layout, live),
        "history": history,
        "bad": ledger.bad_releases(layout),
        "releases": releases.on_host(layout),
        "foreign": [n for n in _names(layout.releases) if n not in releases.on_host(layout)],
        "runtimes": _names(layout.runtimes),
        "serial": load(layout.state("serial.json"), {"serial": 0, "release": ""}),
        "pending": _pending_public(layout),
        "lock": ledger.holder_of(layout, LOCK) if os.path.isdir(layout.state()) else None,
        "process": vars(process),
        # With a socket but no release, asking would only make systemd try to start nothing.
        "health": _health(endpoint) if live else {"unreachable": "no release is live"},
        "units": {name: supervisor.unit_text(name) for name in units},
        "env": _read(layout.env),
        "service_settings": _read(layout.service_settings),
        "agent_archive": _file_sha256(layout.agent_archive),
        "allowed_signers": _read(layout.state("allowed_signers")),
        "missing": blobs.missing(layout.app, wanted)["missing"] if wanted else [],
        "rollback": _rehearse(layout, releases.rollback_target(history, live)),
        "rehearsal": _rehearse(layout, live),
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


def _rehearse(layout: Layout, release: Optional[str]) -> Dict[str, Any]:
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


def stage(
    app: str,
    manifest: bytes,
    signature: bytes,
    accepts: Dict[str, str],
    imports: List[str],
    python: str = "",
    index: bool = False,
) -> Dict[str, Any]:
    """Verify a release whose blobs landed, build its runtime, put it in place; not live yet."""
    layout = Layout(durable.expand(app))
    identifier, known = releases.accept(
        layout, manifest, signature, releases.Accepts(**accepts), now=time.time()
    )
    raw_lock = _blob_of(layout, known.files, "lock.json")
    built = runtimes.install(layout, raw_lock, imports, python=python, index=index)
    releases.stage(layout, identifier, manifest, signature)
    return {"release": identifier, "runtime_built": built["built"]}


def _blob_of(layout: Layout, files: Sequence[Any], path: str) -> bytes:
    for file in files:
        if file.path == path:
            with open(blobs.path_of(layout.app, file.sha256), "rb") as blob:
                raw = blob.read()
            if hashlib.sha256(raw).hexdigest() == file.sha256:
                return raw
    raise HostError(f"the release holds no sound {path}", kind="refused", live="unchanged")


def activate(
    app: str,
    kind: str,
    to: Optional[str],
    token: str,
    who: str,
    service: Dict[str, Any],
    times: Dict[str, float],
    keep: int,
    after: Dict[str, Optional[str]],
    accepts: Optional[Dict[str, str]] = None,
) -> Dict[str, Any]:
    """Begin a deploy or rollback that the host carries on by itself; answers its number.

    Needs the lock. A rollback (`to` None: the last good release) takes unit, flags and settings
    from when that release was last live; a deploy takes `after` and turns live stacking off, since
    the evidence for it was about another release.

    Raises:
        HostError ("refused"): an activation is under way, or `to` can't go live.
    """
    layout = Layout(durable.expand(app))
    _refuse_if_pending(layout)
    supervisor = Supervisor(service["scope"])
    origin = live_release(layout)
    history = ledger.history(layout)
    if kind == "rollback":
        to = to or releases.rollback_target(history, origin)
        _check_rollback(layout, to, history)
    if to is None:
        raise HostError("no release was named", kind="refused")
    manifest = releases.read_manifest(layout, to)
    damage = releases.tell_differences(releases.differences(layout, to))
    if damage:
        raise HostError(
            f"{to} was changed on the host", why=damage, kind="refused", live=origin or ""
        )
    if kind == "deploy":
        _accept_again(layout, to, accepts or {})
    before = activation.take_snapshot(layout, supervisor, service["units"])
    activation.remember_live_snapshot(layout, origin, before)
    pending = Pending(
        number=ledger.next_number(layout),
        kind=kind,
        to=to,
        origin=origin,
        token=token,
        who=who,
        started=time.time(),
        state="verified",
        unit=service["unit"],
        scope=service["scope"],
        endpoint=service["endpoint"],
        serial=manifest.serial,
        manifest_sha256=releases.manifest_sha256(layout, to),
        check_argv=[part.replace("{release}", layout.release(to)) for part in service["check"]],
        keep=keep,
        before=before,
        after=activation.snapshot_of(layout, to)
        if kind == "rollback"
        # The same release again (new settings, a restart): the evidence for its flags still holds.
        else ({**before, **after} if to == origin else _in_shadow(before, after)),
        health_s=times["health_s"],
        soak_s=times["soak_s"],
        confirm_s=times["confirm_s"],
    )
    EventLog(layout, pending.number).add("verified", release=to, kind=kind)
    ledger.write_pending(layout, pending)
    _start_runner(layout, pending)
    return {"number": pending.number, "release": to, "origin": origin}


def _accept_again(layout: Layout, release: str, accepts: Dict[str, str]) -> None:
    """Between staging and now a newer one may have come, or the release may have expired."""
    top = layout.release(release)
    raw, signed = (_bytes(os.path.join(top, n)) for n in (releases.MANIFEST, releases.SIGNATURE))
    rules = releases.Accepts(**accepts)
    _, manifest = releases.accept(layout, raw, signed, rules, now=time.time())
    releases.remember_serial(layout, release, manifest.serial)


def _check_rollback(layout: Layout, to: Optional[str], history: List[Dict[str, Any]]) -> None:
    committed = [entry["release"] for entry in history]
    if to is None:
        raise HostError(
            "there is nothing to roll back to",
            why="this host never committed another release that is still good",
            live=live_release(layout) or "nothing",
            hint="invoke history shows what was live here; --to ID names one of them",
            kind="refused",
        )
    if to not in committed:
        hint = "one of: " + ", ".join(dict.fromkeys(committed)) if committed else "invoke deploy"
        raise HostError(f"{to} was never committed on this host", hint=hint, kind="refused")
    if to == live_release(layout):
        raise HostError(f"{to} is live already", kind="refused", live=to)
    ready = _rehearse(layout, to)
    if not ready["ready"]:
        raise HostError(f"{to} can't come back", why=ready["why"], kind="refused")


def _in_shadow(
    before: Dict[str, Optional[str]], after: Dict[str, Optional[str]]
) -> Dict[str, Optional[str]]:
    try:
        flags = envfile.with_values(before.get(".env") or "", {"ML_ENABLE_STACKING": "0"})
    except envfile.EnvFileError as error:
        raise HostError(
            "the flags file on the host can't be understood",
            why=f".env: {error}",
            hint="mend that line, then deploy again",
            kind="refused",
        ) from error
    return {**before, **after, ".env": flags}


def _refuse_if_pending(layout: Layout) -> None:
    pending = ledger.read_pending(layout)
    if pending is None:
        return
    age = round(time.time() - pending.started)
    raise HostError(
        f"activation {pending.number} is under way",
        why=f"{pending.kind} of {pending.to} by {pending.who}, begun {age} s ago: {pending.state}",
        live=live_release(layout) or "nothing",
        hint="invoke deploy --attach follows it; it commits or reverts by itself",
        kind="refused",
    )


def _start_runner(layout: Layout, pending: Pending) -> None:
    name = f"macd-activation-{pending.number}-{os.path.basename(layout.app)}"
    argv = [sys.executable, "-I", layout.agent_archive, "activate", "--app", layout.app]
    log = layout.state("activations", f"{pending.number}.log")
    Supervisor(pending.scope).run_detached(name, argv, log)
    deadline = time.monotonic() + _RUNNER_START_S
    while time.monotonic() < deadline:
        events = EventLog(layout, pending.number).read()
        if len(events) > 1:
            return
        time.sleep(0.05)
    raise HostError(
        "the host did not begin the activation",
        why=f"no word from {layout.agent_archive} in {_RUNNER_START_S:g} s; its log is {log}",
        hint="invoke provision, then deploy again",
    )


def confirm(app: str, number: int, token: str) -> Dict[str, Any]:
    """Called over a FRESH connection: this host can still be reached, the change may stay."""
    layout = Layout(durable.expand(app))
    pending = ledger.read_pending(layout)
    if pending is None or pending.number != number or pending.token != token:
        return {"confirmed": False, **follow(app, number)}
    durable.replace_file(
        layout.state("confirmed.json"), b'{"token":"%s"}\n' % token.encode(), mode=0o600
    )
    return {"confirmed": True}


def follow(app: str, number: int = 0, seen: int = 0, wait: float = 0.0) -> Dict[str, Any]:
    """The states of an activation after the first `seen`; number 0 means the newest one.

    With `wait`, an answer without news comes only after that many seconds.
    """
    layout = Layout(durable.expand(app))
    if not os.path.isdir(layout.state("activations")):
        return {"number": 0, "events": [], "over": True, "live": None, "runner": False}
    number = number or ledger.next_number(layout) - 1
    deadline = time.monotonic() + wait
    while True:
        events = EventLog(layout, number).read()
        pending = ledger.read_pending(layout)
        over = pending is None or pending.number != number
        if len(events) > seen or over or time.monotonic() >= deadline:
            return {
                "number": number,
                "events": events[seen:],
                "over": over,
                "live": live_release(layout),
                "runner": ledger.holder_of(layout, activation.LOCK) is not None,
            }
        time.sleep(0.1)


def recover(app: str) -> Dict[str, Any]:
    """End an activation whose process died: commit what was committed, else put all back."""
    layout = Layout(durable.expand(app))
    if not os.path.isdir(layout.state()) or ledger.read_pending(layout) is None:
        return {"outcome": "nothing"}
    if ledger.holder_of(layout, activation.LOCK) is not None:
        return {"outcome": "running"}
    return {"outcome": activation.carry_on(layout, recorder(layout))}


def _pending_public(layout: Layout) -> Optional[Dict[str, Any]]:
    pending = ledger.read_pending(layout)
    if pending is None:
        return None
    names = ("number", "kind", "to", "origin", "who", "started", "state")
    shown = {name: getattr(pending, name) for name in names}
    return {**shown, "runner": ledger.holder_of(layout, activation.LOCK) is not None}


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


OPERATIONS = {
    "lock": lock,
    "deploy_facts": deploy_facts,
    "stage": stage,
    "activate": activate,
    "confirm": confirm,
    "follow": follow,
    "recover": recover,
}
