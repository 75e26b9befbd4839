"""Make a host what the inventory says it is, and tell each thing that had to be changed for it.

Converges: what is right is not touched, so a second run changes nothing. Knows no templates and no
inventory; it is told owners, modes, texts and units.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from typing import Any, Dict, List, Optional

from macd.host import durable, envfile, ledger
from macd.host.failure import HostError
from macd.host.layout import Layout, discard
from macd.host.ledger import locked
from macd.host.masking import masked
from macd.host.supervisor import Supervisor

DEPLOY_LOCK = "deploy.lock"
Change = Dict[str, Any]


def provision(
    app: str,
    scope: str,
    account: str,
    directories: List[Dict[str, Any]],
    files: List[Dict[str, Any]],
    flags: Dict[str, str],
    units: Dict[str, Optional[str]],
    enable: List[str],
    who: str,
    dry_run: bool = False,
) -> Dict[str, Any]:
    """Converge; answers {"changes": [...], "missing": [...]}, with `dry_run` what it would change.

    Args:
        account: the service's user, made if missing; "" where it runs as whoever logs in.
        directories: {"path" below app, "mode", "owner": "" or the account}, parents first.
        files: {"path" below app, "data", "mode"}, replaced whole; with "secret" shown in no diff.
            "data" None: the file must not be there.
        flags: what .env must hold; ML_ENABLE_STACKING only counts when it isn't set yet.
        units: text by name; None: the unit must not be there.

    Raises:
        HostError ("refused"): not root, the lock is held, or an activation is under way.
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
    run = _Run(layout, Supervisor(scope), scope, dry_run)
    os.umask(0o022)
    with contextlib.ExitStack() as held:
        if os.path.isdir(layout.state()):
            _refuse_if_busy(layout)
            if not dry_run:
                held.enter_context(_lock(layout, who))
        run.account(account)
        for directory in directories:
            run.directory(directory["path"], directory["mode"], directory["owner"])
        if not dry_run and not os.path.lexists(layout.state(DEPLOY_LOCK)):
            held.enter_context(_lock(layout, who))
        for file in files:
            run.file(file["path"], file["data"], file["mode"], secret=file.get("secret", False))
        run.flags(flags)
        run.units(units)
        for unit in enable:
            run.enabled(unit)
    return {"app": layout.app, "changes": run.changes, "missing": missing_programs()}


def _lock(layout: Layout, who: str) -> Any:
    return locked(layout, DEPLOY_LOCK, {"who": who, "doing": "provision"})


def _refuse_if_busy(layout: Layout) -> None:
    pending = ledger.read_pending(layout)
    if pending is not None:
        raise HostError(
            f"activation {pending.number} is under way",
            why=f"{pending.kind} of {pending.to} by {pending.who}: {pending.state}",
            hint="invoke deploy --attach follows it; provision again when it has ended",
            kind="refused",
        )


