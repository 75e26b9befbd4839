"""The stacking flag: in .env, beside it, in the process, and a change of it that is pending.

A drop-in of the unit may set the flag beside .env, by Environment= or another EnvironmentFile=. The
last one counts: files in their order, after every Environment=.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from macd.host import durable, envfile
from macd.host.deploy import health
from macd.host.failure import HostError
from macd.host.layout import Layout, discard, load, save
from macd.host.systemd.supervisor import Process, Supervisor

FLAG = "ML_ENABLE_STACKING"
LIVE, SHADOW = "1", "0"
PENDING = "pending-flag.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def in_file(layout: Layout) -> str:
    """The value that the next start of the service takes from the file.

    "1" where any version of systemd reads a 1, "?" for what is neither 0 nor 1. "" where systemd
    takes nothing from the file: the next start is in shadow, whatever the running process has.
    """
    try:
        readings = envfile.readings(content(layout))
    except envfile.EnvFileError:
        return ""
    before, since = (variables.get(FLAG, SHADOW) for variables in readings)
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
    """Set it in the file as it is now: others may have changed other keys since this began.

    Only the flag's own lines are rewritten, so it works on any file. On a full disk stacking is
    still disabled, in the file's own place.
    """
    before = content(layout)
    if len(before) > envfile.MOST_BYTES or os.path.isdir(layout.env):
        return  # systemd does not read it: the next start is in shadow
    after = envfile.rewritten(before, {FLAG: value})
    if after == before:
        return
    mode = durable.mode_of(layout.env, 0o600)
    try:
        durable.replace_file(layout.env, after, mode=mode)
    except OSError as error:
        if value != SHADOW or error.errno not in _FULL:
            raise
        if not _overwritten(layout.env, before, after):
            raise


def _overwritten(path: str, before: bytes, after: bytes) -> bool:
    """Change the differing bytes in place, which needs no room on the disk.

    Each is a 1 that becomes a 0, and one byte is never half written. Returns False and does nothing
    where the length would change.
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
    """The bytes of .env, b"" where there is none; of a file too large for systemd, no more."""
    return _read(layout.env)


def _read(path: str) -> bytes:
    return durable.regular(path, envfile.MOST_BYTES + 1) or b""


def of_process(process: Process, endpoint: str, proc: str = "/proc") -> dict[str, str] | None:
    """The ML_* settings that the process was started with, from the kernel; None if unknown.

    The process's own answer counts only on a system without /proc. Where /proc can't be read (not
    ours, a dead process), nothing is proved.
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
    settings = {k.decode("ascii", "replace"): v.decode("ascii", "replace") for k, v in pairs}
    return {name: value for name, value in settings.items() if name.startswith("ML_")}


def _as_it_says(process: Process, endpoint: str) -> dict[str, str] | None:
    try:
        answer = health.ask(endpoint)
    except health.ProbeError:
        return None
    flags = answer.get("flags")
    if answer.get("pid") != process.pid or not isinstance(flags, dict):
        return None
    return {str(name): str(value) for name, value in flags.items()}


def beside(layout: Layout, supervisor: Supervisor, unit: str) -> list[str]:
    """What makes the service start with stacking whatever .env says; empty if nothing does."""
    places = list(set_by(layout, supervisor, unit))
    wins = places and places[-1][0] != layout.env and places[-1][1] == LIVE
    return [places[-1][0]] if wins else []


def set_by(layout: Layout, supervisor: Supervisor, unit: str) -> Iterator[tuple[str, str]]:
    """Each place that sets the flag, with its value; the last one counts."""
    variables, files = supervisor.environment(unit)
    if FLAG in variables:
        yield f"Environment= of {unit}", variables[FLAG]
    ours = os.path.realpath(layout.env)
    for path in [p for name in files for p in sorted(glob.glob(name))] or [layout.env]:
        value = _value_in(path)
        if value:
            yield layout.env if os.path.realpath(path) == ours else path, value


def _value_in(path: str) -> str:
    """The flag's value in a file, a 1 of any systemd version first; "" where it has none."""
    with contextlib.suppress(OSError, envfile.EnvFileError):
        before, since = envfile.readings(_read(path))
        return LIVE if before.get(FLAG) == LIVE else since.get(FLAG, "")
    return ""


def shown(value: str) -> str:
    return value if value in (LIVE, SHADOW) else "?"


@dataclass(frozen=True)
class Change:
    """A pending change of the flag. state: begun, proved or reverting."""

    wanted: str
    was: str
    release: str
    unit: str
    sockets: list[str]
    scope: str
    endpoint: str
    health_s: float
    who: str
    started: float
    state: str = "begun"
    report: str = ""
    reason: str = ""


Record = Callable[[str, dict[str, object]], None]


class FlagLog:
    """The record of a change: required before stacking decides, best effort on the way to shadow.

    A disk that takes nothing any more is no reason to leave stacking on. unrecorded: why something
    could not be recorded, "" while all was.
    """

    def __init__(self, layout: Layout, record: Record, *, strict: bool) -> None:
        self._layout, self._record, self._strict = layout, record, strict
        self.unrecorded = ""

    def best_effort(self) -> FlagLog:
        """The same, for the return to shadow."""
        return FlagLog(self._layout, self._record, strict=False)

    def store(self, change: Change) -> None:
        with self._recording():
            save(self._layout.state(PENDING), dataclasses.asdict(change), mode=0o600)

    def record(self, kind: str, fields: dict[str, object]) -> None:
        with self._recording():
            self._record(kind, fields)

    def forget(self) -> None:
        with self._recording():
            discard(self._layout.state(PENDING))

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except (HostError, OSError) as error:
            if self._strict:
                raise
            self.unrecorded = self.unrecorded or f"the host could not put it on record: {error}"


def interrupted(layout: Layout) -> Change | None:
    document = load(layout.state(PENDING), None)
    if document is None:
        return None
    known = {field.name for field in dataclasses.fields(Change)}
    return Change(**{name: value for name, value in document.items() if name in known})
