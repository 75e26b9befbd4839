"""The operations that a deploy calls on a host: stage, activate, confirm, follow, recover."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from macd.host import durable, envfile, own
from macd.host.deploy import activation, adopt, ledger, locks, originals, rollback
from macd.host.deploy.ledger import EventLog, Pending
from macd.host.deploy.status import unable
from macd.host.failure import HostError
from macd.host.flag import flag as flags
from macd.host.flag import flag_file
from macd.host.layout import Layout, live_release
from macd.host.own import Service
from macd.host.record import recorder
from macd.host.rpc import blobs
from macd.host.store import releases, runtimes, snapshots
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Supervisor

_STAGED = "staged"
_RUNNER_START_S = 30.0


def stage(
    app: str,
    manifest: bytes,
    signature: bytes,
    accepts: dict[str, str],
    imports: list[str],
    scope: str,
    unit_text: str | None,
    python: str = "",
    index: bool = False,
    index_url: str = "",
) -> dict[str, Any]:
    """Verify a release whose blobs arrived, build its runtime, put it in place; it is not live yet.

    Args:
        index: the runtime's packages come from the index at `index_url`, or the host's own one.
        unit_text: of the service; packages are installed and imported in its sandbox.
    """
    layout = Layout(durable.expand(app))
    locks.require_lock(layout)
    sandbox = Sandbox(scope, unit_text, layout.app)
    sandbox.refuse_root()
    # The client sends `activate` right after this call, before it knows how staging ends.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(layout.state(_STAGED))
    identifier, accepted = releases.accept(layout, manifest, signature, accepts, now=time.time())
    raw_lock = _blob_of(layout, accepted.files, "lock.json")
    built = runtimes.install(
        layout,
        raw_lock,
        imports,
        python=python,
        index=index,
        index_url=index_url,
        sandbox=sandbox,
    )
    releases.stage(layout, identifier, manifest, signature)
    durable.replace_file(layout.state(_STAGED), identifier.encode())
    return {"release": identifier, "runtime_built": built["built"]}


def _staged(layout: Layout) -> str:
    """The release of the last staging, if it succeeded; else ""."""
    with contextlib.suppress(FileNotFoundError):
        return Path(layout.state(_STAGED)).read_text("utf-8", "replace")
    return ""


def _blob_of(layout: Layout, files: Sequence[Any], path: str) -> bytes:
    for file in files:
        if file.path == path:
            raw = Path(blobs.path_of(layout.app, file.sha256)).read_bytes()
            if hashlib.sha256(raw).hexdigest() != file.sha256:
                raise releases.damaged_blob(layout, file.sha256, file.path)
            return raw
    raise HostError(f"the release holds no {path}", kind="refused", live="unchanged")


def activate(
    app: str,
    kind: str,
    to: str | None,
    token: str,
    who: str,
    service: dict[str, Any],
    times: dict[str, float],
    keep: int,
    after: dict[str, str | None],
    accepts: dict[str, str] | None = None,
    flags: list[str] | None = None,
) -> dict[str, Any]:
    """Start a deploy or rollback, which the host then runs by itself; answers its number.

    The session must hold the lock. A rollback restores unit, settings and the tool's flags as they
    were when the release was last live. Both kinds disable stacking: its evidence was about another
    release, and its guard's watch ended.

    Args:
        to: the release; for a rollback None means the last good one.
        after: the texts that a deploy switches to.
        flags: the keys of .env that the tool sets; all others stay.

    Raises:
        HostError ("refused"): an activation is pending, or `to` can't go live.
    """
    layout = Layout(durable.expand(app))
    locks.require_lock(layout)
    ledger.refuse_if_pending(layout)
    adopt.refuse_undoing(layout)
    Sandbox(service["scope"], None, layout.app).refuse_root()
    supervisor = Supervisor(service["scope"])
    origin = live_release(layout)
    history = ledger.history(layout)
    if kind == "rollback":
        bad = [entry["release"] for entry in ledger.bad_releases(layout)]
        to = to or releases.rollback_target(history, origin, bad)
        _check_rollback(layout, to, history, bad, service["scope"], service["unit"])
    if to is None:
        raise HostError("no release was named", kind="refused")
    if kind == "deploy" and _staged(layout) != to:
        raise HostError(f"{to} was not staged", kind="refused", live=f"{origin}, as before")
    manifest = releases.read_manifest(layout, to)
    damage = releases.damage(layout, to)
    if damage:
        raise HostError(
            f"{to} was changed on the host", why=damage, kind="refused", live=origin or ""
        )
    if kind == "deploy" and to != origin:  # the live release was accepted when it came
        _accept_again(layout, to, accepts or {})
    of_release = releases.own_of(manifest)
    check = [part.replace("{release}", layout.release(to)) for part in service["check"]]
    if of_release is not None:  # what it was signed with, whatever the inventory says by now
        check = own.argv(of_release["check"], layout.release(to)) if of_release["check"] else []
    before = snapshots.take(layout, supervisor, service["units"])
    written = rollback.written(layout, origin, history)
    edited = [
        name
        for name in snapshots.edited(before, written)
        if not (origin is None and originals.keeps(layout, supervisor, name, before[name]))
    ]
    # What a revert goes back to, and a later rollback: settings that the release can start with.
    sound = snapshots.mended(layout, before, origin)
    keys: list[str] = []
    if kind == "rollback":
        restored = rollback.to_release(layout, before, to, origin, history, list(flags or ()))
        after, keys = restored.after, restored.keys
        edited += [snapshots.FLAGS] if keys else []
    else:
        # The same release again (new settings, a restart): its evidence still holds.
        after = {**sound, **after} if to == origin else _in_shadow(sound, after)
    before = sound
    served = own.parse(after.get(snapshots.SETTINGS))
    keys += sorted(flag_file.off(served.flag).keys() - set(flag_file.KEYS))
    _refuse_another_kind(layout, to, of_release, served)
    for name in after.keys() - before.keys():  # units that come back with an older release
        before[name] = supervisor.unit_text(name)
    if origin is not None:
        ledger.remember_written(layout, origin, written)
        snapshots.keep(layout, origin, before)  # the flags it really had, for a rollback
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
        check_argv=check,
        keep=keep,
        before=before,
        after=after,
        edited=edited,
        flags=sorted(flags or ()),
        keys=keys,
        dropin=flag_file.in_dropin(layout, Supervisor(service["scope"])),
        health_s=times["health_s"],
        soak_s=times["soak_s"],
        confirm_s=times["confirm_s"],
        session=os.getpid(),
    )
    EventLog(layout, pending.number).add("verified", release=to, kind=kind)
    ledger.write_pending(layout, pending)
    _start_runner(layout, pending)
    return {"number": pending.number, "release": to, "origin": origin}


def _accept_again(layout: Layout, release: str, accepts: dict[str, str]) -> None:
    """A newer release may have come since the staging, or this one may have expired."""
    top = Path(layout.release(release))
    raw, signed = ((top / name).read_bytes() for name in (releases.MANIFEST, releases.SIGNATURE))
    _, manifest = releases.accept(layout, raw, signed, accepts, now=time.time())
    releases.remember_serial(layout, release, manifest.serial)


def _check_rollback(
    layout: Layout,
    to: str | None,
    history: list[dict[str, Any]],
    bad: list[str],
    scope: str,
    unit: str,
) -> None:
    """Raises HostError ("refused"): `to` can't come back on this host, or is live."""
    committed = [entry["release"] for entry in history]
    if to is None:
        raise HostError(
            "there is nothing to roll back to",
            why="this host never committed another release that is still good",
            live=live_release(layout) or "nothing",
            hint="invoke history shows what was live here; --to ID names one of them"
            + adopt.way_back(layout),
            kind="refused",
        )
    if to not in committed:
        hint = "one of: " + ", ".join(dict.fromkeys(committed)) if committed else "invoke deploy"
        raise HostError(f"{to} was never committed on this host", hint=hint, kind="refused")
    if to == live_release(layout):
        raise HostError(f"{to} is live already", kind="refused", live=to)
    if to in bad:
        hint = "invoke deploy can try it again; invoke history shows why it failed"
        raise HostError(f"{to} failed on this host", hint=hint, kind="refused")
    unit = own.read(layout).unit or unit
    sandbox = Sandbox(scope, Supervisor(scope).unit_text(unit), layout.app)
    why = unable(layout, to, sandbox)
    if why:
        others = [name for name in dict.fromkeys(reversed(committed)) if name not in (to, *bad)]
        here = [name for name in others if name in releases.on_host(layout)]
        left = [name for name in here if name != live_release(layout)]
        raise HostError(
            f"{to} can't come back",
            why=why,
            live=live_release(layout) or "nothing",
            hint=f"invoke rollback --to {left[0]} goes to another release"
            if left
            else "invoke deploy",
            kind="refused",
        )


