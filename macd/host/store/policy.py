"""Who this host is and whose signatures count here, as provision told it.

A deploy says what it thinks too, but it is the host policy that decides: another inventory,
or a release made for another application or environment, does not get in by claiming to be right.
"""

from __future__ import annotations

import os
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, load
from macd.host.store.signature import SignatureError

FILE = "accepts.json"
REVOKED = "revoked.krl"
NAMES = ("app", "env", "identity")


def accepts(layout: Layout) -> dict[str, Any]:
    """app, env, identity, and the SHA-256 of the list of revoked keys ("": there is none).

    Raises:
        HostError ("refused"): nobody told this host.
    """
    policy = load(layout.state(FILE), {})
    if not isinstance(policy, dict) or not all(policy.get(name) for name in NAMES):
        raise HostError(
            "this host does not know what it takes",
            why=f"{layout.state(FILE)} is missing or says too little",
            hint="invoke provision",
            live="unchanged",
            kind="refused",
        )
    return policy


def check_claim(layout: Layout, claimed: dict[str, str]) -> None:
    """Raises HostError ("refused"): the inventory takes this host for another one."""
    own = accepts(layout)
    differing = [name for name in NAMES if claimed[name] != own[name]]
    if differing:
        name = differing[0]
        raise HostError(
            "this host is not what the inventory says",
            why=f"its {name} is {own[name]}, the inventory says {claimed[name]}",
            hint="check --inventory and --env; invoke provision makes it what the inventory says",
            live="unchanged",
            kind="refused",
        )


def check_signer(layout: Layout, claimed: str) -> str:
    """Whose signature counts here: the same identity for a gate report as for a release.

    Which key it must be, allowed_signers says by its namespaces.

    Raises:
        HostError ("refused"): the client names another signer, or nobody told this host.
    """
    own = str(accepts(layout)["identity"])
    if claimed != own:
        raise HostError(
            "this host does not take gate reports of that signer",
            why=f"it takes those of {own}, the inventory says {claimed!r:.200}",
            hint="check release.identity and --inventory; invoke provision makes the host take it",
            live="flags as before",
            kind="refused",
        )
    return own


def revocations(layout: Layout) -> str | None:
    """The list of revoked keys to hold signatures against; None where provision put none.

    Raises:
        SignatureError: it is not the one that was put there, so nobody's signature can count.
    """
    path = layout.state(REVOKED)
    wanted = str(accepts(layout).get("revoked", ""))
    if not wanted and not os.path.lexists(path):
        return None
    try:
        actual = durable.sha256_of(path)
    except OSError as error:
        raise SignatureError(
            f"the list of revoked keys can't be read ({error.strerror}: {path}); invoke provision"
        ) from error
    if actual != wanted:
        raise SignatureError(f"{path} is not as provisioned; invoke provision")
    return path
