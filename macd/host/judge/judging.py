"""Judge logs in a process that may do next to nothing: the guard is root, they are a stranger's.

The process has the rights of whoever owns the logs, no open file but its answer's pipe, and bounds
on its memory and time. What it answers is a stranger's word too. The standard library alone.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from macd.host import durable, untrusted
from macd.host.judge import gate, starts

MEMORY = 256 << 20  # bytes of addresses; the worst logs that we could make took 120 MiB
WITHIN_S = 300.0
_MOST_ANSWER = 2 << 20
_MOST_FILES = 10_000
_MOST_REASONS = 50
_DESCRIPTORS = 4096


class CannotJudgeError(Exception):
    """The logs were not judged, and why; it says nothing about what they hold."""


@dataclass(frozen=True)
class Judgement:
    """rates: successes and trials by criterion. document: the report, as starts.judge makes it."""

    verdict: str
    reasons: tuple[str, ...]
    rates: dict[str, list[int]]
    document: dict[str, Any]


def judge(
    live: Path,
    order: Mapping[str, Any],
    now: datetime,
    *,
    memory: int = MEMORY,
    within_s: float = WITHIN_S,
) -> Judgement:
    """What the logs in `live` say of the watch `order`.

    Raises:
        CannotJudgeError: it needed too much memory or time, was killed, or the logs can't be read.
    """
    try:
        reader, writer = os.pipe()
        child = os.fork()
    except OSError as error:
        raise CannotJudgeError(f"no process could be started: {error.strerror}") from error
    if not child:
        _answer(writer, live, order, now, memory, within_s)
    os.close(writer)
    try:
        raw, whole = _heard(reader, time.monotonic() + within_s)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # one that has ended is past that
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not whole:
        raise CannotJudgeError(f"no answer within {within_s:g} s")
    if status != 0:
        raise CannotJudgeError(untrusted.line(raw.decode("utf-8", "replace") or _end(status), 300))
    return _understood(raw)


def _end(status: int) -> str:
    return f"it was killed by signal {-status}" if status < 0 else f"it ended with {status}"


def _heard(reader: int, deadline: float) -> tuple[bytes, bool]:
    """What came up to the end of the pipe; False if that did not come in time, or too much came."""
    parts: list[bytes] = []
    size = 0
    while size <= _MOST_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return b"", False
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts), True
        parts.append(part)
        size += len(part)
    return b"", False


def _understood(raw: bytes) -> Judgement:
    try:
        document = json.loads(raw)
        if document["verdict"] not in (gate.PASS, gate.FAIL, gate.INCONCLUSIVE):
            raise ValueError("no verdict")
        reasons = tuple(untrusted.line(one) for one in document["reasons"][:_MOST_REASONS])
        rates = {
            untrusted.line(one["name"]): [int(one["successes"]), int(one["trials"])]
            for one in document["criteria"]
        }
        return Judgement(document["verdict"], reasons, rates, {**document, "reasons": reasons})
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CannotJudgeError("its answer can't be understood") from error


def _answer(
    writer: int,
    live: Path,
    order: Mapping[str, Any],
    now: datetime,
    memory: int,
    within_s: float,
) -> NoReturn:
    """In the child: judge, write, end. Nothing of the parent's is run on the way out."""
    code = 1
    too_much = f"it needed more than {memory >> 20} MiB of memory".encode()
    try:
        _give_up_rights(writer, live, memory, within_s)
        answer = _judged(live, order, now)
        code = 0
    except MemoryError:
        answer = too_much
    except BaseException as error:  # whatever it is, it is told and ends here
        answer = f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace")
    try:
        durable.write_all(writer, answer)
    finally:
        os._exit(code)


def _judged(live: Path, order: Mapping[str, Any], now: datetime) -> bytes:
    if live.is_dir():
        with os.scandir(live) as entries:
            for count, _ in enumerate(entries):
                if count >= _MOST_FILES:
                    raise ValueError(f"more than {_MOST_FILES} files in data/live")
    _, document = starts.judge(live, order, now)
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")


def _give_up_rights(writer: int, live: Path, memory: int, within_s: float) -> None:
    os.closerange(3, writer)
    os.closerange(writer + 1, _DESCRIPTORS)
    seconds = round(within_s) + 1
    limits = [(resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)]
    limits += [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)]
    for which, most in limits:
        resource.setrlimit(which, (most, most))
    if os.geteuid() == 0 and live.exists():
        owner = live.stat()
        if owner.st_uid != 0:  # where root writes the logs, nobody is further from them
            os.setgroups([])
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
