"""Tell systemd how the service is (sd_notify) and take the socket it holds for it (LISTEN_FDS).

Both are small protocols over an environment variable; man sd_notify(3), sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

_FIRST_FD = 3


class Systemd:
    """Where messages go; silent where nobody asked for them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")

    def tell(self, *lines: str) -> None:
        """Send e.g. "READY=1", "STATUS=...". Nothing is raised: a lost word must not end us."""
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(1.0)
                out.sendto(text.encode(), address)
        except OSError:
            return


def inherited_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """The listening socket systemd passed to this very process, if it did."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or int(count) < 1:
        return None
    os.set_inheritable(_FIRST_FD, False)
    return socket.socket(fileno=_FIRST_FD)
