"""Say in words why a hop was not reached: which one, what happened there, what to do about it."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Literal

from paramiko.ssh_exception import ChannelException, IncompatiblePeer, SSHException

from macd.errors import MacdError, RefusedError
from macd.ssh.connection import (
    HopConnection,
    HostKeyError,
    LinkTransport,
    LoginError,
    Mismatch,
    SilentPeerError,
)
from macd.ssh.hostkeys import HostKey, Verdict
from macd.ssh.sshconfig import Hop

Reason = Literal[
    "name",
    "refused",
    "timeout",
    "route",
    "not-ssh",
    "forwarding",
    "behind-jump",
    "algorithms",
    "login",
    "lost",
]
_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
_PROHIBITED, _CONNECT_FAILED = 1, 2  # RFC 4254, section 5.1
_LIVE = "nothing was done there"
_SHOWN = 80  # characters of a server's own words
_NAMED = 12


class UnreachableError(MacdError):
    """A host can't be reached or logged in to; `hop` is the one that failed, `reason` how."""

    def __init__(self, what: str, *, hop: str, reason: Reason, why: str, hint: str) -> None:
        super().__init__(what, why=why, hint=hint, live=_LIVE)
        self.hop = hop
        self.reason = reason


@dataclass(frozen=True)
class Route:
    """Where on the way something happened: hops[index] of the route to the inventory's `host`."""

    host: str
    inventory: str
    hops: tuple[Hop, ...]
    index: int

    @property
    def hop(self) -> Hop:
        return self.hops[self.index]

    @property
    def who(self) -> str:
        """The hop, for the beginning of a sentence."""
        last = self.index == len(self.hops) - 1
        return f"{'' if last else 'jump host '}{self.hop.name} ({self.hop.address})"

    @property
    def jump(self) -> str:
        """The hop before."""
        before = self.hops[self.index - 1]
        return f"jump host {before.name} ({before.address})"

    @property
    def position(self) -> str:
        """Which hop of how many, where there are several."""
        if len(self.hops) == 1:
            return ""
        route = " -> ".join(hop.name for hop in self.hops)
        return f"\nhop {self.index + 1} of {len(self.hops)}: {route}"

    def option(self) -> str:
        """--inventory, where the command needs it."""
        return "" if self.inventory == "lab" else f" --inventory {self.inventory}"


def explain(error: Exception, route: Route, connection: HopConnection) -> MacdError:
    """The error in words; anything unexpected keeps its own words."""
    if isinstance(error, MacdError):
        return error
    if isinstance(error, HostKeyError):
        return host_key_refused(error.verdict, error.shown, error.pinned, route)
    if isinstance(error, LoginError):
        return _login(error, route)
    if connection.attempt is None:
        return _not_connected(error, route, connection)
    return _not_spoken(error, route, connection, connection.attempt)


def _not_connected(error: Exception, route: Route, connection: HopConnection) -> MacdError:
    if isinstance(error, ChannelException):
        return _behind_jump(error, route, connection)
    if route.index == 0 and isinstance(error, OSError):
        return _tcp(error, route, connection)
    return _through_jump(error, route, connection)


def _not_spoken(
    error: Exception, route: Route, connection: HopConnection, attempt: LinkTransport
) -> MacdError:
    if not attempt.remote_version:
        return _no_greeting(route, connection)
    said = attempt.disconnect_reason or str(error) or type(error).__name__
    if isinstance(error, IncompatiblePeer):
        return _no_algorithm(route, attempt, said)
    silent = isinstance(error, EOFError) and connection.wire and not connection.wire.ended
    if silent or isinstance(error, SilentPeerError):
        what = f"{route.who} fell silent while keys were exchanged"
        return _unreachable(what, route, "timeout", "the link stalls, or the host is overloaded")
    return _unreachable(f"{route.who} ended the connection while we logged in", route, "lost", said)


