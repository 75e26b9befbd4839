"""A session that reconnects: an action through it survives a lost link, within `patience`.

Only for actions that may be repeated: looking, and the operations of a job's host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from macd.errors import ContactLostError, MacdError, RefusedError, UsageError
from macd.inventory import Host, Inventory
from macd.ssh.session import Session, open_session

_FIRST_WAIT_S = 1.0
T = TypeVar("T")


class Watcher(Protocol):
    """Shows what happens to the link."""

    def lost(self, error: MacdError, *, gives_up_in: float) -> None:
        """Contact was lost, or is not back yet."""

    def back(self) -> None:
        """Contact is there again."""


class Silent:
    """Nobody."""

    def lost(self, error: MacdError, *, gives_up_in: float) -> None: ...

    def back(self) -> None: ...


@dataclass
class Contact:
    """Use it as a context manager; the first connection is tried once, later ones for `patience`.

    Args:
        patience: so many seconds without contact end it.
        longest_wait: the wait between two tries doubles from 1 s to this.
        for_good: errors while reconnecting that waiting does not mend. Nearly every other may
            pass: while a host boots, it refuses logins.
        session: one that is open already; it is closed as those that are opened here.
        reached: whether the host was reached before; the first connection is a later one then.
        clock: counts seconds.
        sleep: waits them.
    """

    host: Host
    inventory: Inventory
    watcher: Watcher = field(default_factory=Silent)
    patience: float = 600.0
    longest_wait: float = 30.0
    for_good: tuple[type[MacdError], ...] = (RefusedError, UsageError)
    session: Session | None = None
    reached: bool = False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def use(self, action: Callable[[Session], T]) -> T:
        """Do `action` with a session; when the link dies, reconnect and do it again.

        Raises ContactLostError once there was no contact for `patience` seconds.
        """
        gives_up = 0.0
        wait = _FIRST_WAIT_S
        while True:
            connecting = self.session is None
            try:
                session = self._connected()
                if connecting and gives_up:
                    self.watcher.back()
                connecting = False
                return action(session)
            except MacdError as error:
                if not self._may_pass(error, connecting=connecting):
                    raise
                self.close()
                now = self.clock()
                gives_up = gives_up or now + self.patience
                if now >= gives_up:
                    raise self._given_up(error) from error
                wait = min(wait, max(gives_up - now, 0.1))
                self.watcher.lost(error, gives_up_in=gives_up - now)
                self.sleep(wait)
                wait = min(2 * wait, self.longest_wait)

    def _connected(self) -> Session:
        if self.session is None:
            session = open_session(self.host, self.inventory)
            try:
                session.ping()
            except BaseException:
                session.close()
                raise
            self.session, self.reached = session, True
        return self.session

    def _may_pass(self, error: MacdError, *, connecting: bool) -> bool:
        """Whether trying again may help. Once connected only a dead link may pass: other errors
        are answers."""
        if connecting:
            return self.reached and not isinstance(error, self.for_good)
        return isinstance(error, ContactLostError)

    def _given_up(self, error: MacdError) -> ContactLostError:
        return ContactLostError(
            f"LOST CONTACT with {self.host.name}: unreachable for {self.patience / 60:.3g} minutes",
            why=str(error),
        )

    def close(self) -> None:
        """Close the link, whatever state it is in."""
        session, self.session = self.session, None
        if session is not None:
            with contextlib.suppress(MacdError, OSError):
                session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
