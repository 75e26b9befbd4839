"""OpenSSH's own client as a witness: the lab must look right to it, not only to our libraries."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def ssh(
    config: Path, host: str, command: str, *, options: tuple[str, ...] = (), data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a command on lab-HOST; never asks for anything, never waits for longer than 3 minutes.

    The configuration is named relative to the clone, as a user types it: OpenSSH's ProxyJump does
    not quote the path after -F, so an absolute one with a blank in it would not work.
    """
    return subprocess.run(
        argv(Path(*config.parts[-2:]), host, command, options=options),
        input=data,
        capture_output=True,
        timeout=180,
        cwd=config.parents[1],
        check=False,
    )


def argv(config: Path, host: str, command: str, *, options: tuple[str, ...] = ()) -> list[str]:
    return ["ssh", "-F", str(config), "-o", "BatchMode=yes", *options, f"lab-{host}", command]


def text(config: Path, host: str, command: str) -> str:
    """The command's output; it must have succeeded."""
    done = ssh(config, host, command)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def eventually(true: Callable[[], object], *, within: float = 120.0, every: float = 0.05) -> None:
    """Wait for something that happens in another process; the limit only ends a broken test.

    `every`: seconds between two looks, more where a look starts a process.
    """
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(every)
