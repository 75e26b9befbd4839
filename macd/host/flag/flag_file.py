"""The stacking flag and its weight: in .env, beside it, in the process, and a pending change.

An application of the team's own has a flag of its own name and values, perhaps in a drop-in of its
unit, and no weight. Here too LIVE and SHADOW are what it means; only `Switch` knows how it is said.

The weight is what stacking counts for in the decision, in percent. A flag of 1 without a weight
means 100; shadow is 0. 100 needs no line of its own, so every release understands it.

A drop-in of the unit may set either beside .env, by Environment= or another EnvironmentFile=. The
last one counts: files in their order, after every Environment=.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macd.host import durable, envfile, own
from macd.host.deploy import health
from macd.host.failure import HostError
from macd.host.flag import dropin
from macd.host.layout import Layout, discard, live_release, load, save
from macd.host.own import Flag, Service
from macd.host.store import releases
from macd.host.systemd.supervisor import Process, Supervisor

BUILT_IN = own.BUILT_IN_FLAG
FLAG, WEIGHT = BUILT_IN.name, "ML_STACKING_WEIGHT"
LIVE, SHADOW = BUILT_IN.live, BUILT_IN.shadow
FULL = 100
KEYS = (FLAG, WEIGHT)
OFF: Mapping[str, str | None] = {FLAG: SHADOW, WEIGHT: None}  # None: no such line
DROPIN = "dropin"
PENDING = "pending-flag.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def from_document(document: Mapping[str, str] | None) -> Flag | None:
    """A flag as `asdict` made it."""
    return Flag(**document) if document else None


def flag_of(layout: Layout, expected: Flag | None = BUILT_IN) -> Flag | None:
    """The flag of what is live here; None for an application of the team's own that has none.

    expected: of what is to serve, where nothing was ever deployed here.

    Raises:
        HostError: nobody can tell which it is.
    """
    if not os.path.exists(layout.service_settings) and live_release(layout) is None:
        return expected
    try:
        return own.read(layout).flag
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if not _is_own(layout):
            return BUILT_IN
        raise HostError(
            "which flag the application has is not known",
            why=f"{layout.service_settings} can't be read: {error}",
            live="flags as before",
            hint="invoke deploy --restart writes it again",
        ) from error


def _is_own(layout: Layout) -> bool:
    live = live_release(layout)
    return live is not None and bool(releases.read_manifest(layout, live).details.get("own"))


def off(flag: Flag | None) -> Mapping[str, str | None]:
    """What .env has to say for shadow; nothing where a drop-in says it (`write_dropin`)."""
    if flag == BUILT_IN:
        return OFF
    return {flag.name: flag.shadow} if flag and flag.where != DROPIN else {}


def meant(flag: Flag, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that say who decides, as the built-in application's have it; "?" for neither.

    A weight is the built-in application's alone.
    """
    if flag == BUILT_IN:
        return {name: value for name, value in variables.items() if name.startswith("ML_")}
    words = {flag.live: LIVE, flag.shadow: SHADOW}
    return {FLAG: words.get(variables[flag.name], "?")} if flag.name in variables else {}


def in_file(layout: Layout, flag: Flag = BUILT_IN) -> str:
    """The value that the next start of the service takes from the file.

    "1" where any version of systemd reads a 1, "?" for what is neither 0 nor 1. "" where systemd
    takes nothing from the file: the next start is in shadow, whatever the running process has.
    """
    try:
        readings = envfile.readings(content(layout))
    except envfile.EnvFileError:
        return ""
    before, since = (meant(flag, variables).get(FLAG, SHADOW) for variables in readings)
    if before == LIVE or since in (LIVE, SHADOW):
        return LIVE if before == LIVE else since
    return "?"


def weight_of(variables: Mapping[str, str]) -> int | None:
    """What stacking counts for with these variables, in percent; 0 is shadow.

    None for a weight that is none: a service that knows weights then stays in shadow, one of an
    earlier version does not.
    """
    if variables.get(FLAG, SHADOW) != LIVE:
        return 0
    value = variables.get(WEIGHT, str(FULL))
    return int(value) if envfile.FLAGS[WEIGHT].match(value) else None


def weight_in_file(layout: Layout) -> int | None:
    """The weight that the next start takes from the file; None where systemd's versions differ."""
    try:
        before, since = map(weight_of, envfile.readings(content(layout)))
    except envfile.EnvFileError:
        return 0
    return since if before == since else None


