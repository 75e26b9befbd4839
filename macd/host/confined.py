"""Run what came with a release as its service runs: same user, same walls, never as root.

A deploy is root's work on a real host, and a release is not trusted with root before it serves nor
while it serves: its check, its packages and its pip get the unit's own user and hardening, and may
write nowhere but where they are told. Without a systemd of the system (the embedded lab, a user's
manager) whoever logs in is who serves, and runs them directly.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from macd.host.failure import HostError

_GRACE_S = 5
_OUTPUT_BYTES = 1 << 20
# What makes the unit a service; all else in its [Service] is who it is and what it may do.
_OF_A_SERVICE = re.compile(
    r"Type|Exec\w+|Restart\w*|Timeout\w+|WatchdogSec|NotifyAccess|Standard\w+|Sockets|PIDFile"
    r"|RemainAfterExit|SuccessExitStatus|ReadWritePaths|LimitFSIZE|UMask|(Runtime|State|Logs)\w+"
)
# A unit's line that an older systemd does not know is ignored; systemd-run refuses it.
_SINCE = {
    "ProtectHostname": 242,
    "ProtectKernelLogs": 244,
    "ProtectClock": 245,
    "ProtectProc": 247,
    "ProcSubset": 247,
    "PrivateIPC": 248,
}
_STRAY = ("PYTHON", "PIP_")


@dataclass(frozen=True)
class Confinement:
    """The walls of one unit: its scope, and the text of its file (None: there is none)."""

    scope: str
    unit_text: Optional[str]

    @property
    def is_real(self) -> bool:
        """Whether a process can be put behind them here: a system's systemd, asked by root."""
        root = os.geteuid() == 0
        return self.scope == "system" and root and os.path.isdir("/run/systemd/system")

    @property
    def user(self) -> str:
        """The account behind them, "" where it is whoever logs in (or the unit names none)."""
        named = [value for name, value in _properties(self.unit_text or "") if name == "User"]
        return named[-1] if named and self.is_real else ""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        settings: Optional[Dict[str, str]] = None,
        writable: str = "",
    ) -> "subprocess.CompletedProcess[str]":
        """Run it to its end; behind the walls any failure's return code is 1.

        Args:
            timeout: seconds; then it is ended, though nobody should be here any more to do that.
            settings: variables for it alone; they may hold secrets, so they are in no argv.
            writable: the one directory it may write, besides a /tmp of its own.

        Raises:
            OSError, subprocess.TimeoutExpired: as subprocess.run.
        """
        if self.is_real:
            return self._behind_walls(list(argv), timeout, settings or {}, writable)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_STRAY)}
        environment.update(settings or {})
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            check=False,
        )

    def _behind_walls(
        self, argv: List[str], timeout: float, settings: Dict[str, str], writable: str
    ) -> "subprocess.CompletedProcess[str]":
        name = f"macd-confined-{secrets.token_hex(6)}.service"
        with tempfile.TemporaryDirectory(prefix="macd-", dir="/run") as private:
            out, err, variables = (os.path.join(private, n) for n in ("out", "err", "variables"))
            _write_variables(variables, settings)
            words = ["systemd-run", "--collect", "--service-type=oneshot"]
            words += [f"--unit={name}", *_flags(_properties(self.unit_text or ""), _version())]
            # Not --pipe: it needs D-Bus; systemd opens these for it before any wall is up.
            words += _flags(
                [
                    ("StandardOutput", f"file:{out}"),
                    ("StandardError", f"file:{err}"),
                    ("EnvironmentFile", variables),
                    ("TimeoutStartSec", f"{timeout:g}"),
                    ("TimeoutStopSec", str(_GRACE_S)),
                    ("UMask", "0022"),
                    # More than it should say; what may write elsewhere is not held to it.
                    *(
                        [("ReadWritePaths", writable)]
                        if writable
                        else [("LimitFSIZE", str(_OUTPUT_BYTES))]
                    ),
                ],
                None,
            )
            began = time.monotonic()
            try:
                done = subprocess.run(
                    # systemd would put variables in
                    [*words, "--", *(word.replace("$", "$$") for word in argv)],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=timeout + 6 * _GRACE_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                subprocess.run(["systemctl", "kill", "-s", "KILL", name], check=False)
                raise
            said, complained = _text(out), _text(err)
        if done.returncode != 0 and time.monotonic() - began >= timeout:
            raise subprocess.TimeoutExpired(argv, timeout, said, complained)
        if done.returncode != 0 and not said.strip() and not complained.strip():
            complained = done.stderr  # systemd's words: killed by a signal, no such user, ...
        return subprocess.CompletedProcess(argv, min(done.returncode, 1), said, complained)

    def give(self, directory: str) -> None:
        """Let what runs behind the walls change what is in `directory`."""
        if self.user:
            found = pwd.getpwnam(self.user)
            _own(directory, found.pw_uid, found.pw_gid)

    def take(self, directory: str) -> None:
        """Root's again: from here on nobody else changes what is in `directory`."""
        if self.user:
            _own(directory, 0, 0)


DIRECT = Confinement("user", None)  # what did not come with a release: the host's own programs


def _own(path: str, uid: int, gid: int) -> None:
    """From the top down, so that nobody moves things about below what was taken."""
    os.lchown(path, uid, gid)
    if os.path.islink(path):
        return
    executable = os.path.isdir(path) or os.access(path, os.X_OK)
    os.chmod(path, 0o755 if executable else 0o644)
    if os.path.isdir(path):
        for name in os.listdir(path):
            _own(os.path.join(path, name), uid, gid)


def _properties(unit_text: str) -> List[Tuple[str, str]]:
    """The lines of [Service] that say who it is and what it may do, in order."""
    found = []
    section = ""
    for line in unit_text.replace("\\\n", " ").splitlines():
        text = line.strip()
        if text.startswith("["):
            section = text
        elif section == "[Service]" and "=" in text and text[0] not in "#;":
            name, _, value = text.partition("=")
            if not _OF_A_SERVICE.fullmatch(name.strip()):
                found.append((name.strip(), value.strip()))
    return found


def _flags(properties: Sequence[Tuple[str, str]], version: Optional[int]) -> List[str]:
    return [
        f"--property={name}={value}"
        for name, value in properties
        if version is None or _SINCE.get(name, 0) <= version
    ]


def _version() -> Optional[int]:
    """The number of this systemd; None where it does not say."""
    done = subprocess.run(
        ["systemctl", "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    match = re.match(r"systemd (\d+)", done.stdout)
    return int(match[1]) if match else None


def _write_variables(path: str, settings: Dict[str, str]) -> None:
    """An environment file; in single quotes every byte but the quote stands for itself."""
    for name, value in settings.items():
        if not value.isprintable() or "'" in value:
            raise HostError(f"{name} holds what no environment file can", live="unchanged")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{name}='{value}'\n" for name, value in settings.items())


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_OUTPUT_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
