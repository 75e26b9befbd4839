"""A session that reconnects: an action through it survives a lost link, within `patience`.

Only for actions that may be repeated: all operations of a job's host may be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from macd.errors import ContactLostError, MacdError, RefusedError, UsageError
from macd.inventory import Host, Inventory
from macd.ssh.session import Session, open_session

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
T = TypeVar("T")


class Watcher(Protocol):
    """Shows what happens to the link."""

    def lost(self, error: MacdError, *, again_in: float, gives_up_in: float) -> None:
        """Contact was lost, or is not back yet."""

    def back(self) -> None:
        """Contact is there again."""


class Silent:
    """Nobody."""

    def lost(self, error: MacdError, *, again_in: float, gives_up_in: float) -> None: ...

    def back(self) -> None: ...


@dataclass
class Contact:
    """Use it as a context manager; the first connection is tried once, later ones for `patience`.

    `clock` counts seconds, `sleep` waits them.
    """

    host: Host
    inventory: Inventory
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    watcher: Watcher = field(default_factory=Silent)
    patience: float = 600.0
    _session: Session | None = None
    _once: bool = False

    def use(self, action: Callable[[Session], T]) -> T:
        """Do `action` with a session; when the link dies, reconnect and do it again.

        Raises ContactLostError once there was no contact for `patience` seconds.
        """
        gives_up = 0.0
        wait = _FIRST_WAIT_S
        while True:
            connecting = self._session is None
            try:
                session = self._connected()
                connecting = False
                result = action(session)
            except MacdError as error:
                if not self._once or not _may_pass(error, connecting=connecting):
                    raise
                self.close()
                now = self.clock()
                gives_up = gives_up or now + self.patience
                if now >= gives_up:
                    raise self._given_up(error) from error
                wait = min(wait, max(gives_up - now, 0.1))
                self.watcher.lost(error, again_in=wait, gives_up_in=gives_up - now)
                self.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
            else:
                if gives_up:
                    self.watcher.back()
                return result

    def _connected(self) -> Session:
        if self._session is None:
            session = open_session(self.host, self.inventory)
            try:
                session.ping()
            except BaseException:
                session.close()
                raise
            self._session, self._once = session, True
        return self._session

    def _given_up(self, error: MacdError) -> ContactLostError:
        return ContactLostError(
            f"LOST CONTACT with {self.host.name}: unreachable for {self.patience / 60:.3g} minutes",
            why=str(error),
        )

    def close(self) -> None:
        """Close the link, whatever state it is in."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(MacdError, OSError):
                session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _may_pass(error: MacdError, *, connecting: bool) -> bool:
    """Whether trying again may help.

    While reconnecting to a host that was reached before, nearly every error may pass: while it
    boots, it refuses logins. A changed host key does not pass. Once connected, only a dead link
    does; other errors are answers.
    """
    if connecting:
        return not isinstance(error, RefusedError | UsageError)
    return isinstance(error, ContactLostError)
