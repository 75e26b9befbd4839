"""The dependency lock of a release: which wheels, by hash, make the runtime it was proved with.

Pure: bytes in, values or MacdError out. Where the wheels come from is asked in wheelhouse.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from macd.errors import MacdError
from macd.host.store.manifest import ManifestError, canonical

FILE = "lock.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_.+!-]{1,200}\.whl\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Wheel:
    """One locked wheel. `name` is normalised (PEP 503): small letters and single dashes."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Lock:
    """All wheels of a runtime, pip included, for one Python ("3.11") and one platform.

    platform: what the wheels were chosen for, as "linux-x86_64-glibc-2.36".
    """

    python: str
    platform: str
    wheels: tuple[Wheel, ...]

    @property
    def raw(self) -> bytes:
        """The canonical bytes: the content of lock.json."""
        wheels = [asdict(wheel) for wheel in sorted(self.wheels, key=lambda w: (w.name, w.file))]
        return canonical({"python": self.python, "platform": self.platform, "wheels": wheels})

    @property
    def sha256(self) -> str:
        """What names the runtime on the host, and stands in the manifest as `lock`."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def versions(self) -> dict[str, str]:
        """package -> version, without pip, which only installs the others."""
        return {wheel.name: wheel.version for wheel in self.wheels if wheel.name != "pip"}

    @property
    def total_bytes(self) -> int:
        """What a first deploy has to send for the runtime, before compression."""
        return sum(wheel.size for wheel in self.wheels)


def parse(raw: bytes) -> Lock:
    """Read lock.json.

    Raises:
        MacdError: not canonical, or a wheel without a plain file name, version, size or hash.
    """
    try:
        document = json.loads(raw)
        wheels = tuple(_wheel(entry) for entry in document["wheels"])
        lock = Lock(str(document["python"]), str(document["platform"]), wheels)
        if lock.raw != raw:
            raise ValueError("not in canonical form")
    except (ValueError, KeyError, TypeError, RecursionError, ManifestError) as error:
        raise MacdError(
            "the lock of this release can't be read",
            why=f"{FILE}: {error}",
            hint="invoke release.verify names changed files; invoke release makes a new one",
        ) from error
    return lock


def _wheel(entry: Any) -> Wheel:
    wheel = Wheel(**entry)
    texts = (wheel.name, wheel.version, wheel.file, wheel.sha256)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"not a wheel: {entry!r:.100}")
    if not _FILE_NAME.match(wheel.file) or not _SHA256.match(wheel.sha256):
        raise ValueError(f"unsafe name or hash: {wheel.file!r:.100}")
    if type(wheel.size) is not int or wheel.size < 0:
        raise ValueError(f"impossible size of {wheel.file}: {wheel.size!r:.40}")
    return wheel
