"""The stacking flag where it stands: in the flags file, and in the process that serves."""

from __future__ import annotations

import errno
import os
from typing import Dict, Optional

from macd.host import durable, envfile, probe
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.supervisor import Process

FLAG = "ML_ENABLE_STACKING"
LIVE, SHADOW = "1", "0"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def in_file(layout: Layout) -> str:
    """The value the next start of the service takes. Raises HostError ("refused")."""
    try:
        return envfile.parse(_text(layout)).get(FLAG, SHADOW)
    except envfile.EnvFileError as error:
        raise _unreadable(layout, error) from error


def write(layout: Layout, value: str) -> None:
    """Into the file as it is now: others may have changed other keys since this began.

    On a full disk stacking is still taken back, in the file's own place.
    """
    text = _text(layout)
    try:
        after = envfile.with_values(text, {FLAG: value})
    except envfile.EnvFileError as error:
        raise _unreadable(layout, error) from error
    if after != text:
        try:
            mode = os.stat(layout.env).st_mode & 0o777
        except FileNotFoundError:
            mode = 0o600
        try:
            durable.replace_file(layout.env, after.encode(), mode=mode)
        except OSError as error:
            if value != SHADOW or error.errno not in _FULL:
                raise
            if not _overwritten(layout.env, text.encode(), after.encode()):
                raise


def _overwritten(path: str, before: bytes, after: bytes) -> bool:
    """Change the one byte in which they differ where it stands, which needs no room on the disk.

    One byte is never half written. False, and nothing done, where more would have to change.
    """
    if len(before) != len(after):
        return False
    differing = [at for at in range(len(before)) if before[at] != after[at]]
    if len(differing) != 1:
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.pread(descriptor, len(before) + 1, 0) != before:
            return False
        os.pwrite(descriptor, after[differing[0] : differing[0] + 1], differing[0])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _text(layout: Layout) -> str:
    try:
        with open(layout.env, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _unreadable(layout: Layout, error: envfile.EnvFileError) -> HostError:
    return HostError(
        f"{layout.env} can't be understood",
        why=str(error),
        live="flags as before",
        hint="mend that line, then try again",
        kind="refused",
    )


def of_process(process: Process, endpoint: str, proc: str = "/proc") -> Optional[Dict[str, str]]:
    """The ML_* settings the process was started with, None if nobody can tell.

    From the kernel. Only a system that has no /proc is believed by the process's own answer: where
    there is one that does not tell (not ours to read, a dead process), nothing is proved.
    """
    if not process.pid:
        return None
    try:
        with open(os.path.join(proc, str(process.pid), "environ"), "rb") as file:
            raw = file.read()
    except OSError:
        there = os.path.exists(os.path.join(proc, "self"))
        return None if there else _as_it_says(process, endpoint)
    if not raw:  # a zombie's, or one that is just being started
        return None
    pairs = [entry.partition(b"=")[::2] for entry in raw.split(b"\0")]
    found = {k.decode("ascii", "replace"): v.decode("ascii", "replace") for k, v in pairs}
    return {name: value for name, value in found.items() if name.startswith("ML_")}


def _as_it_says(process: Process, endpoint: str) -> Optional[Dict[str, str]]:
    try:
        answer = probe.ask(endpoint)
    except probe.ProbeError:
        return None
    flags = answer.get("flags")
    if answer.get("pid") != process.pid or not isinstance(flags, dict):
        return None
    return {str(name): str(value) for name, value in flags.items()}
