"""What a runtime needs of the host itself: room, a file system that runs code, system packages.

No wheel brings these, and without them pip or an import fails in words about Python.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import sys
from typing import Any

from macd.host import durable
from macd.host.failure import HostError

_PACKAGES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}  # of Debian
REMOUNT = "mount -o remount,exec {0} on the host, and in its /etc/fstab; or set app_dir elsewhere"
_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_NO_LIBRARY = re.compile(r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file")
_OTHER_LIBC = re.compile(r"version `(GLIBC_[\d.]+)' not found")


def room(path: str) -> dict[str, Any]:
    """Of the file system at `path`: `free` bytes, `free_inodes` (-1: it doesn't count them), and
    `noexec`: where it is mounted if nothing there may run, else "".
    """
    disk = durable.disk_of(path)
    noexec = ""
    if os.statvfs(disk.at).f_flag & getattr(os, "ST_NOEXEC", 0):  # Linux only
        noexec = os.path.realpath(disk.at)
        while not os.path.ismount(noexec):
            noexec = os.path.dirname(noexec)
    return {"free": disk.free, "free_inodes": disk.inodes, "noexec": noexec}


def missing_programs() -> list[dict[str, Any]]:
    """What deploying needs and this host lacks.

    `needed` False: only releases whose runtime has the Python module `module` need it.
    """
    found = []
    if importlib.util.find_spec("venv") is None:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        found.append({"name": "python3 -m venv", "package": package, "needed": True})
    for program, package in (("ssh-keygen", "openssh-client"), ("systemctl", "systemd")):
        if shutil.which(program) is None:
            found.append({"name": program, "package": package, "needed": True})
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        lightgbm = {"name": "libgomp (LightGBM)", "package": "libgomp1", "module": "lightgbm"}
        found.append({**lightgbm, "needed": False})
    return found


def failure(doing: str, said: str, path: str) -> HostError | None:
    """The refusal for a build that failed for want of something here; None: it was another cause.

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
