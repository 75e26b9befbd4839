"""Ask the service how it is, and say exactly why an answer does not prove the new release."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any, Dict, List

from macd.host.supervisor import Process

_LIMIT = 1 << 20


class ProbeError(Exception):
    """No usable answer came from the service's health endpoint."""


class _BoundedSocket(socket.socket):
    """Ends a whole conversation in time: a service may drip an answer byte by byte."""

    deadline = 0.0

    def recv_into(self, *args: Any, **keywords: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it answers too slowly")
        self.settimeout(left)
        return super().recv_into(*args, **keywords)


class _Connection(http.client.HTTPConnection):
    def __init__(self, endpoint: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._endpoint = endpoint
        self._within = timeout

    def connect(self) -> None:
        self.sock: _BoundedSocket
        path = self._endpoint.removeprefix("unix:")
        family = socket.AF_INET if path == self._endpoint else socket.AF_UNIX
        self.sock = _BoundedSocket(family, socket.SOCK_STREAM)
        self.sock.deadline = time.monotonic() + self._within
        self.sock.settimeout(self._within)
        host, _, port = self._endpoint.rpartition(":")
        self.sock.connect(path if family == socket.AF_UNIX else (host, int(port)))


def ask(endpoint: str, *, timeout: float = 2.0, path: str = "/healthz") -> Dict[str, Any]:
    """The health document at `endpoint`: "unix:/path" or "HOST:PORT" on loopback.

    Raises:
        ProbeError: nobody answers, not in time, or not with a JSON object.
    """
    connection = _Connection(endpoint, timeout)
    try:
        connection.request("GET", path)
        raw = connection.getresponse().read(_LIMIT)
        answer = json.loads(raw)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise ProbeError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ProbeError("the answer is not a JSON object")
    return answer


def problems(
    answer: Dict[str, Any], *, release: str, manifest_sha256: str, process: Process
) -> List[str]:
    """Why this answer does not prove that `process` serves `release` well; empty when it does.

    A release id alone proves little: an old process that still answers is the classic false
    "healthy". The manifest's hash, the pid systemd started and the golden predictions count too.
    """
    found = []
    if answer.get("release") != release:
        found.append(f"release {answer.get('release')} answers, not {release}")
    elif answer.get("manifest_sha256") != manifest_sha256:
        found.append("the manifest it runs has another hash than the one that was signed")
    if process.pid and answer.get("pid") != process.pid:
        found.append(f"pid {answer.get('pid')} answers, but systemd started {process.pid}")
    if process.active != "active":
        found.append(f"the unit is {process.active or 'unknown'} ({process.sub}, {process.result})")
    golden = answer.get("golden")
    if not isinstance(golden, dict) or golden.get("ok") is not True:
        detail = golden.get("detail") if isinstance(golden, dict) else golden
        found.append(f"golden predictions do not come out right here: {detail}")
    if answer.get("status") != "ok":
        found.append(f"its status is {answer.get('status')}: {answer.get('last_error')}")
    return found
