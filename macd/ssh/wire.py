"""The bytes to a hop: open the TCP connection, notice a silent peer, wake everything that waits.

Nothing here loads paramiko.

SSH over a stalled link blocks for as long as TCP retries (a quarter of an hour), and keepalives
that nobody must answer prove nothing. So each hop's bytes pass through a Wire that remembers when
the peer last gave a sign of life, and a Watch asks for one when there was none and closes the wire
when none came.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from macd.ssh.sshconfig import Hop

_HEAD = 200
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def tcp(hop: Hop, connect_s: float) -> socket.socket:
    """A connection to the first of the hop's addresses that takes one within `connect_s` seconds.

    Raises OSError, the last address's, or the name's that has none.
    """
    family = _FAMILIES.get(hop.family, socket.AF_UNSPEC)
    addresses = socket.getaddrinfo(
        hop.hostname, hop.port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    deadline = time.monotonic() + connect_s
    failure: OSError = OSError("the name has no address")
    for number, (kind, _, _, _, address) in enumerate(addresses):
        left = (deadline - time.monotonic()) / (len(addresses) - number)
        made = socket.socket(kind, socket.SOCK_STREAM)
        try:
            made.settimeout(max(left, 0.1))
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            failure = error
    raise failure


class Socket(Protocol):
    """What paramiko asks of a socket; a channel through another host offers the same."""

    def send(self, data: bytes, /) -> int: ...
    def recv(self, limit: int, /) -> bytes: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> None: ...


class Wire:
    """A socket that knows how long its peer is silent, how it greeted (`head`), whether it `ended`.

    It reads up to `at_once` bytes at a time, whatever it is asked for.
    """

    def __init__(self, stream: Socket, at_once: int = 1 << 18) -> None:
        self.head = b""
        self.ended = False
        self._heard = time.monotonic()
        self._blocked: float | None = None
        self._socket = stream
        self._at_once = at_once
        self._ahead = memoryview(b"")
        self._closed = False  # the name paramiko looks at while it waits for its thread

    def silent_for(self, now: float) -> float:
        """Seconds at `now` (of time.monotonic) without a sign of life: nothing heard, or nothing
        taken of what we send."""
        return now - min(self._heard, self._blocked or self._heard)

    def send(self, data: bytes) -> int:
        """As a socket does. Room in a full buffer means that the peer took something."""
        if self._closed:
            raise ConnectionAbortedError("the link was given up")
        try:
            sent = self._socket.send(data)
        except TimeoutError:
            self._blocked = self._blocked or time.monotonic()
            raise
        except OSError:
            self.ended = True
            raise
        if self._blocked is not None and sent:
            self._blocked, self._heard = None, time.monotonic()
        return sent

    def recv(self, limit: int) -> bytes:
        """As a socket does; b"" once closed here. For one thread at a time."""
        if not self._ahead:
            self._ahead = memoryview(self._fetch())
        taken = bytes(self._ahead[:limit])
        self._ahead = self._ahead[limit:]
        return taken

    def _fetch(self) -> bytes:
        # All there is: paramiko asks for 16 bytes and then for the rest of each packet, and each
        # time a channel under us would move up everything it holds.
        try:
            data = b"" if self._closed else self._socket.recv(self._at_once)
        except TimeoutError:
            raise
        except OSError:
            self.ended = True
            if not self._closed:
                raise
            data = b""
        if not data:
            self.ended = True
            return b""
        self._heard = time.monotonic()
        if len(self.head) < _HEAD:
            self.head += data[:_HEAD]
        return data

    def settimeout(self, seconds: float | None) -> None:
        """As a socket does."""
        self._socket.settimeout(seconds)

    def getpeername(self) -> Any:
        """As a socket does; paramiko shows it."""
        return getattr(self._socket, "getpeername", lambda: ("", 0))()

    def close(self) -> None:
        """As a socket does; whoever sends or receives at this moment is woken."""
        self._closed = True
        with contextlib.suppress(Exception):  # a channel's close talks to a peer that may be gone
            self._socket.close()


@dataclass(frozen=True)
class Watched:
    """One hop under watch; `probe` asks its peer for any answer and may block."""

    name: str
    wire: Wire
    probe: Callable[[], None]


class Watch:
    """Looks after the hops of one link until it is stopped; the nearest hop is blamed first.

    A peer silent for `keepalive_s` is asked for a sign of life; when there is none `dead_after_s`
    after the last one, `on_death(hop, seconds)` is called and all wires are closed.
    """

    def __init__(
        self,
        hops: Sequence[Watched],
        *,
        keepalive_s: float,
        dead_after_s: float,
        on_death: Callable[[Watched, float], None],
    ) -> None:
        self._hops = hops
        self._keepalive_s = keepalive_s
        self._dead_after_s = dead_after_s
        self._on_death = on_death
        self._asked: dict[Wire, float] = {}
        self._probes: dict[Wire, threading.Thread] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ssh watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch; nobody is declared dead afterwards."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(min(1.0, self._keepalive_s / 4)):
            for hop in self._hops:
                if not self._lives(hop, time.monotonic()):
                    self._on_death(hop, hop.wire.silent_for(time.monotonic()))
                    for each in self._hops:
                        each.wire.close()
                    return

    def _lives(self, hop: Watched, now: float) -> bool:
        if hop.wire.silent_for(now) < self._keepalive_s:
            self._asked.pop(hop.wire, None)
            return True
        # A machine that slept has been silent too: only silence after a question counts.
        since = self._asked.setdefault(hop.wire, now)
        if now - since >= self._dead_after_s - self._keepalive_s:
            return False
        self._ask(hop)
        return True

    def _ask(self, hop: Watched) -> None:
        """Probe in a thread of its own: a probe that can't get out must not stop the clock."""
        running = self._probes.get(hop.wire)
        if running is None or not running.is_alive():
            self._probes[hop.wire] = threading.Thread(
                target=self._probe, args=(hop,), name="ssh probe", daemon=True
            )
            self._probes[hop.wire].start()

    def _probe(self, hop: Watched) -> None:
        # Whatever a probe runs into, the watch finds out by the silence that follows.
        with contextlib.suppress(Exception):
            hop.probe()
        self._stopped.wait(self._keepalive_s)  # one question at a time