def _no_algorithm(route: Route, attempt: LinkTransport, said: str) -> MacdError:
    wrong = attempt.mismatches
    kinds = " and no ".join(each.kind for each in wrong) or "algorithm"
    why = "\n".join(_both_lists(each) for each in wrong) or said
    server = _harmless(attempt.remote_version)
    settings = " and to ".join(each.setting for each in wrong)
    if wrong and "OpenSSH" in server:
        hint = f"add one that we speak to {settings} in sshd_config there, then restart sshd"
    else:
        hint = f"let its SSH server ({server}) speak one that we speak, or replace that server"
    if any(each.setting == "HostKeyAlgorithms" for each in wrong):
        hint += "; where it has no such host key, ssh-keygen -A makes one"
    return _unreachable(
        f"{route.who} speaks SSH, but no {kinds} that we do", route, "algorithms", why, hint
    )


def _both_lists(wrong: Mismatch) -> str:
    theirs = ", ".join(map(_harmless, wrong.theirs[:_NAMED]))
    more = ", ..." if len(wrong.theirs) > _NAMED else ""
    return f"{wrong.kind}: it offers {theirs or 'none'}{more}; we speak {', '.join(wrong.ours)}"


def _harmless(text: str) -> str:
    """The beginning of a server's word, harmless to a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN]).strip()


def _unreachable(
    what: str, route: Route, reason: Reason, why: str, hint: str = ""
) -> UnreachableError:
    hint = hint or f"see whether ssh gets further: ssh -v {route.hop.alias}"
    why += route.position
    return UnreachableError(what, hop=route.hop.name, reason=reason, why=why.strip(), hint=hint)


def _tcp(error: OSError, route: Route, connection: HopConnection) -> MacdError:
    hop = route.hop
    if isinstance(error, socket.gaierror):
        return _unreachable(
            f"the name of {route.who} is not known",
            route,
            "name",
            f"{hop.hostname}: {error.strerror}",
            f"correct HostName of {hop.alias} in the ssh configuration, or ssh: in the inventory;"
            f" invoke host.list{route.option()} shows what is used",
        )
    if isinstance(error, ConnectionRefusedError):
        return _unreachable(
            f"{route.who} refused the connection",
            route,
            "refused",
            f"nothing listens on port {hop.port} there: a wrong port, or sshd is not running",
            "invoke lab.up starts the lab's hosts"
            if route.inventory == "lab"
            else f"correct port: of {hop.name} in the inventory, or Port in the ssh configuration;"
            f" invoke host.list{route.option()} shows what is used",
        )
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return _unreachable(
            f"{route.who} did not answer within {connection.limits.connect_s:g} s",
            route,
            "timeout",
            "the machine is down, a firewall drops the packets, or the address is wrong",
        )
    if error.errno in _NO_ROUTE:
        why = f"{error.strerror}: a network or VPN that is not up, or a wrong address"
        return _unreachable(f"there is no route to {route.who}", route, "route", why)
    return _unreachable(f"{route.who} can't be connected to", route, "lost", str(error))


def _behind_jump(error: ChannelException, route: Route, connection: HopConnection) -> MacdError:
    said = _said_by_gateway(connection) or error.text
    if error.code == _PROHIBITED:
        return _unreachable(
            f"{route.jump} does not let us go on to {route.who}",
            route,
            "forwarding",
            f"it says: {said}",
            "allow TCP forwarding there (AllowTcpForwarding, PermitOpen in sshd_config)",
        )
    if error.code == _CONNECT_FAILED:
        return _unreachable(
            f"{route.jump} can't reach {route.who}",
            route,
            "behind-jump",
            f"it says: {said}",
            f"check HostName and Port of {route.hop.alias} as seen from there, and that it is up",
        )
    return _unreachable(f"{route.jump} opens no way to {route.who}", route, "forwarding", said)


def _through_jump(error: Exception, route: Route, connection: HopConnection) -> MacdError:
    if "Timeout" in str(error):
        seconds = f"{connection.limits.connect_s:g} s"
        what = f"{route.jump} got no answer from {route.who} within {seconds}"
        why = "the machine is down, or something between the two drops the packets"
        return _unreachable(what, route, "behind-jump", why)
    what = f"contact with {route.jump} was lost on the way to {route.who}"
    return _unreachable(what, route, "lost", str(error) or type(error).__name__)


def _said_by_gateway(connection: HopConnection) -> str:
    gateway = connection.gateway
    return str(gateway.attempt.open_failure) if gateway and gateway.attempt else ""


def _no_greeting(route: Route, connection: HopConnection) -> MacdError:
    wire = connection.wire
    head = wire.head.decode("ascii", "replace") if wire else ""
    said = _harmless(head)
    hint = f"check the port of {route.hop.name} ({route.hop.port})"
    if said:
        why = f"it says: {said}"
        return _unreachable(
            f"what answers at {route.who} is no SSH server", route, "not-ssh", why, hint
        )
    if wire and wire.ended:
        why = (
            "not an SSH port, or sshd turns us away (MaxStartups, too many attempts, a block list)"
        )
        what = f"{route.who} closed the connection without a greeting"
        return _unreachable(what, route, "not-ssh", why, hint)
    what = f"{route.who} accepts connections but sends no SSH greeting"
    why = f"waited {connection.limits.connect_s:g} s: not an SSH port, or an overloaded host"
    return _unreachable(what, route, "not-ssh", why, hint)


def _login(error: LoginError, route: Route) -> MacdError:
    lines = [error.why, *(f"tried {label}" for label in error.tried)]
    lines += [f"not tried: {text}" for text in error.unusable]
    hop = route.hop
    hint = f"put the public key into ~{hop.user}/.ssh/authorized_keys there: "
    hint += f"ssh-copy-id {'-p ' + str(hop.port) + ' ' if hop.port != 22 else ''}{hop.alias}"
    hint += f"\nthen: invoke facts --host {route.host}{route.option()}"
    if not error.tried:
        hint = f"set identity: of {hop.name} in the inventory, or IdentityFile, or use ssh-add"
        hint += f"; then: invoke facts --host {route.host}{route.option()}"
    if error.why.startswith(("it takes no keys", "it wants more")):
        hint += (
            f"\nor set transport: openssh of {route.host} in the inventory: ssh asks for passwords "
            "and codes, and logs in by Kerberos"
        )
    what = f"{route.who} does not let {hop.user} in"
    return _unreachable(what, route, "login", "\n".join(lines), hint)


def host_key_refused(
    verdict: Verdict, shown: HostKey, pinned: tuple[HostKey, ...], route: Route
) -> RefusedError:
    """A key that known_hosts does not vouch for, and the command that pins it."""
    command = f"invoke host.trust {route.host}{route.option()}"
    if verdict is Verdict.UNKNOWN:
        return RefusedError(
            f"the host key of {route.who} is not known",
            why=f"it shows {shown}{route.position}",
            live=_LIVE,
            hint=f"compare the fingerprint with one from a safe source, then pin it: {command}",
        )
    if verdict is Verdict.REVOKED:
        return RefusedError(
            f"the host key of {route.who} is REVOKED",
            why=f"it shows {shown}, which known_hosts marks @revoked: somebody may be listening"
            + route.position,
            live=_LIVE,
            hint="find out who holds that key; it can't be pinned while it is marked",
        )
    expected = "\n".join(f"pinned {key}" for key in pinned)
    return RefusedError(
        f"THE HOST KEY OF {route.who} HAS CHANGED: somebody may be listening (an attack)",
        why=f"shown  {shown}\n{expected}{route.position}",
        live=_LIVE,
        hint="ask whoever runs it whether it was reinstalled and what its fingerprint is, then:"
        f" {command} --fingerprint SHA256:...",
    )


def other_failure(error: Exception) -> bool:
    """True for what `explain` words: anything a network or an SSH server can do."""
    return isinstance(error, OSError | SSHException | EOFError | MacdError)
