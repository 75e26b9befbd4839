"""Make a host what the inventory says it is, and list every change that this needs.

It converges: what is right is not touched, so a second run changes nothing. It looks at everything
before it changes anything. A dry run ends there, with the very list of changes. It knows no
templates and no inventory: owners, modes, texts and units are arguments.
"""

from __future__ import annotations

import contextlib
import functools
import grp
import os
import pwd
import stat
import subprocess
from collections.abc import Callable
from typing import Any

from macd.host import durable, envfile
from macd.host.deploy import ledger, locks
from macd.host.failure import HostError
from macd.host.flag import guard_config
from macd.host.layout import Layout, discard
from macd.host.masking import hidden
from macd.host.rpc import boot
from macd.host.store import runtimes
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Supervisor

Change = dict[str, Any]


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
) -> dict[str, Any]:
    """Converge; answers {"changes": [...], "missing": [...]}. With `dry_run` nothing is changed.

    Args:
        account: the service's user, made if missing; "" where it runs as whoever logs in.
        directories: {"path" below app, "mode", "owner": "" or the account}, parents first.
        files: {"path" below app, "data", "mode"}, replaced whole; with "secret" shown in no diff.
            "data" None: the file must not be there.
        flags: what .env must hold; ML_ENABLE_STACKING only counts when it isn't set yet.
        units: text by name; None: the unit must not be there.

    Raises:
        HostError ("refused"): not root, or root where it must not be, the lock is held, an
            activation is pending, or something is in the way that is not provision's to change.
            Nothing was changed.
    """
    layout = Layout(durable.expand(app))
    if scope == "system" and os.geteuid() != 0:
        raise HostError(
            "provisioning this host needs root",
            why=f"the login is {pwd.getpwuid(os.geteuid()).pw_name}; its scope is system",
            hint="log in as root, or set become: sudo for this host in the inventory",
            live="unchanged",
            kind="refused",
        )
    Sandbox(scope, None, layout.app).refuse_root()
    changes = _Changes(layout, Supervisor(scope), scope)
    os.umask(0o022)
    with contextlib.ExitStack() as held:
        is_new = not os.path.isdir(layout.state())
        if not is_new:
            ledger.refuse_if_pending(
                layout, hint="invoke deploy --attach follows it; provision again when it has ended"
            )
            if not dry_run:
                held.enter_context(_lock(layout, who))
        changes.account(account)
        for directory in directories:
            changes.directory(directory["path"], directory["mode"], directory["owner"])
        if is_new:
            changes.actions.append(lambda: held.enter_context(_lock(layout, who)))
        for file in files:
            changes.file(file["path"], file["data"], file["mode"], secret=file.get("secret", False))
        changes.flags(flags)
        changes.units({**units, **guard_config.units_of_watch(layout, scope)}, enable)
        for do in () if dry_run else changes.actions:
            do()
        if not dry_run and os.path.isfile(layout.agent_archive):
            boot.compile_beside(layout.agent_archive)
    return {"app": layout.app, "changes": changes.listed, "missing": runtimes.missing_programs()}


def _lock(layout: Layout, who: str) -> Any:
    return locks.locked(layout, locks.DEPLOY, {"who": who, "doing": "provision"})


class _Changes:
    """What differs on the host, and in the same order how each difference is corrected."""

    def __init__(self, layout: Layout, supervisor: Supervisor, scope: str) -> None:
        self._layout = layout
        self._supervisor = supervisor
        self._scope = scope
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

    def directory(self, relative: str, mode: int, owner: str) -> None:
        path = os.path.join(self._layout.app, relative).rstrip("/")

        def make() -> None:
            durable.make_directories(path)
            os.chmod(path, mode)
            self._chown(path, owner)

        if not os.path.lexists(path):
            self._change("directory", path, "created", make)
            return
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            hint = f"move it away: mv {path} {path}.by-hand"
            raise HostError(f"{path} is no directory", hint=hint, kind="refused")
        if stat.S_IMODE(status.st_mode) != mode:
            how = f"mode {stat.S_IMODE(status.st_mode):o} -> {mode:o}"
            self._change("directory", path, how, lambda: os.chmod(path, mode))
        wanted = self._ids(owner)
        if wanted is not None and (status.st_uid, status.st_gid) != wanted:
            how = f"owner -> {owner or 'root'}"
            self._change("directory", path, how, lambda: self._chown(path, owner))

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

    def flags(self, wanted: dict[str, str]) -> None:
        """The .env file: made with stacking in shadow; other keys are left alone."""
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
            changes = {k: v for k, v in wanted.items() if present.get(k) != v}
            if "ML_ENABLE_STACKING" in present:  # enable-stacking's to decide, never provision's
                changes.pop("ML_ENABLE_STACKING", None)
            after = envfile.with_values(text, changes)
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
            write = functools.partial(durable.replace_file, path, data, mode=0o600)
            self._change("file", path, how, write, **shown)
        elif stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            self._change("file", path, "made private", lambda: os.chmod(path, 0o600))

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
            if self._is_off(unit, wanted[unit] or "", is_new=unit in differing):
                enabling = functools.partial(self._supervisor.enable, unit)
                self._change("unit", unit, "enabled", enabling)

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
