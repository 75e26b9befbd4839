"""Take over a service that people put on a host, and give back exactly what was there.

Before provision changes a host for the first time, it keeps what it, and later the first deploy,
replaces: below state/adopted, for root alone, since it holds secrets. What runs goes on running:
the units of a service by hand, their drop-ins, a `current` of theirs and the owners of its data
change with the first deploy (`take_over`). Where that fails they come back at once (`give_back`).
`undo` gives everything back. Each step may be cut off at any point and done again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from macd.host import durable, envfile, own, untrusted
from macd.host.deploy import byhand, ledger, locks, originals
from macd.host.deploy.originals import Change, Entry, Kept, Step
from macd.host.failure import HostError
from macd.host.flag import flag_file, guard
from macd.host.layout import (
    ADOPTED,
    Layout,
    current_now,
    discard,
    live_release,
    point_previous_at,
)
from macd.host.record import recorder
from macd.host.store import snapshots
from macd.host.systemd.supervisor import Process, Supervisor

_CURRENT = "current"
_STARTS_S = 60.0
_FAILED_S = 5.0  # its Restart= may start it again
_STAYS_S = 0.5
_POLL_S = 0.05
_NOTHING = "nothing served before, and nothing serves now"
_UNDONE = "state.undone-"


def waits(layout: Layout) -> bool:
    """Whether people's own service still runs, because no deploy has taken it over yet."""
    return _waiting(originals.read(layout)) is not None


def _waiting(kept: Kept | None) -> Kept | None:
    return kept if kept is not None and kept.by_hand and not kept.taken else None


def describe(layout: Layout, supervisor: Supervisor) -> str:
    """What people's own service does until the first deploy takes it over; "" where none waits."""
    try:
        kept = _waiting(originals.read(layout))
    except PermissionError:  # it is root's; who asks may be anybody
        return ""
    return _runs_on(supervisor, kept) if kept else ""


def way_back(layout: Layout) -> str:
    """For a hint: how a service by hand comes back; "" where there was none."""
    kept = originals.read(layout)
    back = "\ninvoke provision --undo gives back the service that was installed by hand before"
    return back if kept is not None and kept.by_hand else ""


def refuse_undoing(layout: Layout) -> None:
    """Raises HostError ("refused"): an undo was cut off, so nothing new may go live."""
    kept = originals.read(layout)
    if kept is not None and kept.undoing:
        raise HostError(
            "an undo of provision was interrupted on this host",
            why="some of what was there before is back, some is not",
            live="not sure; invoke provision --undo says it once it is done",
            hint="invoke provision --undo",
            kind="refused",
        )


def take_over(layout: Layout, supervisor: Supervisor) -> None:
    """Stop what people put there, and move out of the way what macd's units can't share with it.

    Nothing to do where nothing was kept, and for every deploy but the first one.
    """
    kept = originals.read(layout)
    if kept is None:
        return
    kept = _kept_anew(layout, supervisor, kept)
    running = [unit for unit in kept.by_hand if supervisor.show(unit).pid]
    given = [path for path in kept.give if os.path.isdir(path) and not originals.is_roots(path)]
    tops = [os.path.realpath(path) for path in given]
    uid, gid = originals.ids(kept)
    if uid is not None:
        originals.store_owners(layout, tops, uid)
    later = kept.later if kept.taken else [{**one, **_now(one["path"])} for one in kept.later]
    originals.write(
        layout, replace(kept, taken=True, ran=running, later=later)
    )  # before any change
    supervisor.stop(*running)
    for path in kept.aside:
        discard(path)
    _move_current_away(layout, kept)
    if kept.by_hand and os.path.isfile(layout.env):
        # Many read it by themselves (python-dotenv), and have its values in their environment.
        os.chmod(layout.env, 0o640 if gid is not None else 0o600)
        if kept.scope == "system":
            os.chown(layout.env, 0, gid or 0)
    _give(kept, tops, uid, gid)


