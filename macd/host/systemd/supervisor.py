"""What we ask of systemd: install a unit, restart it and say which process answers for it now.

An instance (a@b.service) has no file of its own: it is there while it is enabled, and its text is
its template's (a@.service), where macd wrote that. The template goes with its last instance.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from macd.host import durable, untrusted
from macd.host.failure import HostError
from macd.host.systemd import detach

_TEMPLATE = re.compile(r"# Written by macd from templates/\S+ for every instance\b")
_TIMEOUT_S = 60
_JOURNAL_S = 20
_LONGEST_LINE = 4096  # characters
OFF = ("disabled", "masked", "masked-runtime")  # of a unit that is not meant to run
_PROPERTIES = (
    "LoadState,ActiveState,SubState,MainPID,InvocationID,NRestarts,Result,UnitFileState"
    ",NeedDaemonReload"
)
# Where drop-ins lie, in systemd's order (systemd.unit(5)); "control" is written by systemctl
# set-property. Packages' drop-ins below /usr/lib are not ours to judge.
_DROPINS = {
    "system": (
        "/etc/systemd/system.control",
        "/run/systemd/system.control",
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
    ),
    "user": (
        "~/.config/systemd/user.control",
        "$XDG_RUNTIME_DIR/systemd/user.control",
        "~/.config/systemd/user",
        "/etc/systemd/user",
        "$XDG_RUNTIME_DIR/systemd/user",
        "/run/systemd/user",
        "~/.local/share/systemd/user",
        "/usr/local/lib/systemd/user",
    ),
}
_MOST_BYTES = 1 << 16  # of a drop-in
# Whether a line counts: of which life (invocation) of a unit, and when it was written (epoch
# seconds). The life is "" where journald did not know it: its process was gone by then.
Counts = Callable[[str, float], bool]


@dataclass(frozen=True)
class Process:
    """One life of a service; empty or 0 where systemd doesn't know."""

    active: str
    sub: str
    pid: int
    invocation: str
    restarts: int
    result: str
    enabled: str
    loaded: str
    needs_reload: bool = False

    @property
    def is_put_away(self) -> bool:
        """Whether somebody stopped it and also disabled or masked it: it is not meant to run."""
        return self.active != "active" and self.enabled in OFF

    def is_same_life(self, other: Process) -> bool:
        """True while the very process goes on that `other` described."""
        return self.pid == other.pid and self.invocation == other.invocation and self.pid != 0