class _Run:
    """One pass over the host; with `dry_run` it only looks."""

    def __init__(self, layout: Layout, supervisor: Supervisor, scope: str, dry_run: bool) -> None:
        self._layout = layout
        self._supervisor = supervisor
        self._scope = scope
        self._dry_run = dry_run
        self.changes: List[Change] = []

    def _change(self, what: str, name: str, how: str, **more: Any) -> bool:
        self.changes.append({"what": what, "name": name, "how": how, **more})
        return not self._dry_run

    def account(self, name: str) -> None:
        """A system account without a login and without a home of its own."""
        if not name or self._scope == "user":
            return
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return
        if self._change("account", name, "created"):
            argv = ["useradd", "--system", "--user-group", "--no-create-home"]
            argv += ["--home-dir", self._layout.app, "--shell", "/usr/sbin/nologin", name]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode != 0:
                raise HostError(f"the account {name} was not made", why=done.stderr.strip())

    def directory(self, relative: str, mode: int, owner: str) -> None:
        path = os.path.join(self._layout.app, relative).rstrip("/")
        if not os.path.lexists(path):
            if self._change("directory", path, "created"):
                durable.make_directories(path)
                os.chmod(path, mode)
                self._chown(path, owner)
            return
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            hint = f"move it away: mv {path} {path}.by-hand"
            raise HostError(f"{path} is no directory", hint=hint, kind="refused")
        if stat.S_IMODE(status.st_mode) != mode:
            how = f"mode {stat.S_IMODE(status.st_mode):o} -> {mode:o}"
            if self._change("directory", path, how):
                os.chmod(path, mode)
        wanted = self._ids(owner)
        wrong = wanted is not None and (status.st_uid, status.st_gid) != wanted
        if wrong and self._change("directory", path, f"owner -> {owner or 'root'}"):
            self._chown(path, owner)

    def _ids(self, owner: str) -> "Optional[tuple[int, int]]":
        if self._scope == "user":
            return None
        try:
            return (pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid) if owner else (0, 0)
        except KeyError:
            return -1, -1  # not made yet: a dry run

    def _chown(self, path: str, owner: str) -> None:
        ids = self._ids(owner)
        if ids is not None:
            os.chown(path, *ids)

    def file(
        self, relative: str, data: Optional[bytes], mode: int, *, secret: bool = False
    ) -> None:
        path = os.path.join(self._layout.app, relative)
        before = _content(path)
        if data is None:
            if before is not None and self._change("file", path, "removed"):
                discard(path)
        elif before != data:
            shown = {} if secret else _texts(before, data)
            if self._change("file", path, "created" if before is None else "changed", **shown):
                durable.replace_file(path, data, mode=mode)
        elif stat.S_IMODE(os.stat(path).st_mode) != mode:
            how = f"mode {stat.S_IMODE(os.stat(path).st_mode):o} -> {mode:o}"
            if self._change("file", path, how):
                os.chmod(path, mode)

    def flags(self, wanted: Dict[str, str]) -> None:
        """The .env file: made with stacking in shadow; keys we don't know are left alone."""
        path = self._layout.env
        content = _content(path)
        text = "" if content is None else content.decode("utf-8", "replace")
        try:
            present = envfile.parse(text)
            changes = {k: v for k, v in wanted.items() if present.get(k) != v}
            if "ML_ENABLE_STACKING" in present:  # enable-stacking's to decide, never provision's
                changes.pop("ML_ENABLE_STACKING", None)
            after = envfile.with_values(text, changes)
        except envfile.EnvFileError as error:
            raise HostError(
                f"{path} can't be understood",
                why=str(error),
                hint="mend that line, then provision again",
                kind="refused",
            ) from error
        if content is None or changes:
            how = "created" if content is None else "changed"
            shown = _texts(masked(text).encode(), masked(after).encode())
            if self._change("file", path, how, **shown):
                durable.replace_file(path, after.encode(), mode=0o600)
            return
        exposed = stat.S_IMODE(os.stat(path).st_mode) & 0o077
        if exposed and self._change("file", path, "made private"):
            os.chmod(path, 0o600)

    def units(self, wanted: Dict[str, Optional[str]]) -> None:
        differing = {}
        for name, text in sorted(wanted.items()):
            before = self._supervisor.unit_text(name)
            if before != text:
                how = "created" if before is None else "removed" if text is None else "changed"
                self._change("unit", name, how, before=before or "", after=text or "")
                differing[name] = text
        if differing and not self._dry_run:
            for name in [name for name, text in differing.items() if text is None]:
                self._supervisor.disable(name)
            self._supervisor.install(differing)

    def enabled(self, unit: str) -> None:
        there = self._supervisor.show(unit).enabled in ("enabled", "static")
        if not there and self._change("unit", unit, "enabled"):
            self._supervisor.enable(unit)


def missing_programs() -> List[Dict[str, Any]]:
    """What deploying needs and this host lacks; `needed` False: only some releases need it."""
    found = []
    if importlib.util.find_spec("venv") is None:
        found.append({"name": "python3 -m venv", "package": "python3-venv", "needed": True})
    for program, package in (("ssh-keygen", "openssh-client"), ("systemctl", "systemd")):
        if shutil.which(program) is None:
            found.append({"name": program, "package": package, "needed": True})
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        found.append({"name": "libgomp (LightGBM)", "package": "libgomp1", "needed": False})
    return found


def _content(path: str) -> Optional[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _texts(before: Optional[bytes], after: bytes) -> Dict[str, str]:
    """Both texts for a diff; nothing for what isn't text."""
    if b"\0" in after or b"\0" in (before or b""):
        return {}
    return {
        "before": (before or b"").decode("utf-8", "replace"),
        "after": after.decode("utf-8", "replace"),
    }


OPERATIONS = {"provision": provision}