def _give(kept: Kept, tops: Sequence[str], uid: int | None, gid: int | None) -> None:
    """The directories to the account, the others to root; None: everything is the login's."""
    is_known = uid is not None and gid is not None
    for entry in kept.later:
        owner = (uid, gid) if entry["owner"] else (0, 0)
        originals.set_directory(
            entry["path"], entry["mode"], *(owner if is_known else (None, None))
        )
    if uid is None or gid is None:
        return
    for top in tops:
        os.chown(top, uid, gid)
        for one in originals.below(top):
            one.give(uid, gid)


def _now(path: str) -> Entry:
    status = os.stat(path)
    return {"was": [stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid]}


def enable(layout: Layout, supervisor: Supervisor, units: Mapping[str, str | None]) -> None:
    """Units that took the place of ones by hand start at boot, as all of macd's do."""
    kept = originals.read(layout)
    for unit in kept.by_hand if kept else ():
        if "[Install]" in (units.get(unit) or ""):
            with contextlib.suppress(HostError):
                supervisor.enable(unit)


def _kept_anew(layout: Layout, supervisor: Supervisor, kept: Kept) -> Kept:
    """With what people changed in their units since: that is what has to come back."""
    last, entries = kept.last(), [*kept.entries]
    for path in (*(os.path.join(supervisor.unit_directory, u) for u in kept.by_hand), *kept.aside):
        now = durable.text(path)
        if now is None or byhand.is_ours(now) or not originals.differs(layout, last[path]):
            continue
        entries.append(originals.entry_of(layout, path, len(entries)))
    links = kept.links if kept.taken else originals.enable_links(supervisor, kept.switched)
    return replace(kept, entries=entries, links=links)


def _move_current_away(layout: Layout, kept: Kept) -> None:
    if kept.current.get("kind") == "absent" or current_now(layout) != kept.current:
        return
    if kept.current["kind"] == "link":
        os.unlink(layout.current)
    else:
        os.rename(layout.current, layout.state(ADOPTED, _CURRENT))
        durable.sync_directory(layout.state(ADOPTED))
    durable.sync_directory(layout.app)


def give_back(layout: Layout, supervisor: Supervisor, *, start: bool) -> tuple[str, bool | None]:
    """After a first deploy that failed: what served before, as it was.

    start: False while systemd boots and will start it by itself.

    Returns:
        What serves now, in words, and whether it does; None: there was nothing, or not known yet.
    """
    kept = originals.read(layout)
    if kept is None:
        return _NOTHING, None
    if not kept.taken:
        return _runs_on(supervisor, kept), None
    # Units that people did not put there are provision's, or were never there before.
    steps = _of_switch(layout, supervisor, kept, kept.by_hand)
    for step in (*steps, *_env_mode_back(layout, kept.last())):
        step.do()
    may_give = kept.scope == "system"
    for mode, *owner, path in ((*one["was"], one["path"]) for one in kept.later):
        originals.set_directory(path, mode, *(owner if may_give else (None, None)))
    supervisor.install({}, reload=True)
    said = ("systemd starts next what was there by hand", None)
    answer = _start(layout, supervisor, kept.ran) if start else said
    originals.write(layout, replace(kept, taken=False, ran=()))
    return answer


def _start(layout: Layout, supervisor: Supervisor, units: Sequence[str]) -> tuple[str, bool | None]:
    """Start units by hand; their processes must be new, and stay."""
    if not units:
        return _NOTHING, None
    said, well = [], True
    for unit in units:
        process = _started(supervisor, unit)
        stays = process.active == "active" and not _is_of_release(layout, process.pid)
        well = well and stays
        how = f"runs again as pid {process.pid}" if stays else f"is {process.active or 'unknown'}"
        said.append(f"{unit} as it was put there by hand {how}")
    return "; ".join(said), well


def _is_of_release(layout: Layout, pid: int) -> bool:
    """Whether a process works in a release of macd's, or is none."""
    if not pid:
        return True
    try:
        works_in = os.readlink(f"/proc/{pid}/cwd")
    except OSError:  # no such system, or it ended
        return os.path.isdir("/proc/self")
    return works_in.startswith(os.path.realpath(layout.releases) + os.sep)


