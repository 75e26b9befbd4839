"""Is a runtime that was built once still whole? Asked at each look, so it costs a stat per file.

Every package of the lock is there, every file of theirs has the size that was recorded when it was
installed, and its Python runs. What the files hold is not read; a release's own check does that.
"""

from __future__ import annotations

import csv
import os
import re
import stat
import subprocess
from collections.abc import Sequence
from typing import Any

from macd.host.failure import HostError
from macd.host.systemd.sandbox import Confinement

_PYTHON_TIMEOUT_S = 20
_LONGEST_RECORD = 16 << 20
_NAMED = 3
_NOT_INSTALLED = {"pip"}  # it installs the others, and is run out of its wheel


def wrong_with(runtime: str, wheels: Sequence[dict[str, Any]], walls: Confinement) -> str:
    """Why `runtime` is not as it was built from `wheels` of its lock; "" if it is.

    walls: behind which its Python runs; it came with a release.
    """
    return python_wrong(runtime, walls) or lacking(runtime, wheels)


def python_wrong(runtime: str, walls: Confinement) -> str:
    """Why its Python does not run, or is not the one its packages were installed for; else ""."""
    python = os.path.join(runtime, "bin", "python")
    if not os.path.exists(python):
        return "its runtime is gone" if not os.path.isdir(runtime) else "its runtime has no Python"
    # S: none of the packages' own start-up code; the question is about Python.
    argv = [python, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = walls.run(argv, timeout=_PYTHON_TIMEOUT_S)
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
    told = [f"{len(gone)} packages ({_first(gone)})"] if gone else []
    told += [f"{len(damaged)} files as installed ({_first(damaged)})"] if damaged else []
    return f"its runtime lacks {' and '.join(told)}" if told else ""


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
