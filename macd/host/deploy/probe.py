"""Ask the service how it is, and say exactly why an answer does not prove the new release."""

from __future__ import annotations

import json
from typing import Any

from macd.host import untrusted
from macd.host.systemd.supervisor import Process

_LIMIT = 64 << 10  # bytes; our service says a few thousand


class ProbeError(Exception):
    """No usable answer came from the service's health endpoint."""


def ask(endpoint: str, *, timeout: float = 2.0, path: str = "/healthz") -> dict[str, Any]:
    """The health document at `endpoint`: "unix:/path" or "HOST:PORT" on loopback.

    Whoever answers is not trusted: each text is short and fit for a journal and a terminal.

    Raises:
        ProbeError: nobody answers, not in time, too long, or not with a JSON object.
    """
    # Imported while the service starts rather than before: a switch comes sooner by that.
    from http.client import HTTPException  # noqa: PLC0415

    from macd.host.loopback import Connection  # noqa: PLC0415

    connection = Connection(endpoint, timeout)
    try:
        connection.request("GET", path)
        raw = connection.getresponse().read(_LIMIT + 1)
        if len(raw) > _LIMIT:
            raise ProbeError(f"the answer is longer than {_LIMIT >> 10} KiB")
        answer = untrusted.document(json.loads(raw))
    except (OSError, HTTPException, ValueError, RecursionError) as error:
        raise ProbeError(untrusted.line(f"{type(error).__name__}: {error}")) from error
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ProbeError("the answer is not a JSON object")
    return answer


def problems(
    answer: dict[str, Any], *, release: str, manifest_sha256: str, process: Process
) -> list[str]:
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
