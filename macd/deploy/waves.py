"""Which hosts a command is about, and in which waves. Pure, and loaded before anything else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import ceil

from macd.errors import UsageError
from macd.inventory import Host, Inventory

_WAVE = re.compile(r"([1-9][0-9]*)(%?)")


def hosts_of(inventory: Inventory, env: str, name: str) -> Iterator[Host]:
    """The serving hosts of `env`, or the one of them that is named. Raises UsageError."""
    serving = inventory.env_hosts(env)
    if not name:
        yield from serving
        return
    for host in serving:
        if host.name == name:
            yield host
            return
    raise UsageError(
        f"{name} does not serve {env}",
        why=f"these do: {', '.join(host.name for host in serving)}",
        hint="give --host one of them; invoke host.list shows every host and its env",
    )


def waves(hosts: Sequence[Host], text: str) -> list[list[Host]]:
    """Split hosts by "1,50%,100%": each word says how many are done after that wave.

    Raises:
        UsageError: not such a list, or it goes backwards.
    """
    made: list[list[Host]] = []
    done = 0
    for word in (text or "100%").split(","):
        match = _WAVE.fullmatch(word.strip())
        count = int(match[1]) if match else 0
        if match is None or (match[2] and count > 100):
            raise UsageError(f"--wave {text}: not such a list", hint="--wave 1,50%,100%")
        until = min(len(hosts), ceil(len(hosts) * count / 100) if match[2] else count)
        if until > done:
            made.append(list(hosts[done:until]))
            done = until
    if done < len(hosts):
        made.append(list(hosts[done:]))
    return made