@dataclass(frozen=True)
class Supervisor:
    """systemctl of one scope: "system", or "user" (the embedded lab, or a user manager)."""

    scope: str

    def _argv(self, *words: str) -> list[str]:
        return ["systemctl", *(["--user"] if self.scope == "user" else []), *words]

    def _call(self, *words: str, check: bool = True) -> str:
        argv = self._argv(*words)
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except FileNotFoundError as error:
            raise HostError("this host has no systemctl", hint="it needs systemd") from error
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{' '.join(argv)} gave no answer in {_TIMEOUT_S} s") from error
        if check and done.returncode != 0:
            raise HostError(f"{' '.join(argv)} failed", why=(done.stderr or done.stdout).strip())
        return done.stdout

    @property
    def unit_directory(self) -> str:
        if self.scope == "user":
            return os.path.expanduser("~/.config/systemd/user")
        return "/etc/systemd/system"

    def unit_text(self, unit: str) -> str | None:
        """What is written for a unit; None: it is not there."""
        text = self._file_text(unit)
        if text is None and self.has_template(unit) and self._is_wanted(unit):
            return self._file_text(_template_of(unit))
        return text

    def _file_text(self, name: str) -> str | None:
        try:
            # Any bytes and line ends, so that it can be restored exactly.
            path = os.path.join(self.unit_directory, name)
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _is_wanted(self, unit: str) -> bool:
        """Whether a link starts this unit with its target, as `systemctl enable` makes one."""
        return bool(self._links(glob.escape(unit)))

    def has_template(self, unit: str) -> bool:
        """Whether macd wrote the template of an instance, which may be enabled or not."""
        template = _template_of(unit)
        return bool(template) and is_template(self._file_text(template))

    def instances(self, base: str) -> list[str]:
        """The enabled instances of base@.service, by name."""
        links = self._links(f"{glob.escape(base)}@?*.service")
        return sorted({os.path.basename(path) for path in links})

    def _links(self, pattern: str) -> list[str]:
        return glob.glob(os.path.join(glob.escape(self.unit_directory), "*.wants", pattern))

    def fragment(self, unit: str) -> str:
        """The path of the unit's own file, wherever systemd found it; "" where it has none."""
        shown = self._call("show", unit, "--property", "FragmentPath", check=False)
        path = shown.strip().partition("=")[2]
        here = os.path.join(self.unit_directory, unit)
        return path or (here if os.path.isfile(here) else "")

    def install(self, units: dict[str, str | None], *, reload: bool = False) -> list[str]:
        """Write unit files (None removes one), reload if any changed; the names that changed.

        reload: in any case. A killed process may have written a file without a reload.
        """
        changed = []
        for unit, text in sorted(self._files(units).items()):
            if self._file_text(unit) == text:
                continue
            path = os.path.join(self.unit_directory, unit)
            durable.make_directories(self.unit_directory)
            if text is None:
                os.unlink(path)
                durable.sync_directory(self.unit_directory)
            else:
                durable.replace_file(path, text.encode("utf-8", "surrogateescape"))
            changed.append(unit)
        if changed or reload:
            self._call("daemon-reload")
        return changed

    def _files(self, units: dict[str, str | None]) -> dict[str, str | None]:
        """The files of those units; of instances that go, their template where none else needs it.

        An instance is a link that `enable` makes; the caller has disabled those that go.
        """
        files: dict[str, str | None] = {}
        for unit, text in units.items():
            template = _template_of(unit)
            if text is not None and template and is_template(text):
                files[template] = text
                files[unit] = None  # a file of its own would win over the template
            else:
                files[unit] = text
        for unit, text in units.items():
            template = _template_of(unit)
            if text is None and self.has_template(unit):
                stem, _, kind = template.rpartition(".")
                if not self._links(f"{glob.escape(stem)}?*.{kind}"):
                    files.setdefault(template, None)
        return files

    def show(self, unit: str) -> Process:
        """The unit's process as it is now; an unknown unit is simply not active."""
        output = self._call("show", unit, "--property", _PROPERTIES, check=False)
        shown = dict(line.partition("=")[::2] for line in output.splitlines())
        return Process(
            active=shown.get("ActiveState", ""),
            sub=shown.get("SubState", ""),
            pid=_number(shown.get("MainPID", "")),
            invocation=shown.get("InvocationID", ""),
            restarts=_number(shown.get("NRestarts", "")),
            result=shown.get("Result", ""),
            enabled=shown.get("UnitFileState", ""),
            loaded=shown.get("LoadState", ""),
            needs_reload=shown.get("NeedDaemonReload") == "yes",
        )

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """Properties in systemd's own words; those that it doesn't know are not there."""
        output = self._call("show", unit, "--property", ",".join(names), check=False)
        return dict(line.partition("=")[::2] for line in output.splitlines() if "=" in line)

    def environment(self, unit: str) -> tuple[dict[str, str], list[str]]:
        """What Environment= sets, and the EnvironmentFile= paths in their order; drop-ins count."""
        names = ("--property", "Environment", "--property", "EnvironmentFiles")
        lines = self._call("show", unit, *names, check=False).splitlines()
        variables: dict[str, str] = {}
        files = []
        for name, _, value in (line.partition("=") for line in lines):
            if name == "EnvironmentFiles":
                files.append(value.rpartition(" (")[0] or value)
            elif name == "Environment":
                with contextlib.suppress(ValueError):  # a quote that nobody closed
                    pairs = (word.partition("=") for word in shlex.split(value))
                    variables.update({key: setting for key, _, setting in pairs})
        return variables, files

    def last_line(self, unit: str, counts: Counts) -> str:
        """The last line of the unit's own processes that `counts`.

        At most 300 characters; "" where there is none, or nobody knows.
        """
        which = "_SYSTEMD_USER_UNIT" if self.scope == "user" else "_SYSTEMD_UNIT"
        lines = [line.strip() for line in _counted(f"{which}={unit}", 20, counts)]
        return untrusted.line(next(filter(None, reversed(lines)), ""), 300)

    def log(self, unit: str, lines: int, counts: Counts | None = None) -> list[str]:
        """The newest lines about the unit, systemd's own too; none where they are not known.

        counts: of these lines only those that it lets through.
        """
        which = f"--{'user-' if self.scope == 'user' else ''}unit={unit}"
        return _journal(which, lines) if counts is None else _counted(which, lines, counts)

    def has_said(self, invocation: str, pattern: str) -> bool:
        """Whether a line of one life of a unit matches; its oldest lines are read first."""
        argv = ["journalctl", "--no-pager", "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation}"]
        wanted = re.compile(pattern)
        try:
            process = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, errors="replace"
            )
        except OSError:
            return False
        with process:
            late = threading.Timer(_JOURNAL_S, process.kill)
            late.start()
            try:
                return any(wanted.search(line[:_LONGEST_LINE]) for line in process.stdout or ())
            finally:
                late.cancel()
                process.kill()

    def messages(
        self, unit: str, lines: int, after: str = ""
    ) -> list[tuple[float | None, str, str]]:
        """The newest lines of the unit's own processes: time (epoch seconds), text and cursor.

        after: a cursor, for those that came later. Time is None and the cursor "" where the journal
        does not say them.
        """
        which = "_SYSTEMD_USER_UNIT" if self.scope == "user" else "_SYSTEMD_UNIT"
        more = [f"--after-cursor={after}"] if after else []
        said = _journal(f"{which}={unit}", lines, "--output=json", *more)
        return [_message(line) for line in said]

    def enable(self, unit: str) -> None:
        self._call("enable", unit)

    def disable(self, unit: str) -> None:
        """Take a unit out of use before its file goes."""
        self._call("disable", "--now", unit, check=False)

    def restart(self, unit: str, sockets: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Begin a restart and don't wait: the caller watches health, which a hang can't fool.

        A start limit left by a crash loop (the sockets' too: systemd fails them with their service)
        is cleared first, so a revert is never blocked.
        """
        self._call("reset-failed", unit, *sockets, check=False)
        return subprocess.Popen(
            self._argv("restart", unit),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self, unit: str) -> None:
        self._call("start", unit)

    def start_later(self, *units: str) -> None:
        """Have systemd start them when it can; nothing waits for it, and no failure is reported."""
        if units:
            self._call("--no-block", "start", *units, check=False)

    def stop(self, *units: str) -> None:
        """Stop what is running of `units`; one that systemd doesn't know is stopped already."""
        loaded = [unit for unit in units if self.show(unit).loaded == "loaded"]
        if loaded:
            self._call("stop", *loaded)

    def run_detached(
        self, name: str, argv: list[str], log: str, *, keep_alive: bool = True
    ) -> None:
        """Start `argv` so that it outlives this SSH session: a transient unit, else setsid.

        keep_alive: a transient unit is restarted when it is killed, so that it finishes its work.

        Raises:
            HostError: systemd refused it, or would end it (and the service) when we log out.
        """
        if self.has_timers():
            if self.scope == "user" and not detach.lingers():
                raise HostError(
                    "this host would end the service and its activation when we log out",
                    why="its user may not linger",
                    live="unchanged",
                    hint="once, as root on the host: loginctl enable-linger USER",
                )
            words = ["systemd-run", *(["--user"] if self.scope == "user" else [])]
            if keep_alive:
                words += ["--property=Restart=on-failure", "--property=RestartSec=1"]
                words += ["--property=StartLimitIntervalSec=0"]
            detach.as_unit(words, name, argv, log)
        else:
            detach.in_new_session(argv, log)

    def dropins(self, units: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """By unit: the path of each drop-in, and the names it sets. No values, which may be secret.

        Drop-ins for every service of a host are not ours to judge.
        """
        places = [os.path.expandvars(os.path.expanduser(p)) for p in _DROPINS[self.scope]]
        overrides = {}
        for unit in units:
            paths = [
                path
                for place in places
                for name in _dropin_directories(unit)
                for path in sorted(glob.glob(os.path.join(glob.escape(place), name, "*.conf")))
            ]
            if paths:
                overrides[unit] = [{"path": path, "sets": _names_set_in(path)} for path in paths]
        return overrides

    def not_read(self, units: Sequence[str]) -> list[str]:
        """The units whose files changed after systemd read them."""
        if not self.has_timers():  # only a real systemd remembers
            return []
        return [unit for unit in units if self.show(unit).needs_reload]

    def has_timers(self) -> bool:
        """Whether a real systemd runs this scope: it wakes timers and starts transient units."""
        booted = os.path.isdir("/run/systemd/system")
        if self.scope == "user":
            bus = os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/nowhere"), "systemd", "private")
            return booted and os.path.exists(bus)
        return booted


def _dropin_directories(unit: str) -> list[str]:
    """UNIT.d, for a@b.service also a@.service.d, and for a-b.service also a-.service.d."""
    stem, _, kind = unit.rpartition(".")
    template = _template_of(unit).rpartition(".")[0]
    words = stem.split("-")
    prefixes = ["-".join(words[:count]) + "-" for count in range(len(words) - 1, 0, -1)]
    return [f"{name}.{kind}.d" for name in (stem, *filter(None, [template]), *prefixes)]


def is_template(text: str | None) -> bool:
    """Whether a text is one that macd wrote for every instance."""
    return text is not None and _TEMPLATE.match(text) is not None


def _template_of(unit: str) -> str:
    """a@.service for a@b.service; "" for a unit that is no instance."""
    stem, _, kind = unit.rpartition(".")
    base, _, instance = stem.partition("@")
    return f"{base}@.{kind}" if instance else ""


def _names_set_in(path: str) -> list[str]:
    try:
        if not os.path.isfile(path):  # /dev/null takes a package's drop-in away
            return []
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST_BYTES).replace("\\\n", " ").splitlines()
    except OSError:
        return []
    names = [line.partition("=")[0].strip() for line in lines if "=" in line]
    return list(dict.fromkeys(name for name in names if name[:1] not in ("#", ";")))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _message(line: str) -> tuple[float | None, str, str]:
    entry = _entry(line)
    at, said, cursor = (
        entry.get(name, "") for name in ("__REALTIME_TIMESTAMP", "MESSAGE", "__CURSOR")
    )
    return int(at) / 1e6 if at else None, untrusted.line(said), untrusted.line(cursor)


def _entry(line: str) -> dict[str, str]:
    """One line of `--output=json`; what is no such line is itself what was said."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        entry = json.loads(line, strict=False)
        if isinstance(entry["MESSAGE"], list):  # bytes that are no text
            entry["MESSAGE"] = bytes(entry["MESSAGE"]).decode("utf-8", "replace")
        return {name: said for name, said in entry.items() if isinstance(said, str)}
    return {"MESSAGE": line}


def _counted(which: str, lines: int, counts: Counts) -> list[str]:
    """The newest lines, but for those that don't count."""
    entries = map(_entry, _journal(which, lines, "--output=json"))
    return [entry.get("MESSAGE", "") for entry in entries if counts(*_life(entry))]


def _life(entry: dict[str, str]) -> tuple[str, float]:
    """Which life a line is about, and when it was written; systemd's own lines name it too."""
    lives = ("INVOCATION_ID", "USER_INVOCATION_ID", "_SYSTEMD_INVOCATION_ID")
    times = ("_SOURCE_REALTIME_TIMESTAMP", "__REALTIME_TIMESTAMP")
    life = next((entry[name] for name in lives if name in entry), "")
    return life, next((int(entry[name]) / 1e6 for name in times if name in entry), 0.0)


def _journal(which: str, lines: int, output: str = "--output=cat", *more: str) -> list[str]:
    argv = ["journalctl", "--no-pager", output, f"--lines={lines}", *more, which]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_JOURNAL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
