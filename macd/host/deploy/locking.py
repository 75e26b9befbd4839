"""The lock of a host's deploys, held by the agent process of the session that changes things."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from macd.host import durable
from macd.host.deploy import activation, admission, ledger
from macd.host.deploy.ledger import locked
from macd.host.deploy.status import DEPLOY_LOCK
from macd.host.failure import HostError
from macd.host.layout import Layout

_SESSION = contextlib.ExitStack()  # what this agent process holds until its channel closes
_RUNNER_END_S = 10.0


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
    os.umask(0o022)  # the service account reads what root puts here, whatever root's own umask is
    layout.make()
    with contextlib.ExitStack() as held:
        held.enter_context(locked(layout, DEPLOY_LOCK, {"who": who, "doing": doing}))
        _let_the_runner_end(layout)
        _SESSION.enter_context(held.pop_all())
    return {"held": True}


def _let_the_runner_end(layout: Layout) -> None:
    """An activation whose client left still clears up: what is staged meanwhile would go with it.

    Raises:
        HostError ("refused"): it is not at its end yet.
    """
    deadline = time.monotonic() + _RUNNER_END_S
    while ledger.holder_of(layout, activation.LOCK) is not None:
        admission.refuse_if_pending(layout)
        if time.monotonic() > deadline:
            raise HostError("the last deploy is still clearing up", kind="refused")
        time.sleep(0.05)


def holds_the_lock(layout: Layout) -> bool:
    """Whether this very process holds it."""
    holder = ledger.holder_of(layout, DEPLOY_LOCK)
    return holder is not None and holder.get("pid") == os.getpid()


def require_lock(layout: Layout) -> None:
    """Refuse what may only be done under the lock. Raises HostError ("refused")."""
    if not holds_the_lock(layout):
        raise HostError("this session does not hold the host's deploy lock", kind="refused")
