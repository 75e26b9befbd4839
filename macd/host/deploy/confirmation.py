"""The word that a change may stay: from when it counts, and until when.

Somebody must reach this host over a connection that was opened after the soak ended, or the change
locked them out. Whoever gives the word and whoever stops waiting for it decide under one lock, so
that both know the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable

from macd.host import durable
from macd.host.deploy import ledger
from macd.host.deploy.ledger import Pending
from macd.host.deploy.proving import POLL_S, ActivationFailedError
from macd.host.layout import Layout

WAITING = "awaiting confirmation"
_TICK_S = 0.02  # as coarse as the kernel tells when a process began


def give(layout: Layout, number: int, token: str, opened: float | None) -> bool:
    """Confirm an activation that waits for it; False: it does not wait (yet, or any more).

    Args:
        opened: when the connection's process began, by `uptime`; None where nobody can tell.
    """
    with _deciding(layout):
        pending = ledger.read_pending(layout)
        if pending is None or (pending.number, pending.token) != (number, token):
            return False
        if pending.state != WAITING or _too_old(opened, pending.waiting_since):
            return False
        ledger.confirm(layout, pending)
        return True


def wait_for(
    layout: Layout,
    pending: Pending,
    still_well: Callable[[], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once it is confirmed; `pending` is on the disk as waiting.

    Raises:
        ActivationFailedError: nobody did in confirm_s, and nobody can any more; or `still_well`
            raised it.
    """
    deadline = clock() + pending.confirm_s
    while not ledger.is_confirmed(layout, pending):
        if clock() >= deadline and _given_up(layout, pending):
            raise ActivationFailedError(
                f"nobody confirmed over a fresh connection within {pending.confirm_s:g} s",
                blames_release=False,
            )
        still_well()
        sleep(max(0.0, min(POLL_S, deadline - clock())))


def _given_up(layout: Layout, pending: Pending) -> bool:
    """Take no word any more; False: it was given in the last moment."""
    with _deciding(layout):
        if ledger.is_confirmed(layout, pending):
            return False
        with contextlib.suppress(OSError):  # a full disk takes no word either
            ledger.write_pending(layout, dataclasses.replace(pending, state="reverting"))
        return True


def _deciding(layout: Layout) -> contextlib.AbstractContextManager[None]:
    """One at a time; on the directory itself, which takes no room on a full disk."""
    return durable.one_at_a_time(layout.state())


def _too_old(opened: float | None, since: float | None) -> bool:
    return opened is not None and since is not None and opened + _TICK_S < since


def uptime() -> float | None:
    """Seconds since this host booted; None on a system that does not tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)


def process_began() -> float | None:
    """When this process began, by `uptime`; None on a system that does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
