"""What changes a unit of ours from beside its file: drop-ins on this host, and a systemd that has
not read what stands on the disk.

Packages bring theirs below /usr/lib; those, and the ones for every service of a host, are not ours
to judge.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from typing import Any

from macd.host.systemd.supervisor import Supervisor

# In systemd's order (systemd.unit(5)); "control" is what systemctl set-property writes.
_SYSTEM = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
)
_USER = (
    "~/.config/systemd/user.control",
    "$XDG_RUNTIME_DIR/systemd/user.control",
    "~/.config/systemd/user",
    "/etc/systemd/user",
    "$XDG_RUNTIME_DIR/systemd/user",
    "/run/systemd/user",
    "~/.local/share/systemd/user",
    "/usr/local/lib/systemd/user",
)
_MOST_BYTES = 1 << 16


def dropins(scope: str, units: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By unit: the path of each drop-in and the names it sets. No values: they may be secrets."""
    overrides = {}
    places = [
        os.path.expandvars(os.path.expanduser(p)) for p in (_USER if scope == "user" else _SYSTEM)
    ]
    for unit in units:
        paths = [
            path for place in places for name in _directories(unit) for path in _files(place, name)
        ]
        if paths:
            overrides[unit] = [{"path": path, "sets": _names_set_in(path)} for path in paths]
    return overrides


def not_read(supervisor: Supervisor, units: Sequence[str]) -> list[str]:
    """The units that systemd still runs as they stood before somebody changed a file of theirs."""
    if not supervisor.has_timers():  # only a systemd that is really there remembers
        return []
    return [unit for unit in units if supervisor.show(unit).needs_reload]


def _directories(unit: str) -> list[str]:
    """UNIT.d, and for a-b.service also a-.service.d."""
    stem, _, kind = unit.rpartition(".")
    words = stem.split("-")
    prefixes = ["-".join(words[:count]) + "-" for count in range(len(words) - 1, 0, -1)]
    return [f"{name}.{kind}.d" for name in (stem, *prefixes)]


def _files(place: str, directory: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(place), directory, "*.conf")))


def _names_set_in(path: str) -> list[str]:
    try:
        if not os.path.isfile(path):  # /dev/null takes a package's drop-in away
            return []
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST_BYTES).replace("\\\n", " ").splitlines()
    except OSError:
        return []
    names = [line.partition("=")[0].strip() for line in lines if "=" in line]
    return list(dict.fromkeys(name for name in names if name[:1] not in ("#", ";")))