def _in_shadow(
    before: dict[str, str | None], after: dict[str, str | None]
) -> dict[str, str | None]:
    """The texts of a deploy, with stacking disabled: a new release starts in shadow."""
    try:
        envfile.parse(before.get(".env") or "")
    except envfile.EnvFileError as error:
        raise HostError(
            "the flags file on the host can't be understood",
            why=f".env: {error}",
            hint="mend that line, then deploy again",
            kind="refused",
        ) from error
    texts = {**before, **after}
    served = own.parse(texts.get(snapshots.SETTINGS))
    if shadow := flag_file.off(served.flag):
        texts[".env"] = envfile.rewritten_text(before.get(".env") or "", shadow)
    return texts


def _refuse_another_kind(
    layout: Layout, to: str, of_release: dict[str, Any] | None, served: Service
) -> None:
    """Raises HostError ("refused"): the settings are of another application than the release."""
    name = of_release["name"] if of_release else ""
    if served.name != name:
        expected, actual = (each or "the built-in application" for each in (served.name, name))
        raise HostError(
            f"{to} is no release of what the inventory describes",
            why=f"it is of {actual}, the inventory (app:) is of {expected}",
            live=live_release(layout) or "nothing",
            hint="name the inventory that it was made with, or invoke release",
            kind="refused",
        )


