"""strace on one waiting process: what it asks of the disk, and a kill or an error in its way."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


class Tracing(subprocess.Popen[str]):
    """strace on one waiting process; it has taken hold when this is made."""

    def __init__(self, pid: int, out: Path, *expressions: str) -> None:
        await_stop(pid)
        words = [word for one in expressions for word in ("-e", one)]
        argv = ["strace", "-y", "-s", "0", "-p", str(pid), "-o", str(out), *words]
        super().__init__(argv, stderr=subprocess.PIPE, text=True)
        assert self.stderr is not None
        if "attached" not in (said := self.stderr.readline()):
            raise RuntimeError(f"strace: {said}{self.stderr.read()}")


def await_stop(pid: int) -> None:
    while not _is_stopped(pid):
        time.sleep(0.001)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
