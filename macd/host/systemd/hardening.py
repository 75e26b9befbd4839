"""What a unit's [Service] says of who runs and what it may do, as properties for systemd-run.

Pure, but for the one question which systemd this is.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

Property = tuple[str, str]
# What makes the unit a service, or gives it what only the service needs (secrets first of all);
# all else in its [Service] is who it is and what it may do. How a run ends is ours to say, too: a
# KillMode that spares children would let what came with a release outlive it.
_OF_A_SERVICE = re.compile(
    r"Type|Exec(?!Paths)\w+|Restart\w*|Timeout\w+|Watchdog\w+|NotifyAccess|Standard\w+|Sockets"
    r"|PIDFile|RemainAfterExit|SuccessExitStatus|ReadWritePaths|LimitFSIZE|UMask"
    r"|(Runtime|State|Logs|Cache|Configuration)\w+|EnvironmentFile|\w*Credential\w*|OpenFile"
    r"|Kill\w+|Send\w+|\w+Signal|OOMPolicy|BusName|FileDescriptorStore\w+|GuessMainPID"
    r"|NonBlocking|RootDirectoryStartOnly"
)
# A unit's line that an older systemd does not know is ignored; systemd-run refuses it.
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


def properties(unit_text: str) -> list[Property]:
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


def writing(directory: str, unit: Sequence[Property], most: int) -> list[Property]:
    """What lets it write below `directory`, no file of more than `most` bytes.

    And run what it put there, where the unit says from where programs may come.
    """
    found = [("ReadWritePaths", _quoted(directory)), ("LimitFSIZE", str(most))]
    if any(name in ("ExecPaths", "NoExecPaths") for name, _ in unit):
        found.append(("ExecPaths", _quoted(directory)))
    return found


def flags(wanted: Sequence[Property], version: int | None) -> list[str]:
    """As systemd-run takes them; without what systemd `version` (None: the newest) lacks."""
    return [
        f"--property={name}={value}"
        for name, value in wanted
        if version is None or _SINCE.get(name, 0) <= version
    ]


def version() -> int | None:
    """The number of this systemd; None where it does not say."""
    done = subprocess.run(
        ["systemctl", "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    match = re.match(r"systemd (\d+)", done.stdout)
    return int(match[1]) if match else None


def _quoted(path: str) -> str:
    """One word of a list, whatever is in it."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
