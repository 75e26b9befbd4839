"""Look at hosts for `status` and `why`: what is live, how it is, what differs from the code."""

from __future__ import annotations

from collections.abc import Sequence

from macd.deploy import desired, state
from macd.deploy import drift as drifting
from macd.deploy.state import HostState
from macd.errors import ContactLostError, MacdError
from macd.inventory import Host, Inventory
from macd.remote.failures import RemoteFileNotFoundError
from macd.remote.refusals import UnreachableError
from macd.remote.session import open_session


def observe(host: Host, inventory: Inventory) -> HostState:
    """One host as it is now; changes nothing."""
    with open_session(host, inventory, modules=state.MODULES) as session:
        return state.observed(state.ask(session, host, inventory))


def observe_each(
    hosts: Sequence[Host], inventory: Inventory
) -> tuple[list[tuple[str, HostState]], dict[str, MacdError]]:
    """Each host by name, and of those that can't be reached why; changes nothing.

    Raises what `observe` does where none can be reached.
    """
    looked: list[tuple[str, HostState]] = []
    away: dict[str, MacdError] = {}
    for host in hosts:
        try:
            looked.append((host.name, observe(host, inventory)))
        except (UnreachableError, ContactLostError) as error:
            away[host.name] = error
    if away and not looked:
        raise next(iter(away.values()))
    return looked, away


def drift(host: Host, inventory: Inventory, found: HostState) -> list[str]:
    """What stands on the host that neither the inventory nor a deploy has put there."""
    return drifting.drift(found, desired.render(host, inventory, found))


def fetch_journal(host: Host, inventory: Inventory) -> bytes:
    """The host's own journal as it stands; empty where nothing was ever recorded."""
    with open_session(host, inventory) as session:
        try:
            return session.read(f"{host.app_dir}/state/journal.jsonl", limit=256 << 20)
        except RemoteFileNotFoundError:
            return b""
