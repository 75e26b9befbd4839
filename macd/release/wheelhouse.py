"""Choose the wheels a host's Python needs, once; after that the same lock comes without a network.

Wheels are resolved by pip for the target's Python and platform, not for this machine's: the
built-in application's pinned by constraints.txt, another one's from its requirements.txt. The
result is kept under a key made of everything that decided it.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.parser import BytesParser
from importlib import metadata
from pathlib import Path

from macd.errors import MacdError, UsageError
from macd.host import untrusted
from macd.host.durable import sha256_of
from macd.host.masking import without_login
from macd.release import lock as locks
from macd.release.lock import Lock, Wheel
from macd.release.requirements import Requirements

PIP = "pip==25.3"  # travels with the wheels: the host's own pip may be old, or not there
_DOWNLOAD_S = 1800
_OLDEST_GLIBC = 5
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
# pip judges environment markers by the Python that runs it; this one is told the target's.
_PIP_FOR_TARGET = """
import json, sys
from pip._vendor.packaging import markers
here, target = markers.default_environment, json.loads(sys.argv.pop(1))
markers.default_environment = lambda: {**here(), **target}
from pip._internal.cli.main import main
sys.exit(main())
"""
_SHOWN_LINES = 6  # of one error of pip
# With the indented lines below, which name the packages.
_ERROR = re.compile(r"^ERROR.*(?:\n[ \t]+\S.*)*", re.MULTILINE)
_NOT_THERE = re.compile(
    r"ERROR: Could not find a version that satisfies the requirement ([\w.-]+)(.*)"
    r"\(from versions: (.*)\)"
)
_NOT_REACHED = re.compile(r"connection broken by|Max retries exceeded")
_SHOWN_VERSIONS = 6
_INDEX_S = 120
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
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        if not sys.platform.startswith("linux"):  # no host's wheels run here
            return cls(python, os.uname().machine, sys.platform, "0")
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "musl 1.2").partition(" ")
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
        decided = [PIP, sorted(wanted), constraints.read_text(encoding="utf-8")]
        words = ["--constraint", str(constraints), PIP, *wanted]
        return self._once(decided, target, lambda into: _download(words, target, into))

    def resolve_file(self, wanted: Requirements, target: Target) -> tuple[Lock, list[Path]]:
        """As `resolve`, for a requirements file of the team's own.

        Raises:
            MacdError: a package of it has no wheel that fits, or no index can be reached.
        """

        def fetch(into: Path) -> None:
            _download(["--requirement", str(wanted.path)], target, into, wanted)
            for path in into.glob("pip-*.whl"):
                path.unlink()  # ours, which installs them, is the only one
            # Apart: with hashes in the file pip would ask for one of its own.
            _download([PIP], target, into)

        return self._once([PIP, wanted.sha256], target, fetch)

    def _once(
        self, decided: Sequence[object], target: Target, fetch: Callable[[Path], None]
    ) -> tuple[Lock, list[Path]]:
        place = self.root / _key([*decided, asdict(target)])
        cached = self._cached(place)
        if cached is not None:
            return cached
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".fetching-") as temporary:
            fetched = Path(temporary) / "wheels"
            fetched.mkdir()
            fetch(fetched)
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


def _download(
    wanted: Sequence[str], target: Target, into: Path, file: Requirements | None = None
) -> None:
    argv = ["download", "--only-binary=:all:", "--implementation", "cp"]
    argv += ["--python-version", target.python, "--dest", str(into)]
    short = target.python.replace(".", "")
    for abi in (f"cp{short}", "abi3", "none"):
        argv += ["--abi", abi]
    for tag in pip_tags(target):
        argv += ["--platform", tag]
    done = _pip([*argv, *wanted], target, _DOWNLOAD_S)
    if done.returncode == 0:
        return
    said = without_login(done.stderr)
    file = None if _NOT_REACHED.search(said) else file
    missing = _NOT_THERE.search(said)
    if missing and file is not None:
        raise _no_wheel(missing[1], missing[2].strip(), missing[3], target, file)
    _, _, conflict = done.stdout.partition("The conflict is caused by:")
    why = [text.strip() for text in conflict.splitlines()[:6] if text.strip()]
    errors = _ERROR.findall(said)[-4:]
    why += [text.strip() for error in errors for text in error.splitlines()[:_SHOWN_LINES]]
    raise _unresolved(
        target, "\n".join(map(untrusted.line, why)) or untrusted.line(said.strip()[-500:]), file
    )


def _pip(
    words: Sequence[str], target: Target, timeout: float, sources: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run pip as the target's Python would. sources: settings of its index, which may be secret."""
    full = f"{target.python}.0"
    environment = {
        "python_version": target.python,
        "python_full_version": full,
        "implementation_version": full,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": target.machine,
    }
    argv = [sys.executable, "-c", _PIP_FOR_TARGET, json.dumps(environment), *words]
    try:
        return subprocess.run(
            [*argv, "--disable-pip-version-check", "--no-input"],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **(sources or {})},
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _unresolved(target, f"pip was not done in {timeout:g} s") from error


def _no_wheel(name: str, rest: str, versions: str, target: Target, file: Requirements) -> MacdError:
    """The error for a package of which no wheel fits: is there another version, or its source?"""
    where = f"Python {target.python} on {pip_tags(target)[0]}"
    asked = f"{name}{rest}"
    if versions != "none":
        newest = ", ".join(versions.split(", ")[-_SHOWN_VERSIONS:])
        why = f"wheels that fit are there of {name} {newest}; asked for is {asked}"
        hint = f"ask for one of these in {file.path.name}, or set hosts.NAME.python to another one"
        return MacdError(
            f"{name} has no wheel for {where} in that version",
            why=untrusted.line(why),
            live="no release was made",
            hint=hint,
        )
    done = _pip(
        ["index", "versions", name, "--no-binary", ":all:"], target, _INDEX_S, file.settings
    )
    hint = (
        "ask for a version that has one; or put one that you build (pip wheel --no-deps "
        f"{name} -w wheels) into the source, and --find-links wheels into {file.path.name}"
    )
    why = f"the index has only its source there, for {asked}; a host builds nothing"
    if done.returncode != 0:
        why = f"the index has neither a wheel nor a source of it, for {asked}"
        hint = "check its name, and which index is asked (pip config list, --index-url); or " + hint
    return MacdError(
        f"{name} has no wheel for {where}",
        why=untrusted.line(why),
        live="no release was made",
        hint=hint,
    )


def _unresolved(target: Target, why: str, file: Requirements | None = None) -> MacdError:
    hint = "check the network or pip's index (pip config list). A lock that was resolved once "
    hint += "needs neither"
    if file is not None:
        hint = f"change {file.path.name}, or pip's index (pip config list)"
    return MacdError(
        f"the wheels for Python {target.python} on {target.platform} can't be had",
        why=why,
        live="no release was made",
        hint=hint,
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


def _key(decided: list[object]) -> str:
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
