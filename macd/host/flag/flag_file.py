"""The stacking flag where it stands: in the flags file, and in the process that serves."""

from __future__ import annotations

import errno
import os

from macd.host import durable, envfile
from macd.host.deploy import health
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.systemd.supervisor import Process

FLAG = "ML_ENABLE_STACKING"
LIVE, SHADOW = "1", "0"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def in_file(layout: Layout) -> str:
    """The value the next start of the service takes from the file.

    "1" where any version of systemd reads a 1, "?" for what is neither 0 nor 1. "" where systemd
    takes nothing from the file: the next start is in shadow, whatever the process that runs has.
    """
    try:
        found = envfile.readings(content(layout))
    except envfile.EnvFileError:
        return ""
    before, since = (one.get(FLAG, SHADOW) for one in found)
    if before == LIVE or since in (LIVE, SHADOW):
        return LIVE if before == LIVE else since
    return "?"


def refuse_unreadable(layout: Layout) -> None:
    """Raises HostError ("refused"): stacking can't be enabled in this file."""
    try:
        if os.path.lexists(layout.env) and not os.path.isfile(layout.env):
            raise envfile.EnvFileError("it is no file, or a link to none")
        envfile.parse(content(layout).decode("utf-8", "surrogateescape"))
    except envfile.EnvFileError as error:
        raise HostError(
            f"{layout.env} does not say what systemd would make of it",
            why=str(error),
            live="flags as before",
            hint="mend that line, then try again; invoke disable-stacking works all the same",
            kind="refused",
        ) from error


def write(layout: Layout, value: str) -> None:
    """Into the file as it is now: others may have changed other keys since this began.

    The flag's own lines alone are rewritten, so it works on any file. On a full disk stacking is
    still taken back, in the file's own place.
    """
    before = content(layout)
    if len(before) > envfile.MOST_BYTES or os.path.isdir(layout.env):
        return  # systemd does not read it: the next start is in shadow
    after = envfile.rewritten(before, {FLAG: value})
    if after == before:
        return
    try:
        mode = os.stat(layout.env).st_mode & 0o777
    except OSError as error:
        if error.errno not in durable.NO_FILE:
            raise
        mode = 0o600
    try:
        durable.replace_file(layout.env, after, mode=mode)
    except OSError as error:
        if value != SHADOW or error.errno not in _FULL:
            raise
        if not _overwritten(layout.env, before, after):
            raise


def _overwritten(path: str, before: bytes, after: bytes) -> bool:
    """Change the bytes in which they differ where they stand, which needs no room on the disk.

    Each is a 1 that becomes a 0, and one byte is never half written. False, and nothing done, where
    the length would change.
    """
    if len(before) != len(after):
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.pread(descriptor, len(before) + 1, 0) != before:
            return False
        for at in (at for at in range(len(before)) if before[at] != after[at]):
            os.pwrite(descriptor, after[at : at + 1], at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def content(layout: Layout) -> bytes:
    """As it stands, b"" where there is none; of one that is larger than systemd reads, no more."""
    return read(layout.env)


def read(path: str) -> bytes:
    """As `content`, of any file that systemd may read; b"" for what is no file."""
    return durable.regular(path, envfile.MOST_BYTES + 1) or b""


def of_process(process: Process, endpoint: str, proc: str = "/proc") -> dict[str, str] | None:
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


def _as_it_says(process: Process, endpoint: str) -> dict[str, str] | None:
    try:
        answer = health.ask(endpoint)
    except health.ProbeError:
        return None
    flags = answer.get("flags")
    if answer.get("pid") != process.pid or not isinstance(flags, dict):
        return None
    return {str(name): str(value) for name, value in flags.items()}
