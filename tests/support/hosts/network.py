"""Wire the test hosts so that h800 can be reached through jump and in no other way.

Each host gets a network namespace that outlives its reboots. The test machine has a link to jump
and one to prod; h800 has a single link, into jump's namespace, which does not forward.

    test machine .1 ── .2 jump .9 ── .10 h800
                 .5 ── .6 prod
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from tests.support.hosts.run_lock import RunLock


@dataclass(frozen=True)
class Network:
    """Addresses of the hosts as their neighbours see them."""

    jump: str
    h800: str
    prod: str


def wire(claim: RunLock) -> Network:
    """Make the namespaces, links and addresses of one run; `RunLock.release` removes them."""
    jump, h800, prod = (claim.name(host) for host in ("jump", "h800", "prod"))
    for namespace in (jump, h800, prod):
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
    n = claim.number
    _link(("", f"macd{n}j", claim.address(1)), (jump, "host0", claim.address(2)))
    _link(("", f"macd{n}p", claim.address(5)), (prod, "host0", claim.address(6)))
    _link((jump, "lan0", claim.address(9)), (h800, "host0", claim.address(10)))
    # The address is not the outside world's to answer: say at once that no road leads there.
    _ip("route", "add", "unreachable", f"198.18.{n}.8/30")
    return Network(jump=claim.address(2), h800=claim.address(10), prod=claim.address(6))


def cut(machine: str, interface: str = "host0") -> None:
    """Pull the cable: packets vanish without a word, the processes at both ends live on."""
    _ip("-n", machine, "link", "set", interface, "down")


def mend(machine: str, interface: str = "host0") -> None:
    """Plug the cable back in."""
    _ip("-n", machine, "link", "set", interface, "up")


def _link(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    here = ["netns", one[0]] if one[0] else []
    _ip("link", "add", one[1], *here, "type", "veth", "peer", "name", other[1], "netns", other[0])
    for namespace, interface, address in (one, other):
        at = ["-n", namespace] if namespace else []
        _ip(*at, "address", "add", f"{address}/30", "dev", interface)
        _ip(*at, "link", "set", interface, "up")


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True)
