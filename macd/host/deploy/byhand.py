"""What people put on a host before macd: units and their drop-ins, variables, processes.

It only looks. What is kept of it, replaced and given back is adopt.py's.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macd.host import durable, envfile, untrusted
from macd.host.layout import Layout
from macd.host.masking import masked_lines
from macd.host.processes import stat_of
from macd.host.systemd.supervisor import Process, Supervisor
from macd.host.systemd.unitfile import service_lines

_OURS = "# Written by macd from templates/"
# What a drop-in decides before the unit: who runs what, where, with which variables.
_DECIDES = (
    *("Type", "NotifyAccess", "PIDFile", "WorkingDirectory", "RootDirectory", "RootImage"),
    *("User", "Group", "DynamicUser", "SupplementaryGroups"),
    *("Environment", "EnvironmentFile", "UnsetEnvironment", "PassEnvironment"),
)
Program = tuple[str, tuple[str, ...]]  # a script, and its arguments
_LONGEST = 300
_RELEASE = re.compile(r"/releases/\d{8}T\d{6}Z-[0-9a-f]{8}(/|$)")
_DEEPEST = 50  # ancestors of a process
# Who started a process: by the name of an ancestor's program, and how it is stopped for good.
_STARTERS = {
    "supervisord": "supervisorctl stop NAME, then take it out of its configuration",
    "PM2": "pm2 delete NAME, then pm2 save",
    "cron": "take its line out of the crontab, then kill {pid}",
    "crond": "take its line out of the crontab, then kill {pid}",
    "screen": "kill {pid}, right before the first deploy",
    "tmux: server": "kill {pid}, right before the first deploy",
}


@dataclass(frozen=True)
class Dropin:
    """A file beside a unit's; sets: the names in it. shared: other units read it too."""

    path: str
    sets: tuple[str, ...]
    shared: bool


@dataclass(frozen=True)
class ManualUnit:
    """A unit that macd did not write. settings: of [Service], drop-ins included, by name."""

    unit: str
    path: str
    text: str
    settings: Mapping[str, Sequence[str]]
    dropins: Sequence[Dropin]
    process: Process

    @property
    def user(self) -> str:
        return (self.settings.get("User") or ["root"])[-1]

    @property
    def runs(self) -> bool:
        return self.process.active in ("active", "activating", "reloading")


@dataclass(frozen=True)
class Variables:
    """What the units of a service give it and .env does not say alike.

    taken: for .env. clashes: those of `taken` that .env has otherwise. left: name -> why it does
    not go there.
    """

    taken: Mapping[str, str]
    clashes: Sequence[str]
    left: Mapping[str, str]


def is_ours(text: str | None) -> bool:
    return (text or "").startswith(_OURS)


def look(supervisor: Supervisor, units: Sequence[str]) -> list[ManualUnit]:
    """The units of these names that systemd knows and macd did not write, in their order."""
    dropins = supervisor.dropins(units)
    manual_units = []
    for unit in units:
        path = supervisor.fragment(unit)
        text = durable.text(path) if path else None
        if text is None or is_ours(text):
            continue
        beside = tuple(
            Dropin(
                one["path"],
                tuple(one["sets"]),
                os.path.basename(os.path.dirname(one["path"])) != f"{unit}.d",
            )
            for one in dropins.get(unit, ())
        )
        ordered = sorted((one.path for one in beside), key=os.path.basename)
        texts = [text, *(durable.text(one) or "" for one in ordered)]
        manual_units.append(
            ManualUnit(unit, path, text, _settings(texts), beside, supervisor.show(unit))
        )
    return manual_units


def _settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """[Service] of a unit and its drop-ins; an empty value takes the earlier ones back."""
    settings: dict[str, list[str]] = {}
    for text in texts:
        for name, value in service_lines(text):
            settings[name] = [*settings.get(name, []), value] if value else []
    return settings


def wins(dropin: Dropin, wanted: str, flag: str) -> bool:
    """Whether it would have macd's unit `wanted` run otherwise than its file says.

    flag: the variable that a drop-in may set (flag.where: dropin), "" for none.
    """
    if flag and set(dropin.sets) == {"Environment"}:
        return _variables_in(dropin.path) != {flag}
    ours = _settings([wanted])
    return any(name in _DECIDES or name in ours or name.startswith("Exec") for name in dropin.sets)


def _variables_in(path: str) -> set[str]:
    lines = _settings([durable.text(path) or ""]).get("Environment", [])
    with contextlib.suppress(ValueError):
        return {word.partition("=")[0] for line in lines for word in shlex.split(line)}
    return set()


