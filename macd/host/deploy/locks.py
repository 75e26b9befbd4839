"""The locks of a host's application: one deploy at a time, one activation at a time.

The deploy lock is held by the agent process of the session that changes things.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from macd.host import durable
from macd.host.deploy import ledger
from macd.host.failure import HostError
from macd.host.layout import Layout

DEPLOY = "deploy.lock"
ACTIVATION = "activation.lock"
_TRIES = 5  # a process that only looks at a lock holds it for an instant
_TRY_S = 0.05
_SESSION = contextlib.ExitStack()  # held by this agent until its channel closes
_RUNNER_END_S = 10.0


@contextlib.contextmanager
def locked(layout: Layout, name: str, holder: dict[str, Any]) -> Iterator[None]:
    """Hold the kernel lock `name` of this application, or refuse and name its holder.

    The kernel frees it when the holder's process ends, however it ends. The text in the file only
    names the holder: a stale text locks nobody out, and nobody can remove another's lock.
    """
    path = layout.state(name)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _taken(descriptor):
            raise _refused(path)
        text = json.dumps({**holder, "pid": os.getpid(), "since": time.time()})
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its text is lost
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_TRY_S)
    return False


def holder_of(layout: Layout, name: str) -> dict[str, Any] | None:
    """Who holds the lock now; None when it is free. A shared lock: two lookers don't collide."""
    path = layout.state(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _holder_text(path)
    finally:
        os.close(descriptor)


def _holder_text(path: str) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
        document = json.load(file)
        if isinstance(document, dict):
            return document
    return {"who": "somebody", "since": time.time()}


def _refused(path: str) -> HostError:
    holder = _holder_text(path)
    age = max(0, round(time.time() - float(holder.get("since", time.time()))))
    return HostError(
        "another deploy is at work on this host",
        why=f"{holder.get('who')} has held the lock for {age} s ({holder.get('doing', 'deploy')}, "
        f"process {holder.get('pid', '?')})",
        live="unchanged by this command",
        hint="wait for it: invoke deploy --attach; it frees itself when its holder ends",
        kind="refused",
    )


def lock(app: str, who: str, doing: str) -> dict[str, Any]:
    """Hold the host's deploy lock for as long as this session lives.

    Raises:
        HostError ("refused"): somebody holds it, or the host was never provisioned.
    """
    layout = Layout(durable.expand(app))
    if not os.path.isdir(layout.state()):
        raise HostError(
            "this host is not provisioned",
            why=f"there is no {layout.state()}",
            hint="invoke provision",
            live="nothing; nothing was changed",
            kind="refused",
        )
    os.umask(0o022)  # the service account must read what root writes here, whatever root's umask is
    layout.make()
    with contextlib.ExitStack() as held:
        held.enter_context(locked(layout, DEPLOY, {"who": who, "doing": doing}))
        _await_runner_end(layout)
        _SESSION.enter_context(held.pop_all())
    return {"held": True}


def _await_runner_end(layout: Layout) -> None:
    """Wait until the last activation has cleared up: it would also remove what we stage.

    Raises:
        HostError ("refused"): it has not ended yet.
    """
    deadline = time.monotonic() + _RUNNER_END_S
    while holder_of(layout, ACTIVATION) is not None:
        ledger.refuse_if_pending(layout)
        if time.monotonic() > deadline:
            raise HostError("the last deploy is still clearing up", kind="refused")
        time.sleep(0.05)


def holds_the_lock(layout: Layout) -> bool:
    """Whether this very process holds it."""
    holder = holder_of(layout, DEPLOY)
    return holder is not None and holder.get("pid") == os.getpid()


def require_lock(layout: Layout) -> None:
    """Raises HostError ("refused"): this session does not hold the deploy lock."""
    if not holds_the_lock(layout):
        raise HostError("this session does not hold the host's deploy lock", kind="refused")