def first_weight(
    requested: int | None, steps: Sequence[int], running: int, upcoming: int, covered: int
) -> int:
    """The weight at which enabling begins: as requested, else the first step, else all.

    Where stacking decides already, as it was proved, it is not lowered without being told to. A
    weight that somebody set by hand is no weight to go on from: it begins at what was proved, and
    where nothing was, no higher than by hand.

    Args:
        running, upcoming: what it counts for in the process and from the next start on, in percent;
            0 for shadow, and where nobody knows.
        covered: the weight up to which a guard's watch covers it, 0 without one.
    """
    if requested is not None:
        return requested
    if running == upcoming and 0 < running <= covered:
        return next((step for step in steps or (FULL,) if step >= running), running)
    weights = [weight for weight in (running, upcoming) if weight]
    if weights and covered:
        return covered
    return min([*(steps or (FULL,))[:1], *weights])


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


def write(layout: Layout, value: str, weight: int = FULL, flag: Flag = BUILT_IN) -> None:
    """Set both in the file as it is now: others may have changed other keys since this began.

    Only their own lines are rewritten, all at once, so it works on any file. On a full disk
    stacking is still disabled, in the file's own place; a weight then stays and means nothing.
    """
    before = content(layout)
    if len(before) > envfile.MOST_BYTES or os.path.isdir(layout.env):
        return  # systemd does not read it: the next start is in shadow
    changes: dict[str, str | None] = {flag.name: flag.live if value == LIVE else flag.shadow}
    least = dict(changes)
    if flag == BUILT_IN:
        changes[WEIGHT] = str(weight) if value == LIVE and weight < FULL else None
    after = envfile.rewritten(before, changes)
    if after != before:
        mode = durable.mode_of(layout.env, 0o600)
        in_place = envfile.rewritten(before, least)
        _replace(layout.env, before, after, in_place, mode, must=value == SHADOW)


def _replace(
    path: str, before: bytes, after: bytes, in_place: bytes, mode: int, *, must: bool
) -> None:
    """Change a file; where the disk is full and it `must` be, in its own place, to `in_place`."""
    try:
        durable.replace_file(path, after, mode=mode, keep_owner=True)
    except OSError as error:
        if not must or error.errno not in _FULL or not _overwritten(path, before, in_place):
            raise


def _overwritten(path: str, before: bytes, after: bytes) -> bool:
    """Change the differing bytes in place, which needs no room on the disk.

    Of the built-in flag each is a 1 that becomes a 0, and one byte is never half written. Returns
    False and does nothing where the length would change.
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


def of_process(
    process: Process, endpoint: str, proc: str = "/proc", flag: Flag = BUILT_IN
) -> dict[str, str] | None:
    """The settings that the process was started with, as `meant`, from the kernel; None if unknown.

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
        return None if there or flag != BUILT_IN else _as_it_says(process, endpoint)
    if not raw:  # a zombie's, or one that is just being started
        return None
    pairs = [entry.partition(b"=")[::2] for entry in raw.split(b"\0")]
    settings = {k.decode("ascii", "replace"): v.decode("ascii", "replace") for k, v in pairs}
    return meant(flag, settings)


def _as_it_says(process: Process, endpoint: str) -> dict[str, str] | None:
    try:
        answer = health.ask(endpoint)
    except health.ProbeError:
        return None
    flags = answer.get("flags")
    if answer.get("pid") != process.pid or not isinstance(flags, dict):
        return None
    return {str(name): str(value) for name, value in flags.items()}


def weight_by_health(process: Process, endpoint: str) -> int | None:
    """The weight with which `process` says that it decides; None where it does not say one.

    A release of an earlier version knows no weights: it decides with all of stacking.
    """
    try:
        answer = health.ask(endpoint)
    except health.ProbeError:
        return None
    weight = answer.get("stacking_weight")
    return weight if type(weight) is int and answer.get("pid") == process.pid else None


