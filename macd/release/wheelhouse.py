"""Choose the wheels a host's Python needs, once; after that the same lock comes without a network.

Wheels are resolved by pip for the target's Python and platform, not for this machine's, pinned by
constraints.txt. The result is kept under a key made of everything that decided it.

Limit, pip's own: environment markers of packages are judged with this machine's Python. That only
matters for packages which need others on some Python versions; the host imports everything before
a switch, so a gap is reported there and nothing breaks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from email.parser import BytesParser
from importlib import metadata
from pathlib import Path

from macd.errors import MacdError, UsageError
from macd.host.durable import sha256_of
from macd.release import lock as locks
from macd.release.lock import Lock, Wheel

PIP = "pip==25.3"  # travels with the wheels: the host's own pip may be old, or not there
_DOWNLOAD_S = 1800
_OLDEST_GLIBC = 5
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


@dataclass(frozen=True)
class Target:
    """What wheels must fit: Python "3.11", machine "x86_64", C library and its version."""

    python: str
    machine: str
    libc: str
    libc_version: str

    @property
    def platform(self) -> str:
        """As it stands in lock.json, e.g. linux-x86_64-glibc-2.36."""
        return f"linux-{self.machine}-{self.libc}-{self.libc_version}"

    @classmethod
    def here(cls) -> Target:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "musl 1.2").partition(" ")
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return cls(python, os.uname().machine, name, version)

    def runs(self, lock: Lock) -> bool:
        """Could a runtime of that lock work here?"""
        words = lock.platform.split("-")
        if lock.python != self.python or words[:3] != ["linux", self.machine, self.libc]:
            return False
        return _numbers(self.libc_version) >= _numbers(words[3])


def common(targets: Mapping[str, Target]) -> Target:
    """One target that fits every host of an environment, by the oldest C library among them.

    Raises:
        UsageError: they differ in Python, machine or C library, so no one lock fits; or a Python is
            older than macd needs.
    """
    kinds = {(t.python, t.machine, t.libc) for t in targets.values()}
    if len(kinds) > 1:
        listed = "\n".join(f"{n}: Python {t.python}, {t.platform}" for n, t in targets.items())
        raise UsageError(
            "one release can't fit all hosts of this environment",
            why=listed,
            hint="name the same Python for them in the inventory (hosts.NAME.python)",
        )
    oldest = min(targets.values(), key=lambda target: _numbers(target.libc_version))
    needed = metadata.metadata("macd")["Requires-Python"].lstrip(">=")
    if _numbers(oldest.python) < _numbers(needed):
        raise UsageError(
            f"{', '.join(targets)}: Python {oldest.python} can't run the service",
            why=f"macd needs Python {needed} or newer there",
            hint="install one and name it in the inventory: hosts.NAME.python: python3.12",
        )
    return oldest


def requirements(extra: str = "serve", package: str = "macd") -> list[str]:
    """What `macd[extra]` needs of other packages, as pip reads it; extras of macd are resolved."""
    wanted: list[str] = []
    for line in metadata.requires(package) or []:
        named = _EXTRA.search(line)
        if named is None or named[1] != extra:
            continue
        text = line.partition(";")[0].strip()
        inner = re.fullmatch(rf"{package}\[([^\]]+)\]", text)
        wanted += requirements(inner[1], package) if inner else [text]
    return sorted(set(wanted))


@dataclass(frozen=True)
class Wheelhouse:
    """Resolved locks and their wheels below `root`, one directory per question asked."""

    root: Path

    def resolve(
        self, wanted: Sequence[str], target: Target, constraints: Path
    ) -> tuple[Lock, list[Path]]:
        """The lock for `wanted` on `target`, and the files of its wheels.

        The second time, and for ever after, no network is needed.

        Raises:
            MacdError: pip finds no wheel that fits, or no index can be reached.
        """
        place = self.root / _key(wanted, target, constraints)
        cached = self._cached(place)
        if cached is not None:
            return cached
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".fetching-") as temporary:
            fetched = Path(temporary) / "wheels"
            _download([PIP, *wanted], target, constraints, fetched)
            wheels = tuple(_describe(path) for path in sorted(fetched.glob("*.whl")))
            lock = Lock(target.python, target.platform, wheels)
            (fetched / locks.FILE).write_bytes(lock.raw)
            cached = self._cached(place)
            if cached is not None:  # somebody else was quicker, and may read there already
                return cached
            shutil.rmtree(place, ignore_errors=True)
            fetched.rename(place)
        return lock, [place / wheel.file for wheel in lock.wheels]

    def _cached(self, place: Path) -> tuple[Lock, list[Path]] | None:
        """What an earlier call left, unless a file of it was lost or damaged since."""
        if not (place / locks.FILE).is_file():
            return None
        lock = locks.parse((place / locks.FILE).read_bytes())
        paths = [place / wheel.file for wheel in lock.wheels]
        for wheel, path in zip(lock.wheels, paths, strict=True):
            if not path.is_file() or sha256_of(path) != wheel.sha256:
                return None
        return lock, paths


def pip_tags(target: Target) -> list[str]:
    """Platform tags that run on the target, newest first, as PEP 600 and PEP 656 define them."""
    major, minor = _numbers(target.libc_version)[:2]
    machine = target.machine
    if target.libc == "musl":
        return [f"musllinux_{major}_{n}_{machine}" for n in range(minor, -1, -1)]
    tags = []
    for n in range(minor, _OLDEST_GLIBC - 1, -1):
        tags.append(f"manylinux_{major}_{n}_{machine}")
        if n in _OLD_NAMES:
            tags.append(f"{_OLD_NAMES[n]}_{machine}")
    return [*tags, f"linux_{machine}"]


def _download(wanted: Sequence[str], target: Target, constraints: Path, into: Path) -> None:
    into.mkdir()
    argv = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    argv += ["--no-input", "--only-binary=:all:", "--implementation", "cp"]
    argv += ["--python-version", target.python, "--dest", str(into), "--constraint"]
    argv += [str(constraints)]
    short = target.python.replace(".", "")
    for abi in (f"cp{short}", "abi3", "none"):
        argv += ["--abi", abi]
    for tag in pip_tags(target):
        argv += ["--platform", tag]
    try:
        done = subprocess.run(
            [*argv, *wanted], capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _unresolved(target, f"pip was not done in {_DOWNLOAD_S} s") from error
    if done.returncode != 0:
        _, _, conflict = done.stdout.partition("The conflict is caused by:")
        said = [line.strip() for line in conflict.splitlines()[:6] if line.strip()]
        said += [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-4:]
        raise _unresolved(target, "\n".join(said) or done.stderr.strip()[-500:])


def _unresolved(target: Target, why: str) -> MacdError:
    return MacdError(
        f"the wheels for Python {target.python} on {target.platform} can't be had",
        why=why,
        live="no release was made",
        hint="check the network or pip's index (pip config list). A lock that was resolved once "
        "needs neither",
    )


def _describe(path: Path) -> Wheel:
    """Name and version from the wheel's own metadata: file names fold dashes and dots."""
    with zipfile.ZipFile(path) as archive:
        (inside,) = [
            name
            for name in archive.namelist()
            if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        ]
        headers = BytesParser().parsebytes(archive.read(inside), headersonly=True)
    name = re.sub(r"[-_.]+", "-", str(headers["Name"])).lower()
    return Wheel(name, str(headers["Version"]), path.name, path.stat().st_size, sha256_of(path))


def _key(wanted: Sequence[str], target: Target, constraints: Path) -> str:
    decided = [PIP, sorted(wanted), asdict(target), constraints.read_text(encoding="utf-8")]
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:32]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def proved_with(lock: Lock, constraints: Path) -> dict[str, str]:
    """package -> version that must be installed here, where a release is proved.

    The lock's own where it was made for a machine like this one, else the pins it was made from.
    """
    if Target.here().runs(lock):
        return lock.versions
    pins = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        pins[re.sub(r"[-_.]+", "-", name.strip()).lower()] = version.strip()
    return {name: pins[name] for name in lock.versions if name in pins}
