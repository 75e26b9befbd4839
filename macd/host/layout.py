"""The paths below the application directory of a production host, and which release is live."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.store.manifest import ManifestError, check_release_id

ADOPTED = "adopted"  # below state: what was there before macd (macd/host/deploy/adopt.py)
_LONGEST_SOCKET = 100  # bytes; Linux takes 107, others a few less


@dataclass(frozen=True)
class Layout:
    """Paths below `app`, an absolute directory such as /opt/macd-analysis."""

    app: str

    @property
    def current(self) -> str:
        return os.path.join(self.app, "current")

    @property
    def previous(self) -> str:
        """Links to the release that a rollback would go to; for the service."""
        return os.path.join(self.app, "previous")

    @property
    def releases(self) -> str:
        return os.path.join(self.app, "releases")

    @property
    def runtimes(self) -> str:
        return os.path.join(self.app, "runtimes")

    @property
    def live(self) -> str:
        return os.path.join(self.app, "data", "live")

    @property
    def env(self) -> str:
        return os.path.join(self.app, ".env")

    @property
    def service_settings(self) -> str:
        return os.path.join(self.app, "service.json")

    @property
    def agent_archive(self) -> str:
        return os.path.join(self.app, "bin", "macd-host.pyz")

    def endpoint(self, setting: str, scope: str) -> str:
        """Where the service answers; "unix" means a socket below state/.

        Where that path is too long for a socket's address, it is in the user's runtime directory.
        """
        if setting != "unix":
            return setting
        path = self.state("run", "health.sock")
        runtime = os.environ.get("XDG_RUNTIME_DIR", "") if scope == "user" else ""
        if runtime and len(path) > _LONGEST_SOCKET:
            path = os.path.join(runtime, f"{os.path.basename(self.app)}.sock")
        return f"unix:{path}"

    def state(self, *parts: str) -> str:
        return os.path.join(self.app, "state", *parts)

    def release(self, release_id: str) -> str:
        """Raises ManifestError for anything that is not a release id."""
        return os.path.join(self.releases, check_release_id(release_id))

    def runtime(self, lock: str) -> str:
        if len(lock) != 64 or not set(lock) <= set("0123456789abcdef"):
            raise HostError(f"not a lock hash: {lock!r}")
        return os.path.join(self.runtimes, lock)

    def make(self) -> None:
        """Create the directories that are not there. Only state and data are private."""
        for path in (self.releases, self.runtimes, os.path.dirname(self.agent_archive), self.live):
            durable.make_directories(path)
        for part in ("activations", "snapshots", "gate", "run"):
            durable.make_directories(self.state(part))


def live_release(layout: Layout) -> str | None:
    """The id `current` points to; None before the first deploy.

    Raises:
        HostError: `current` is something else than a link to releases/<id>, and was so neither when
            provision adopted a service that people put there.
    """
    try:
        mode = os.lstat(layout.current).st_mode
    except FileNotFoundError:
        return None
    if _is_kept(layout):
        return None
    if not stat.S_ISLNK(mode):
        raise HostError(
            f"{layout.current} is not a symbolic link",
            why="an earlier hand-made install, or a copy that followed the link",
            live="whatever was copied there; nothing was changed",
            hint=f"move it away (mv {layout.current} {layout.current}.by-hand), then deploy again",
            kind="refused",
        )
    target = os.readlink(layout.current)
    parent, _, name = target.partition("/")
    try:
        if parent != "releases":
            raise ManifestError(target)
        return check_release_id(name)
    except ManifestError as error:
        raise HostError(
            f"{layout.current} points to {target}",
            why="it was not set by a deploy",
            hint="point it to releases/<id> or remove it, then deploy again",
            kind="refused",
        ) from error


def current_now(layout: Layout) -> dict[str, Any]:
    """What lies at `current`: its kind (absent, link or there), and which one it is."""
    try:
        status = os.lstat(layout.current)
    except FileNotFoundError:
        return {"kind": "absent"}
    if stat.S_ISLNK(status.st_mode):
        return {"kind": "link", "target": os.readlink(layout.current)}
    return {"kind": "there", "inode": status.st_ino}


def _is_kept(layout: Layout) -> bool:
    """Whether what lies at `current` was there before macd, which knows it."""
    now = current_now(layout)
    if now["kind"] == "absent" or now.get("target", "").startswith("releases/"):
        return False
    try:
        kept = load(layout.state(ADOPTED, "manifest.json"), None)
    except PermissionError:  # it is root's, and a reader of logs is not
        return False
    return isinstance(kept, dict) and kept.get("current") == now


def point_current_at(layout: Layout, release_id: str | None) -> None:
    """Switch `current` by symlink + rename + fsync of the directory; None removes it.

    What was there before macd is left where it is by None.
    """
    live_release(layout)  # refuses a real directory: rename would not, on every system
    if release_id is None and _is_kept(layout):
        return
    _link(layout, layout.current, release_id)


def point_previous_at(layout: Layout, release_id: str | None) -> None:
    """The same for `previous`."""
    _link(layout, layout.previous, release_id)


def _link(layout: Layout, path: str, release_id: str | None) -> None:
    beside = os.path.join(layout.app, f".{os.path.basename(path)}.tmp")
    if os.path.lexists(beside):
        os.unlink(beside)
    if release_id is None:
        if os.path.lexists(path):
            os.unlink(path)
    else:
        layout.release(release_id)
        os.symlink(os.path.join("releases", release_id), beside)
        os.rename(beside, path)
    durable.sync_directory(layout.app)


def load(path: str, default: Any) -> Any:
    """The JSON document at `path`, or `default` when there is none.

    Raises:
        HostError: the file is there but is no JSON (a hand edit: we write it atomically).
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise HostError(
            f"{path} cannot be read",
            why=f"not JSON: {error}",
            hint="restore it from a backup; macd writes it whole, so somebody edited it",
        ) from error


def save(path: str, document: Any, *, mode: int = 0o644) -> None:
    """Replace the JSON document at `path`, atomically and durably."""
    # ASCII, so that text of files that aren't UTF-8 (surrogates) survives.
    text = json.dumps(document, indent=1, sort_keys=True)
    durable.replace_file(path, text.encode() + b"\n", mode=mode)


def discard(path: str) -> None:
    """Durably remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    durable.sync_directory(os.path.dirname(path))
