"""The SSH connection to one hop: host key checked against ours, keys only, every step bounded.

Fabric accepts any host key (AutoAddPolicy), reads configuration of its own and waits without end;
HopConnection does none of it. paramiko waits for answers that it need not wait for and drops what
servers say; LinkTransport does neither. What it takes from below paramiko's public surface goes
through `_below`; the tests over real SSH servers would notice if a new version moved it. Errors are
raised as they are; macd/ssh/refusals.py words them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paramiko
from fabric import Config, Connection
from paramiko import Message
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import (
    cMSG_CHANNEL_REQUEST,
    cMSG_GLOBAL_REQUEST,
    cMSG_SERVICE_REQUEST,
    cMSG_USERAUTH_REQUEST,
)
from paramiko.ssh_exception import (
    AuthenticationException,
    BadAuthenticationType,
    IncompatiblePeer,
    SSHException,
)
from paramiko.transport import ServiceRequestingTransport

from macd.inventory import LinkSettings
from macd.ssh import credentials
from macd.ssh.hostkeys import HostKey, KnownHosts, Verdict
from macd.ssh.sshconfig import Hop
from macd.ssh.wire import Socket, Wire, tcp

# A window of 2 MiB, paramiko's own, holds a link of 200 ms to 10 MB/s.
WINDOW = 16 << 20
# No CBC, MD5 or SHA-1. CTR before GCM because it is the faster one in paramiko.
_CIPHERS = ("aes128-ctr", "aes256-ctr", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
_KEY_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
_NO_ALGORITHMS = ("ext-info-", "kex-strict-")  # in the list of key exchanges, but signals


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

    `dial` makes the TCP connection where there is none; it may have been started before.
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


@dataclass(frozen=True)
class Mismatch:
    """Algorithms of one kind of which the server and we share none; `setting` is sshd_config's."""

    kind: str
    setting: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]


class SilentPeerError(SSHException):
    """The peer did not finish the key exchange in time."""


class LinkTransport(ServiceRequestingTransport):
    """One SSH connection as a client."""

    def __init__(self, sock: Socket, *, pinned_types: Iterable[str], **options: Any) -> None:
        super().__init__(_below(sock), default_window_size=WINDOW, **options)
        self.disconnect_reason = ""
        self.open_failure = ""
        self.mismatches: tuple[Mismatch, ...] = ()
        security = self.get_security_options()
        security.ciphers, security.digests = _CIPHERS, _MACS
        pinned = [name for t in pinned_types for name in _KEY_ALGORITHMS.get(t, (t,))]
        preferred = [name for name in pinned if name in security.key_types]
        # As OpenSSH does: ask first for the kinds of key that are pinned, so a server with several
        # shows the one that can be checked.
        security.key_types = tuple(dict.fromkeys([*preferred, *security.key_types]))

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """Host key algorithms: plain keys only, because certificates can't be pinned."""
        return tuple(self.get_security_options().key_types)

    def start_client(
        self, event: threading.Event | None = None, timeout: float | None = None
    ) -> None:
        """Exchange keys. Unlike paramiko's, it doesn't return as if it had succeeded on timeout."""
        super().start_client(event, timeout)
        if event is None and not self.initial_kex_done:
            raise SilentPeerError("no key exchange in time")

    def ensure_session(self) -> None:
        """Ask for the authentication service and don't wait: the first key follows at once.

        RFC 4252 has the server process requests in order, so waiting (in steps of 0.1 s, in
        paramiko) would be a round trip for nothing.
        """
        if not self.is_active() or not self.initial_kex_done:
            raise SSHException("No existing session")
        if self.auth_handler is None:
            self.auth_handler = _AuthHandler(self)
            request = Message()
            request.add_byte(cMSG_SERVICE_REQUEST)
            request.add_string("ssh-userauth")
            _below(self)._send_message(request)

    def probe(self) -> None:
        """Ask the peer for any answer (as OpenSSH's ServerAliveInterval does); doesn't wait for it.

        paramiko's own keepalive wants no answer, so it can't tell a dead link from a quiet one.
        """
        if not self.clear_to_send.is_set():
            return  # keys are being exchanged again, which is an exchange of its own
        request = Message()
        request.add_byte(cMSG_GLOBAL_REQUEST)
        request.add_string("keepalive@openssh.com")
        request.add_boolean(True)
        _below(self)._send_user_message(request)

    def _parse_kex_init(self, message: Message) -> None:
        try:
            _below(super())._parse_kex_init(message)
        except IncompatiblePeer:  # says which kind is wrong, but neither of the two lists
            message.rewind()
            offered = _below(self)._really_parse_kex_init(message)
            self.mismatches = tuple(self._mismatches(offered))
            raise

    def _mismatches(self, offered: Mapping[str, Sequence[str]]) -> Iterable[Mismatch]:
        security = self.get_security_options()
        for kind, setting, keys, ours in (
            ("key exchange", "KexAlgorithms", ["kex"], security.kex),
            ("host key type", "HostKeyAlgorithms", ["server_key"], security.key_types),
            ("cipher", "Ciphers", ["client_encrypt", "server_encrypt"], security.ciphers),
            ("MAC", "MACs", ["client_mac", "server_mac"], security.digests),
        ):
            for key in keys:
                named = offered[f"{key}_algo_list"]
                theirs = tuple(name for name in named if not name.startswith(_NO_ALGORITHMS))
                if not set(theirs) & set(ours):
                    yield Mismatch(kind, setting, theirs, tuple(ours))
                    break

    def _parse_disconnect(self, message: Message) -> None:
        message.get_int()
        self.disconnect_reason = message.get_text()
        message.rewind()
        _below(super())._parse_disconnect(message)

    def _parse_channel_open_failure(self, message: Message) -> None:
        # The server's own words ("Connection refused") would be lost otherwise.
        message.get_int(), message.get_int()
        self.open_failure = message.get_text()
        message.rewind()
        _below(super())._parse_channel_open_failure(message)


