"""Pin host keys hop by hop: show each one that isn't trusted yet, and go on through the trusted.

A key is fetched without logging in to its host. Whether to trust it is the caller's decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from macd.inventory import Host, Inventory
from macd.ssh.connection import HopConnection
from macd.ssh.hostkeys import HostKey, KnownHosts, Verdict, pin
from macd.ssh.refusals import Route, explain, host_key_refused, other_failure
from macd.ssh.sshconfig import Hop, resolve


@dataclass(frozen=True)
class Shown:
    """The key a hop shows now, what known_hosts says about it, and the keys pinned before."""

    hop: Hop
    key: HostKey
    verdict: Verdict
    pinned: tuple[HostKey, ...]
    accepted: bool = True


def trust(host: Host, inventory: Inventory, accept: Callable[[Shown], bool]) -> list[Shown]:
    """Ask `accept` about every key on the way to `host` that isn't known, and pin what it accepts.

    Returns what each hop showed, up to the host or to the first key that was not accepted (nothing
    can be said about what lies behind it). Raises RefusedError for a revoked key, UnreachableError
    where a hop can't be reached.
    """
    hops = resolve(host, inventory)
    shown: list[Shown] = []
    opened: list[HopConnection] = []
    try:
        for index, hop in enumerate(hops):
            route = Route(host.name, inventory.name, hops, index)
            gateway = opened[-1] if opened else None
            made = _look(route, inventory, gateway)
            if made.verdict is Verdict.REVOKED:
                raise host_key_refused(made.verdict, made.key, made.pinned, route)
            if made.verdict is not Verdict.KNOWN:
                if not accept(made):
                    return [*shown, Shown(hop, made.key, made.verdict, made.pinned, accepted=False)]
                pin(inventory.known_hosts, hop.known_as, made.key)
            shown.append(made)
            if index < len(hops) - 1:
                opened.append(_go_through(route, inventory, gateway))
    finally:
        for connection in reversed(opened):
            connection.abandon()
    return shown


def _look(route: Route, inventory: Inventory, gateway: HopConnection | None) -> Shown:
    known_hosts = KnownHosts.read(inventory.known_hosts)
    connection = HopConnection(route.hop, known_hosts, inventory.link, gateway)
    try:
        key = connection.fetch_host_key()
    except Exception as error:
        if other_failure(error):
            raise explain(error, route, connection) from error
        raise
    name = route.hop.known_as
    return Shown(route.hop, key, known_hosts.judge(name, key), known_hosts.pinned(name))


def _go_through(route: Route, inventory: Inventory, gateway: HopConnection | None) -> HopConnection:
    known_hosts = KnownHosts.read(inventory.known_hosts)
    connection = HopConnection(route.hop, known_hosts, inventory.link, gateway)
    try:
        connection.open()
    except Exception as error:
        if other_failure(error):
            raise explain(error, route, connection) from error
        raise
    return connection
