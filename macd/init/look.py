"""Look at what there is: the application's directory here, and the host that runs it today."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from macd.errors import MacdError, UsageError
from macd.host import survey
from macd.init.items import Seen
from macd.inventory import Host, Inventory
from macd.ssh.failures import UnfitPythonError
from macd.ssh.hostkeys import KnownHosts
from macd.ssh.session import open_session
from macd.ssh.sshconfig import resolve

_OTHERS = ("python3.13", "python3.12", "python3.11")


def at_source(source: Path) -> Seen:
    """What lies in the application's directory. Raises UsageError where there is none."""
    if not source.is_dir():
        raise UsageError(
            f"there is no directory {source}",
            why="--source names the directory of your application",
            hint="invoke init --source ../your-repository; without it: the built-in application",
        )
    return Seen(survey.directory(str(source)), _tracked(source))


def at_host(seen: Seen, host: Host, inventory: Inventory, where: Callable[[Seen], str]) -> Seen:
    """The same, with what the host has. Nothing is changed there.

    where: says from the host's units in which directory the application lies, "" for unknown.

    Python 3.11 or newer is looked for by the usual names. Raises MacdError where the host can't be
    reached or has none.
    """
    try:
        return _asked(seen, host, inventory, where)
    except UnfitPythonError:
        for python in _OTHERS:
            with contextlib.suppress(UnfitPythonError):
                other = host.model_copy(update={"python": python})
                return replace(_asked(seen, other, inventory, where), python=python)
        raise


def _asked(seen: Seen, host: Host, inventory: Inventory, where: Callable[[Seen], str]) -> Seen:
    with open_session(host, inventory) as session:
        seen = replace(seen, host=session.call("survey"))
        if directory := where(seen):
            seen = replace(seen, host=session.call("survey", app=directory))
    return seen


def unpinned(inventory: Inventory) -> list[str]:
    """The hosts that train or serve on whose way a key is not pinned; who can't be found is one."""
    return [
        host.name
        for host in inventory.hosts.values()
        if host.role != "jump" and not _is_pinned(host, inventory)
    ]


def _is_pinned(host: Host, inventory: Inventory) -> bool:
    try:
        known = KnownHosts.read(inventory.known_hosts)
        return all(known.pinned(hop.known_as) for hop in resolve(host, inventory))
    except MacdError:
        return False


def _tracked(source: Path) -> frozenset[str] | None:
    argv = ["git", "ls-files", "--recurse-submodules", "-z", "--", "."]
    try:
        done = subprocess.run(argv, cwd=source, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return frozenset(done.stdout.decode("utf-8", "surrogateescape").strip("\0").split("\0"))
