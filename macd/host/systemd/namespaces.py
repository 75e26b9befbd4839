"""Protection of a unit that needs namespaces, and whether this host's systemd can make them.

An unprivileged container may not. There systemd starts one unit not at all (status 226/NAMESPACE or
217/USER), and the next without that protection and without a word. `service.hardening: container`
leaves it out, openly.
"""

from __future__ import annotations

import os
import secrets
import subprocess

from macd.host.systemd.unitfile import service_lines

FULL, CONTAINER = "full", "container"
REMEDY = "service.hardening: container in the inventory, then invoke provision"
# Tried on systemd 252 where unshare(2) and where chroot(2) were refused: each of these failed, or
# was passed over. What filters system calls, capabilities and limits held.
NAMES = frozenset(
    (
        *("ProtectSystem", "ProtectHome", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths"),
        *("ExecPaths", "NoExecPaths", "PrivateTmp", "PrivateDevices", "PrivateMounts"),
        *("PrivateUsers", "PrivateIPC", "ProtectHostname", "ProtectKernelTunables"),
        *("ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
        *("ProtectProc", "ProcSubset"),
    )
)
# What is asked of systemd to find out; each is as old as the oldest systemd that macd serves on.
_ASKED = ("ProtectSystem=strict", "PrivateTmp=yes", "PrivateDevices=yes", "PrivateUsers=yes")
_SIGNS = ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")
_SHARED = "3"  # exit status of the trial: it has no mount namespace of its own
STEPS = {"NAMESPACE": "226", "USER": "217"}  # of systemd, that fail, and their exit status
_TRIAL_S = 20


def without(text: str) -> str:
    """A unit's text without the lines that need namespaces."""
    kept = [x for x in text.splitlines(keepends=True) if x.partition("=")[0].strip() not in NAMES]
    return "".join(kept)


def wants(text: str | None) -> bool:
    """Whether a unit of this text needs namespaces; one that is yet to be written will."""
    return text is None or any(name in NAMES for name, _ in service_lines(text))


def trouble(scope: str, unit_text: str | None, pid: int) -> str:
    """Why systemd makes no namespaces for the service here; "" if it does, or needs none.

    Args:
        unit_text: of the service; None where it is not there yet.
        pid: of its main process, 0 where none runs. If it has namespaces, nothing is tried.
    """
    root = scope == "system" and os.geteuid() == 0 and os.path.isdir("/run/systemd/system")
    if not root or not wants(unit_text) or not any(map(os.path.exists, _SIGNS)):
        return ""
    own = mount_namespace(1)
    if not own or (pid and mount_namespace(pid) not in ("", own)):
        return ""
    return _try(own)


def mount_namespace(pid: int) -> str:
    """Its name, such as "mnt:[4026531841]"; "" where it can't be read."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _try(own: str) -> str:
    """Start a process as the service is started; it compares its mount namespace with `own`."""
    unit = f"macd-namespaces-{secrets.token_hex(6)}.service"
    words = ["systemd-run", "--quiet", "--service-type=oneshot", f"--unit={unit}"]
    words += [f"--property={line}" for line in _ASKED]
    script = f'[ "$(readlink /proc/self/ns/mnt)" != "$0" ] || exit {_SHARED}'.replace("$", "$$")
    if _output([*words, "--", "/bin/sh", "-c", script, own])[0] == 0:
        return ""
    _, status = _output(["systemctl", "show", unit, "--property=ExecMainStatus", "--value"])
    _output(["systemctl", "reset-failed", unit])
    return _meaning(status.strip())


def _meaning(status: str) -> str:
    """What the exit status of a trial that failed shows; "" where it shows nothing. Pure."""
    if status == _SHARED:
        return "systemd can make no mount namespace here, and starts units without one"
    steps = [step for step, code in STEPS.items() if code == status]
    return f"systemd can start no such process here (status {status}/{steps[0]})" if steps else ""


def _output(argv: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_TRIAL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return -1, ""
    return done.returncode, done.stdout
