"""Processes of this machine, as the system lists them. Pids are used again: a start time is not."""

from __future__ import annotations

import os
import subprocess


def stat_of(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where there is no such process.

    The name before the state may hold blanks and ")".
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> str:
    """When a process started, as the system writes it; "" when there is none (a zombie is none)."""
    if os.path.isdir("/proc/self"):
        fields = stat_of(pid)
        return fields[19] if fields and fields[0] != "Z" else ""
    try:
        argv = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    state, _, start = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else start.strip()


def boot_id() -> str:
    """Changes with every boot; "" where the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