@dataclass(frozen=True)
class Switch:
    """The flag of one service: what it is set to, for its next start and in its processes.

    unit: as a request names it; of a service of several instances all of them obey the flag.
    """

    layout: Layout
    flag: Flag
    supervisor: Supervisor
    unit: str

    @property
    def units(self) -> list[str]:
        """Those that obey it, the main one first: of one's own application the main one alone."""
        return list(service_of(self.layout, self.supervisor, self.unit).instances) or [self.unit]

    def processes(self, endpoint: str) -> list[tuple[Process, str]]:
        """Of these units, each with where it answers.

        endpoint: where the service's own settings do not say it.
        """
        service = service_of(self.layout, self.supervisor, self.unit)
        if not service.instances:
            return [(self.supervisor.show(self.unit), service.endpoint or endpoint)]
        return [(self.supervisor.show(n), one.endpoint) for n, one in service.instances.items()]

    def running(self, endpoint: str) -> list[dict[str, str] | None]:
        """The settings that each of these processes was started with, as `of_process`."""
        return [self.of_process(*one) for one in self.processes(endpoint)]

    @property
    def has_weights(self) -> bool:
        return self.flag == BUILT_IN

    @property
    def upcoming(self) -> str:
        """The value that the next start takes from where it is set, as `in_file`."""
        if self.flag.where != DROPIN or self._is_in_env:
            return in_file(self.layout, self.flag)
        variables, _ = self.supervisor.environment(self.unit)
        return meant(self.flag, variables).get(FLAG, SHADOW)

    @property
    def upcoming_weight(self) -> int | None:
        """What stacking counts for then, in percent; None where nobody knows, 0 for shadow."""
        if self.upcoming != LIVE:
            return 0
        return weight_in_file(self.layout) if self.has_weights else FULL

    def of_process(self, process: Process, endpoint: str) -> dict[str, str] | None:
        return of_process(process, endpoint, flag=self.flag)

    def is_shadow(self, running: Mapping[str, str] | None) -> bool:
        """Whether the process has the flag at shadow. One's own application has to be told it."""
        default = SHADOW if self.flag == BUILT_IN else None
        return running is not None and running.get(FLAG, default) == SHADOW

    def beside(self) -> list[str]:
        """What makes the service start with stacking all the same; empty if nothing does."""
        each = (beside(self.layout, self.supervisor, unit, self.flag) for unit in self.units)
        return next((places for places in each if places), [])

    def write(self, value: str, weight: int = FULL) -> None:
        """Set it where it belongs. A drop-in is read by systemd; .env wins over it where it has it.

        Only the flag's own assignments change, in any file.
        """
        if self.flag.where != DROPIN:
            write(self.layout, value, weight, self.flag)
            return
        if self._is_in_env:
            write(self.layout, value, weight, self.flag)
        said = self.flag.live if value == LIVE else self.flag.shadow
        for path, before in self._dropins() or [(self._new_dropin, dropin.NEW)]:
            after = dropin.rewritten(before, self.flag.name, said)
            if after != before:
                durable.make_directories(os.path.dirname(path))
                mode = durable.mode_of(path, 0o644)
                _replace(path, before, after, after, mode, must=value == SHADOW)
        self.supervisor.install({}, reload=True)  # also what a kill kept from it

    @property
    def _is_in_env(self) -> bool:
        data = content(self.layout)
        return len(data) <= envfile.MOST_BYTES and bool(envfile.values_of(data, self.flag.name))

    @property
    def _new_dropin(self) -> str:
        return os.path.join(dropin_directory(self.supervisor, self.unit), dropin.NAME)

    def _dropins(self) -> list[tuple[str, bytes]]:
        """The drop-ins that name the flag, and what they hold."""
        dropins = []
        for entry in self.supervisor.dropins([self.unit]).get(self.unit, []):
            with contextlib.suppress(OSError):  # `beside` names one that wins and can't be read
                data = durable.regular(entry["path"], dropin.MOST_BYTES + 1) or b""
                is_named = len(data) <= dropin.MOST_BYTES and self.flag.name.encode() in data
                if is_named and dropin.values_of(data, self.flag.name):
                    dropins.append((str(entry["path"]), data))
        return dropins


def service_of(layout: Layout, supervisor: Supervisor, unit: str) -> Service:
    """What is live here; where its settings can't be read, the instances that systemd knows.

    Without instances that somebody stopped and disabled: nothing here is to start them.
    """
    try:
        service = own.read(layout)
    except (OSError, *own.UNREADABLE):
        base = unit.removesuffix(".service")
        units = {name: own.Instance() for name in supervisor.instances(base)}
        service = dataclasses.replace(own.BUILT_IN, units=units)
    return service.without([n for n in service.instances if supervisor.show(n).is_put_away])


def in_dropin(layout: Layout, supervisor: Supervisor) -> str:
    """What a drop-in of the live application says; "" where its flag is not in one."""
    try:
        service = own.read(layout)
    except own.UNREADABLE:
        return ""  # nothing of ours is live
    if service.flag is None or service.flag.where != DROPIN:
        return ""
    return Switch(layout, service.flag, supervisor, service.unit).upcoming


def write_dropin(service: Service, layout: Layout, scope: str, value: str) -> None:
    """Set the flag of an application that has it in a drop-in; others' is in .env."""
    if service.flag is not None and service.flag.where == DROPIN:
        Switch(layout, service.flag, Supervisor(scope), service.unit).write(value)


