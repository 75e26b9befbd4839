"""Look at hosts for `status` and `why`: what is live, how it is, what differs from the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from macd.deploy import desired, state
from macd.deploy import drift as drifting
from macd.deploy.fleet import code_of, side_by_side, worst
from macd.deploy.state import HostState
from macd.errors import ContactLostError, MacdError
from macd.inventory import Host, Inventory
from macd.ssh.failures import RemoteFileNotFoundError
from macd.ssh.refusals import UnreachableError
from macd.ssh.session import open_session


def observe(host: Host, inventory: Inventory) -> HostState:
    """One host as it is now; changes nothing."""
    with open_session(host, inventory, modules=state.MODULES) as session:
        return state.observed(state.ask(session, host, inventory))


def observe_each(
    hosts: Sequence[Host], inventory: Inventory
) -> tuple[list[tuple[str, HostState]], dict[str, MacdError]]:
    """Each host by name, and of those that can't be reached why; changes nothing.

    Raises what `observe` does otherwise; where none can be reached, one error that names them all.
    """
    results = side_by_side(hosts, lambda host: observe(host, inventory))
    away = dict(results.failed)
    for error in away.values():
        if not isinstance(error, UnreachableError | ContactLostError):
            raise error
    if away and not results.done:
        raise _none(away)
    return list(results.done.items()), away


def _none(away: Mapping[str, MacdError]) -> MacdError:
    if len(away) == 1:
        return next(iter(away.values()))
    return MacdError(
        f"none of {', '.join(away)} can be reached",
        why="\n".join(f"{name}: {error.what}" for name, error in away.items()),
        live="as before: nothing was done on any host",
        hint="\n".join(dict.fromkeys(error.hint for error in away.values() if error.hint)),
        exit_code=worst(code_of(error) for error in away.values()),
    )


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
