"""Reach a host through its jump chain and run commands there over channels that never hang.

`connect` opens every link of this project. `trust` pins the host keys that a link needs.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import paramiko
from paramiko.ssh_exception import ChannelException, SSHException

from macd.errors import ContactLostError, MacdError
from macd.inventory import Host, Inventory
from macd.ssh import openssh
from macd.ssh.connection import (
    WINDOW,
    HopConnection,
    LinkTransport,
    command_refused,
    ended_by_peer,
    start_command,
)
from macd.ssh.failures import terminal_hint
from macd.ssh.hostkeys import HostKey, KnownHosts, Verdict, pin
from macd.ssh.refusals import Route, explain, host_key_refused, other_failure
from macd.ssh.sshconfig import Hop, resolve
from macd.ssh.wire import Watch, Watched

_LOOK_UP_S = 0.5  # how often a waiting call looks whether the link has died and at stderr
_STDERR_KEPT = 64 << 10
_CHUNK = 1 << 15


def connect(
    host: Host,
    inventory: Inventory,
    *,
    hops: tuple[Hop, ...] = (),
    first: Callable[[], socket.socket] | None = None,
) -> Link | openssh.Link:
    """A link to `host` through every hop, by its transport; use it as a context manager.

    Args:
        hops: the route, where the caller has resolved it.
        first: gives the TCP connection to the first hop, where the caller has started it.

    Raises UnreachableError or RefusedError naming the hop that failed, UsageError for a
    configuration that leads nowhere. Each step is bounded by `inventory.link`.
    """
    if host.transport == "openssh":
        return openssh.connect(host, inventory)
    hops = hops or resolve(host, inventory)
    known_hosts = KnownHosts.read(inventory.known_hosts)
    opened: list[HopConnection] = []
    try:
        for index, hop in enumerate(hops):
            gateway = opened[-1] if opened else None
            dial = None if gateway else first
            connection = HopConnection(hop, known_hosts, inventory.link, gateway, dial)
            with _explained(Route(host.name, inventory.name, hops, index), connection):
                connection.open()
            opened.append(connection)
    except BaseException:
        for connection in reversed(opened):
            connection.abandon()
        raise
    return Link(host.name, tuple(opened))


@dataclass(frozen=True)
class Shown:
    """The key a hop shows now, what known_hosts says about it, and the keys pinned before."""

    hop: Hop
    key: HostKey
    verdict: Verdict
    pinned: tuple[HostKey, ...]
    accepted: bool = True


def trust(host: Host, inventory: Inventory, accept: Callable[[Shown], bool]) -> list[Shown]:
    """Ask `accept` about every key on the route to `host` that isn't known; pin what it accepts.

    A key is fetched without logging in to its host. Returns what each hop showed, up to the host
    or to the first key that was not accepted (nothing can be said about what lies behind it).
    Raises RefusedError for a revoked key, UnreachableError where a hop can't be reached.
    """
    if host.transport == "openssh":
        return _trust_by_openssh(host, inventory, accept)
    hops = resolve(host, inventory)
    shown: list[Shown] = []
    opened: list[HopConnection] = []
    try:
        for index, hop in enumerate(hops):
            route = Route(host.name, inventory.name, hops, index)
            gateway = opened[-1] if opened else None
            current = _show(route, inventory, gateway)
            if current.verdict is Verdict.REVOKED:
                raise host_key_refused(current.verdict, current.key, current.pinned, route)
            if current.verdict is not Verdict.KNOWN:
                if not accept(current):
                    return [*shown, replace(current, accepted=False)]
                pin(inventory.known_hosts, hop.known_as, current.key)
            shown.append(current)
            if index < len(hops) - 1:
                known_hosts = KnownHosts.read(inventory.known_hosts)  # with the key just pinned
                connection = HopConnection(hop, known_hosts, inventory.link, gateway)
                with _explained(route, connection):
                    connection.open()
                opened.append(connection)
    finally:
        for connection in reversed(opened):
            connection.abandon()
    return shown


def _trust_by_openssh(
    host: Host, inventory: Inventory, accept: Callable[[Shown], bool]
) -> list[Shown]:
    """As `trust`, by ssh's own way; only hops that the inventory names can be asked one by one."""
    shown: list[Shown] = []
    for owner in [*openssh.jumps_of(host, inventory), host]:
        user, name, port, known_as = openssh.endpoint(owner, inventory)
        hop = Hop(owner.name, owner.ssh, name, port, user, known_as)
        for key in openssh.fetch_host_keys(owner, inventory):
            known_hosts = KnownHosts.read(inventory.known_hosts)
            pinned, verdict = known_hosts.pinned(known_as), known_hosts.judge(known_as, key)
            current = Shown(hop, key, verdict, pinned)
            if verdict is Verdict.REVOKED:
                raise host_key_refused(
                    verdict, key, pinned, Route(owner.name, inventory.name, (hop,), 0)
                )
            if verdict is not Verdict.KNOWN:
                if not accept(current):
                    return [*shown, replace(current, accepted=False)]
                pin(inventory.known_hosts, known_as, key)
            shown.append(current)
    return shown