def variables(
    layout: Layout,
    supervisor: Supervisor,
    manual_units: Sequence[ManualUnit],
    wanted: Mapping[str, str | None],
) -> Variables:
    """The variables that the first deploy would take from the service, were they not in .env.

    Of two units that set one differently the main one's counts, which is the first.
    """
    text = durable.text(layout.env) or ""
    present = _read(text.encode("utf-8", "surrogateescape"))
    has: dict[str, str] = {}
    for one in reversed(manual_units):
        if one.unit.endswith(".service"):
            has.update(_given(layout, supervisor, one.unit, present))
            set_there = _settings([wanted.get(one.unit) or ""]).get("Environment", [])
            for name in _names(set_there):
                has.pop(name, None)
    exported = envfile.exported(text.encode("utf-8", "surrogateescape")) if manual_units else {}
    has = {**{k: v for k, v in exported.items() if k not in present}, **has}
    taken, left = {}, {}
    for name, value in has.items():
        if present.get(name) == value:
            continue
        why = envfile.unfit(name, value)
        if why:
            left[name] = why
        else:
            taken[name] = value
    return Variables(taken, [name for name in taken if name in present], left)


def _names(lines: Sequence[str]) -> list[str]:
    with contextlib.suppress(ValueError):
        return [word.partition("=")[0] for line in lines for word in shlex.split(line)]
    return []


def _given(
    layout: Layout, supervisor: Supervisor, unit: str, present: Mapping[str, str]
) -> dict[str, str]:
    """What systemd gives a unit's process: Environment=, then its files in their order."""
    given, files = supervisor.environment(unit)
    for path in files:
        if os.path.realpath(path) == os.path.realpath(layout.env):
            given.update(present)
        else:
            given.update(_read(durable.regular(path) or b""))
    return given


def _read(data: bytes) -> dict[str, str]:
    with contextlib.suppress(envfile.EnvFileError):
        return envfile.readings(data)[1]
    return {}


def words(
    manual_units: Sequence[ManualUnit],
    wanted: Mapping[str, str | None],
    given: Variables,
    *,
    account: str,
    app: str,
    aside: Sequence[str],
    data: Sequence[str],
) -> list[str]:
    """What changes for a service by hand once macd runs it, a sentence each. No values.

    account: whom macd's units run as, "" for whoever logs in. aside: the drop-ins that go. data:
    directories that become the account's.
    """
    said: list[str] = []
    for one in manual_units:
        said += _about(one, wanted.get(one.unit) or "", account, app, data)
    if given.taken:
        said.append(f"variables that go into .env, values not shown: {', '.join(given.taken)}")
    if given.clashes:
        names = ", ".join(given.clashes)
        said.append(f"of these .env has another value today, and the unit's counts: {names}")
    said += [f"variable {name} does not go into .env: {why}" for name, why in given.left.items()]
    for dropin in (dropin for one in manual_units for dropin in one.dropins):
        said.append(_about_dropin(dropin, gone=dropin.path in aside))
    if account:
        said += _about_owners(data, account)
    return said


def _about(
    one: ManualUnit, wanted: str, account: str, app: str, data: Sequence[str]
) -> Iterator[str]:
    pid = one.process.pid
    runs = f"it goes on as pid {pid} until" if pid else "it does not run;"
    yield f"{one.unit} was put there by hand ({one.path}); {runs} the first deploy takes its place"
    if not wanted:
        yield f"{one.unit}: macd has no such unit, so the first deploy removes it"
        return
    if account and one.user != account:
        keep = "" if one.user == "root" else f" (service.user: {one.user} keeps it)"
        yield f"{one.unit} runs as {one.user} today; macd runs it as {account}{keep}"
    ours = _settings([wanted])
    for name in ("ExecStart", "WorkingDirectory"):
        old, new = (_shown((of.get(name) or ["nothing"])[-1]) for of in (one.settings, ours))
        if old != new:
            yield f"{one.unit}: {name} changes from {old} to {new}"
    home = (one.settings.get("WorkingDirectory") or [app])[-1].lstrip("-!")
    for path in data if os.path.realpath(home) != os.path.realpath(app) else ():
        there = os.path.join(home, os.path.relpath(path, app))
        if os.path.isdir(there):
            yield (
                f"{there} stays where it is, and the new service begins with {path}; to go on with "
                f"the old files, right before the first deploy: cp -a {there}/. {path}/"
            )


def _about_dropin(dropin: Dropin, *, gone: bool) -> str:
    sets = ", ".join(untrusted.line(name, 60) for name in dropin.sets) or "nothing"
    if dropin.shared:
        return f"{dropin.path} is of other units too and stays; it sets {sets}"
    if not gone:
        return f"{dropin.path} stays; it sets {sets}"
    lost = [name for name in dropin.sets if not name.startswith(("Environment", "Exec"))]
    text = f"{dropin.path} would win over macd's unit ({sets}): the first deploy sets it aside"
    return f"{text}; not carried over: {', '.join(lost)}" if lost else text


def _about_owners(data: Sequence[str], account: str) -> Iterator[str]:
    try:
        uid = pwd.getpwnam(account).pw_uid
    except KeyError:  # not made yet, so nothing is its own
        uid = -1
    for path in data:
        count = sum(owner != uid for owner in _owners(os.path.realpath(path)))
        if count:
            files = f"{count} {'entry' if count == 1 else 'entries'}"
            yield f"{path}: {files} of others become {account}'s with the first deploy"


