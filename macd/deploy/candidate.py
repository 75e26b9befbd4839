"""A release on this machine as a deploy offers it: its names, its bytes, and what they compress to.

Its signature is checked by the host, which trusts nothing from here.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from macd.errors import MacdError
from macd.host.store.age import bars_end
from macd.host.store.manifest import several_of
from macd.release.lock import Wheel
from macd.release.store import Store
from macd.ssh.blobs import Blob

_SAMPLE = 1 << 16
_BLOCK = 4096
_VENV_FILES = 20
_COMPILED = 1.3  # a .pyc against its .py: measured 0.9 (ccxt) to 1.5 (numpy)
# What must import in a finished runtime: what the service imports, as far as the lock has it. ccxt
# is large, and only a feed that asks an exchange imports it.
_IMPORTS = {
    "numpy": "numpy",
    "polars": "polars",
    "onnxruntime": "onnxruntime",
    "lightgbm": "lightgbm",
    "prometheus-client": "prometheus_client",
    "pydantic": "pydantic",
}
_OF_FEED = {"ccxt": {"ccxt": "ccxt"}}


def imports(packages: Iterable[str], feed: str) -> list[str]:
    """The modules that must import where `packages` are installed for a service with that feed."""
    wanted = {**_IMPORTS, **_OF_FEED.get(feed, {})}
    return [wanted[name] for name in packages if name in wanted]


def lacking(packages: Iterable[str], feed: str) -> list[str]:
    """The packages that a feed of that kind needs beyond `packages`."""
    return sorted(set(_OF_FEED.get(feed, {})) - set(packages))


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
class Unpacked:
    """What a runtime takes on the host's disk, about: bytes, files and directories."""

    size: int = 0
    files: int = 0


@dataclass(frozen=True)
class ReleaseCandidate:
    """One release: id, serial, epoch seconds it expires, files, wheels, and its lock's hash.

    `lacks`: packages that the service's feed needs and the lock does not have. `installs`: the
    wheels that the runtime is made of, also those that the host gets elsewhere. `serves`: the
    symbols that its models know, the trained one first; () where it does not say. `several`: those
    of a release of several symbols. `tf`: of the bars it was trained on, "" where it does not say.
    `origin`: by symbol where these bars came from (macd/app/market/bars.py), as far as that is
    known. `bars_end`: the last of these bars. `own`: what it says of an application of the team's
    own, None for the built-in one.
    """

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
    imports: Sequence[str] = ()
    lacks: Sequence[str] = ()
    installs: Sequence[Part] = ()
    serves: Sequence[str] = ()
    several: Sequence[str] = ()
    tf: str = ""
    origin: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    bars_end: datetime | None = None
    own: Mapping[str, Any] | None = None

    @property
    def parts(self) -> list[Part]:
        return [*self.files, *self.wheels]

    @property
    def blob_sizes(self) -> list[tuple[str, int]]:
        """The SHA-256 and size of each blob that the host must have."""
        return list({part.sha256: part.size for part in self.parts}.items())

    def blobs(self) -> list[Blob]:
        """What can be sent from here."""
        return [Blob(p.sha256, p.size, p.source) for p in self.parts if p.source is not None]


def read(
    store: Store, wanted: str, env: str, app: str, *, index: bool = False, feed: str = ""
) -> ReleaseCandidate:
    """The release named, or the newest one of `app` made for `env`.

    Args:
        index: the host gets its packages from an index itself; only pip travels.
        feed: the kind of feed that the service is to have.

    Raises:
        UsageError: there is no such release here.
        MacdError: it does not hold what its name and manifest say.
    """
    release = store.load(wanted) if wanted else store.newest(env, app)
    manifest = release.manifest
    files = tuple(_part(f.path, f.size, f.sha256, path) for f, path in release.contents)
    gone = [part.path for part in files if part.source is None]
    if gone:
        raise MacdError(
            f"the release {release.id} is not whole here",
            why=f"missing: {', '.join(gone)}",
            hint="invoke release.verify shows more",
        )
    own = manifest.details.get("own")
    is_built_in = not isinstance(own, dict)
    packages = [wheel.name for wheel in release.lock.wheels if is_built_in]
    wheels = [
        # compressed as they are
        (w.name, Part(w.file, w.size, w.sha256, w.size, _wheel(store, w)))
        for w in release.lock.wheels
    ]
    return ReleaseCandidate(
        id=release.id,
        app=manifest.app,
        env=manifest.env,
        serial=manifest.serial,
        expires=manifest.expires.timestamp(),
        lock=manifest.lock,
        python=release.lock.python,
        files=files,
        wheels=tuple(part for name, part in wheels if not index or name == "pip"),
        manifest=release.raw,
        signature=release.signature,
        imports=tuple(imports(packages, feed)),
        lacks=tuple(lacking(packages, feed)) if is_built_in else (),
        installs=tuple(part for name, part in wheels if name != "pip"),
        serves=manifest.serves,
        several=several_of(manifest.details),
        tf=str(manifest.details.get("tf") or ""),
        origin=_origin(manifest.details.get("origin")),
        bars_end=bars_end(manifest.details, manifest.created) if is_built_in else None,
        own=None if is_built_in else own,
    )


def unpacked(offer: ReleaseCandidate) -> Unpacked:
    """What its runtime will take, from the tables of contents of the wheels that are here.

    pip compiles each module beside it. A wheel that is not here counts as large as it is packed.
    """
    size, files = _VENV_FILES * _BLOCK, _VENV_FILES
    for part in offer.installs:
        try:
            with zipfile.ZipFile(part.source or "") as wheel:
                members = [(member.filename, member.file_size) for member in wheel.infolist()]
        except (OSError, zipfile.BadZipFile):
            members = [(part.path, part.size)]
        modules = [(name, length) for name, length in members if name.endswith(".py")]
        members += [(f"{name}c", round(length * _COMPILED)) for name, length in modules]
        folders = {name.rpartition("/")[0] for name, _ in members}
        folders |= {f"{name.rpartition('/')[0]}/__pycache__" for name, _ in modules}
        files += len(members) + len(folders)
        size += len(folders) * _BLOCK
        size += sum(-(-length // _BLOCK) * _BLOCK for _, length in members)
    return Unpacked(size, files)


def _origin(given: Any) -> dict[str, dict[str, str]]:
    named = given.items() if isinstance(given, dict) else ()
    return {
        str(symbol): {str(key): str(value) for key, value in known.items()}
        for symbol, known in named
        if isinstance(known, dict)
    }


def _wheel(store: Store, wheel: Wheel) -> Path | None:
    with contextlib.suppress(MacdError):  # the host may have it still
        return store.wheel_path(wheel)
    return None


def _part(path: str, size: int, sha256: str, source: Path | None) -> Part:
    if source is None or not source.is_file():
        return Part(path, size, sha256, size)
    with source.open("rb") as file:
        sample = file.read(_SAMPLE)
    share = len(zlib.compress(sample, 1)) / max(1, len(sample))
    return Part(path, size, sha256, round(size * min(1.0, share)), source)
