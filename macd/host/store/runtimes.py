"""One virtualenv per dependency lock: built from verified wheels, whole or not there, and checked.

A package index may replace the uploaded wheels; the same hashes are required.
"""

from __future__ import annotations

import csv
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.store import package_index, releases
from macd.host.systemd.sandbox import DIRECT, Sandbox

_BUILDING, _TRASH = ".building-", ".trash-"
_PIP_TIMEOUT_S = 900
_IMPORT_TIMEOUT_S = 120
_PYTHON_TIMEOUT_S = 20
_LONGEST_RECORD = 16 << 20
_LONGEST_LOG = 4 << 20
_NAMED = 3
_NOT_INSTALLED = {"pip"}  # it installs the others and runs from its wheel
# What a host itself must have, and what pip or an import says without it.
_PACKAGES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}  # of Debian
REMOUNT = "mount -o remount,exec {0} on the host, and in its /etc/fstab; or set app_dir elsewhere"
_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_NO_LIBRARY = re.compile(r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file")
_OTHER_LIBC = re.compile(r"version `(GLIBC_[\d.]+)' not found")


def install(
    layout: Layout,
    raw_lock: bytes,
    imports: list[str],
    *,
    python: str = "",
    index: bool = False,
    index_url: str = "",
    sandbox: Sandbox = DIRECT,
) -> dict[str, Any]:
    """Build runtimes/<lock hash> unless it is there; answers whether anything was built.

    The wheels come from the uploaded blobs (`index`: from the package index at `index_url`, or the
    one of the host's pip settings, with the same hashes). pip itself is always an uploaded wheel,
    so the host needs only Python's venv.

    The caller holds the deploy lock: what an earlier build left behind is ended and removed.

    Args:
        raw_lock: the bytes of lock.json; their SHA-256 is the runtime's name.
        imports: modules that must import in the finished runtime.
        sandbox: in which pip and the packages run; they came with a release.

    Raises:
        HostError: a wheel is missing or damaged, or an import failed; nothing is left behind.
        HostError ("refused"): pip could not get or install what the lock names.
    """
    lock = hashlib.sha256(raw_lock).hexdigest()
    target = layout.runtime(lock)
    document = json.loads(raw_lock)
    if os.path.isdir(target) and _is_sound(target, document["wheels"], imports, sandbox):
        return {"lock": lock, "built": False}
    durable.make_directories(layout.runtimes)
    _remove_leftovers(layout, sandbox)
    # A new directory each time: an earlier one may still belong to the service account.
    building = os.path.join(layout.runtimes, f"{_BUILDING}{lock}-{secrets.token_hex(6)}")
    os.mkdir(building, 0o755)
    try:
        base = python or sys.executable
        doing = "making the virtualenv"
        argv = [base, "-I", "-m", "venv", "--without-pip", building]
        _refuse_failure(_run(argv, doing, timeout=_PIP_TIMEOUT_S, sandbox=DIRECT), doing, building)
        if document["wheels"]:
            settings = package_index.settings(index, index_url)
            sandbox.give(building)
            _install_wheels(layout, building, document["wheels"], settings, sandbox, index=index)
            shutil.rmtree(os.path.join(building, "wheels"), ignore_errors=True)
            sandbox.take(building)
        check_imports(building, imports, sandbox)
        os.sync()
        if os.path.isdir(target):  # damaged on the disk, so nothing runs from it
            durable.set_aside(target, _TRASH)
        os.rename(building, target)
        durable.sync_directory(layout.runtimes)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return {"lock": lock, "built": True}


def _remove_leftovers(layout: Layout, sandbox: Sandbox) -> None:
    """What a killed agent left: first its processes, then what they wrote."""
    sandbox.end_leftovers()
    for name in os.listdir(layout.runtimes):
        if name.startswith(_BUILDING):
            shutil.rmtree(os.path.join(layout.runtimes, name), ignore_errors=True)


def _is_sound(
    runtime: str, wheels: list[dict[str, Any]], imports: list[str], sandbox: Sandbox
) -> bool:
    if lacking(runtime, wheels):
        return False
    try:
        version = check_imports(runtime, imports, sandbox)
    except HostError:
        return False
    return os.path.isdir(packages(runtime, version))


def _install_wheels(
    layout: Layout,
    building: str,
    wheels: list[dict[str, Any]],
    settings: dict[str, str],
    sandbox: Sandbox,
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
            # pip runs from its own wheel, before pip could check a hash.
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
    argv += ["--no-compile", "--no-input", "--only-binary", ":all:", *source, "-r", requirements]
    log = os.path.join(shelf, "pip.log")
    argv += ["--log", log] if index else []
    doing = "installing the wheels"
    done = _run(
        argv, doing, timeout=_PIP_TIMEOUT_S, sandbox=sandbox, settings=settings, into=building
    )
    if done.returncode != 0:
        said = done.stderr or done.stdout
        why = _host_failure(doing, said, building)
        raise why or package_index.failure(said, index=index, log=_text(log))
    _compile(building, sandbox)


def _text(path: str) -> str:
    """A file that the sandbox's account wrote; it may not lead to another one."""
    data = None if os.path.islink(path) else durable.regular(path, _LONGEST_LOG)
    return (data or b"").decode("utf-8", "replace")


def _compile(building: str, sandbox: Sandbox) -> None:
    """Write the packages' bytecode, by two processes: pip itself would take twice the time.

    A file that can't be compiled is none that the service imports; `check_imports` says if it is.
    """
    python, doing = os.path.join(building, "bin", "python"), "compiling the packages"
    for workers in ("2", "1"):  # one, where the sandbox lets no two work together
        argv = [python, "-I", "-m", "compileall", "-q", "-j", workers]
        argv.append(os.path.join(building, "lib"))
        done = _run(argv, doing, timeout=_PIP_TIMEOUT_S, sandbox=sandbox, into=building)
        if done.returncode == 0:
            return
    said = done.stderr or done.stdout
    if (failure := _host_failure(doing, said, building)) is not None:
        raise failure


def check_imports(runtime: str, imports: list[str], sandbox: Sandbox) -> str:
    """Import each module in a fresh process of the runtime; answers its Python's version ("3.11").

    Raises:
        HostError: one does not import, with the end of what Python said.
    """
    code = "import importlib,sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    code += "\nprint('%d.%d' % sys.version_info[:2])"
    python = os.path.join(runtime, "bin", "python")
    doing = "importing the packages"
    argv = [python, "-I", "-c", code, *imports]
    done = _run(argv, doing, timeout=_IMPORT_TIMEOUT_S, sandbox=sandbox)
    _refuse_failure(done, doing, runtime)
    return done.stdout.split()[-1]


def _run(
    argv: list[str],
    doing: str,
    *,
    timeout: float,
    sandbox: Sandbox,
    settings: dict[str, str] | None = None,
    into: str = "",
) -> subprocess.CompletedProcess[str]:
    settings = {**(settings or {}), "ORT_DISABLE_TELEMETRY": "1"}
    try:
        return sandbox.run(argv, timeout=timeout, settings=settings, writable=into)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{doing} failed", why=str(error), live="unchanged") from error


def _refuse_failure(done: subprocess.CompletedProcess[str], doing: str, path: str) -> None:
    if done.returncode != 0:
        said = done.stderr or done.stdout
        if (failure := _host_failure(doing, said, path)) is not None:
            raise failure
        why = "\n".join(said.strip().splitlines()[-6:])
        hint = "check the host's Python and libraries, or lock for them: invoke release"
        raise HostError(f"{doing} failed", why=why, live="unchanged", hint=hint)


def room(path: str) -> dict[str, Any]:
    """The file system at `path`: `free` bytes, `free_inodes` (-1: it doesn't count them), and
    `noexec`: its mount point if nothing there may run, else "". `blobs_free`: bytes where blobs
    arrive, if that is a file system of its own; -1: it is none.
    """
    disk = durable.disk_of(path)
    arriving = durable.disk_of(os.path.join(path, "blobs"))
    apart = os.stat(arriving.at).st_dev != os.stat(disk.at).st_dev
    noexec = ""
    if os.statvfs(disk.at).f_flag & getattr(os, "ST_NOEXEC", 0):  # Linux only
        noexec = os.path.realpath(disk.at)
        while not os.path.ismount(noexec):
            noexec = os.path.dirname(noexec)
    return {
        "free": disk.free,
        "free_inodes": disk.inodes,
        "blobs_free": arriving.free if apart else -1,
        "noexec": noexec,
    }


def missing_programs() -> list[dict[str, Any]]:
    """What deploying needs and this host lacks; no wheel brings it.

    `needed` False: only releases whose runtime has the Python module `module` need it.
    """
    lacking = []
    if importlib.util.find_spec("venv") is None:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        lacking.append({"name": "python3 -m venv", "package": package, "needed": True})
    for program, package in (("ssh-keygen", "openssh-client"), ("systemctl", "systemd")):
        if shutil.which(program) is None:
            lacking.append({"name": program, "package": package, "needed": True})
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        lightgbm = {"name": "libgomp (LightGBM)", "package": "libgomp1", "module": "lightgbm"}
        lacking.append({**lightgbm, "needed": False})
    return lacking


def _host_failure(doing: str, said: str, path: str) -> HostError | None:
    """The refusal for a build that failed because this host lacks something; None: another cause.

    Args:
        said: what the failed program wrote.
        path: where it was building.
    """
    library, libc = _NO_LIBRARY.search(said), _OTHER_LIBC.search(said)
    if _FULL.search(said):
        what = "the host's disk is full"
        hint = "make room there; df -h and df -i show whether bytes or inodes are used up"
    elif library:
        what = f"the host lacks the library {library[1]}"
        hint = f"install the package that has it: apt-file search {library[1]}"
        if library[1] in _PACKAGES:
            hint = f"apt-get install {_PACKAGES[library[1]]}"
        hint += " on the host"
    elif libc:
        what = f"the host's C library has no {libc[1]}"
        hint = "invoke release locks for the C library that the host has now"
    elif "failed to map segment" in said and room(path)["noexec"]:
        where = room(path)["noexec"]
        what = f"{where} is mounted noexec"
        hint = REMOUNT.format(where)
    else:
        return None
    why = "\n".join(line.strip() for line in said.strip().splitlines()[-6:])
    what = f"{doing} failed: {what}"
    return HostError(
        what, why=why, hint=f"{hint}; then deploy again", live="unchanged", kind="refused"
    )


def wrong_with(runtime: str, wheels: Sequence[dict[str, Any]], sandbox: Sandbox) -> str:
    """Why `runtime` is not as it was built from `wheels` of its lock; "" if it is.

    sandbox: its Python runs in it, since it came with a release.
    """
    return python_wrong(runtime, sandbox) or lacking(runtime, wheels)


def python_wrong(runtime: str, sandbox: Sandbox) -> str:
    """Why its Python does not run, or is not the one its packages were installed for; else ""."""
    python = os.path.join(runtime, "bin", "python")
    if not os.path.exists(python):
        return "its runtime is gone" if not os.path.isdir(runtime) else "its runtime has no Python"
    # S: none of the packages' own start-up code; the question is about Python.
    argv = [python, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = sandbox.run(argv, timeout=_PYTHON_TIMEOUT_S)
    except HostError as error:
        return f"its Python was not run: {error} ({error.why})"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its Python does not run: {error}"
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        return "its Python does not run" + (f": {said[-1]}" if said else "")
    version = done.stdout.strip()
    if not os.path.isdir(packages(runtime, version)):
        return f"its Python is {version} now, its packages were installed for another one"
    return ""


def packages(runtime: str, version: str) -> str:
    """Where the packages for a Python of that version ("3.11") lie."""
    return os.path.join(runtime, "lib", f"python{version}", "site-packages")


def lacking(runtime: str, wheels: Sequence[dict[str, Any]]) -> str:
    """Which packages of `wheels`, or files of theirs, `runtime` lacks; "" if none."""
    lib = os.path.join(runtime, "lib")
    records: dict[str, str] = {}
    for version in sorted(os.listdir(lib)) if os.path.isdir(lib) else []:
        folder = os.path.join(lib, version, "site-packages")
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if name.endswith(".dist-info"):
                project = name[: -len(".dist-info")].rpartition("-")[0]
                records[_normal(project)] = os.path.join(folder, name, "RECORD")
    wanted = {_normal(str(wheel["name"])) for wheel in wheels} - _NOT_INSTALLED
    gone = sorted(wanted - set(records))
    damaged: list[str] = []
    for name in sorted(wanted & set(records)):
        try:
            damaged += _damaged(records[name])
        except (OSError, ValueError, csv.Error):
            gone.append(name)
    damages = [f"{len(gone)} packages ({_first(gone)})"] if gone else []
    damages += [f"{len(damaged)} files as installed ({_first(damaged)})"] if damaged else []
    return f"its runtime lacks {' and '.join(damages)}" if damages else ""


def _damaged(record: str) -> list[str]:
    """The files of one package that are missing or of another size than its RECORD says."""
    status = os.lstat(record)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_RECORD:
        raise ValueError(record)
    packages = os.path.dirname(os.path.dirname(record))
    damaged = []
    with open(record, encoding="utf-8", newline="") as file:
        for path, _, size in csv.reader(file):
            bytecode = path.endswith(".pyc")  # Python does without it
            if not bytecode and not _is_there(os.path.join(packages, path), size):
                damaged.append(path)
    return damaged


def _is_there(path: str, size: str) -> bool:
    """As a plain file, of the size that was recorded, if any was."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and size in ("", str(status.st_size))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