def _owners(top: str) -> Iterator[int]:
    yield os.stat(top).st_uid
    for _, directories, names, parent in os.fwalk(top, follow_symlinks=False):
        for name in (*directories, *names):
            with contextlib.suppress(FileNotFoundError):
                yield os.stat(name, dir_fd=parent, follow_symlinks=False).st_uid


def _shown(line: str) -> str:
    return untrusted.line(" ".join(masked_lines(line)), _LONGEST)


def processes(
    layout: Layout,
    supervisor: Supervisor,
    units: Sequence[str],
    commands: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """Those that run one of `commands` and are of none of `units`.

    The same script counts with the same arguments wherever it runs (of a login's own units: below
    its home), and with any below `app`. What macd runs for another application does not count.
    Each: pid, user, command (secrets covered), cwd, by (who keeps it running), do (how to end it),
    apart (whether it is of another unit, in another place: perhaps meant so).
    """
    if not commands or not os.path.isdir("/proc/self"):
        return []
    ours = {process.pid for unit in units if (process := supervisor.show(unit)).pid}
    programs = [program for words in commands if (program := _program(words))]
    running = []
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        pid = int(name)
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
            program = _program(words)
            if program is None or pid == os.getpid():
                continue
            cwd = os.readlink(f"/proc/{name}/cwd")
            here = _is_below(cwd, program, layout.app)
            same = any(_is_same(program, other, any_words=here) for other in programs)
            if not same or not ours.isdisjoint(_line_of(pid)):
                continue
            if not here and (_RELEASE.search(cwd) or not _counts(supervisor.scope, cwd)):
                continue
            by, do, unit = _keeper(pid, units)
            if by:
                apart = bool(unit) and not here
                running.append({**_process(pid, words, cwd), "by": by, "do": do, "apart": apart})
    return running


def _counts(scope: str, cwd: str) -> bool:
    home = os.path.realpath(os.path.expanduser("~")) + os.sep
    return scope == "system" or (cwd + os.sep).startswith(home)


def _is_below(cwd: str, program: Program, app: str) -> bool:
    script, top = os.path.realpath(os.path.join(cwd, program[0])), os.path.realpath(app) + os.sep
    return script.startswith(top) or (cwd + os.sep).startswith(top)


def _process(pid: int, words: Sequence[str], cwd: str) -> dict[str, Any]:
    user = _user(os.stat(f"/proc/{pid}").st_uid)
    shown = {"command": _shown(shlex.join(words)), "cwd": untrusted.line(cwd, _LONGEST)}
    return {"pid": pid, "user": user, **shown}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _program(words: Sequence[str]) -> Program | None:
    """A script (or -m module) and its arguments; another program is its own script."""
    if not words:
        return None
    first, rest = words[0], list(words[1:])
    if os.path.basename(first).startswith("python"):
        while rest and rest[0].startswith("-") and rest[0] != "-m":
            rest = rest[2:] if rest[0] in ("-X", "-W") else rest[1:]
        if rest[:1] == ["-m"]:
            rest = rest[1:]
        if not rest:
            return None
        first, rest = rest[0], rest[1:]
    return first, tuple(rest)


def _is_same(one: Program, other: Program, *, any_words: bool) -> bool:
    if os.path.basename(one[0]) != os.path.basename(other[0]):
        return False
    return any_words or one[1] == other[1]


def _line_of(pid: int) -> Iterator[int]:
    """The process and its ancestors."""
    for _ in range(_DEEPEST):
        if pid <= 1:
            return
        yield pid
        fields = stat_of(pid)
        if not fields:
            return
        pid = int(fields[1])


def _keeper(pid: int, units: Collection[str]) -> tuple[str, str, str]:
    """Who keeps a process running, how to end it, and its unit; all "" where it is one of `units`.

    A login's session is no unit of it.
    """
    unit, is_users = _unit_of(pid)
    if unit in units:
        return "", "", ""
    for ancestor in list(_line_of(pid))[1:]:
        comm = _comm(ancestor)
        for starter, do in _STARTERS.items():
            if comm.lower().startswith(starter.lower()):
                return untrusted.line(comm, 40), do.format(pid=pid), ""
    if unit.endswith(".service") and not unit.startswith(("user@", "ssh", "cron")):
        keys = f"unit: {unit.removesuffix('.service')}{', scope: user' if is_users else ''}"
        do = f"set {keys} for this host in the inventory; invoke provision then adopts it"
        return unit, do, unit
    return "nobody: it was started by hand", f"kill {pid}, right before the first deploy", ""


def _unit_of(pid: int) -> tuple[str, bool]:
    """The innermost unit of its control group, "" for none, and whether it is a login's own."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        parts = [part for line in file for part in line.strip().rpartition(":")[2].split("/")]
        named = [part for part in parts if part.endswith((".service", ".scope"))]
        return (named[-1] if named else ""), any(part.startswith("user@") for part in named[:-1])
    return "", False


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().strip()
    return ""
