"""`systemctl --user show` on the lab's prod, as a client of the manager that is there already.

A deploy asks it again and again while it watches a release start, and the emulated systemctl takes
far longer to import than to answer. So this imports next to nothing, hands its output over to the
manager, and ends as it says. Without a manager it becomes the emulated systemctl.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket  # `socket` would cost as much again


def main(arguments: list[str]) -> int:
    """Run the command line; systemctl's exit code."""
    manager = socket(AF_UNIX)
    try:
        manager.connect(f"{os.environ['XDG_RUNTIME_DIR']}/systemctl")
    except (OSError, KeyError):
        program = __file__.replace("systemctl_show.py", "systemctl.py")
        os.execv(sys.executable, [sys.executable, "-I", program, *arguments])  # noqa: S606
    ours = b"".join(stream.to_bytes(4, sys.byteorder) for stream in (1, 2))
    manager.sendmsg(["\0".join(arguments).encode()], [(SOL_SOCKET, SCM_RIGHTS, ours)])
    code = manager.recv(1)
    return code[0] if code else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
