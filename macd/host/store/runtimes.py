"""One virtualenv per dependency lock, built offline from verified wheels; there whole, or not."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.store import needs, package_index, releases, runtime_check
from macd.host.systemd.sandbox import DIRECT, Confinement

_BUILDING, _TRASH = ".building-", ".trash-"
_PIP_TIMEOUT_S = 900
_IMPORT_TIMEOUT_S = 120


def install(
    layout: Layout,
    raw_lock: bytes,
    imports: list[str],
    *,
    python: str = "",
    index: bool = False,
    index_url: str = "",
    walls: Confinement = DIRECT,
) -> dict[str, Any]:
    """Build runtimes/<lock hash> unless it is there; answers whether anything was built.

    The wheels come from the blobs that landed before (`index`: from the package index at
    `index_url`, or the one the host's pip knows; the same hashes required). pip itself is one of
    the wheels that landed, so the host needs only Python's venv.

    The caller holds the deploy lock: what an earlier build left behind is ended and removed.

    Args:
        raw_lock: the bytes of lock.json; their SHA-256 is the runtime's name.
        imports: modules that must import in the finished runtime.
        walls: behind which pip and the packages run; they came with a release.

    Raises:
        HostError: a wheel is missing or damaged, or an import failed; nothing is left behind.
        HostError ("refused"): pip could not get or install what the lock names.
    """
    lock = hashlib.sha256(raw_lock).hexdigest()
    target = layout.runtime(lock)
    document = json.loads(raw_lock)
    if os.path.isdir(target) and _is_sound(target, document["wheels"], imports, walls):
        return {"lock": lock, "built": False}
    durable.make_directories(layout.runtimes)
    _clear_forgotten(layout, walls)
    # A new one each time: the last one's may be the service account's still.
    building = os.path.join(layout.runtimes, f"{_BUILDING}{lock}-{secrets.token_hex(6)}")
    os.mkdir(building, 0o755)
    try:
        base = python or sys.executable
        doing = "making the virtualenv"
        argv = [base, "-I", "-m", "venv", "--without-pip", building]
        _refuse_failure(_run(argv, doing, timeout=_PIP_TIMEOUT_S, walls=DIRECT), doing, building)
        if document["wheels"]:
            settings = package_index.settings(index, index_url)
            walls.give(building)
            _install_wheels(layout, building, document["wheels"], settings, walls, index=index)
            shutil.rmtree(os.path.join(building, "wheels"), ignore_errors=True)
            walls.take(building)
        check_imports(building, imports, walls)
        os.sync()
        if os.path.isdir(target):  # damaged on the disk: what imports nothing serves nothing
            durable.set_aside(target, _TRASH)
        os.rename(building, target)
        durable.sync_directory(layout.runtimes)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return {"lock": lock, "built": True}


def _clear_forgotten(layout: Layout, walls: Confinement) -> None:
    """What a killed agent left: first the processes that write there, then what they wrote."""
    walls.end_forgotten()
    for name in os.listdir(layout.runtimes):
        if name.startswith(_BUILDING):
            shutil.rmtree(os.path.join(layout.runtimes, name), ignore_errors=True)


def _is_sound(
    runtime: str, wheels: list[dict[str, Any]], imports: list[str], walls: Confinement
) -> bool:
    if runtime_check.lacking(runtime, wheels):
        return False
    try:
        version = check_imports(runtime, imports, walls)
    except HostError:
        return False
    return os.path.isdir(runtime_check.packages(runtime, version))


def _install_wheels(
    layout: Layout,
    building: str,
    wheels: list[dict[str, Any]],
    settings: dict[str, str],
    walls: Confinement,
    *,
    index: bool,
) -> None:
    shelf = os.path.join(building, "wheels")
    os.mkdir(shelf)
    requirements = os.path.join(shelf, "requirements.txt")
    lines = []
    installer = ""
    for wheel in wheels:
        name = os.path.basename(wheel["file"])
        if wheel["name"] == "pip" or not index:
            # pip's own code is run out of its wheel, before anything could check a hash for us.
            path = os.path.join(shelf, name)
            releases.link_blob(layout, wheel["sha256"], path, f"the wheel {name}")
        if wheel["name"] == "pip":
            installer = os.path.join(shelf, name, "pip")
        else:
            lines.append("%(name)s==%(version)s --hash=sha256:%(sha256)s\n" % wheel)
    if not installer:
        raise HostError("the lock holds no pip to install with", hint="invoke release")
    with open(requirements, "w", encoding="utf-8") as file:
        file.writelines(lines)
    source = [] if index else ["--no-index", "--find-links", shelf]
    argv = [os.path.join(building, "bin", "python"), "-I", installer, "install", "--no-deps"]
    argv += ["--quiet", "--no-cache-dir", "--disable-pip-version-check", "--require-hashes"]
    argv += ["--no-input", "--only-binary", ":all:", *source, "-r", requirements]
    doing = "installing the wheels"
    done = _run(argv, doing, timeout=_PIP_TIMEOUT_S, walls=walls, settings=settings, into=building)
    if done.returncode != 0:
        said = done.stderr or done.stdout
        raise needs.failure(doing, said, building) or package_index.failure(said, index=index)


def check_imports(runtime: str, imports: list[str], walls: Confinement) -> str:
    """Import each module in a fresh process of the runtime; answers its Python's version ("3.11").

    Raises:
        HostError: one does not import, with the end of what Python said.
    """
    code = "import importlib,sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    code += "\nprint('%d.%d' % sys.version_info[:2])"
    python = os.path.join(runtime, "bin", "python")
    doing = "importing the packages"
    argv = [python, "-I", "-c", code, *imports]
    done = _run(argv, doing, timeout=_IMPORT_TIMEOUT_S, walls=walls)
    _refuse_failure(done, doing, runtime)
    return done.stdout.split()[-1]


def _run(
    argv: list[str],
    doing: str,
    *,
    timeout: float,
    walls: Confinement,
    settings: dict[str, str] | None = None,
    into: str = "",
) -> subprocess.CompletedProcess[str]:
    settings = {**(settings or {}), "ORT_DISABLE_TELEMETRY": "1"}
    try:
        return walls.run(argv, timeout=timeout, settings=settings, writable=into)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{doing} failed", why=str(error), live="unchanged") from error


def _refuse_failure(done: subprocess.CompletedProcess[str], doing: str, path: str) -> None:
    if done.returncode != 0:
        said = done.stderr or done.stdout
        if (told := needs.failure(doing, said, path)) is not None:
            raise told
        why = "\n".join(said.strip().splitlines()[-6:])
        hint = "check the host's Python and libraries, or lock for them: invoke release"
        raise HostError(f"{doing} failed", why=why, live="unchanged", hint=hint)
