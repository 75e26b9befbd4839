"""What the host said about itself, typed; the client's half of macd/host/rpc/facts.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Clock:
    """The host's clock against ours: offset = host minus here, true within +- error (seconds)."""

    offset: float
    error: float


@dataclass(frozen=True)
class User:
    """Who the agent runs as."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


@dataclass(frozen=True)
class OperatingSystem:
    """Kernel, distribution and C library; `libc` is {"name": "glibc"|"musl"|"", "version"}."""

    system: str
    kernel: str
    arch: str
    id: str
    version: str
    pretty: str
    libc: Mapping[str, str]
    boot_id: str
    uptime: float


@dataclass(frozen=True)
class Python:
    """The interpreter the agent ran on; `venv` says whether `python -m venv` can work."""

    executable: str
    version: str
    implementation: str
    soabi: str
    platform: str
    venv: bool


@dataclass(frozen=True)
class Disk:
    """The file system a path is on; sizes in bytes, `free` as seen by this user."""

    path: str
    exists: bool
    writable: bool
    total: int
    free: int
    free_inodes: int
    device: int


@dataclass(frozen=True)
class Systemd:
    """Which manager can run our services: scope "system", "user" or "" for none."""

    systemctl: str | None
    booted: bool
    version: str
    scope: str
    state: str


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes, None where nvidia-smi doesn't say."""

    name: str
    uuid: str
    memory_total: int | None
    memory_free: int | None
    driver: str


@dataclass(frozen=True)
class Facts:
    """Everything at once; memory in bytes {"total", "available"}, tools as name -> path or None."""

    hostname: str
    user: User
    os: OperatingSystem
    python: Python
    cpus: int
    load: tuple[float, ...]
    memory: Mapping[str, int]
    disks: tuple[Disk, ...]
    systemd: Systemd
    gpus: tuple[Gpu, ...]
    tools: Mapping[str, str | None]
    time: float
    clock: Clock

    @classmethod
    def of(cls, answer: Mapping[str, Any], clock: Clock) -> Facts:
        """Build from the agent's answer; both ends come from this tree, so the keys agree."""
        parts = dict(answer)
        parts.update(
            user=User(**answer["user"]),
            os=OperatingSystem(**answer["os"]),
            python=Python(**answer["python"]),
            load=tuple(answer["load"]),
            disks=tuple(Disk(**disk) for disk in answer["disks"]),
            systemd=Systemd(**answer["systemd"]),
            gpus=tuple(Gpu(**gpu) for gpu in answer["gpus"]),
        )
        return cls(**parts, clock=clock)
