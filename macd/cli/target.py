"""Which Python and system the serving hosts have, asked of them, or as they last said."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.errors import MacdError
from macd.host.durable import replace_file

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.release.wheelhouse import Target


def target_of(inventory: Inventory, env: str) -> tuple[Target, list[str]]:
    """What a lock for `env` must fit, and warnings where a host could only be remembered.

    Raises MacdError when a host can't be reached and never was, or its Python is too old.
    """
    from macd.release.wheelhouse import Target, common
    from macd.ssh.failures import UnfitPythonError

    memory = inventory.state_dir / "facts" / f"{env}.json"
    known: dict[str, Any] = _read(memory)
    found: dict[str, Target] = {}
    warnings = []
    for host in inventory.env_hosts(env):
        try:
            found[host.name] = _ask(host, inventory)
            known[host.name] = {**asdict(found[host.name]), "at": f"{datetime.now(UTC):%F %T} UTC"}
        except UnfitPythonError:
            raise  # it was reached, so what it had before says nothing
        except MacdError as error:
            told = dict(known.get(host.name) or {})
            if not told:
                raise _unknown(host, error) from error
            at = told.pop("at", "an unknown time")
            found[host.name] = Target(**told)
            warnings.append(f"{host.name} can't be reached; its Python is as of {at}")
    _write(memory, known)
    return common(found), warnings


def _ask(host: Host, inventory: Inventory) -> Target:
    from macd.release.wheelhouse import Target
    from macd.ssh.session import open_session

    with open_session(host, inventory) as session:
        facts = session.facts([])
    python = ".".join(facts.python.version.split(".")[:2])
    libc = facts.os.libc
    name = "musl" if libc["name"] == "musl" else "glibc"
    return Target(python, facts.os.arch, name, libc["version"] or "1.2")


def _unknown(host: Host, error: MacdError) -> MacdError:
    return MacdError(
        f"what {host.name} runs isn't known yet, so no wheels can be chosen for it",
        why=str(error),
        live="no release was made",
        hint="make it reachable once (the lab's: invoke lab.up); afterwards it need not be",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _write(path: Path, known: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(known, indent=1) + "\n").encode(), parents=True)
