"""What a host can be in a cluster, asked before a training: its address, its memory, its ports.

A port is tried for real: one host listens where a node would, the others connect to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Ray keeps its objects
_SIOCGIFADDR = 0x8915
_REACH_S = 5.0
_TRIED_AT_ONCE = 64

_listening: list[socket.socket] = []  # of this agent: closed by node_listen, or when it ends


def node_look(address: str) -> dict[str, Any]:
    """What a node's address is, and how much shared memory is there.

    address: an IPv4 address of this host, or the name of an interface. The answer's `address` is
    "" when this host has no such address; `why` says so.
    """
    shm, ipv4, why = 0, "", ""
    with contextlib.suppress(OSError):
        disk = os.statvfs(SHARED_MEMORY)
        shm = disk.f_bavail * disk.f_frsize
    try:
        ipv4 = _address_of(address)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.bind((ipv4, 0))
    except OSError as error:
        ipv4, why = "", f"{address}: {error.strerror or error}"
    return {"address": ipv4, "why": why, "shm": shm}


def node_listen(address: str, ports: Sequence[int]) -> dict[str, Any]:
    """Listen on these ports until this is called again, or the agent ends; no port closes all.

    `taken` lists [port, why] of those that can't be had. Nothing is accepted: the kernel answers
    whoever connects.
    """
    for old in _listening:
        old.close()
    _listening.clear()
    taken = []
    for port in ports:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            made.listen(64)
            _listening.append(made)
        except OSError as error:
            made.close()
            taken.append([port, error.strerror or str(error)])
    return {"taken": taken}


def node_reach(targets: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Connect to each [address, port]; `closed` lists [address, port, why] of those that failed."""

    def closed(target: Sequence[Any]) -> list[Any]:
        address, port = str(target[0]), int(target[1])
        try:
            socket.create_connection((address, port), timeout=_REACH_S).close()
        except OSError as error:
            return [address, port, error.strerror or str(error)]
        return []

    with ThreadPoolExecutor(_TRIED_AT_ONCE) as pool:
        return {"closed": [failed for failed in pool.map(closed, targets) if failed]}


def _address_of(name: str) -> str:
    """The address itself, or the first of the interface of that name. Raises OSError."""
    try:
        return str(ipaddress.IPv4Address(name))
    except ValueError:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