def _started(supervisor: Supervisor, unit: str) -> Process:
    before = supervisor.show(unit)
    if before.pid and before.active == "active":  # an undo that was cut off had started it
        return before
    supervisor.restart(unit)
    deadline, given_up = time.monotonic() + _STARTS_S, time.monotonic() + _FAILED_S
    while time.monotonic() < deadline:
        process = supervisor.show(unit)
        if process.active == "active" and process.pid:
            time.sleep(_STAYS_S)
            again = supervisor.show(unit)
            if again.is_same_life(process):
                return again
        elif process.active == "failed" and time.monotonic() > given_up:
            return process
        time.sleep(_POLL_S)
    return supervisor.show(unit)


def _of_switch(
    layout: Layout, supervisor: Supervisor, kept: Kept, units: Sequence[str]
) -> list[Step]:
    """What the first deploy replaced, of these units; the same in every state it may be in."""
    steps = []
    uid, _ = originals.ids(kept)
    if uid is not None and os.path.isfile(layout.state(ADOPTED, originals.OWNERS)):
        back = partial(originals.owners_back, layout, uid)
        steps.append(Step("owners", ", ".join(kept.give), "given back", back))
    last = kept.last()
    files = [os.path.join(supervisor.unit_directory, unit) for unit in units]
    for path in (*files, *kept.aside):
        if path in last:
            steps += originals.back(layout, last[path])
    steps += originals.links_back(supervisor, kept, units)
    return [*steps, *_current_back(layout, kept)]


def _env_mode_back(layout: Layout, last: Mapping[str, Entry]) -> list[Step]:
    entry = last.get(layout.env)
    if entry is None or entry["kind"] != "file" or not os.path.isfile(layout.env):
        return []
    return originals.attributes(
        {name: value for name, value in entry.items() if name != "mtime_ns"}
    )


def _current_back(layout: Layout, kept: Kept) -> list[Step]:
    if current_now(layout) == kept.current:
        return []
    kind, aside = kept.current.get("kind"), layout.state(ADOPTED, _CURRENT)
    how = "removed" if kind == "absent" else "given back"

    def back() -> None:
        if os.path.islink(layout.current):
            os.unlink(layout.current)
        if kind == "link":
            os.symlink(kept.current["target"], layout.current)
        elif kind == "there" and os.path.lexists(aside):
            os.rename(aside, layout.current)
        durable.sync_directory(layout.app)

    return [Step("link", layout.current, how, back)]


def undo(app: str, scope: str, who: str, dry_run: bool = False) -> dict[str, Any]:
    """Give back what was there before provision; what macd put there stays only where nothing
    refers to it.

    Answers app, changes ({"what", "name", "how"}), serving (what serves now, in words, or would),
    healthy (None: nothing had to be started), left (directories that stay,
    and texts that were set aside).

    Raises:
        HostError ("refused"): not provisioned by this version, an activation is under way, the
            guard watches, or somebody holds the lock. Nothing was changed.
    """
    layout, supervisor = Layout(durable.expand(app)), Supervisor(scope)
    kept = _to_undo(layout, scope)
    with contextlib.ExitStack() as held:
        if not dry_run:
            holder = {"who": who, "doing": "provision --undo"}
            held.enter_context(locks.locked(layout, locks.DEPLOY, holder))
            ledger.refuse_if_pending(layout)
        was_live = _is_switched(supervisor, kept)
        steps = _undoing(layout, supervisor, kept)
        changes = [step.shown() for step in steps]
        if dry_run:
            would = _would_serve(supervisor, kept, was_live)
            return _answer(layout, supervisor, kept, changes, would, None)
        originals.write(layout, replace(kept, undoing=True))
        for step in steps:
            step.do()
        supervisor.install({}, reload=True)
        serving, healthy = _serving(layout, supervisor, kept)
        recorder(layout)("provision.undone", {"who": who, "serving": serving})
        undone = _state_aside(layout)
    answer = _answer(layout, supervisor, kept, changes, serving, healthy)
    return {**answer, "state": undone}


