"""Run what came with a release as its service runs: same user, same sandbox, never as root.

A deploy runs as root on a real host, but a release is never trusted with root. Its check, its
packages and its pip get the unit's own user and hardening, and may write only where the caller lets
them. Without a unit, or without a user in it, nothing is run. Where no system's systemd runs the
service (the embedded lab, a user's manager), the login runs both the service and these directly.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import pwd
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from macd.host.failure import HostError
from macd.host.systemd import namespaces, starting
from macd.host.systemd.unitfile import service_lines

_GRACE_S = 5
_OUTPUT_BYTES = 1 << 20
_WRITTEN_BYTES = 1 << 30  # of one file: the largest wheels hold some 500 MB
_LEFTOVER_S = 3600  # longer than any run may take
_STRAY = ("PYTHON", "PIP_")
_RUN = "/run"

Property = tuple[str, str]
# Left out: what makes the unit a service, what only the service needs (secrets first of all), and
# how a run ends (a KillMode that spares children would let a release's processes outlive it). All
# else in its [Service] says who it is and what it may do.
_OF_A_SERVICE = re.compile(
    r"Type|Exec(?!Paths)\w+|Restart\w*|Timeout\w+|Watchdog\w+|NotifyAccess|Standard\w+|Sockets"
    r"|PIDFile|RemainAfterExit|SuccessExitStatus|ReadWritePaths|LimitFSIZE|UMask"
    r"|(Runtime|State|Logs|Cache|Configuration)\w+|EnvironmentFile|\w*Credential\w*|OpenFile"
    r"|Kill\w+|Send\w+|\w+Signal|OOMPolicy|BusName|FileDescriptorStore\w+|GuessMainPID"
    r"|NonBlocking|RootDirectoryStartOnly"
)
# The first systemd version of each property. An older one ignores it in a unit; systemd-run fails.
_SINCE = {
    "RestrictSUIDSGID": 242,
    "ProtectHostname": 242,
    "ProtectKernelLogs": 244,
    "ProtectClock": 245,
    "ProtectProc": 247,
    "ProcSubset": 247,
    "PrivateIPC": 248,
    "ExecPaths": 248,
    "NoExecPaths": 248,
    "RestrictFileSystems": 250,
    "MemoryZSwapMax": 253,
}


def _is_of_a_system(runtime: str) -> bool:
    """Whether `runtime` ($XDG_RUNTIME_DIR) is a login's; the embedded lab has its own one."""
    if not os.path.isdir("/run/systemd/system"):
        return False
    manager = os.path.join(runtime, "systemd", "private")
    return not runtime or runtime.startswith("/run/user/") or os.path.exists(manager)


