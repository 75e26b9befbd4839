"""A release on this machine as a deploy offers it: its names, its bytes, and what they compress to.

Its signature is checked by the host, which trusts nothing from here.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macd.errors import MacdError, UsageError
from macd.host.manifest import ManifestError, check_release_id, parse, release_id
from macd.remote.blobs import Blob

_SAMPLE = 1 << 18
# What must import in a finished runtime: the packages whose binaries can be wrong for a machine.
_IMPORTS = {name: name for name in ("numpy", "polars", "onnxruntime", "lightgbm")}
WheelPath = Callable[[str], Path | None]


@dataclass(frozen=True)
class Part:
    """A file of the release, or a wheel its runtime needs; `wire` is what it compresses to, about.

    `source` is None where this machine no longer has it (a wheel the host may still have).
    """

    path: str
    size: int
    sha256: str
    wire: int
    source: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Offer:
    """One release: id, serial, epoch seconds it expires, files, wheels, and its lock's hash."""

    id: str
    app: str
    env: str
    serial: int
    expires: float
    lock: str
    python: str
    files: Sequence[Part]
    wheels: Sequence[Part] = ()
    manifest: bytes = field(default=b"", repr=False, compare=False)
    signature: bytes = field(default=b"", repr=False, compare=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    imports: Sequence[str] = ()

    @property
    def parts(self) -> list[Part]:
        return [*self.files, *self.wheels]

    def blobs(self) -> list[Blob]:
        """What can be sent from here."""
        return [Blob(p.sha256, p.size, p.source) for p in self.parts if p.source is not None]


def choose(releases: Path, wanted: str, env: str) -> Path:
    """The directory of the release named, or of the newest one made for `env`.

    Raises:
        UsageError: there is none, or the name is no release id.
    """
    if wanted:
        try:
            directory = releases / check_release_id(wanted)
        except ManifestError as error:
            raise UsageError(str(error), hint="invoke release.list names them") from error
        if not (directory / "manifest.json").is_file():
            raise UsageError(f"there is no release {wanted} here", hint="invoke release.list")
        return directory
    for directory in sorted(_release_directories(releases), reverse=True):
        if parse((directory / "manifest.json").read_bytes()).env == env:
            return directory
    raise UsageError(
        f"there is no release for {env} here", why=f"none in {releases}", hint="invoke release"
    )


def _release_directories(releases: Path) -> list[Path]:
    found = []
    for manifest in releases.glob("*/manifest.json"):
        try:
            check_release_id(manifest.parent.name)
        except ManifestError:
            continue
        found.append(manifest.parent)
    return found


def read(directory: Path, wheel: WheelPath, *, index: bool = False) -> Offer:
    """Read a release directory. With `index` only pip travels; the rest the host gets itself.

    Raises:
        MacdError: the directory does not hold what its name and manifest say.
    """
    try:
        raw = (directory / "manifest.json").read_bytes()
        signature = (directory / "manifest.json.sig").read_bytes()
        manifest = parse(raw)
        lock_bytes = (directory / "lock.json").read_bytes()
        lock = json.loads(lock_bytes)
    except (OSError, ManifestError, ValueError) as error:
        raise _broken(directory, str(error)) from error
    if release_id(raw) != directory.name:
        raise _broken(directory, f"its manifest is that of {release_id(raw)}")
    if hashlib.sha256(lock_bytes).hexdigest() != manifest.lock:
        raise _broken(directory, "lock.json is not the one in its manifest")
    files = tuple(_part(f.path, f.size, f.sha256, directory / f.path) for f in manifest.files)
    gone = [part.path for part in files if part.source is None]
    if gone:
        raise _broken(directory, f"missing: {', '.join(gone)}")
    wanted = [one for one in lock["wheels"] if not index or one["name"] == "pip"]
    return Offer(
        id=directory.name,
        app=manifest.app,
        env=manifest.env,
        serial=manifest.serial,
        expires=manifest.expires.timestamp(),
        lock=manifest.lock,
        python=str(lock.get("python", "")),
        files=files,
        wheels=tuple(_part(w["file"], w["size"], w["sha256"], wheel(w["sha256"])) for w in wanted),
        manifest=raw,
        signature=signature,
        details=manifest.details,
        imports=tuple(_IMPORTS[w["name"]] for w in lock["wheels"] if w["name"] in _IMPORTS),
    )


def _part(path: str, size: int, sha256: str, source: Path | None) -> Part:
    if source is None or not source.is_file():
        return Part(path, size, sha256, size)
    with source.open("rb") as file:
        sample = file.read(_SAMPLE)
    share = len(zlib.compress(sample, 1)) / max(1, len(sample))
    return Part(path, size, sha256, round(size * min(1.0, share)), source)


def _broken(directory: Path, why: str) -> MacdError:
    return MacdError(
        f"the release in {directory} is not whole", why=why, hint="invoke release.verify shows more"
    )


def wheel_finder(releases: Path) -> WheelPath:
    """Where `invoke release` keeps the wheels: by hash, beside the releases."""

    def find(sha256: str) -> Path | None:
        kept = sorted((releases / "wheels" / sha256).glob("*.whl"))
        return kept[0] if kept else None

    return find