def _to_undo(layout: Layout, scope: str) -> Kept:
    if not os.path.isdir(layout.state()):
        before = [name for name in _names(layout.app) if name.startswith(_UNDONE)]
        raise HostError(
            "there is nothing to undo on this host",
            why=f"there is no {layout.state()}"
            + (f"; an earlier undo ended well and left {before[-1]}" if before else ""),
            live="unchanged",
            kind="refused",
        )
    ledger.refuse_if_pending(
        layout, hint="invoke deploy --attach follows it; undo when it has ended"
    )
    if flag_file.interrupted(layout) is not None or guard.is_needed(layout):
        raise HostError(
            "the guard watches what this undo would take away",
            live="unchanged",
            hint="invoke disable-stacking, then invoke provision --undo",
            kind="refused",
        )
    kept = originals.read(layout)
    if kept is None or kept.scope != scope:
        why = f"there is no {layout.state(ADOPTED)}: an earlier macd provisioned this host"
        raise HostError(
            "what was here before macd is not known",
            why=f"it was provisioned with scope {kept.scope}" if kept else why,
            live="unchanged",
            hint="take macd's units away by hand: systemctl disable --now, then remove the files",
            kind="refused",
        )
    return kept


def _is_switched(supervisor: Supervisor, kept: Kept) -> bool:
    """Whether macd's own units are in place."""
    return any(byhand.is_ours(supervisor.unit_text(unit)) for unit in kept.switched)


def _undoing(layout: Layout, supervisor: Supervisor, kept: Kept) -> list[Step]:
    """Everything that differs from before, and how each comes back, in order."""
    here = supervisor.unit_directory
    last = kept.last()
    units = [os.path.basename(p) for p in last if os.path.dirname(p) == here]
    gone = [u for u in units if last[os.path.join(here, u)]["kind"] == "absent"]
    since = [u for u in own.read(layout).units if u not in units]  # came with a later deploy
    units, gone = [*units, *since], [*gone, *since]
    ours = [u for u in units if byhand.is_ours(supervisor.unit_text(u))]
    steps = []
    stopped = [u for u in (*kept.switched, *ours) if u in ours and _is_up(supervisor, u)]
    if stopped:
        names = list(dict.fromkeys(stopped))
        steps.append(Step("unit", ", ".join(names), "stopped", partial(supervisor.stop, *names)))
    for unit in gone:
        if supervisor.unit_text(unit) is not None:
            steps.append(Step("unit", unit, "disabled", partial(supervisor.disable, unit)))
    for unit in gone:
        if (unit in since and unit in ours) or supervisor.has_template(unit):
            steps.append(Step("unit", unit, "removed", partial(supervisor.install, {unit: None})))
    steps += _written_beside(supervisor, kept)
    steps += _set_edits_aside(layout, supervisor, kept)
    steps += _of_switch(layout, supervisor, kept, kept.switched)
    done = {step.name for step in steps if step.what in ("file", "directory")}
    for path, entry in last.items():
        if path not in done:
            steps += originals.back(layout, entry)
    steps += originals.links_back(supervisor, kept, units)
    if os.path.islink(layout.previous):
        no_previous = partial(point_previous_at, layout, None)
        steps.append(Step("link", layout.previous, "removed", no_previous))
    return list({(step.what, step.name, step.how): step for step in steps}.values())


def _written_beside(supervisor: Supervisor, kept: Kept) -> list[Step]:
    """Drop-ins of macd's own, such as that of the flag."""
    paths = [one["path"] for beside in supervisor.dropins(kept.switched).values() for one in beside]
    return [
        Step("file", path, "removed", partial(discard, path))
        for path in paths
        if path not in kept.last() and (durable.text(path) or "").startswith("# Written by ")
    ]


def _is_up(supervisor: Supervisor, unit: str) -> bool:
    """A socket that is left up would start its service again."""
    shown = supervisor.show(unit)
    return bool(shown.pid) or (unit.endswith(".socket") and shown.active == "active")


