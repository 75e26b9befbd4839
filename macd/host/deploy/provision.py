"""Make a host what the inventory says it is, and list every change that this needs.

It converges: what is right is not touched, so a second run changes nothing. It looks at everything
before it changes anything. A dry run ends there, with the very list of changes. It knows no
templates and no inventory: owners, modes, texts and units are arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import grp
import os
import pwd
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from macd.host import durable, envfile
from macd.host.alerts import look
from macd.host.deploy import adopt as adopting
from macd.host.deploy import byhand, ledger, locks, originals
from macd.host.failure import HostError
from macd.host.flag import guard_config
from macd.host.flag.flag_file import FLAG
from macd.host.layout import Layout, current_now, discard
from macd.host.masking import hidden
from macd.host.rpc import boot
from macd.host.store import runtimes, signature, snapshots
from macd.host.systemd import namespaces
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Supervisor

Change = dict[str, Any]
# Whoever may write in these decides what root runs here.
_MACDS = ("bin", "blobs", "releases", "runtimes", "state")
_STICKY = 0o1775


def provision(
    app: str,
    scope: str,
    account: str,
    directories: list[dict[str, Any]],
    files: list[dict[str, Any]],
    flags: dict[str, str],
    units: dict[str, str | None],
    enable: list[str],
    who: str,
    dry_run: bool = False,
    start: Sequence[str] = (),
    switched: Sequence[str] = (),
    commands: Sequence[Sequence[str]] = (),
    switch: str = FLAG,
    dropin: bool = False,
    adopt: bool = False,
    hardening: str = namespaces.FULL,
) -> dict[str, Any]:
    """Converge; answers app, changes, missing and adopts. With `dry_run` nothing is changed.

    Where people put a service there before, its units and what they need stay as they are: the
    first deploy takes over (macd/host/deploy/adopt.py). `adopts` then says what that means: words,
    diffs ({"name", "before", "after"}), processes (as `byhand.processes`), and whether it is new,
    so that somebody must agree. None: nobody did.

    Args:
        account: the service's user, made if missing; "" where it runs as whoever logs in.
        directories: {"path" below app, "mode", "owner": "" or the account}, parents first. "data":
            what is in it belongs to the service, and it may be a link to a directory.
        files: {"path" below app, "data", "mode"}, replaced whole; with "secret" shown in no diff.
            "data" None: the file must not be there.
        flags: what .env must hold; `switch` only counts when it isn't set yet.
        units: text by name; None: the unit must not be there.
        enable, start: names of units; what is started is the timer that looks for alarms.
        switched: those of `units` that go live with a release, the main one first.
        commands: the words of what they run.
        dropin: `switch` may stand in a drop-in of the main unit.
        adopt: somebody agreed that a service by hand is taken over.
        hardening: `service.hardening`, for the units of a watch.

    Raises:
        HostError ("refused"): not root, or root where it must not be, the lock is held, an
            activation is pending, an undo was cut off, nobody agreed to adopt, or something is in
            the way that is not provision's to change. Nothing was changed.
    """
    layout = Layout(durable.expand(app))
    _refuse_login(layout, scope)
    supervisor = Supervisor(scope)
    os.umask(0o022)
    with contextlib.ExitStack() as held:
        is_new = not os.path.isdir(layout.state())
        if not is_new:
            adopting.refuse_undoing(layout)
            ledger.refuse_if_pending(
                layout, hint="invoke deploy --attach follows it; provision again when it has ended"
            )
            if not dry_run:
                held.enter_context(_lock(layout, who))
        before = _Before(layout, supervisor, switched, units, switch if dropin else "", account)
        if not (dry_run or adopt):
            before.refuse_unasked()
        changes = _Changes(layout, supervisor, scope, before)
        changes.account(account)
        changes.tree(directories, files)
        changes.flags(flags, switch)
        wanted = {**units, **guard_config.units_of_watch(layout, scope, hardening)}
        left = before.left_to_deploy(wanted, enable)
        changes.units(*left)
        for timer in start:
            changes.looks(timer)
        if not dry_run:
            if is_new:
                durable.make_directories(layout.state())
                held.enter_context(_lock(layout, who))
            before.keep(who, scope, [one["path"] for one in directories], changes)
            for do in changes.actions:
                do()
            _remember(layout, switched, left[0], files)
            if os.path.isfile(layout.agent_archive):
                boot.compile_beside(layout.agent_archive)
        adopts = before.shown(account, scope, commands, changes)
    missing = runtimes.missing_programs()
    return {"app": layout.app, "changes": changes.listed, "missing": missing, "adopts": adopts}


def _remember(
    layout: Layout,
    switched: Sequence[str],
    units: Mapping[str, str | None],
    files: Sequence[Mapping[str, Any]],
) -> None:
    """Store what a first deploy will find here that no person wrote."""
    texts = {name: text for name, text in units.items() if name in switched}
    texts |= {f["path"]: f["data"].decode() for f in files if f["path"] == snapshots.SETTINGS}
    if texts:
        snapshots.keep_provisioned(layout, texts)


def _refuse_login(layout: Layout, scope: str) -> None:
    """Raises HostError ("refused"): not root, or root where it must not be."""
    if scope == "system" and os.geteuid() != 0:
        raise HostError(
            "provisioning this host needs root",
            why=f"the login is {pwd.getpwuid(os.geteuid()).pw_name}; its scope is system",
            hint="log in as root, or set become: sudo for this host in the inventory",
            live="unchanged",
            kind="refused",
        )
    Sandbox(scope, None, layout.app).refuse_root()


def _lock(layout: Layout, who: str) -> Any:
    return locks.locked(layout, locks.DEPLOY, {"who": who, "doing": "provision"})


class _Before:
    """What people put there; empty once a release of macd's was live.

    flag: the variable that a drop-in may set, "" for none.
    """

    def __init__(
        self,
        layout: Layout,
        supervisor: Supervisor,
        switched: Sequence[str],
        units: Mapping[str, str | None],
        flag: str,
        account: str,
    ) -> None:
        self._layout = layout
        self._supervisor = supervisor
        self._switched = switched
        self._units = units
        self._flag = flag
        self._account = account
        self._kept = originals.read(layout)
        # Before macd's state is there nobody has asked what lies at `current`.
        was_live = os.path.isdir(layout.state()) and adopting.was_live(layout)
        self.is_first = not was_live
        self.manual_units = [] if was_live else byhand.look(supervisor, switched)
        self.variables = byhand.variables(layout, supervisor, self.manual_units, units)

    @property
    def _new(self) -> list[str]:
        known = self._kept.by_hand if self._kept else ()
        return [one.unit for one in self.manual_units if one.unit not in known]

    def refuse_unasked(self) -> None:
        if self._new:
            raise HostError(
                f"{', '.join(self._new)} was installed by hand, and nobody agreed to adopt it",
                why="the first deploy would run macd's unit in its place",
                live="unchanged: what ran goes on running",
                hint="invoke provision --dry-run shows what changes; invoke provision --adopt",
                kind="refused",
            )

    def refuse_theirs(self, path: str) -> None:
        """Of a file that was there before macd's state. Raises HostError ("refused")."""
        by_macd = self._kept is not None or os.path.exists(self._layout.state(signature.POLICY))
        if self.manual_units and not by_macd:
            raise HostError(
                f"{path} is the application's own",
                why="macd keeps its settings under that name",
                live="unchanged",
                hint="choose another app_dir for this host in the inventory",
                kind="refused",
            )

    def left_to_deploy(
        self, units: dict[str, str | None], enable: list[str]
    ) -> tuple[dict[str, str | None], list[str]]:
        """Without the units that stay as they are until the first deploy."""
        if not self.manual_units:
            return units, enable
        stays = {*self._switched}
        left = {name: text for name, text in units.items() if name not in stays}
        return left, [name for name in enable if name not in stays]

    def _aside(self) -> list[str]:
        return [
            dropin.path
            for one in self.manual_units
            for dropin in one.dropins
            if not dropin.shared and self._wins(one, dropin)
        ]

    def _wins(self, one: byhand.ManualUnit, dropin: byhand.Dropin) -> bool:
        flag = self._flag if one.unit == self._switched[0] else ""
        return byhand.wins(dropin, self._units.get(one.unit) or "", flag)

    def keep(self, who: str, scope: str, directories: Sequence[str], changes: _Changes) -> None:
        """Store what is about to be replaced, now or by the first deploy."""
        layout, kept = self._layout, self._kept
        by_macd = os.path.exists(layout.state(signature.POLICY))
        if (
            not self.is_first
            or not self._switched
            or (kept is None and by_macd and not self.manual_units)
        ):
            return
        now = kept or originals.Kept(
            time.time(),
            who,
            scope,
            self._account,
            tuple(self._switched),
            current=current_now(layout),
        )
        by_hand = dict.fromkeys((*now.by_hand, *(one.unit for one in self.manual_units)))
        now = dataclasses.replace(
            now,
            account=self._account,
            switched=tuple(dict.fromkeys((*now.switched, *self._switched))),
            by_hand=tuple(by_hand),
            aside=tuple(self._aside()),
            later=tuple(changes.later),
            give=tuple(changes.data),
            variables={**now.variables, **changes.variables},
        )
        here = self._supervisor.unit_directory
        stem = self._switched[0].removesuffix(".service")
        units = [*self._units, f"{stem}-guard.service", f"{stem}-guard.timer"]
        paths = [os.path.join(here, unit) for unit in units]
        anew = [os.path.join(here, unit) for unit in self._new]
        paths += [
            dropin.path for one in self.manual_units for dropin in one.dropins if not dropin.shared
        ]
        paths += [layout.env, layout.service_settings]
        tops = [os.path.join(layout.app, path).rstrip("/") for path in directories]
        if kept is None:  # later on they are macd's
            paths += [path for path in tops if os.path.isdir(path)]
        originals.keep(layout, self._supervisor, now, paths, anew)

    def shown(
        self, account: str, scope: str, commands: Sequence[Sequence[str]], changes: _Changes
    ) -> dict[str, Any] | None:
        """What adopting it means; see `provision`."""
        layout = self._layout
        running: list[dict[str, Any]] = []
        if self.is_first:
            running = byhand.processes(layout, self._supervisor, self._switched, commands)
        if not (self.manual_units or running or changes.linked):
            return None
        words = byhand.words(
            self.manual_units,
            self._units,
            self.variables,
            account=account if scope == "system" else "",
            app=layout.app,
            aside=self._aside(),
            data=[path for path in changes.data if os.path.isdir(path)],
        )
        for path in changes.linked:
            words.append(
                f"{path} is a link to {os.path.realpath(path)}, which is root's, so its files stay "
                f"whose they are; for {account} to write there: chown -R {account}: {path}/"
            )
        if self.manual_units and current_now(layout)["kind"] != "absent":
            words.append(f"{layout.current} was made by hand: the first deploy moves it aside")
        diffs = [
            {"name": one.unit, "before": one.text, "after": self._units[one.unit] or ""}
            for one in self.manual_units
        ]
        return {"words": words, "diffs": diffs, "processes": running, "new": bool(self._new)}


