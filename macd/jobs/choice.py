"""Which host trains; apart, so that looking at a run loads none of the market code."""

from __future__ import annotations

from macd.errors import UsageError
from macd.inventory import Host, Inventory


def train_host(inventory: Inventory, name: str = "") -> Host:
    """The host of that name, which must train; without a name the only one that does.

    Raises UsageError listing the hosts to choose from.
    """
    training = [host for host in inventory.hosts.values() if host.role == "train"]
    known = ", ".join(host.name for host in training) or "none"
    if name:
        host = inventory.host(name)
        if host.role == "train":
            return host
        raise UsageError(
            f"{name} is no training host, its role is {host.role}",
            why=f"hosts with role train in inventory {inventory.name}: {known}",
            hint="to train on this machine: python -m macd.app.train",
        )
    if len(training) == 1:
        return training[0]
    raise UsageError(
        "which host should train?",
        why=f"hosts with role train in inventory {inventory.name}: {known}",
        hint=f"invoke train --host {training[0].name if training else 'NAME'}",
    )