def _set_edits_aside(layout: Layout, supervisor: Supervisor, kept: Kept) -> list[Step]:
    """What people wrote since, that the originals replace, is stored beside its file."""
    steps = []
    last = kept.last()
    for unit in kept.by_hand:
        path = os.path.join(supervisor.unit_directory, unit)
        text = supervisor.unit_text(unit)
        if text and not byhand.is_ours(text) and originals.differs(layout, last[path]):
            steps.append(_aside(path))
    now, entry = durable.text(layout.env), last.get(layout.env)
    if now is not None and entry is not None and _has_news(layout, now, entry, kept):
        steps.append(_aside(layout.env))
    return steps


def _has_news(layout: Layout, now: str, entry: Entry, kept: Kept) -> bool:
    """Whether .env sets something that neither stood there before nor is macd's."""
    was = originals.content(layout, entry) if entry["kind"] == "file" else b""
    try:
        before, after = (
            envfile.readings(was)[1],
            envfile.readings(now.encode("utf-8", "surrogateescape"))[1],
        )
    except envfile.EnvFileError:
        return True
    known = {*before.items(), *kept.variables.items()}
    return any(one not in known and one[0] not in flag_file.KEYS for one in after.items())


def _aside(path: str) -> Step:
    aside = f"{path}.before-undo"

    def copy() -> None:
        data = durable.regular(path)
        if data is not None:
            durable.replace_file(aside, data, mode=durable.mode_of(path, 0o600))

    return Step("file", aside, "stored: what was written there since", copy)


def _serving(layout: Layout, supervisor: Supervisor, kept: Kept) -> tuple[str, bool | None]:
    if kept.ran:
        return _start(layout, supervisor, kept.ran)
    return _runs_on(supervisor, kept), None


def _would_serve(supervisor: Supervisor, kept: Kept, was_live: bool) -> str:
    if kept.ran and was_live:
        return f"{', '.join(kept.ran)}, as put there by hand, would be started from the old place"
    return _runs_on(supervisor, kept)


def _runs_on(supervisor: Supervisor, kept: Kept) -> str:
    """Nothing was taken over, or what was there did not run."""
    running = [
        f"{unit} as put there by hand goes on as pid {pid}"
        for unit in kept.by_hand
        if (pid := supervisor.show(unit).pid)
    ]
    if kept.by_hand and not running:
        return f"{', '.join(kept.by_hand)} as put there by hand does not run"
    return "; ".join(running) or "nothing serves: nothing ran here before macd"


def _state_aside(layout: Layout) -> str:
    """The last step: with its state the host is no longer macd's, and no release is anybody's."""
    number = 1 + sum(name.startswith(_UNDONE) for name in _names(layout.app))
    undone = os.path.join(layout.app, f"{_UNDONE}{number}")
    os.rename(layout.state(), undone)
    durable.sync_directory(layout.app)
    return undone


def _answer(
    layout: Layout,
    supervisor: Supervisor,
    kept: Kept,
    changes: list[Change],
    serving: str,
    healthy: bool | None,
) -> dict[str, Any]:
    names = ("bin", "blobs", "releases", "runtimes", *_names(layout.app))
    left = [n for n in dict.fromkeys(names) if os.path.isdir(os.path.join(layout.app, n))]
    mine = [n for n in left if n in names[:4] or n.startswith(_UNDONE)]
    said = untrusted.line(serving, 500)
    return {
        "app": layout.app,
        "changes": changes,
        "serving": said,
        "healthy": healthy,
        "left": [*mine, *_texts_aside(layout, supervisor, kept)],
    }


def _texts_aside(layout: Layout, supervisor: Supervisor, kept: Kept) -> list[str]:
    """What deploys, rollbacks and reverts stored of what people had changed."""
    files: dict[str, tuple[str, ...]] = {layout.app: (snapshots.FLAGS, snapshots.SETTINGS)}
    units = [os.path.basename(path) for path in kept.last()]
    files[supervisor.unit_directory] = tuple(dict.fromkeys((*kept.switched, *units)))
    return [
        os.path.join(directory, name)
        for directory, texts in files.items()
        for name in _names(directory)
        if name.startswith(tuple(snapshots.aside_of(text, "") for text in texts))
    ]


def _names(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def was_live(layout: Layout) -> bool:
    """Whether a release of macd's is, or was, live here."""
    return live_release(layout) is not None or bool(ledger.history(layout))