def dropin_directory(supervisor: Supervisor, unit: str) -> str:
    return os.path.join(supervisor.unit_directory, f"{unit}.d")


def switch_of(layout: Layout, service: Mapping[str, Any], flag: Flag | None = None) -> Switch:
    """Of the service (unit, scope) that is live here; `flag` where it is known already.

    Raises:
        HostError ("refused"): the application has no flag.
    """
    flag = flag or flag_of(layout)
    if flag is None:
        raise HostError(
            "this application has no flag that lets its models decide",
            why="app.flag is not set in the inventory, so macd does not know what to switch",
            live=f"{live_release(layout) or 'nothing'}, as before",
            hint="set app.flag in the inventory (name, live, shadow), then: invoke deploy",
            kind="refused",
        )
    return Switch(layout, flag, Supervisor(service["scope"]), service["unit"])


def beside(layout: Layout, supervisor: Supervisor, unit: str, flag: Flag = BUILT_IN) -> list[str]:
    """What makes the service start with stacking whatever .env says; empty if nothing does."""
    places = list(set_by(layout, supervisor, unit, flag=flag))
    wins = places and places[-1][0] != layout.env and places[-1][1] == LIVE
    return [places[-1][0]] if wins else []


def set_by(
    layout: Layout,
    supervisor: Supervisor,
    unit: str,
    name: str = FLAG,
    flag: Flag = BUILT_IN,
) -> Iterator[tuple[str, str]]:
    """Each place that sets `name` (FLAG: the flag, whatever it is called), with what it means.

    The last one counts.
    """
    variables, files = supervisor.environment(unit)
    said = meant(flag, variables).get(name)
    if said is not None:
        yield f"Environment= of {unit}", said
    ours = os.path.realpath(layout.env)
    for path in [p for pattern in files for p in sorted(glob.glob(pattern))] or [layout.env]:
        value = _value_in(path, name, flag)
        if value is not None:
            yield layout.env if os.path.realpath(path) == ours else path, value


def _value_in(path: str, name: str, flag: Flag) -> str | None:
    """Its value in a file, a flag of 1 of any systemd version first; None where it has none."""
    with contextlib.suppress(OSError, envfile.EnvFileError):
        before, since = (meant(flag, variables) for variables in envfile.readings(_read(path)))
        return LIVE if (name, before.get(name)) == (FLAG, LIVE) else since.get(name)
    return None


def shown(value: str, name: str = FLAG) -> str:
    """A value for people; "?" for one that is not understood, which may be a secret."""
    return value if envfile.FLAGS[name].match(value) else "?"


@dataclass(frozen=True)
class Change:
    """A pending change of the flag. state: begun, proved or reverting.

    wanted, weight: what is to be; the weight counts where stacking is wanted. was: what a change
    that fails goes back to, at was_weight. watch: the one that a raise replaced; a change that goes
    back to stacking puts it back. steps_stay: the guard's steps go on after a change that lowers.
    flag: of an application of the team's own, as the change began with it; None: the built-in one.
    """

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
    weight: int = FULL
    was_weight: int = 0
    watch: dict[str, Any] | None = None
    steps_stay: bool = False
    flag: dict[str, str] | None = None

    def switch(self, layout: Layout) -> Switch:
        flag = Flag(**self.flag) if self.flag else BUILT_IN
        return Switch(layout, flag, Supervisor(self.scope), self.unit)

    @property
    def lowers(self) -> bool:
        """Whether stacking is to count for less, or for nothing: such a change is never undone."""
        return self.wanted == SHADOW or self.weight < self.was_weight


Record = Callable[[str, dict[str, object]], None]


class FlagLog:
    """The record of a change: required before stacking decides, best effort on the way to shadow.

    A disk that takes nothing any more is no reason to leave stacking on. unrecorded: why something
    could not be recorded, "" while all was.
    """

    def __init__(self, layout: Layout, record: Record, *, strict: bool) -> None:
        self.layout, self._record, self._strict = layout, record, strict
        self.unrecorded = ""

    def best_effort(self) -> FlagLog:
        """The same, for the return to shadow."""
        return FlagLog(self.layout, self._record, strict=False)

    def store(self, change: Change) -> None:
        with self.recording():
            save(self.layout.state(PENDING), dataclasses.asdict(change), mode=0o600)

    def record(self, kind: str, fields: dict[str, object]) -> None:
        with self.recording():
            self._record(kind, fields)

    def forget(self) -> None:
        with self.recording():
            discard(self.layout.state(PENDING))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
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
