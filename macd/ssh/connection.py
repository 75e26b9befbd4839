"""Fabric's Connection, made strict: one hop, host key checked against ours, keys only, all bounded.

Fabric accepts any host key (AutoAddPolicy), reads configuration of its own and waits without end;
this subclass does none of it. What goes wrong is raised as it is; macd/ssh/refusals.py words it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

import paramiko
from fabric import Config, Connection
from paramiko.ssh_exception import AuthenticationException, BadAuthenticationType, SSHException

from macd.inventory import LinkSettings
from macd.ssh import credentials
from macd.ssh.dial import tcp
from macd.ssh.hostkeys import HostKey, KnownHosts, Verdict
from macd.ssh.sshconfig import Hop
from macd.ssh.transport import WINDOW, LinkTransport, quietly_closed
from macd.ssh.wire import Wire


class HostKeyError(SSHException):
    """The server showed a key that is not trusted."""

    def __init__(self, verdict: Verdict, shown: HostKey, pinned: tuple[HostKey, ...]) -> None:
        super().__init__(f"host key {verdict.value}")
        self.verdict = verdict
        self.shown = shown
        self.pinned = pinned


class LoginError(SSHException):
    """No key was accepted, or keys are not enough; `tried` and `unusable` are for people."""

    def __init__(self, why: str, tried: list[str], unusable: tuple[str, ...]) -> None:
        super().__init__(why)
        self.why = why
        self.tried = tried
        self.unusable = unusable


class HopConnection(Connection):  # type: ignore[misc]  # fabric has no types
    """A connection to one hop, through `gateway` where there is one.

    `dial` makes the TCP connection where there is none; it may have been begun before.
    """

    # Declared here because Fabric takes other attributes for configuration.
    hop: Hop
    known_hosts: KnownHosts
    limits: LinkSettings
    dial: Callable[[], socket.socket]
    wire: Wire | None = None
    attempt: LinkTransport | None = None

    def __init__(
        self,
        hop: Hop,
        known_hosts: KnownHosts,
        limits: LinkSettings,
        gateway: HopConnection | None = None,
        dial: Callable[[], socket.socket] | None = None,
    ) -> None:
        super().__init__(
            host=hop.hostname,
            user=hop.user,
            port=hop.port,
            config=Config(lazy=True, ssh_config=paramiko.SSHConfig()),
            gateway=gateway or False,
            forward_agent=False,
        )
        self._set(hop=hop, known_hosts=known_hosts, limits=limits)
        self._set(dial=dial or (lambda: tcp(hop, limits.connect_s)))
        self.client.set_missing_host_key_policy(_OnlyPinned(hop, known_hosts))
        # Otherwise Python prints paramiko's log, tracebacks included, where nobody configured one.
        logging.getLogger("paramiko").addHandler(logging.NullHandler())

    def open(self) -> None:
        """Connect, check the host key, log in. Raises OSError or SSHException, and cleans up."""
        if self.is_connected:
            return
        try:
            self.client.connect(
                hostname=self.hop.hostname,
                port=self.hop.port,
                username=self.hop.user,
                sock=self._dial(),
                timeout=self.limits.connect_s + self.limits.login_s,
                banner_timeout=self.limits.connect_s,
                auth_timeout=self.limits.login_s,
                channel_timeout=self.limits.login_s,
                transport_factory=self._transport,
                auth_strategy=_KeysOnly(self.hop),
            )
        except BaseException:
            self.abandon()
            raise
        self._set(transport=self.client.get_transport())

    def fetch_host_key(self) -> HostKey:
        """The key the server shows, without logging in; the connection ends. Raises like open."""
        try:
            transport = self._transport(self._dial())
            transport.banner_timeout = self.limits.connect_s
            transport.start_client(timeout=self.limits.connect_s + self.limits.login_s)
            return _host_key(transport.get_remote_server_key())
        finally:
            self.abandon()

    def open_gateway(self) -> paramiko.Channel:
        """A stream to this hop through the one before it."""
        channel: paramiko.Channel = self.gateway.transport.open_channel(
            kind="direct-tcpip",
            dest_addr=(self.hop.hostname, self.hop.port),
            src_addr=("127.0.0.1", 0),
            timeout=self.limits.connect_s,
        )
        return channel

    def abandon(self) -> None:
        """End everything of this hop at once, in whatever state it is; never raises."""
        if self.attempt is not None:
            quietly_closed(self.attempt)
        if self.wire is not None:
            self.wire.close()

    def _dial(self) -> Wire:
        made = Wire(self.open_gateway(), WINDOW) if self.gateway else Wire(self.dial())
        self._set(wire=made)
        return made

    def _transport(self, sock: Wire, **options: Any) -> LinkTransport:
        pinned = self.known_hosts.pinned(self.hop.known_as)
        made = LinkTransport(sock, pinned_types=[key.type for key in pinned], **options)
        made.handshake_timeout = self.limits.login_s
        self._set(attempt=made)
        return made


class _OnlyPinned(paramiko.MissingHostKeyPolicy):
    """Every key comes here, because the client itself is given no known keys."""

    def __init__(self, hop: Hop, known_hosts: KnownHosts) -> None:
        self._name = hop.known_as
        self._known_hosts = known_hosts

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        shown = _host_key(key)
        verdict = self._known_hosts.judge(self._name, shown)
        if verdict is not Verdict.KNOWN:
            raise HostKeyError(verdict, shown, self._known_hosts.pinned(self._name))


class _KeysOnly:
    """What paramiko calls an AuthStrategy, of which it uses this one method."""

    def __init__(self, hop: Hop) -> None:
        self._hop = hop

    def authenticate(self, transport: LinkTransport) -> None:
        held = credentials.collect(self._hop)
        tried: list[str] = []
        if not held.candidates:
            raise LoginError("there is no key to log in with", tried, held.unusable)
        for candidate in held.candidates:
            try:
                wanted = transport.auth_publickey(self._hop.user, candidate.key)
            except BadAuthenticationType as error:
                allowed = ", ".join(error.allowed_types)
                why = f"it takes no keys, only: {allowed}"
                raise LoginError(why, tried, held.unusable) from error
            except AuthenticationException as error:
                tried.append(candidate.label)
                if not transport.is_active() or "timeout" in str(error):
                    why = transport.disconnect_reason or "it ended the conversation"
                    raise LoginError(why, tried, held.unusable) from error
            except SSHException as error:  # the key itself: an agent that won't sign, an odd type
                tried.append(f"{candidate.label}: {error}")
            else:
                if wanted:
                    why = f"it wants more than a key: {', '.join(wanted)}"
                    raise LoginError(why, [*tried, candidate.label], held.unusable)
                return
        raise LoginError("none of the keys was accepted", tried, held.unusable)


def _host_key(key: paramiko.PKey) -> HostKey:
    return HostKey(key.get_name(), key.asbytes())