def _start_runner(layout: Layout, pending: Pending) -> None:
    name = f"macd-activation-{pending.number}-{os.path.basename(layout.app)}"
    argv = [sys.executable, "-I", "-S", layout.agent_archive, "activate", "--app", layout.app]
    log = layout.state("activations", f"{pending.number}.log")
    try:
        Supervisor(pending.scope).run_detached(name, argv, log)
    except BaseException:
        ledger.clear_pending(layout)  # nothing was started
        raise
    deadline = time.monotonic() + _RUNNER_START_S
    while time.monotonic() < deadline:
        if len(EventLog(layout, pending.number).read()) > 1:
            return
        time.sleep(0.02)
    with contextlib.suppress(HostError):  # it runs after all
        activation.resume(layout, recorder(layout))
    raise HostError(
        "the host did not start the activation",
        why=f"no sign of {layout.agent_archive} in {_RUNNER_START_S:g} s; its log is {log}",
        hint="invoke provision, then deploy again",
        live=live_release(layout) or "nothing",
    )


def confirm(app: str, number: int, token: str) -> dict[str, Any]:
    """Called over a FRESH connection: this host can still be reached, so the change may stay.

    `confirmed` is False, with the answer of `follow`, during the soak, over a connection that was
    opened before the soak ended, and when it is too late.
    """
    layout = Layout(durable.expand(app))
    pending = ledger.read_pending(layout)
    ours = pending is not None and (pending.number, pending.token) == (number, token)
    if ours and pending is not None and pending.session == os.getpid():
        raise HostError("the session that started this can't confirm it", hint="open a new one")
    if activation.confirm(layout, number, token, activation.process_started()):
        return {"confirmed": True}
    return {"confirmed": False, **follow(app, number)}


def follow(app: str, number: int = 0, seen: int = 0, wait: float = 0.0) -> dict[str, Any]:
    """The states of an activation after the first `seen`; number 0 means the newest one.

    With `wait`, an answer without news comes after that many seconds.
    """
    layout = Layout(durable.expand(app))
    if not os.path.isdir(layout.state("activations")):
        return {"number": 0, "events": [], "over": True, "live": None, "runner": False}
    number = number or ledger.next_number(layout) - 1
    deadline = time.monotonic() + wait
    while True:
        pending = ledger.read_pending(layout)  # first: once it is gone, all events are written
        events = EventLog(layout, number).read()
        over = pending is None or pending.number != number
        if len(events) > seen or over or time.monotonic() >= deadline:
            return {
                "number": number,
                "events": events[seen:],
                "over": over,
                "live": live_release(layout),
                "runner": locks.holder_of(layout, locks.ACTIVATION) is not None,
            }
        time.sleep(0.05)


def recover(app: str) -> dict[str, Any]:
    """End an activation whose process died: finish a written commit, else revert.

    An interrupted change of the stacking flag is ended first. An activation whose process or client
    lives is left alone ("running").
    """
    layout = Layout(durable.expand(app))
    if not os.path.isdir(layout.state()):
        return {"outcome": "nothing"}
    if ledger.read_pending(layout) is None and not flags.is_pending(layout):
        return {"outcome": "nothing"}
    with contextlib.ExitStack() as held:
        try:
            if not locks.holds_the_lock(layout):
                held.enter_context(locks.locked(layout, locks.DEPLOY, {"who": "recovery"}))
            flags.end(layout, recorder(layout))
            return {"outcome": activation.resume(layout, recorder(layout))}
        except HostError as error:
            if error.kind != "refused":
                raise
            return {"outcome": "running"}
