"""What this machine is, as far as the standard library and a few programs on PATH can tell."""

from __future__ import annotations

import importlib.util
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from macd.host import durable
from macd.host.processes import boot_id

_QUICK_SECONDS = 5.0
_GPU_SECONDS = 20.0
_GPU_FIELDS = ("name", "uuid", "memory.total", "memory.free", "driver_version")
_TOOLS = ("systemctl", "systemd-run", "journalctl", "ssh-keygen", "rsync", "tar", "nvidia-smi")


def facts(disks: Sequence[str] = ("/", "~", "/tmp")) -> dict[str, Any]:  # noqa: S108
    """Everything below in one answer; `disks` are paths whose file systems are looked at."""
    with ThreadPoolExecutor(2) as pool:  # both wait for slow programs
        services, cards = pool.submit(systemd), pool.submit(gpus)
    return {
        "hostname": socket.gethostname(),
        "user": user(),
        "os": operating_system(),
        "python": python(),
        "cpus": cpus(),
        "load": list(os.getloadavg()),
        "memory": memory(),
        "disks": [disk(path) for path in disks],
        "systemd": services.result(),
        "gpus": cards.result(),
        "tools": {name: shutil.which(name) for name in _TOOLS},
        "time": time.time(),
    }


def user() -> dict[str, Any]:
    """Who the agent runs as."""
    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
        name, shell = entry.pw_name, entry.pw_shell
    except KeyError:
        name, shell = str(uid), ""
    home = os.path.expanduser("~")
    return {"name": name, "uid": uid, "gid": os.getgid(), "home": home, "shell": shell}


def operating_system() -> dict[str, Any]:
    """Kernel, architecture, distribution, C library and when it was booted."""
    release = _os_release()
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "id": release.get("ID", ""),
        "version": release.get("VERSION_ID", ""),
        "pretty": release.get("PRETTY_NAME", "") or platform.platform(),
        "libc": _libc(),
        "boot_id": boot_id(),
        "uptime": float((_read("/proc/uptime").split() or ["0"])[0]),
    }


def python() -> dict[str, Any]:
    """The interpreter of this agent, in the terms of wheel names."""
    return {
        "executable": sys.executable,
        "version": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name,
        "soabi": sysconfig.get_config_var("SOABI") or "",
        "platform": sysconfig.get_platform(),
        "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
    }


def cpus() -> int:
    """The CPUs this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> dict[str, int]:
    """Bytes of memory: total, and what a new program could have without swapping."""
    lines = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE))
    total = int(lines.get("MemTotal", 0)) * 1024
    if not total:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"total": total, "available": int(lines.get("MemAvailable", 0)) * 1024}


def disk(path: str) -> dict[str, Any]:
    """The file system `path` is on, or would be on once it is made."""
    expanded = durable.expand(path)
    disk = durable.disk_of(expanded)
    return {
        "path": expanded,
        "exists": disk.at == expanded,
        "writable": os.access(disk.at, os.W_OK),
        "total": disk.total,
        "free": disk.free,
        "free_inodes": max(0, disk.inodes),
        "device": os.stat(disk.at).st_dev,
    }


def systemd() -> dict[str, Any]:
    """Whether services can run here, and by which manager: scope "system", "user" or "".

    `booted` is sd_booted(3). A mere program called systemctl (the lab's hosts have one) is not
    booted but still has a scope.
    """
    answer: dict[str, Any] = {
        "systemctl": shutil.which("systemctl"),
        "booted": os.path.isdir("/run/systemd/system"),
        "version": "",
        "scope": "",
        "state": "",
    }
    if not answer["systemctl"]:
        return answer
    scopes = ("system", "user") if os.getuid() == 0 else ("user",)
    questions = [["--version"], *([f"--{scope}", "is-system-running"] for scope in scopes)]
    with ThreadPoolExecutor(len(questions)) as pool:
        version, *states = pool.map(_output, (["systemctl", *words] for words in questions))
    named = re.match(r"systemd (\S+)", version)
    answer["version"] = named.group(1) if named else ""
    for scope, state in zip(scopes, states, strict=True):
        if state.strip() not in ("", "offline", "unknown"):
            answer.update(scope=scope, state=state.strip())
            break
    return answer


def gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs by nvidia-smi; memory in bytes. Empty without a GPU or without a driver."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    if not shutil.which(query[0]):
        return []
    gpus = []
    for line in _output(query, seconds=_GPU_SECONDS).splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(_GPU_FIELDS):
            name, uuid, total, free, driver = cells
            gpus.append(
                {
                    "name": name,
                    "uuid": uuid,
                    "memory_total": _mebibytes(total),
                    "memory_free": _mebibytes(free),
                    "driver": driver,
                }
            )
    return gpus


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.isdigit() else None


def _libc() -> dict[str, str]:
    """glibc by confstr; otherwise musl by the loader it installs; otherwise nothing is claimed."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError, AttributeError):
        name = version = ""
    if not name and os.path.exists(f"/lib/ld-musl-{platform.machine()}.so.1"):
        name = "musl"
    return {"name": name, "version": version}


def _os_release() -> dict[str, str]:
    text = _read("/etc/os-release") or _read("/usr/lib/os-release")
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {key: value.strip().strip("\"'") for key, _, value in pairs}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _output(argv: list[str], seconds: float = _QUICK_SECONDS) -> str:
    """What a program prints, whatever its exit status; nothing if it isn't there or hangs."""
    environment = dict(os.environ, LC_ALL="C")
    runtime = f"/run/user/{os.getuid()}"
    if os.path.isdir(runtime):
        environment.setdefault("XDG_RUNTIME_DIR", runtime)  # not set without pam_systemd
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")