class _Changes:
    """What differs on the host, and in the same order how each difference is corrected.

    later: what the first deploy corrects, since a service that people put there still needs it as
    it is. data: directories whose files become the service's account's then; linked: those that
    don't, since they are links to root's. variables: of .env, those that are set.
    """

    def __init__(self, layout: Layout, supervisor: Supervisor, scope: str, before: _Before) -> None:
        self._layout = layout
        self._supervisor = supervisor
        self._scope = scope
        self._before = before
        self.later: list[dict[str, Any]] = []
        self.data: list[str] = []
        self.linked: list[str] = []
        self.variables: dict[str, str] = {}
        self.listed: list[Change] = []
        self.actions: list[Callable[[], object]] = []

    def _change(
        self, what: str, name: str, how: str, do: Callable[[], object], **more: Any
    ) -> None:
        self.listed.append({"what": what, "name": name, "how": how, **more})
        self.actions.append(do)

    def account(self, name: str) -> None:
        """A system account without a login and without a home of its own."""
        if not name or self._scope == "user":
            return
        if not _has_account(name):
            self._change("account", name, "created", lambda: _add_account(name, self._layout.app))

    def tree(self, directories: list[dict[str, Any]], files: list[dict[str, Any]]) -> None:
        for one in directories:
            self.directory(one["path"], one["mode"], one["owner"], data=one.get("data", False))
        for file in files:
            self.file(file["path"], file["data"], file["mode"], secret=file.get("secret", False))

    def directory(self, relative: str, mode: int, owner: str, *, data: bool = False) -> None:
        path = os.path.join(self._layout.app, relative).rstrip("/")

        def make() -> None:
            durable.make_directories(path)
            os.chmod(path, mode)
            self._chown(path, owner)

        if data and not self._is_roots(path):
            self.data.append(path)
        if not os.path.lexists(path):
            self._change("directory", path, "created", make)
            return
        if data and os.path.islink(path) and os.path.isdir(path):
            return  # on another disk, say
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            hint = f"move it away: mv {path} {path}.by-hand"
            raise HostError(f"{path} is no directory", hint=hint, kind="refused")
        if self._before.manual_units and self._stays(relative, path, mode, owner, status):
            return
        if stat.S_IMODE(status.st_mode) != mode:
            how = f"mode {stat.S_IMODE(status.st_mode):o} -> {mode:o}"
            self._change("directory", path, how, lambda: os.chmod(path, mode))
        wanted = self._ids(owner)
        if wanted is not None and (status.st_uid, status.st_gid) != wanted:
            how = f"owner -> {owner or 'root'}"
            self._change("directory", path, how, lambda: self._chown(path, owner))

    def _is_roots(self, path: str) -> bool:
        if self._scope == "user" or not originals.is_roots(path):
            return False
        self.linked.append(path)
        return True

    def _stays(
        self, relative: str, path: str, mode: int, owner: str, status: os.stat_result
    ) -> bool:
        """Leave a directory to the first deploy, which people's own service still works in."""
        is_others = self._scope == "system" and status.st_uid != 0
        if relative.partition("/")[0] in _MACDS:
            if is_others and not owner:
                raise HostError(
                    f"{path} belongs to somebody else than root",
                    why="macd keeps there what root runs on this host",
                    live="unchanged",
                    hint="choose another app_dir for this host in the inventory",
                    kind="refused",
                )
            return False
        has = stat.S_IMODE(status.st_mode)
        wanted = self._ids(owner)
        if has != mode or (wanted is not None and (status.st_uid, status.st_gid) != wanted):
            self.later.append({"path": path, "mode": mode, "owner": owner})
        if not relative:
            self._open_top(path, status, is_others=is_others)
        return True

    def _open_top(self, path: str, status: os.stat_result, *, is_others: bool) -> None:
        """The service's account gets in before the first deploy, where a release is checked.

        Whose it was may go on making files there, but takes nothing of macd's away.
        """
        has = stat.S_IMODE(status.st_mode)
        mode = has | (_STICKY if is_others else 0o755)
        if not is_others and mode == has:
            return

        def share() -> None:
            if is_others:
                os.chown(path, 0, status.st_gid)
            os.chmod(path, mode)

        how = f"{'owner -> root, ' if is_others else ''}mode {has:o} -> {mode:o}"
        self._change("directory", path, how, share)

    def _ids(self, owner: str) -> tuple[int, int] | None:
        if self._scope == "user":
            return None
        try:
            return (pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid) if owner else (0, 0)
        except KeyError:
            return -1, -1  # not made yet

    def _chown(self, path: str, owner: str) -> None:
        ids = self._ids(owner)
        if ids is not None:
            os.chown(path, *ids)

    def file(self, relative: str, data: bytes | None, mode: int, *, secret: bool = False) -> None:
        path = os.path.join(self._layout.app, relative)
        before = durable.regular(path)
        if before is not None and path == self._layout.service_settings:
            self._before.refuse_theirs(path)
        if data is None:
            if before is not None:
                self._change("file", path, "removed", lambda: discard(path))
        elif before != data:
            shown = {} if secret else _texts(before, data)
            how = "created" if before is None else "changed"
            write = functools.partial(durable.replace_file, path, data, mode=mode)
            self._change("file", path, how, write, **shown)
        elif stat.S_IMODE(os.stat(path).st_mode) != mode:
            how = f"mode {stat.S_IMODE(os.stat(path).st_mode):o} -> {mode:o}"
            self._change("file", path, how, lambda: os.chmod(path, mode))

    def flags(self, wanted: dict[str, str], switch: str) -> None:
        """The .env file: made with `switch` in shadow; other keys are left alone.

        Variables that a service by hand gets from elsewhere are added.
        """
        path = self._layout.env
        content = durable.regular(path)
        if content is None and os.path.exists(path):
            raise HostError(
                f"{path} is no file",
                why="it is a directory, a pipe or the like",
                live="unchanged",
                hint=f"move it away (mv {path} {path}.by-hand), then provision again",
                kind="refused",
            )
        text = "" if content is None else content.decode("utf-8", "surrogateescape")
        try:
            present = envfile.parse(text)
            taken = self._before.variables.taken
            has = {**present, **taken}
            changes = {k: v for k, v in wanted.items() if has.get(k) != v}
            if switch in has:  # enable-stacking's to decide, never provision's
                changes.pop(switch, None)
            after = envfile.with_values(envfile.rewritten_text(text, taken), changes)
            changes = {**taken, **changes}
            self.variables = changes
        except envfile.EnvFileError as error:
            raise HostError(
                f"{path} can't stay as it is",
                why=str(error),
                hint="mend that line, then provision again",
                kind="refused",
            ) from error
        if content is None or changes:
            how = "created" if content is None else "changed"
            shown: dict[str, Any] = _texts(
                envfile.shown(text).encode(), envfile.shown(after).encode()
            )
            shown["hidden"] = hidden(present, changes, envfile.FLAGS)
            data = after.encode("utf-8", "surrogateescape")
            write = functools.partial(self._write_env, path, data)
            self._change("file", path, how, write, **shown)
        elif stat.S_IMODE(os.stat(path).st_mode) & 0o037 and not self._before.manual_units:
            self._change("file", path, "made private", lambda: os.chmod(path, 0o600))

    def _write_env(self, path: str, data: bytes) -> None:
        """A service may read it by itself: its group keeps that, and all is kept by hand's."""
        mode = durable.mode_of(path, 0o600)
        durable.replace_file(
            path, data, mode=mode if self._before.manual_units else mode & 0o640, keep_owner=True
        )

    def units(self, wanted: dict[str, str | None], enable: list[str]) -> None:
        differing: dict[str, str | None] = {}

        def install() -> None:
            for name in [name for name, text in differing.items() if text is None]:
                self._supervisor.disable(name)
            self._supervisor.install(differing)  # all of them, and one reload

        for name, text in sorted(wanted.items()):
            before = self._supervisor.unit_text(name)
            if before != text:
                how = "created" if before is None else "removed" if text is None else "changed"
                do = _nothing if differing else install
                self._change("unit", name, how, do, before=before or "", after=text or "")
                differing[name] = text
        for unit in enable:
            if unit.endswith(".timer") and not self._supervisor.has_timers():
                continue
            if self._is_off(unit, wanted[unit] or "", is_new=unit in differing):
                enabling = functools.partial(self._supervisor.enable, unit)
                self._change("unit", unit, "enabled", enabling)

    def looks(self, timer: str) -> None:
        """Start what looks for alarms, or anew where its units change."""
        of_it = (timer, timer.replace(".timer", ".service"))
        changed = any(one["what"] == "unit" and one["name"] in of_it for one in self.listed)
        if not look.is_running(self._layout, self._supervisor, timer):
            starting = functools.partial(look.start, self._layout, self._supervisor, timer)
            self._change("unit", timer, "started", starting)
        elif changed and self._supervisor.has_timers():
            self.actions.append(lambda: look.start(self._layout, self._supervisor, timer))

    def _is_off(self, unit: str, text: str, *, is_new: bool) -> bool:
        """Whether it must be enabled once its file says `text`; is_new: the file changes."""
        shown = self._supervisor.show(unit).enabled
        if is_new:
            return "[Install]" in text.splitlines() and shown != "enabled"
        return shown not in ("enabled", "static")


def _nothing() -> None:
    """For a change that an earlier one of the same kind carries out too."""


def _accounts() -> contextlib.AbstractContextManager[None]:
    """A lock: two applications of one host may be provisioned at once, for the same account."""
    return durable.one_at_a_time("/etc")


def _has_account(name: str) -> bool:
    with _accounts(), contextlib.suppress(KeyError):
        pwd.getpwnam(name)
        return True
    return False


def _add_account(name: str, app: str) -> None:
    argv = ["useradd", "--system", "--user-group", "--no-create-home"]
    argv += ["--home-dir", app, "--shell", "/usr/sbin/nologin", name]
    with _accounts():
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return  # made meanwhile
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise HostError(f"the account {name} was not made", why=done.stderr.strip())


def _texts(before: bytes | None, after: bytes) -> dict[str, str]:
    """Both texts for a diff; nothing for what isn't text."""
    if b"\0" in after or b"\0" in (before or b""):
        return {}
    return {
        "before": (before or b"").decode("utf-8", "replace"),
        "after": after.decode("utf-8", "replace"),
    }