@dataclass(frozen=True)
class Sandbox:
    """The sandbox of one unit, by its scope and the text of its file (None: there is no file).

    app: the application's directory; it names the runs, so that a later one can find them.
    """

    scope: str
    unit_text: str | None
    app: str = ""

    @property
    def is_real(self) -> bool:
        """Whether a process can be put into it here: by root, with a system's systemd."""
        root = os.geteuid() == 0
        return self.scope == "system" and root and os.path.isdir("/run/systemd/system")

    def refuse_root(self) -> None:
        """Raises HostError ("refused"): what came with a release would run as root."""
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if self.scope == "user" and os.geteuid() == 0 and _is_of_a_system(runtime):
            raise HostError(
                "releases are not run as root here",
                why="its scope is user, and the login is root: a release would own the host",
                hint="log in as another user, or set scope: system for this host in the inventory",
                live="unchanged",
                kind="refused",
            )

    @property
    def user(self) -> str:
        """The account in the unit; "" where it names none, or where the login runs the service."""
        lines = properties(self.unit_text or "") if self.is_real else []
        users = [value for name, value in lines if name == "User"]
        return users[-1] if users else ""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        settings: dict[str, str] | None = None,
        writable: str = "",
        given: str = "",
        cwd: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; in the sandbox the return code of any failure is 1.

        Args:
            timeout: seconds; then systemd ends it, even if this process is gone.
            settings: variables for it alone; they may hold secrets, so they are in no argv.
            writable: the one directory it may write, besides a /tmp of its own.
            given: what it reads on stdin.
            cwd: where it works; "" for the application's directory, or this process's own one.

        Raises:
            HostError ("refused"): the unit names nobody but root to run it.
            OSError, subprocess.TimeoutExpired: as subprocess.run.
        """
        if self.is_real:
            self._account()
            return self._in_sandbox(list(argv), timeout, settings or {}, writable, given, cwd)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_STRAY)}
        environment.update(settings or {})
        return subprocess.run(
            argv,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            cwd=cwd or None,
            check=False,
        )

    def give(self, directory: str) -> None:
        """Let the sandbox's account change what is in `directory`."""
        if self.is_real:
            account = self._account()
            _own(directory, account.pw_uid, account.pw_gid)

    def take(self, directory: str) -> None:
        """Give `directory` back to root, so that nobody else changes it from here on."""
        if self.is_real:
            _own(directory, 0, 0)

    def end_leftovers(self) -> None:
        """End the builds of this application whose agent died; the caller holds its deploy lock.

        Raises:
            HostError: one does not end.
        """
        if not self.is_real:
            return
        for place in glob.glob(os.path.join(_RUN, glob.escape(self._prefix("build")) + "*")):
            unit = os.path.basename(place) + ".service"
            _systemctl("stop", unit)
            if _systemctl("is-active", unit).stdout.strip() not in ("inactive", "failed"):
                raise HostError(f"{unit} of an earlier deploy does not end", live="unchanged")
            shutil.rmtree(place, ignore_errors=True)
        for place in glob.glob(os.path.join(_RUN, glob.escape(self._prefix("check")) + "*")):
            with contextlib.suppress(FileNotFoundError):  # a diagnosis holds no lock
                if time.time() - os.stat(place).st_mtime > _LEFTOVER_S:
                    shutil.rmtree(place, ignore_errors=True)

    def _account(self) -> pwd.struct_passwd:
        """The account that runs it.

        Raises:
            HostError ("refused"): nobody is named, there is no such account, or it is root.
        """
        named = self.user
        if not named:
            where = "names no User=" if self.unit_text is not None else "is not there"
            raise _nobody(f"the service's unit {where}")
        try:
            account = pwd.getpwuid(int(named)) if named.isdigit() else pwd.getpwnam(named)
        except (KeyError, OverflowError) as error:
            raise _nobody(f"the account {named} of its unit is not on this host") from error
        if account.pw_uid == 0:
            raise _nobody(f"the account {named} of its unit is root")
        return account

    def _prefix(self, doing: str) -> str:
        whose = hashlib.sha256(os.fsencode(os.path.realpath(self.app))).hexdigest()[:8]
        return f"macd-confined-{doing}-{whose}-"

    def _in_sandbox(
        self,
        argv: list[str],
        timeout: float,
        settings: dict[str, str],
        writable: str,
        given: str,
        cwd: str,
    ) -> subprocess.CompletedProcess[str]:
        name = self._prefix("build" if writable else "check") + secrets.token_hex(6)
        unit = properties(self.unit_text or "")
        with _private(os.path.join(_RUN, name)) as private:
            out, err, variables = (os.path.join(private, n) for n in ("out", "err", "variables"))
            _write_variables(variables, settings)
            words = ["systemd-run", "--collect", "--service-type=oneshot"]
            words += [f"--unit={name}.service", *flags(unit, _version())]
            # Not --pipe: it needs D-Bus. systemd opens these files before the sandbox applies.
            ours = [
                ("StandardOutput", f"file:{out}"),
                ("StandardError", f"file:{err}"),
                ("EnvironmentFile", variables),
                ("TimeoutStartSec", f"{timeout:g}"),
                ("TimeoutStopSec", str(_GRACE_S)),
                ("UMask", "0022"),
            ]
            if cwd or self.app:  # the unit's may not be there yet; the last one counts
                ours.append(("WorkingDirectory", cwd or self.app))
            if given:
                stdin = os.path.join(private, "in")
                with open(stdin, "w", encoding="utf-8") as file:
                    file.write(given)
                ours.append(("StandardInput", f"file:{stdin}"))
            if writable:
                ours += writing(writable, unit, _WRITTEN_BYTES)
            else:
                ours.append(("LimitFSIZE", str(_OUTPUT_BYTES)))  # more than it should print
            words += flags(ours, None)
            began = time.monotonic()
            try:
                done = subprocess.run(
                    # $$: systemd would replace variables
                    [*words, "--", *(word.replace("$", "$$") for word in argv)],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=timeout + 6 * _GRACE_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                _systemctl("kill", "-s", "KILL", f"{name}.service")
                raise
            said, complained = _text(out), _text(err)
        if done.returncode != 0 and time.monotonic() - began >= timeout:
            raise subprocess.TimeoutExpired(argv, timeout, said, complained)
        if done.returncode != 0 and not said.strip() and not complained.strip():
            _refuse_unstarted(f"{name}.service")
            complained = done.stderr  # systemd's own: killed by a signal, no such user, ...
        return subprocess.CompletedProcess(argv, min(done.returncode, 1), said, complained)


DIRECT = Sandbox("user", None)  # for the host's own programs, which came with no release


def properties(unit_text: str) -> list[Property]:
    """The lines of [Service] that say who the service is and what it may do, in order."""
    lines = service_lines(unit_text)
    return [(name, value) for name, value in lines if not _OF_A_SERVICE.fullmatch(name)]


def writing(directory: str, unit: Sequence[Property], most: int) -> list[Property]:
    """What allows writing below `directory`, in files of at most `most` bytes.

    Where the unit limits from where programs may run, it allows that directory too. Where its file
    system is not read-only (`service.hardening: container`), nothing has to be allowed.
    """
    grants = [("LimitFSIZE", str(most))]
    if any(name in namespaces.NAMES for name, _ in unit):
        grants.append(("ReadWritePaths", _quoted(directory)))
    if any(name in ("ExecPaths", "NoExecPaths") for name, _ in unit):
        grants.append(("ExecPaths", _quoted(directory)))
    return grants


def flags(wanted: Sequence[Property], version: int | None) -> list[str]:
    """Options of systemd-run, without those that systemd `version` (None: the newest) lacks."""
    return [
        f"--property={name}={value}"
        for name, value in wanted
        if version is None or _SINCE.get(name, 0) <= version
    ]


def _refuse_unstarted(unit: str) -> None:
    """Raises HostError ("refused"): systemd could not start the program at all, and why."""
    lines = []
    argv = ["journalctl", "--no-pager", "--output=cat", "--lines=20", f"--unit={unit}"]
    for words in (["journalctl", "--sync"], argv):  # journald may be behind
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=20, check=False
            )
            lines = done.stdout.splitlines()
    step, said = starting.refused_step(lines)
    if remedy := starting.remedy(step, said):
        raise HostError(
            "systemd can't start a release's programs on this host",
            why=said,
            hint=remedy,
            live="unchanged",
            kind="refused",
        )


