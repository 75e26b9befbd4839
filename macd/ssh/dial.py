"""Open the TCP connection to a hop, bounded in time; knows nothing of SSH."""

from __future__ import annotations

import socket
import time

from macd.ssh.sshconfig import Hop

_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def tcp(hop: Hop, connect_s: float) -> socket.socket:
    """A connection to the first of the hop's addresses that takes one within `connect_s` seconds.

    Raises OSError, the last address's, or the name's that has none.
    """
    family = _FAMILIES.get(hop.family, socket.AF_UNSPEC)
    found = socket.getaddrinfo(
        hop.hostname, hop.port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    deadline = time.monotonic() + connect_s
    failure: OSError = OSError("the name has no address")
    for number, (kind, _, _, _, address) in enumerate(found):
        left = (deadline - time.monotonic()) / (len(found) - number)
        made = socket.socket(kind, socket.SOCK_STREAM)
        try:
            made.settimeout(max(left, 0.1))
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            failure = error
    raise failure
