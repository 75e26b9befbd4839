"""The releases made on this machine: found by id, read whole, never edited in place.

releases/<id>/ holds what a host will hold too, and its bundle beside. The wheels of all locks lie
once, under releases/wheels/<sha256>/<file>: a release made long ago still finds its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from macd.errors import MacdError, UsageError
from macd.host.store.manifest import (
    File,
    Manifest,
    ManifestError,
    check_release_id,
    parse,
    release_id,
)
from macd.release import lock as locks
from macd.release.bundle import MANIFEST, SIGNATURE, bundle_name
from macd.release.lock import Lock, Wheel

BUILDING = ".building-"


@dataclass(frozen=True)
class Release:
    """One release on this disk. `raw` is what was signed; `manifest` is what it says."""

    id: str
    directory: Path
    manifest: Manifest
    raw: bytes
    signature: bytes

    @property
    def sha256(self) -> str:
        """Of the manifest: what the running service answers with."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def bundle(self) -> Path:
        return self.directory / bundle_name(self.manifest)

    @property
    def contents(self) -> list[tuple[File, Path]]:
        """Every file of the manifest, and where its bytes are here."""
        return [(file, self.directory / file.path) for file in self.manifest.files]

    @cached_property
    def lock(self) -> Lock:
        """The wheels it runs on. Raises MacdError when lock.json is gone or was changed."""
        return locks.parse(self.lock_bytes)

    @property
    def lock_bytes(self) -> bytes:
        """The bytes of lock.json, checked against the signed manifest."""
        path = self.directory / locks.FILE
        raw = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(raw).hexdigest() != self.manifest.lock:
            raise MacdError(
                f"the lock of {self.id} is not the one that was signed",
                why=f"{path} is missing or was changed",
                hint=f"invoke release.verify {self.id}; then invoke release",
            )
        return raw


@dataclass(frozen=True)
class Store:
    """All releases below `root` (the project's releases/)."""

    root: Path

    def ids(self) -> list[str]:
        """Ids of finished releases, oldest first. Says nothing of whether they can be read."""
        ids = []
        for path in self.root.iterdir() if self.root.is_dir() else ():
            with contextlib.suppress(ManifestError):
                ids.append(check_release_id(path.name))
        return sorted(ids)

    def load(self, identifier: str) -> Release:
        """The release of that id, or of the only id that begins so.

        Its signature and its files are not checked here: see verify.py.

        Raises:
            UsageError: no such release, or several begin so.
            MacdError: its manifest is gone, unreadable, or not the one its id names.
        """
        identifier = self._resolve(identifier)
        directory = self.root / identifier
        try:
            raw = (directory / MANIFEST).read_bytes()
            signature = (directory / SIGNATURE).read_bytes()
            if release_id(raw) != identifier:
                raise ManifestError("its hash is not the one in the release's name")
            return Release(identifier, directory, parse(raw), raw, signature)
        except (OSError, ManifestError) as error:
            raise MacdError(
                f"release {identifier} can't be read",
                why=str(error),
                hint="it was changed after it was made: invoke release makes another",
            ) from error

    def newest(self, env: str, app: str) -> Release:
        """The release with the highest serial for that environment and application.

        Raises UsageError: none.
        """
        all_of_env = [release for release in self.readable() if release.manifest.env == env]
        releases = [release for release in all_of_env if release.manifest.app == app]
        if not releases:
            others = sorted({release.manifest.app for release in all_of_env})
            raise UsageError(
                f"there is no release of {app} for env {env!r} in {self.root}",
                why=f"those for {env} are of another application: {', '.join(others)}"
                if others
                else "",
                hint=f"invoke release --env {env}  makes one from the newest finished training",
            )
        return max(releases, key=lambda release: release.manifest.serial)

    def readable(self) -> list[Release]:
        """Every release whose manifest can be read, oldest first."""
        releases = []
        for identifier in self.ids():
            with contextlib.suppress(MacdError):
                releases.append(self.load(identifier))
        return releases

    def next_serial(self, now: datetime) -> int:
        """Above every serial known here, and at least the seconds since 1970.

        Hosts refuse serials below one they have seen. Counting time keeps releases of several
        operators, who don't see each other's, in order without a server that hands out numbers.
        """
        serials = [release.manifest.serial for release in self.readable()]
        return max([int(now.timestamp()), *(serial + 1 for serial in serials)])

    def wheel_path(self, wheel: Wheel) -> Path:
        """Where the wheel's bytes are. Raises MacdError when they are not here any more."""
        path = self.root / "wheels" / wheel.sha256 / wheel.file
        if not path.is_file() or path.stat().st_size != wheel.size:
            raise MacdError(
                f"the wheel {wheel.file} of this release is not in {self.root / 'wheels'}",
                why="the releases directory was cleaned, or came without it",
                hint="copy releases/wheels from where the release was made, or: invoke release",
            )
        return path

    def keep_wheels(self, lock: Lock, sources: Iterable[Path]) -> None:
        """Take the wheels of a lock from the files that hold them; those already here stay."""
        by_name = {path.name: path for path in sources}
        for wheel in lock.wheels:
            target = self.root / "wheels" / wheel.sha256 / wheel.file
            if target.is_file() and target.stat().st_size == wheel.size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{wheel.file}.{os.getpid()}.tmp")
            shutil.copyfile(by_name[wheel.file], temporary)
            temporary.replace(target)

    def _resolve(self, text: str) -> str:
        matching = [name for name in self.ids() if text and name.startswith(text)]
        if text in matching or len(matching) == 1:
            return text if text in matching else matching[0]
        if matching:
            raise UsageError(
                f"several releases begin with {text!r}",
                why=", ".join(matching[-5:]),
                hint="give more of the id",
            )
        raise UsageError(
            f"there is no release {text!r} in {self.root}",
            why=f"the newest are: {', '.join(self.ids()[-3:]) or 'none'}",
            hint="invoke release.list shows them all; invoke release makes one",
        )