class _AuthHandler(AuthOnlyHandler):
    def send_auth_request(
        self,
        username: str,
        method: str,
        finish_message: Callable[[Message], None] | None = None,
    ) -> Any:
        """As in paramiko, but ready for the answer before the request leaves.

        Theirs makes the event after sending; an answer in between is waited for until the timeout.
        """
        self.auth_method, self.username = method, username
        self.auth_event = threading.Event()
        request = Message()
        request.add_byte(cMSG_USERAUTH_REQUEST)
        for text in (username, "ssh-connection", method):
            request.add_string(text)
        if finish_message is not None:
            finish_message(request)
        with self.transport.lock:
            _below(self.transport)._send_message(request)
        return self.wait_for_response(self.auth_event)


def _below(thing: object) -> Any:
    return thing


def start_command(channel: paramiko.Channel, command: str, *, terminal: bool = False) -> None:
    """Ask for `command` to be run on an open channel, and don't wait for the yes.

    What is sent next follows at once; a no closes the channel, see `command_refused`.

    terminal: in a terminal; there "" asks for the login shell itself.
    """
    if terminal:
        _ask_for_terminal(channel)
    request = Message()
    request.add_byte(cMSG_CHANNEL_REQUEST)
    request.add_int(channel.remote_chanid)
    request.add_string("exec" if command else "shell")
    request.add_boolean(True)
    if command:
        request.add_string(command)
    _below(channel)._event_pending()
    _below(channel.transport)._send_user_message(request)


def _ask_for_terminal(channel: paramiko.Channel) -> None:
    """Whether there is one, the command itself finds out."""
    request = Message()
    request.add_byte(cMSG_CHANNEL_REQUEST)
    request.add_int(channel.remote_chanid)
    request.add_string("pty-req")
    request.add_boolean(False)
    request.add_string("dumb")
    for size in (80, 24, 0, 0):
        request.add_int(size)
    request.add_string("")
    _below(channel.transport)._send_user_message(request)


def command_refused(channel: paramiko.Channel) -> bool:
    """True once the server has said no to start_command."""
    return bool(channel.event.is_set() and not channel.event_ready and not channel.eof_received)


def ended_by_peer(channel: paramiko.Channel) -> bool:
    """True where the peer ended the channel, rather than the link under it."""
    transport = channel.get_transport()
    status = channel.status_event.is_set() and channel.exit_status != -1
    return bool(channel.eof_received or status or (transport is not None and transport.is_active()))


def quietly_closed(transport: LinkTransport) -> None:
    """Close, whatever state a failed connection attempt left it in."""
    with contextlib.suppress(Exception):
        # Else the timer of an unfinished handshake keeps the process from ending.
        transport.packetizer.complete_handshake()
        transport.close()