def _version() -> int | None:
    """The version of this systemd; None: unknown."""
    done = subprocess.run(
        ["systemctl", "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    match = re.match(r"systemd (\d+)", done.stdout)
    return int(match[1]) if match else None


def _quoted(path: str) -> str:
    """A path as one element of a list of paths."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _nobody(why: str) -> HostError:
    return HostError(
        "what came with a release is not run as root",
        why=why,
        hint="invoke provision makes the account and its unit",
        live="unchanged",
        kind="refused",
    )


@contextlib.contextmanager
def _private(path: str) -> Iterator[str]:
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    argv = ["systemctl", *words]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{' '.join(argv)} gave no answer in 60 s", live="unchanged") from error


def _own(path: str, uid: int, gid: int) -> None:
    """Change the owner from the top down, so that nobody can move files below meanwhile."""
    os.lchown(path, uid, gid)
    if os.path.islink(path):
        return
    executable = os.path.isdir(path) or os.access(path, os.X_OK)
    os.chmod(path, 0o755 if executable else 0o644)
    if os.path.isdir(path):
        for name in os.listdir(path):
            _own(os.path.join(path, name), uid, gid)


def _write_variables(path: str, settings: dict[str, str]) -> None:
    """An environment file; in single quotes every byte but the quote is literal."""
    for name, value in settings.items():
        if not value.isprintable() or "'" in value:
            raise HostError(
                f"{name} has a character that no environment file can hold", live="unchanged"
            )
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{name}='{value}'\n" for name, value in settings.items())


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_OUTPUT_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