def _show(route: Route, inventory: Inventory, gateway: HopConnection | None) -> Shown:
    known_hosts = KnownHosts.read(inventory.known_hosts)
    connection = HopConnection(route.hop, known_hosts, inventory.link, gateway)
    with _explained(route, connection):
        key = connection.fetch_host_key()
    name = route.hop.known_as
    return Shown(route.hop, key, known_hosts.judge(name, key), known_hosts.pinned(name))


@contextlib.contextmanager
def _explained(route: Route, connection: HopConnection) -> Iterator[None]:
    """Raise what a network or an SSH server does to `connection` as a MacdError in words."""
    try:
        yield
    except Exception as error:
        if other_failure(error):
            raise explain(error, route, connection) from error
        raise


class Link:
    """A live connection to a host. `hops` is its route, the host itself last."""

    def __init__(self, name: str, connections: tuple[HopConnection, ...]) -> None:
        self.name = name
        self.hops: tuple[Hop, ...] = tuple(each.hop for each in connections)
        self._connections = connections
        self._why_lost = ""
        self._closed = False
        limits = connections[-1].limits
        self._watch = Watch(
            [Watched(c.hop.name, c.wire, c.transport.probe) for c in connections if c.wire],
            keepalive_s=limits.keepalive_s,
            dead_after_s=limits.dead_after_s,
            on_death=self._died,
        )

    @property
    def user(self) -> str:
        """The account that is logged in to."""
        return self.hops[-1].user

    @property
    def connection(self) -> HopConnection:
        """The Fabric connection to the host itself."""
        return self._connections[-1]

    def open_channel(self, command: str, *, terminal: bool = False) -> SshChannel:
        """Start `command` (by the login shell) and return its streams: one round trip.

        terminal: in a terminal, where "" is the login shell itself.
        Whether the server agrees to run it is not waited for; a no arrives with the first recv.
        """
        transport: LinkTransport = self.connection.transport
        try:
            channel = transport.open_session(timeout=self.connection.limits.login_s)
            start_command(channel, command, terminal=terminal)
        except ChannelException as error:
            raise MacdError(
                f"{self.name} opens no session",
                why=f"it says: {transport.open_failure or error.text}",
                hint="it may have reached MaxSessions; try again",
            ) from error
        except (SSHException, OSError, EOFError) as error:
            raise self.lost(error) from error
        return SshChannel(self, channel)

    def lost(self, cause: BaseException | None = None) -> ContactLostError:
        """The error for a link that is gone, with the reason as far as the link shows it."""
        reason = self.connection.transport.disconnect_reason
        why = self._why_lost or (f"it says: {reason}" if reason else str(cause or ""))
        return ContactLostError(
            f"contact with {self.name} was lost",
            why=why or "the connection ended",
            live="what the host was doing may or may not have been completed",
            hint="invoke status shows how it ended; the command can be repeated",
        )

    def close(self) -> None:
        """End it, whatever state it is in. Never raises, may be repeated."""
        if self._closed:
            return
        self._closed = True
        self._watch.stop()
        for connection in reversed(self._connections):
            connection.abandon()

    def _died(self, hop: Watched, seconds: float) -> None:
        where = "" if hop.name == self.hops[-1].name else f" (on the way to {self.name})"
        self._why_lost = f"{hop.name}{where} gave no sign of life for {seconds:.0f} s"

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SshChannel:
    """A Channel (see macd/ssh/session.py) to a command on the host."""

    def __init__(self, link: Link, channel: paramiko.Channel) -> None:
        channel.settimeout(_LOOK_UP_S)
        self._link = link
        self._channel = channel
        self._ahead = memoryview(b"")
        self._errors = bytearray()
        self._errors_lock = threading.Lock()

    def send(self, data: bytes) -> None:
        """Hand over all of `data`. Raises ContactLostError."""
        view = memoryview(data)
        while view:
            try:
                sent = self._channel.send(bytes(view[:_CHUNK]))
            except TimeoutError:
                self._collect_stderr()  # what isn't collected fills the window the other way
                continue
            except (OSError, SSHException, EOFError) as error:
                raise self._gone(error) from error
            if not sent:
                raise self._gone(None)
            view = view[sent:]

    def recv(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes of stdout; b"" once it is closed. Raises ContactLostError."""
        while True:
            if self._ahead:
                taken = bytes(self._ahead[:limit])
                self._ahead = self._ahead[limit:]
                return taken
            try:
                self._collect_stderr()
                # All there is: paramiko moves up what it keeps with every read.
                self._ahead = memoryview(self._channel.recv(WINDOW))
            except TimeoutError:
                continue
            except (OSError, SSHException, EOFError) as error:
                raise self._link.lost(error) from error
            if self._ahead:
                continue
            self._collect_stderr()
            if self._connected() and command_refused(self._channel):
                raise MacdError(
                    f"{self._link.name} refuses to run commands",
                    why="the SSH server denied the exec request",
                    hint=f"{terminal_hint(self._link.name)}; see what this says: "
                    f"ssh {self._link.hops[-1].alias} true",
                )
            if not ended_by_peer(self._channel):
                raise self._link.lost()
            return b""

    def stderr(self) -> bytes:
        """The last 64 KiB of what has arrived on stderr; never waits, takes nothing away."""
        self._collect_stderr()
        with self._errors_lock:
            return bytes(self._errors)

    def exit_status(self) -> int | None:
        """The command's status, None while it runs or when it ended without one."""
        if not self._channel.status_event.is_set() or self._channel.exit_status < 0:
            return None
        return self._channel.exit_status

    def shutdown_write(self) -> None:
        """Close the command's stdin. Never raises: a link that is gone has closed it too."""
        try:
            self._channel.shutdown_write()
        except (OSError, SSHException, EOFError):
            return

    def close(self) -> None:
        """End the channel; sshd then hangs up on the command. Never raises."""
        try:
            self._channel.close()
        except (OSError, SSHException, EOFError):
            return

    def _gone(self, error: BaseException | None) -> ContactLostError:
        if self._connected():
            return self._link.lost(EOFError(f"{self._link.name} closed the channel"))
        return self._link.lost(error)

    def _connected(self) -> bool:
        transport = self._channel.get_transport()
        return transport is not None and transport.is_active()

    def _collect_stderr(self) -> None:
        with self._errors_lock:
            while self._channel.recv_stderr_ready():
                self._errors += self._channel.recv_stderr(_CHUNK)
                del self._errors[:-_STDERR_KEPT]
